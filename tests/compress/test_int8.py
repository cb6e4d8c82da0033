from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.errors import CompressionError
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model

SCHEME = QuantScheme()


def quantize(model: ir.Model, pixels: np.ndarray, options: Int8Section | None = None, **scheme):
    feeds = [{"pixel_values": pixels}]
    return quantize_int8(
        model, QuantScheme(**scheme), lambda: iter(feeds), options or Int8Section(placement="all")
    )


def sqnr_db(model: ir.Model, other: ir.Model, pixels: np.ndarray) -> float:
    with runner_from_model(model) as a, runner_from_model(other) as b:
        x, y = (r({"pixel_values": pixels})["logits"].astype(np.float64) for r in (a, b))
    return 10 * np.log10(np.square(x).sum() / np.square(x - y).sum())


def test_keeps_the_function(vit_graph: ir.Model, pixels: np.ndarray):
    result = quantize(vit_graph, pixels)
    assert sqnr_db(vit_graph, result.model, pixels) > 30
    assert result.int8_macs_percent == 100.0
    assert result.kept_float == ()


def test_keep_float_is_kept_and_counted(vit_graph: ir.Model, pixels: np.ndarray):
    result = quantize(vit_graph, pixels, Int8Section(keep_float=("fc*",), placement="all"))
    assert result.kept_float == ("fc1", "fc2")
    # Conv 8*3*16 over 16 pixels, fc1 and fc2 8*32 over 16 tokens each, head 5*8 once.
    conv, mlp, head = 384 * 16, 2 * 256 * 16, 40
    assert result.int8_macs_percent == pytest.approx(100 * (conv + head) / (conv + mlp + head))


def test_single_rows_stay_float_where_the_scheme_says(vit_graph: ir.Model, pixels: np.ndarray):
    result = quantize(vit_graph, pixels, quantizes_single_rows=False)
    assert result.kept_float == ("head",)


def test_clip_search_gives_up_one_outlier_for_everything_else(vit_graph: ir.Model):
    # Halving a range saves 3/4 of the rounding error of every value and costs a quarter of the
    # outlier's square: worth it once there are more than about 65,000 values an outlier.
    pixels = np.random.default_rng(3).standard_normal((400, 3, 16, 16)).astype(np.float32)
    pixels[0, 0, 0, 0] = 60.0
    by_clip = {
        clip: quantize(
            vit_graph, pixels, Int8Section(clip=clip, keep_float=("fc*", "head"), placement="all")
        ).model
        for clip in ("minmax", "mse")
    }
    better = sqnr_db(vit_graph, by_clip["mse"], pixels[1:])
    assert better > sqnr_db(vit_graph, by_clip["minmax"], pixels[1:]) + 2.0


def test_the_same_images_give_the_same_bytes(vit_graph: ir.Model, pixels: np.ndarray):
    first, second = (
        ir.to_proto(quantize(vit_graph, pixels).model).SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


def test_refuses_a_name_that_fits_nothing(vit_graph: ir.Model, pixels: np.ndarray):
    with pytest.raises(CompressionError, match=r"'fc3' fits none.*Did you mean"):
        quantize(vit_graph, pixels, Int8Section(keep_float=("fc3",)))


def test_refuses_to_quantise_nothing(vit_graph: ir.Model, pixels: np.ndarray):
    with pytest.raises(CompressionError, match="keeps every product"):
        quantize(vit_graph, pixels, Int8Section(keep_float=("*",)))


def test_refuses_nan_weights(vit_graph: ir.Model, pixels: np.ndarray):
    value = vit_graph.graph.initializers["fc1.weight"]
    array = value.const_value.numpy().copy()
    array[0, 0] = np.inf
    value.const_value = ir.tensor(array, name="fc1.weight")
    with pytest.raises(CompressionError, match="fc1"):
        quantize(vit_graph, pixels)


def test_other_placements_are_offered_and_are_what_their_choices_give(
    vit_graph: ir.Model, pixels: np.ndarray
):
    result = quantize(vit_graph, pixels)
    ((what, other),) = result.others
    assert what == "convolutions in float"
    assert other.quantized == tuple(n for n in result.quantized if n in ("fc1", "fc2", "head"))
    assert set(result.quantized) - set(other.quantized) == set(other.kept_float)
    assert other.int8_macs_percent == pytest.approx(100 - 100 * 6144 / (6144 + 8192 + 40))
    feeds = [{"pixel_values": pixels}]
    again = quantize_int8(
        vit_graph,
        SCHEME,
        lambda: iter(feeds),
        Int8Section(placement="all"),
        pinned=other.choices,
    )
    with runner_from_model(again.model) as a, runner_from_model(other.model) as b:
        seen, expected = (r({"pixel_values": pixels})["logits"] for r in (a, b))
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)
    assert again.others == ()
    assert again.int8_macs_percent == pytest.approx(other.int8_macs_percent)
    # nothing to offer where only convolutions, or none, are in INT8
    alone = Int8Section(keep_float=("fc*", "head"), placement="all")
    assert quantize(vit_graph, pixels, alone).others == ()


def test_folds_leave_room_for_other_images_than_those_of_the_calibration():
    """Channels that are rarely large, each in another image; what was seen shows few of them."""
    model = canonical("vit")
    draw = np.random.default_rng(0).standard_t
    calibration = draw(2.0, (8, 3, 32, 32)).astype(np.float32)
    others = draw(2.0, (200, 3, 32, 32)).astype(np.float32)

    def db_of(size: int, **fields: Any) -> float:
        feeds = [{"pixel_values": calibration[start : start + size]} for start in range(0, 8, size)]
        options = Int8Section(placement="all", rounding="nearest", **fields)
        result = quantize_int8(model, QuantScheme(), lambda: iter(feeds), options)
        return sqnr_db(model, result.model, others)

    plain = db_of(1, folds="off", clip="minmax")
    # in one batch there is nothing to hold out
    fitted, searched = db_of(8), db_of(1)
    assert searched > plain - 0.5
    assert searched > fitted + 3.0
