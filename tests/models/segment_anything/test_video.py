"""SAM 2's video parts beside transformers' own memory, and a shape tracked over frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitdeploy
from tests.models.segment_anything.tiny import sam2_model, sam2_video_model
from vitdeploy.data import Preprocess, prepare
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models import LoadOptions, load
from vitdeploy.runner import TorchRunner

FRAMES = 9
"""More than are remembered, so that the oldest are forgotten."""
POINT = (40.0, 60.0)


@pytest.fixture(scope="module")
def model() -> Any:
    """transformers' model with a short memory."""
    return sam2_video_model(num_maskmem=4, max_object_pointers_in_encoder=5)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """The model as transformers saves it."""
    path = tmp_path_factory.mktemp("sam2-video") / "model"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A disc that moves over a still background, (150, 200, 3) uint8 each."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (10, 13, 3), np.uint8)
    ground = np.asarray(Image.fromarray(cells).resize((200, 150), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:150, :200]
    shown = []
    for number in range(FRAMES):
        inside = (rows - 60 - 4 * number) ** 2 + (columns - 40 - 9 * number) ** 2 < 22**2
        shown.append(np.where(inside[..., None], np.array([230, 40, 60], np.uint8), ground))
    return shown


def tracked_by_torch(model: Any, frames: list[np.ndarray], preprocess: Preprocess) -> list[Any]:
    """(low-resolution logits (h, w), object score) of each frame, streamed as they come."""
    from transformers import Sam2VideoInferenceSession

    session = Sam2VideoInferenceSession(
        video=None, video_height=150, video_width=200, inference_device="cpu", dtype=torch.float32
    )
    index = session.obj_id_to_idx(1)
    place = torch.tensor([[[[POINT[0] * 128 / 200, POINT[1] * 128 / 150]]]])
    labels = torch.ones(1, 1, 1, dtype=torch.int32)
    session.add_point_inputs(index, 0, {"point_coords": place, "point_labels": labels})
    session.obj_with_new_inputs.append(1)
    found = []
    for frame in frames:
        pixels = torch.from_numpy(prepare(Image.fromarray(frame), preprocess))
        with torch.inference_mode():
            output = model(session, frame=pixels)
        found.append((output.pred_masks[0, 0].numpy(), float(output.object_score_logits)))
    return found


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory, frames) -> Path:
    """A bundle for two engines."""
    place = tmp_path_factory.mktemp("sam2-video-bundle")
    (place / "images").mkdir()
    for number in (0, 4, 8):
        Image.fromarray(frames[number]).save(place / f"images/{number}.png")
    report = vitdeploy.export(
        str(folder),
        output=place / "bundle",
        targets=["onnx", "openvino"],
        evaluation={"path": str(place / "images")},
        measure={"seconds": 0},
        model_options={"video": True},
    )
    parts = {"image_encoder", "mask_decoder", "memory_attention", "memory_encoder"}
    assert {row.part for row in report.parity} == parts
    return place / "bundle"


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_moving_shape_is_tracked_as_torch_tracks_it(model, bundle, frames, target, monkeypatch):
    with vitdeploy.VideoPredictor(bundle, target) as predictor:
        seen = [predictor.start(frames[0], [POINT])]
        seen += [predictor.track(frame) for frame in frames[1:]]
        with monkeypatch.context() as exact:
            # torch's session keeps its memories in bfloat16, whose 8 bits would hide a mistake
            exact.setattr(torch, "bfloat16", torch.float32)
            expected = tracked_by_torch(model, frames, predictor.preprocess)
        assert len({one.mask.tobytes() for one in seen}) == FRAMES
        for own, (logits, score) in zip(seen, expected, strict=True):
            assert np.abs(own.low_res_logits - logits).max() <= 2e-3 * np.abs(logits).max()
            assert own.object_score == pytest.approx(score, rel=2e-3, abs=2e-3)
            assert own.mask.shape == (150, 200)
        # from a new start on, nothing is remembered
        again = predictor.start(frames[0], [POINT])
        np.testing.assert_array_equal(again.low_res_logits, seen[0].low_res_logits)
        np.testing.assert_allclose(
            predictor.track(frames[1]).low_res_logits, seen[1].low_res_logits, rtol=1e-4, atol=1e-4
        )


def test_memories_change_what_is_seen(bundle, frames):
    with vitdeploy.VideoPredictor(bundle) as predictor:
        predictor.start(frames[0], [POINT])
        after_one = predictor.track(frames[5]).low_res_logits
        predictor.start(frames[8], [(150.0, 100.0)])
        after_other = predictor.track(frames[5]).low_res_logits
    # 25 times what the comparison with torch allows
    assert np.abs(after_one - after_other).max() > 0.05 * np.abs(after_one).max()


def test_the_bundle_is_checked_part_by_part(bundle):
    checked = vitdeploy.check(bundle)
    assert all(gate.passed for gate in checked.gates)
    names = {gate.name for gate in checked.gates}
    assert "golden_sqnr_db:openvino:memory_attention" in names
    assert "golden_sqnr_db:onnx:memory_encoder" in names


def test_the_same_bundle_answers_for_single_pictures(bundle, frames):
    with vitdeploy.load(bundle) as predictor:
        mask = predictor.set_image(frames[0]).predict([POINT])
    assert mask.masks.shape == (1, 150, 200)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_memory_attention_is_transformers_own(model, folder, count):
    """One module on drawn memories: no rounding of memories on the way."""
    part = next(
        p for p in load(LoadOptions(str(folder), video=True)).parts if "attention" in p.name
    )
    feeds = part.example(count)
    seen = TorchRunner(part)(feeds)["tracked_embeddings"]
    given = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        coarse = given["image_embeddings"] - model.no_memory_embedding.reshape(1, -1, 1, 1)
        place = model.vision_encoder.neck.position_encoding(coarse.shape, "cpu", torch.float32)
        shape = given["memories"].shape
        there = model.memory_encoder.position_encoding(shape, "cpu", torch.float32)
        rows = [int(age) - 1 for age in given["memory_ages"]]
        times = model.memory_temporal_positional_encoding[rows].reshape(count, -1, 1, 1)
        pointers, positions = model._process_object_pointers(
            given["pointer_ages"].tolist(), list(given["object_pointers"].unsqueeze(1)), 5, 1, 128,
            torch.device("cpu"),
        )  # fmt: skip

        def flat(maps: torch.Tensor) -> torch.Tensor:
            return maps.flatten(2).permute(0, 2, 1).reshape(-1, 1, maps.shape[1])

        expected = model.memory_attention(
            current_vision_features=flat(coarse),
            current_vision_position_embeddings=flat(place),
            memory=torch.cat([flat(given["memories"]), pointers]),
            memory_posision_embeddings=torch.cat([flat(there + times), positions]),
            num_object_pointer_tokens=len(pointers),
        )
    expected = expected.squeeze(1).transpose(1, 2).reshape(seen.shape).numpy()
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-4)


def test_what_has_no_memory_is_refused(folder, tmp_path, bundle):
    with pytest.raises(UsageError, match="--video: 'vit-digits' is no SAM 2"):
        load(LoadOptions("vit-digits", video=True))
    with pytest.raises(ModelError, match="video parts are made for the model's own 128 pixels"):
        load(LoadOptions(str(folder), video=True, image_size=256))
    sam2_model().save_pretrained(tmp_path / "images-only")
    with pytest.raises(ModelError, match=r"lacks|missing"):
        load(LoadOptions(str(tmp_path / "images-only"), video=True))
    sam2_video_model(multimask_output_for_tracking=False).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="multimask_output_for_tracking is False"):
        load(LoadOptions(str(tmp_path / "other"), video=True))
    with (
        vitdeploy.VideoPredictor(bundle) as predictor,
        pytest.raises(UsageError, match="nothing to follow yet"),
    ):
        predictor.track(np.zeros((8, 8, 3), np.uint8))


def test_a_bundle_without_memory_is_refused(folder, tmp_path):
    vitdeploy.export(
        str(folder), output=tmp_path / "out", evaluation={"samples": 1}, measure={"seconds": 0}
    )
    with pytest.raises(UsageError, match="no memory of earlier frames; export a SAM 2 with"):
        vitdeploy.VideoPredictor(tmp_path / "out")
