"""probe_overflow: which nodes FP16 cannot hold, on which images."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph.half import half_from_model
from vitdeploy.targets.onnx import runner_from_model
from vitdeploy.targets.overflow import probe_overflow


def with_large_hidden(model: ir.Model, factor: float) -> ir.Model:
    """fc1 grows by `factor`, so that what it makes passes FP16's range on the way."""
    value = model.graph.initializers["fc1.weight"]
    grown = (value.const_value.numpy() * np.float32(factor)).astype(np.float32)
    value.const_value = ir.tensor(grown, name="fc1.weight")
    return model


def images(pixels: np.ndarray):
    return lambda: iter([{"pixel_values": pixels}])


def test_finds_the_nodes_that_make_or_read_a_large_value(vit_graph: ir.Model, pixels: np.ndarray):
    probe = probe_overflow(with_large_hidden(vit_graph, 1e5), images(pixels))
    assert probe.images == len(pixels)
    assert probe.large[0].largest > 65504
    assert {"fc1", "fc1_bias", "gelu", "fc2"} <= probe.float32_nodes
    assert "patch" not in probe.float32_nodes


def test_the_graph_it_leads_to_is_finite_and_right(vit_graph: ir.Model, pixels: np.ndarray):
    model = with_large_hidden(vit_graph, 1e5)
    probe = probe_overflow(model, images(pixels))
    with runner_from_model(model) as runner:
        expected = runner({"pixel_values": pixels})["logits"]
    # ONNX Runtime's CPU keeps FP32 between operators that have no FP16 kernel; the reference not.
    plain = ReferenceEvaluator(ir.to_proto(half_from_model(model)))
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(plain.run(None, {"pixel_values": pixels})[0]).all()
    with runner_from_model(half_from_model(model, probe.float32_nodes)) as runner:
        seen = runner({"pixel_values": pixels})["logits"]
    # 11 bits of mantissa in what stays FP16, over six layers
    np.testing.assert_allclose(seen, expected, atol=1e-2 * np.abs(expected).max())


def test_an_ordinary_model_needs_nothing(vit_graph: ir.Model, pixels: np.ndarray):
    probe = probe_overflow(vit_graph, images(pixels))
    assert (probe.large, probe.float32_nodes) == ((), frozenset())


@pytest.mark.parametrize("margin", [1.0, 1e6])
def test_the_margin_decides(margin: float, vit_graph: ir.Model, pixels: np.ndarray):
    found = probe_overflow(vit_graph, images(pixels), margin).float32_nodes
    assert bool(found) == (margin > 1.0)


def test_without_images_nothing_is_measured(vit_graph: ir.Model):
    assert probe_overflow(vit_graph, None).images == 0


def test_the_graph_given_is_not_changed(vit_graph: ir.Model, pixels: np.ndarray):
    before = ir.to_proto(vit_graph).SerializeToString()
    probe_overflow(vit_graph, images(pixels))
    assert ir.to_proto(vit_graph).SerializeToString() == before
