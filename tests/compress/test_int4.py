"""The step: what becomes INT4, what does not, how close the model stays, what is refused."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.compress.int4_graph import batches, pictures, small_vit
from tests.conftest import tiny_vit_graph
from vitdeploy.compress.int4 import Int4Result, quantize_int4
from vitdeploy.errors import CompressionError
from vitdeploy.graph.blocks import block_sizes, half_scales_
from vitdeploy.graph.save import weights_bytes
from vitdeploy.recipe import Int4Choices, Int4Section
from vitdeploy.targets.onnx import runner_from_model

EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}
PRODUCTS = tuple(
    f"blocks.{n}.{name}/MatMul"
    for n in (0, 1)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
)


def quantize(options: Int4Section | None = None, pinned: Int4Choices | None = None) -> Int4Result:
    options = options or Int4Section(placement="all")
    return quantize_int4(small_vit(), batches(), options, pinned=pinned)


def sqnr_db(model: ir.Model) -> float:
    pixels = pictures(32, 2)
    with runner_from_model(small_vit()) as a, runner_from_model(model, settings=EXACT) as b:
        x, y = (r({"pixel_values": pixels})["logits"].astype(np.float64) for r in (a, b))
    return 10 * np.log10(np.square(x).sum() / np.square(x - y).sum())


@pytest.fixture(scope="module")
def result() -> Int4Result:
    return quantize()


def test_products_become_int4_and_nothing_else_does(result: Int4Result):
    assert sorted(result.int4) == sorted(PRODUCTS)
    assert result.int8 == ("patch_embed.proj/Conv",)
    assert len(result.kept_float) == 1  # the head has 5 * 64 weights
    assert block_sizes(result.model) == (64,)
    stored = [n for n in result.model.graph if n.op_type == "DequantizeLinear"]
    assert len(stored) == len(PRODUCTS) + 1
    assert not [n for n in result.model.graph if n.op_type == "QuantizeLinear"]
    total = 2 * 64 * (3 * 64 + 64 + 2 * 256)
    assert result.int4_weights_percent == pytest.approx(
        100 * total / (total + 64 * 3 * 64 + 5 * 64)
    )


def test_the_graph_is_an_eighth_of_fp32_and_a_little(result: Int4Result):
    share = weights_bytes(result.model) / weights_bytes(small_vit())
    # 4.5 bits a weight with FP32 scales is 0.14; the patch convolution is INT8, the rest float
    assert 0.14 < share < 0.20


def test_gptq_keeps_the_function_better_than_rounding_to_nearest(result: Int4Result):
    nearest = quantize(Int4Section(rounding="nearest", scales="off", placement="all"))
    # Shaken weights have no structure, so 4 bits cost more than on a trained model (49 dB).
    assert sqnr_db(result.model) > sqnr_db(nearest.model) + 3.0
    assert sqnr_db(result.model) > 20.0


def test_zero_points_make_it_no_worse(result: Int4Result):
    unsigned = quantize(Int4Section(zero_points=True, placement="all"))
    types = {value.dtype for value in unsigned.model.graph.initializers.values()}
    assert ir.DataType.UINT4 in types
    assert ir.DataType.INT4 not in types
    assert sqnr_db(unsigned.model) > sqnr_db(result.model) - 0.5


def test_blocks_are_halved_until_they_divide(result: Int4Result):
    assert set(result.blocks.values()) == {64}
    large = quantize(Int4Section(block_size=128, placement="all"))
    assert large.blocks["blocks.0.mlp.fc1/MatMul"] == 64
    assert large.blocks["blocks.0.mlp.fc2/MatMul"] == 128


def test_what_is_kept_is_int8():
    kept = quantize(Int4Section(keep_int8=("blocks.0.*",), placement="all"))
    assert set(kept.int4) == {name for name in PRODUCTS if name.startswith("blocks.1")}
    assert set(kept.int8) >= {name for name in PRODUCTS if name.startswith("blocks.0")}


def test_choices_made_again_give_the_same_bytes():
    first = quantize(Int4Section())
    again = quantize(Int4Section(), pinned=first.choices)
    one, two = (ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (first, again))
    assert one == two
    assert first.noise
    assert again.bits_reason == "pinned by the recipe"


def test_known_codes_are_taken_again_without_looking_at_images():
    first = quantize(Int4Section())
    assert first.codes is not None
    assert first.codes.scales  # else nothing would have to be scaled up again
    fewer = first.choices.model_copy(update={"kept_int8": (first.int4[0],)})
    anew = quantize(Int4Section(), pinned=fewer)
    model, none = small_vit(), lambda: iter([])
    again = quantize_int4(model, none, Int4Section(), pinned=fewer, known=first.codes)
    assert first.int4[0] in again.int8
    one, two = (ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (anew, again))
    assert one == two
    # other scales than those of the codes: there is nothing to be taken
    other = fewer.model_copy(update={"scales": {}})
    with pytest.raises(CompressionError, match="no image"):
        quantize_int4(small_vit(), none, Int4Section(), pinned=other, known=first.codes)


def percent_of_fp32(model: ir.Model) -> float:
    """Return the size of the weights as all targets store them, scales in FP16."""
    stored = model.clone()
    half_scales_(stored)
    return 100 * weights_bytes(stored) / weights_bytes(small_vit())


def test_a_size_is_kept_to(result: Int4Result):
    least = percent_of_fp32(result.model)
    mixed = quantize(Int4Section(mixed=True, max_size_percent=least + 4))
    assert least + 1 < percent_of_fp32(mixed.model) <= least + 4
    assert sqnr_db(mixed.model) > sqnr_db(result.model)


def test_an_accuracy_is_reached_with_few_products_in_int8(result: Int4Result):
    goal = sqnr_db(result.model) + 3
    mixed = quantize(Int4Section(mixed=True, min_sqnr_db=goal))
    assert 0 < len(mixed.choices.kept_int8) < len(PRODUCTS)
    # Measured on calibration images, and with INT8 counted as exact
    assert sqnr_db(mixed.model) > goal - 1.5


def test_without_time_weights_stand_in_for_noise():
    hurried = quantize(Int4Section(search_seconds=0.0))
    assert hurried.bits_reason is not None
    assert any("scales of" in line for line in hurried.skipped)
    assert sqnr_db(hurried.model) > 20.0


def test_refuses_a_graph_without_anything_for_int4():
    feeds = [{"pixel_values": np.zeros((2, 3, 16, 16), np.float32)}]
    with pytest.raises(CompressionError, match="no product can be INT4"):
        quantize_int4(tiny_vit_graph(opset=21), lambda: iter(feeds), Int4Section())


def test_refuses_a_name_that_fits_nothing():
    with pytest.raises(CompressionError, match=r"'blocks.7\*' fits none of the 10"):
        quantize(Int4Section(keep_int8=("blocks.7*",)))


def test_refuses_a_size_that_int4_does_not_reach():
    with pytest.raises(CompressionError, match=r"with every product in INT4 the graph has 1\d\."):
        quantize(Int4Section(mixed=True, max_size_percent=5))


def test_refuses_nan_weights():
    model = small_vit()
    value = next(v for n, v in model.graph.initializers.items() if "fc1.weight" in n)
    array = value.const_value.numpy().copy()
    array[0, 0] = np.inf
    value.const_value = ir.tensor(array, name=value.name)
    with pytest.raises(CompressionError, match="holds NaN or infinity"):
        quantize_int4(model, batches(8), Int4Section())


def test_refuses_nan_activations():
    feeds = [{"pixel_values": np.full((4, 3, 32, 32), np.nan, np.float32)}]
    with pytest.raises(CompressionError, match="NaN or infinity on the calibration images"):
        quantize_int4(small_vit(), lambda: iter(feeds), Int4Section())


def test_refuses_a_scale_that_is_no_number():
    labels = quantize(Int4Section(placement="all")).choices.scales
    pinned = Int4Choices(scales=dict.fromkeys(labels, "strong"))
    with pytest.raises(CompressionError, match="has scale 'strong'"):
        quantize(Int4Section(), pinned=pinned)
