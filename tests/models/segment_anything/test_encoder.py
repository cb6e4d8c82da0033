import pytest
import torch

from tests.models.segment_anything.publisher import Size, draw_checkpoint, image_encoder
from tests.models.segment_anything.tiny import SIZE, sam_model, smooth_pictures, write_onnx
from vitdeploy.graph.attention import recognise_attention
from vitdeploy.graph.canonical import canonicalise_
from vitdeploy.models.segment_anything.encoder import (
    SamImageEncoder,
    relative_table,
    resampled_positions,
)
from vitdeploy.models.segment_anything.parts import encoder_part
from vitdeploy.models.segment_anything.publisher import transformers_from_publisher
from vitdeploy.onnx_export import check_parity, onnx_from_part
from vitdeploy.targets.onnx import OrtRunner

# float32 sums in another order, over activations of size 1; a wrong norm's epsilon gives 1e-4 and
# a transposed table 1e-1
TOLERANCE = 2e-5


def encoder_of(size: Size) -> SamImageEncoder:
    model = sam_model(size)
    model.load_state_dict(transformers_from_publisher(draw_checkpoint(size)))
    return SamImageEncoder(model.vision_encoder, size.image).eval()


# windows that tile the map, that need padding, that are larger than the map
@pytest.mark.parametrize("window", [4, 3, 14])
def test_the_publishers_weights_give_the_publishers_embeddings(window):
    size = Size(window=window)
    pixels = torch.from_numpy(smooth_pictures(2, size.image))
    with torch.no_grad():
        found = encoder_of(size)(pixels)
    expected = image_encoder(draw_checkpoint(size), size, pixels)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_it_equals_transformers():
    model = sam_model()
    pixels = torch.from_numpy(smooth_pictures(2, SIZE.image))
    with torch.no_grad():
        expected = model.vision_encoder(pixels).last_hidden_state
        found = SamImageEncoder(model.vision_encoder, SIZE.image)(pixels)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_weights_are_taken_and_not_copied():
    model = sam_model()
    encoder = SamImageEncoder(model.vision_encoder, SIZE.image)
    there = {p.data_ptr() for p in model.vision_encoder.parameters()}
    assert {p.data_ptr() for p in encoder.parameters()} <= there


def test_a_relative_table_holds_the_distance_of_query_and_key():
    positions = torch.arange(-2.0, 3.0)[:, None] * torch.tensor([1.0, 10.0])
    table = relative_table(positions, 3)
    assert table.shape == (3, 2, 3)
    for query in range(3):
        for key in range(3):
            assert table[query, :, key].tolist() == [query - key, 10 * (query - key)]


def test_positions_are_resampled_smoothly():
    linear = torch.arange(31.0)[:, None]
    halved = relative_table(linear, 8)[0, 0]  # distances 0, -1 .. -7 of a map of 8
    # 15 places over what 31 covered: a step of about two
    assert torch.allclose(halved.diff(), torch.tensor(-31 / 15), atol=1e-5)
    flat = torch.full((1, 8, 8, 3), 7.0)
    assert torch.allclose(resampled_positions(flat, 4), torch.tensor(7.0))
    assert resampled_positions(flat, 4).shape == (1, 4, 4, 3)
    assert resampled_positions(flat, 8) is flat


def test_another_image_size_changes_positions_alone():
    model = sam_model()
    small = SamImageEncoder(model.vision_encoder, 64)
    shared = {p.data_ptr() for p in model.vision_encoder.parameters()}
    new = [n for n, p in small.named_parameters() if p.data_ptr() not in shared]
    assert new == ["positions"]
    assert [block.window for block in small.blocks] == [3, 0, 3, 0]
    with torch.no_grad():
        assert small(torch.from_numpy(smooth_pictures(1, 64))).shape == (1, 32, 4, 4)


def test_its_graph_is_the_same_at_every_batch_and_its_attention_is_recognised(tmp_path):
    part = encoder_part(encoder_of(SIZE), SIZE.image, {"image_embeddings": (32, 8, 8)})
    pixels = smooth_pictures(3, SIZE.image)
    with OrtRunner(write_onnx(part, tmp_path, SIZE.image)) as runner:
        rows = check_parity(part, runner, pixels, [1, 2, 3])
    assert all(row.passed for row in rows)
    model = onnx_from_part(part, pixels, "dynamic", 20)
    sites, refused = recognise_attention(model)
    assert not refused
    assert [(site.num_heads, site.head_dim) for site in sites] == [(3, 16)] * 4
    assert all(len(site.bias_nodes) == 1 for site in sites)
    kinds = {node.op_type for node in model.graph}
    assert not kinds & {"Einsum", "Shape", "Gather", "Range"}
    # what the relative positions read must not be folded away
    assert [name for name, _ in canonicalise_(model).unrecognised] == [site.name for site in sites]
