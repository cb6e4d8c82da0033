import numpy as np
import pytest
import torch

from tests.models.segment_anything.publisher import draw_checkpoint, mask_decoder, resized_masks
from tests.models.segment_anything.tiny import SIZE, sam2_model, sam_config, sam_model, write_onnx
from vitdeploy.models.segment_anything.decoder import HighResolutionMaskDecoder, MaskDecoder
from vitdeploy.models.segment_anything.parts import decoder_part
from vitdeploy.models.segment_anything.publisher import transformers_from_publisher
from vitdeploy.onnx_export import check_parity
from vitdeploy.targets.onnx import OrtRunner

FEATURES = {"image_embeddings": (32, 8, 8)}
# float32 sums in another order, over logits of size 1
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def published() -> MaskDecoder:
    return decoder_of(single_mask=False)


def decoder_of(*, single_mask: bool) -> MaskDecoder:
    from transformers import SamModel

    config = sam_config()
    config.mask_decoder_config.layer_norm_eps = 1e-5
    model = SamModel._from_config(config, attn_implementation="eager")
    model.load_state_dict(transformers_from_publisher(draw_checkpoint(SIZE)))
    return MaskDecoder(model, SIZE.image, frame="longest_side", single_mask=single_mask).eval()


def feeds_of(
    labels: list[list[int]], *, has_mask: int = 0, picture: tuple[int, int] = (90, 70)
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(labels[0]))
    return {
        "image_embeddings": torch.randn(1, 32, 8, 8, generator=generator),
        "point_coords": 128 * torch.rand(len(labels), len(labels[0]), 2, generator=generator),
        "point_labels": torch.tensor(labels, dtype=torch.float32),
        "mask_input": 5 * torch.randn(1, 1, 32, 32, generator=generator),
        "has_mask_input": torch.tensor([float(has_mask)]),
        "orig_im_size": torch.tensor([float(v) for v in picture]),
    }


PROMPTS = {
    "a point": feeds_of([[1, -1]]),
    "points": feeds_of([[1, 0, 1, -1]]),
    "a box": feeds_of([[2, 3]]),
    "a box and a point": feeds_of([[0, 2, 3]]),
    "several prompts": feeds_of([[1, -1, -1], [0, 1, -1], [1, 2, 3]]),
    "an earlier mask": feeds_of([[1, -1]], has_mask=1),
    "a wide picture": feeds_of([[1, -1]], picture=(61, 333)),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_publishers_weights_give_the_publishers_masks(published, kind):
    with torch.no_grad():
        found = published(**PROMPTS[kind])
    expected = mask_decoder(draw_checkpoint(SIZE), SIZE, PROMPTS[kind])
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == wanted.shape
        assert wanted.std() > 0.1
        torch.testing.assert_close(value, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("labels", "first"), [([[1, -1]], False), ([[1, 1, -1]], True)])
def test_one_mask_is_chosen_as_the_reference_chooses(published, labels, first):
    feeds = feeds_of(labels)
    with torch.no_grad():
        masks, quality, low = decoder_of(single_mask=True)(**feeds)
        all_masks, all_quality, all_low = published(**feeds)
    best = 0 if first else 1 + int(all_quality[0, 1:].argmax())
    assert masks.shape == (1, 1, 90, 70)
    torch.testing.assert_close(masks, all_masks[:, best : best + 1])
    torch.testing.assert_close(quality, all_quality[:, best : best + 1])
    torch.testing.assert_close(low, all_low[:, best : best + 1])


def test_prompts_do_not_see_each_other(published):
    together = PROMPTS["several prompts"]
    with torch.no_grad():
        masks = published(**together)[0]
        for row in range(3):
            one = {k: v[row : row + 1] if k.startswith("point") else v for k, v in together.items()}
            torch.testing.assert_close(published(**one)[0][0], masks[row], atol=1e-5, rtol=0)


def test_the_mask_is_ignored_unless_it_is_announced(published):
    feeds = feeds_of([[1, -1]])
    with torch.no_grad():
        first = published(**feeds)[2]
        assert torch.equal(
            published(**{**feeds, "mask_input": torch.zeros(1, 1, 32, 32)})[2], first
        )
        other = published(**{**feeds, "has_mask_input": torch.ones(1)})[2]
    assert (other - first).abs().max() > 0.1


@pytest.mark.parametrize("single_mask", [False, True])
def test_its_graph_takes_any_number_of_prompts_and_points(tmp_path, single_mask):
    part = decoder_part(decoder_of(single_mask=single_mask), SIZE.image, FEATURES)
    with OrtRunner(write_onnx(part, tmp_path, SIZE.image)) as runner:
        rows = check_parity(part, runner, np.zeros((1, 3, 128, 128), np.float32), [1, 2, 3])
        assert all(row.passed for row in rows)
        for feeds in PROMPTS.values():
            with torch.no_grad():
                expected = part.module(**feeds)
            found = runner({name: value.numpy() for name, value in feeds.items()})
            assert list(found) == ["masks", "iou_predictions", "low_res_masks"]
            for value, wanted in zip(found.values(), expected, strict=True):
                np.testing.assert_allclose(value, wanted.numpy(), atol=TOLERANCE)


def test_transformers_weights_give_transformers_masks():
    model = sam_model()
    decoder = MaskDecoder(model, SIZE.image, frame="longest_side", single_mask=False).eval()
    feeds = feeds_of([[1, 0, -1]])
    with torch.no_grad():
        expected = model(
            image_embeddings=feeds["image_embeddings"],
            input_points=feeds["point_coords"][:, None, :2],
            input_labels=feeds["point_labels"][:, None, :2].int(),
        )
        # transformers pads with (0, 0), whose place counts for nothing
        _, quality, low = decoder(**feeds)
    torch.testing.assert_close(low[:, 1:], expected.pred_masks[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(quality[:, 1:], expected.iou_scores[0], atol=TOLERANCE, rtol=0)


def test_sam_2_stretches_the_picture_and_reads_finer_features():
    model = sam2_model()
    decoder = HighResolutionMaskDecoder(model, 128, single_mask=False).eval()
    feeds = feeds_of([[1, 0, -1]])
    fine, middle = torch.randn(1, 4, 32, 32), torch.randn(1, 8, 16, 16)
    with torch.no_grad():
        expected = model(
            image_embeddings=[fine, middle, feeds["image_embeddings"]],
            input_points=feeds["point_coords"][:, None, :2],
            input_labels=feeds["point_labels"][:, None, :2].int(),
        )
        masks, quality, low = decoder(high_res_feats_0=fine, high_res_feats_1=middle, **feeds)
        without = decoder(high_res_feats_0=0 * fine, high_res_feats_1=middle, **feeds)[2]
    torch.testing.assert_close(low[:, 1:], expected.pred_masks[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(quality[:, 1:], expected.iou_scores[0], atol=TOLERANCE, rtol=0)
    assert (without - low).abs().max() > 1e-3
    stretched = torch.nn.functional.interpolate(low, (90, 70), mode="bilinear")
    torch.testing.assert_close(masks, stretched, atol=TOLERANCE, rtol=0)
    assert (masks - resized_masks(low, 128, feeds["orig_im_size"])).abs().max() > 1e-3
