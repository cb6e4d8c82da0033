import torch

from tests.models.segment_anything.mobile import TRUNK, draw_mobile_checkpoint, image_encoder
from tests.models.segment_anything.tiny import smooth_pictures, write_onnx
from vitdeploy.models.families.mobile_sam import build
from vitdeploy.models.segment_anything.parts import encoder_part
from vitdeploy.models.segment_anything.tiny_vit import (
    TinyVitImageEncoder,
    mobile_sam_from_publisher,
)
from vitdeploy.onnx_export import check_parity
from vitdeploy.targets.onnx import OrtRunner


def filled() -> TinyVitImageEncoder:
    model = build(TRUNK)
    missing, unexpected = model.load_state_dict(
        mobile_sam_from_publisher(draw_mobile_checkpoint()), strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return TinyVitImageEncoder(model.eval()).eval()


def test_the_publishers_weights_give_the_publishers_embeddings():
    pixels = torch.from_numpy(smooth_pictures(2, 128))
    expected = image_encoder(draw_mobile_checkpoint(), pixels)
    with torch.no_grad():
        found = filled()(pixels)
    assert found.shape == (2, 256, 8, 8)
    assert expected.std() > 0.5
    # float32 sums in another order, over outputs of size 1
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_its_graph_is_the_same_at_every_batch(tmp_path):
    part = encoder_part(filled(), 128, {"image_embeddings": (256, 8, 8)})
    with OrtRunner(write_onnx(part, tmp_path, 128)) as runner:
        rows = check_parity(part, runner, smooth_pictures(3, 128), [1, 3])
    assert all(row.passed for row in rows)
