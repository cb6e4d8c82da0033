"""Errors of folds at their block's output, against a computation by hand."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import tiny_vit_graph
from vitdeploy.compress import block_error
from vitdeploy.compress.block_error import (
    Candidate,
    Rounding,
    block_behind,
    collect_block_errors,
)
from vitdeploy.compress.calibrate import Probe, collect_statistics
from vitdeploy.compress.smoothing import FoldGroup, Strength, find_groups
from vitdeploy.graph.qdq import ActivationRange, QuantScheme, quantize_weight
from vitdeploy.graph.sites import array_of, find_weight_sites
from vitdeploy.targets.onnx import runner_from_model

SCHEME = QuantScheme(activation=ir.DataType.INT8, symmetric_activations=True)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 3, 16, 16)).astype(np.float32)


def fold_group(model: ir.Model) -> FoldGroup:
    groups, _ = find_groups(model, find_weight_sites(model))
    return next(group for group in groups if group.name == "norm")


def candidate(scale: np.ndarray, shift: np.ndarray, high: float) -> Candidate:
    strength = Strength(None, bool(shift.any()), scale, shift)
    return Candidate(strength, {"normed": ActivationRange(-high, high)})


def values(model: ir.Model, names: list[str], pixels: np.ndarray) -> list[np.ndarray]:
    copy = model.clone()
    produced = {str(v.name): v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(produced[name] for name in names)
    with runner_from_model(copy) as runner:
        results = runner({"pixel_values": pixels})
    return [results[name].astype(np.float64) for name in names]


def error_by_hand(
    model: ir.Model, given: Candidate, pixels: np.ndarray, mean: np.ndarray, corrects: bool
) -> float:
    """The tiny graph's MLP in float64, its first layer folded and rounded."""
    from scipy.special import erf

    normed, stream, residual = values(model, ["normed", "stream", "residual"], pixels)
    weights = {name: array_of(v) for name, v in model.graph.initializers.items()}
    scale, shift = given.strength.scale, given.strength.shift
    step = float(given.ranges["normed"].parameters(SCHEME)[0])
    codes = np.clip(np.rint((normed - shift) / scale / step), -128, 127) * step
    folded = (weights["fc1.weight"] * scale[:, None]).astype(np.float32)
    rounded = quantize_weight(folded, 1)
    own = rounded.codes * rounded.scales.astype(np.float64)
    hidden = codes @ own + shift @ weights["fc1.weight"] + weights["fc1.bias"]
    if corrects:
        hidden = hidden + ((mean - shift) / scale) @ (folded - own)
    active = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    out = active @ weights["fc2.weight"] + weights["fc2.bias"] + stream
    return float(np.square(out - residual).sum())


@pytest.mark.parametrize("corrects", [True, False])
def test_errors_equal_a_computation_by_hand(pixels: np.ndarray, corrects: bool):
    model = tiny_vit_graph()
    group = fold_group(model)
    batches = lambda: [{"pixel_values": pixels[:2]}, {"pixel_values": pixels[2:]}]  # noqa: E731
    statistics = collect_statistics(model, [Probe("normed", -1, 3)], batches)
    listed = [
        candidate(np.ones(8), np.zeros(8), 4.0),
        candidate(np.linspace(0.5, 2.0, 8), np.linspace(-1.0, 1.0, 8), 1.0),
    ]
    rounding = Rounding(SCHEME, statistics, corrects)
    errors = collect_block_errors(model, {group: listed}, rounding, batches)["norm"]
    mean = statistics["normed"].mean
    wanted = [error_by_hand(model, item, pixels, mean, corrects) for item in listed]
    # One code more or less where float32 rounds the other way.
    np.testing.assert_allclose(errors, wanted, rtol=2e-2)
    assert errors[0] != pytest.approx(errors[1], rel=0.1)


def test_a_block_ends_at_the_sum_with_what_goes_around_it():
    model = tiny_vit_graph()
    block = block_behind(model.graph, fold_group(model).readers)
    assert block is not None
    assert [node.name for node in block] == [
        "fc1",
        "fc1_bias",
        "gelu",
        "fc2",
        "fc2_bias",
        "residual",
    ]


def test_without_a_residual_sum_there_is_no_block():
    model = tiny_vit_graph()
    residual = next(node for node in model.graph if node.name == "residual")
    residual.replace_input_with(0, residual.inputs[1])
    group = fold_group(model)
    assert block_behind(model.graph, group.readers) is None
    rounding = Rounding(SCHEME, {}, corrects_bias=False)
    listed = [candidate(np.ones(8), np.zeros(8), 4.0)]
    assert collect_block_errors(model, {group: listed}, rounding, list) == {}


def test_a_block_too_large_to_stand_there_several_times_is_left_out(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_vit_graph()
    group = fold_group(model)
    probes = [Probe(str(r.site.activation.name), -1, 3) for r in group.readers]

    def batches():
        return iter([{"pixel_values": pixels}])

    statistics = collect_statistics(model, probes, batches)
    candidates = {group: [candidate(np.ones(8), np.zeros(8), 4.0)]}
    rounding = Rounding(SCHEME, statistics, corrects_bias=True)
    assert list(collect_block_errors(model, candidates, rounding, batches)) == ["norm"]
    # fc1 makes 16 tokens of 32 channels
    monkeypatch.setattr(block_error, "_MOST_BYTES", 4 * 16 * 32 - 1)
    assert collect_block_errors(model, candidates, rounding, batches) == {}
