import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.segment_anything.publisher import draw_checkpoint
from tests.models.segment_anything.sam2_publisher import VIDEO_NAMES, checkpoint_of
from tests.models.segment_anything.tiny import SIZE, sam2_model, smooth_pictures, write_onnx
from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load, resolve
from vitdeploy.models.families import sam2
from vitdeploy.models.segment_anything.sam2_publisher import sam2_from_publisher
from vitdeploy.onnx_export import check_parity
from vitdeploy.targets.onnx import OrtRunner


@pytest.fixture
def folder(tmp_path):
    sam2_model().save_pretrained(tmp_path / "sam2")
    return tmp_path / "sam2"


def test_a_folder_gives_transformers_outputs(folder, tmp_path):
    loaded = load(LoadOptions(str(folder)))
    encoder, decoder = loaded.parts
    pixels = torch.from_numpy(smooth_pictures(1, 128))
    points, labels = 128 * torch.rand(1, 1, 2, 2), torch.tensor([[[1, 0]]])
    with torch.no_grad():
        expected = sam2_model()(pixel_values=pixels, input_points=points, input_labels=labels)
        feeds = {n: torch.from_numpy(v) for n, v in decoder.example(1).items()}
        feeds |= dict(zip((t.name for t in encoder.outputs), encoder.module(pixels), strict=True))
        feeds["point_coords"] = torch.cat([points[0], torch.zeros(1, 1, 2)], 1)
        feeds["point_labels"] = torch.tensor([[1.0, 0.0, -1.0]])
        feeds["has_mask_input"] = torch.zeros(1)
        _, quality, low = decoder.module(*feeds.values())
    # float32 sums in another order, over small outputs
    torch.testing.assert_close(low[:, 1:], expected.pred_masks[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(quality[:, 1:], expected.iou_scores[0], atol=1e-5, rtol=0)
    assert (loaded.spec.family, loaded.spec.preprocess.crop_mode) == ("sam2", "squash")
    assert [t.name for t in encoder.outputs] == [
        "image_embeddings",
        "high_res_feats_0",
        "high_res_feats_1",
    ]
    with OrtRunner(write_onnx(decoder, tmp_path, 128)) as runner:
        assert all(row.passed for row in check_parity(decoder, runner, pixels.numpy(), [1, 3]))


def test_a_video_folder_gives_its_image_parts(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
    weights = load_file(folder / "model.safetensors")
    memory = {"memory_encoder.projection.weight": torch.ones(2), "no_object_pointer": torch.ones(1)}
    save_file({**weights, **memory}, folder / "model.safetensors", {"format": "pt"})
    assert resolve(str(folder)).family == "sam2"
    loaded = load(LoadOptions(str(folder)))
    assert [part.name for part in loaded.parts] == ["image_encoder", "mask_decoder"]
    save_file({**weights, "mask_decoder.extra": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 unexpected \(mask_decoder.extra\)"):
        load(LoadOptions(str(folder)))


@pytest.fixture
def published(tmp_path):
    """The publisher's file of the tiny model, and its tensors."""
    weights = checkpoint_of(sam2_model())
    torch.save({"model": weights}, tmp_path / "sam2.1_hiera_tiny.pt")
    return tmp_path / "sam2.1_hiera_tiny.pt", weights


def test_a_publishers_checkpoint_gives_transformers_weights(folder, published):
    file, weights = published
    assert all(bool((t != 0).all()) for name, t in weights.items() if name not in VIDEO_NAMES)
    (folder / "model.safetensors").unlink()
    loaded = load(LoadOptions(str(folder), checkpoint=file))
    assert loaded.spec.weights == "checkpoint"
    expected = sam2_model()
    pixels = torch.from_numpy(smooth_pictures(1, 128))
    points, labels = 128 * torch.rand(1, 1, 2, 2), torch.tensor([[[1, 0]]])
    encoder, decoder = loaded.parts
    feeds = {n: torch.from_numpy(v) for n, v in decoder.example(1).items()}
    feeds["point_coords"] = torch.cat([points[0], torch.zeros(1, 1, 2)], 1)
    feeds["point_labels"] = torch.tensor([[1.0, 0.0, -1.0]])
    feeds["has_mask_input"] = torch.zeros(1)
    with torch.no_grad():
        wanted = expected(pixel_values=pixels, input_points=points, input_labels=labels)
        feeds |= dict(zip((t.name for t in encoder.outputs), encoder.module(pixels), strict=True))
        _, quality, low = decoder.module(*feeds.values())
    # float32 sums in another order, over small outputs
    torch.testing.assert_close(low[:, 1:], wanted.pred_masks[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(quality[:, 1:], wanted.iou_scores[0], atol=1e-5, rtol=0)


def test_every_published_tensor_gets_its_place(published):
    named = sam2_from_publisher(published[1])
    expected = sam2_model().state_dict()
    assert set(named) == set(expected)
    for name, value in expected.items():
        assert torch.equal(named[name], value), name


def test_a_publishers_checkpoint_that_does_not_fit_is_refused(folder, published, tmp_path):
    file, weights = published
    options = LoadOptions(str(folder), checkpoint=file)
    torch.save({"model": {**weights, "sam_mask_decoder.gate": torch.ones(1)}}, file)
    with pytest.raises(ModelError, match=r"1 unexpected \(mask_decoder.gate\)"):
        load(options)
    kept = {n: t for n, t in weights.items() if n != "sam_prompt_encoder.point_embeddings.2.weight"}
    torch.save({"model": kept}, file)
    with pytest.raises(ModelError, match=r"1 missing \(prompt_encoder.point_embed.weight\)"):
        load(options)
    torch.save(draw_checkpoint(SIZE), file)
    with pytest.raises(ModelError, match="it is for MODEL sam-vitb, sam-vitl or sam-vith"):
        load(options)
    torch.save({"model": weights}, file)
    with pytest.raises(ModelError, match=r"it is for MODEL sam2-tiny to sam2-large, or sam2\.1"):
        load(LoadOptions("sam-vitb", checkpoint=file))


def test_another_image_size(folder):
    loaded = load(LoadOptions(str(folder), image_size=64))
    assert loaded.parts[0].outputs[0].shape == ("batch", 32, 4, 4)
    assert "resampled" in loaded.spec.notes[0]
    with pytest.raises(ModelError, match=r"multiples of 32 pixels. Nearest: 64 or 96"):
        load(LoadOptions(str(folder), image_size=80))


@pytest.mark.parametrize(
    ("name", "width", "depth", "window"),
    [
        ("sam2-tiny", 96, 12, 14),
        ("sam2.1-small", 96, 16, 14),
        ("sam2.1-base-plus", 112, 24, 14),
        ("sam2-large", 144, 48, 16),
    ],
)
def test_aliases_know_their_architecture_without_a_network(name, width, depth, window):
    from transformers import Sam2Config

    reference = resolve(name)
    assert (reference.family, reference.kind) == ("sam2", "hf")
    trunk = Sam2Config(**sam2._KNOWN[reference.value]).vision_config.backbone_config
    assert (trunk.hidden_size, sum(trunk.blocks_per_stage)) == (width, depth)
    assert trunk.window_size_per_stage[2] == window
    # the last stage but one alternates: a few blocks there see the whole map
    whole = trunk.global_attention_blocks
    assert sum(trunk.blocks_per_stage[:2]) <= min(whole) < max(whole) < depth
