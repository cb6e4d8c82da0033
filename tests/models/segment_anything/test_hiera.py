import torch

from tests.models.segment_anything.tiny import sam2_model, smooth_pictures, write_onnx
from vitdeploy.models.segment_anything.hiera import Sam2ImageEncoder
from vitdeploy.models.segment_anything.parts import encoder_part
from vitdeploy.onnx_export import check_parity
from vitdeploy.targets.onnx import OrtRunner

NAMES = ("image_embeddings", "high_res_feats_0", "high_res_feats_1")


def test_it_equals_transformers():
    model = sam2_model()
    pixels = torch.from_numpy(smooth_pictures(2, 128))
    with torch.no_grad():
        fine, middle, coarse = model.get_image_embeddings(pixels)
        found = Sam2ImageEncoder(model, 128)(pixels)
    # the same layers in the same order: rounding alone, and constants that were added before
    for value, expected in zip(found, (coarse, fine, middle), strict=True):
        assert value.shape == expected.shape
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)


def test_without_a_frame_before_the_constant_of_no_memory_is_added():
    model = sam2_model()
    encoder = Sam2ImageEncoder(model, 128)
    pixels = torch.from_numpy(smooth_pictures(1, 128))
    with torch.no_grad():
        before = encoder(pixels)[0]
        model.no_memory_embedding.add_(1.0)
        assert torch.allclose(encoder(pixels)[0], before + 1, atol=1e-5)


def test_positions_follow_the_image_size():
    model = sam2_model()
    with torch.no_grad():
        found = Sam2ImageEncoder(model, 64)(torch.from_numpy(smooth_pictures(1, 64)))
    assert [tuple(v.shape) for v in found] == [(1, 32, 4, 4), (1, 4, 16, 16), (1, 8, 8, 8)]


def test_its_graph_is_the_same_at_every_batch(tmp_path):
    shapes = dict(zip(NAMES, ((32, 8, 8), (4, 32, 32), (8, 16, 16)), strict=True))
    part = encoder_part(Sam2ImageEncoder(sam2_model(), 128), 128, shapes)
    with OrtRunner(write_onnx(part, tmp_path, 128)) as runner:
        rows = check_parity(part, runner, smooth_pictures(3, 128), [1, 3])
    assert all(row.passed for row in rows)
