import itertools

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import tiny_vit_graph
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.compress.placement import (
    Quantization,
    _knapsack,
    _smaller,
    float_sets,
    measure_placement,
)
from vitdeploy.graph.qdq import ActivationRange, QuantScheme, insert_qdq_, quantize_weight
from vitdeploy.graph.sites import array_of, find_weight_sites
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model


def quantization_of(model: ir.Model, scheme: QuantScheme) -> Quantization:
    sites = find_weight_sites(model)
    names = {str(s.activation.name) for s in sites} | {str(s.node.outputs[0].name) for s in sites}
    weights = {s.name: quantize_weight(array_of(s.weight), s.output_axis) for s in sites}
    return Quantization(dict.fromkeys(names, ActivationRange(-6.0, 6.0)), weights, scheme)


@pytest.mark.parametrize("quantizes_conv_outputs", [False, True])
def test_a_switch_gives_what_quantising_that_site_alone_gives(
    vit_graph: ir.Model, pixels: np.ndarray, quantizes_conv_outputs: bool
):
    scheme = QuantScheme(quantizes_conv_outputs=quantizes_conv_outputs)
    quantization = quantization_of(vit_graph, scheme)
    feeds = [{"pixel_values": pixels}]
    names = list(quantization.weights)
    macs = dict.fromkeys(names, 1.0)
    placement = measure_placement(vit_graph, quantization, macs, lambda: iter(feeds), Budget(60.0))
    noise = placement.noise
    assert placement.reason is None
    with runner_from_model(vit_graph) as runner:
        expected = runner(feeds[0])["logits"].astype(np.float64)
    for name in names:
        copy = vit_graph.clone()
        alone = [site for site in find_weight_sites(copy) if site.name == name]
        insert_qdq_(copy, alone, quantization.ranges, scheme, quantization.weights)
        with runner_from_model(copy, settings={"session.disable_quant_qdq": "1"}) as runner:
            seen = runner(feeds[0])["logits"]
        by_hand = np.square(seen - expected).sum() / np.square(expected).sum()
        # The same codes; float32 sums in another order.
        assert noise[name] == pytest.approx(by_hand, rel=1e-2), name


def test_over_budget_measures_nothing(vit_graph: ir.Model, pixels: np.ndarray):
    feeds = [{"pixel_values": pixels}]
    result = quantize_int8(
        vit_graph, QuantScheme(), lambda: iter(feeds), Int8Section(search_seconds=0.0)
    )
    assert result.placement_reason == "one pass over 4 sites exceeds 0 s"
    assert result.kept_float == ()


def test_a_tight_budget_measures_fewer_images():
    model = tiny_vit_graph()
    feeds = {"pixel_values": np.zeros((6, 3, 16, 16), np.float32)}
    assert len(_smaller(model, feeds, 0.5)["pixel_values"]) == 3
    assert _smaller(model, feeds, 0.1) == {}
    model.graph.inputs[0].shape = ir.Shape([6, 3, 16, 16])
    assert _smaller(model, feeds, 0.5) == {}


def test_small_noisy_products_stay_float_and_large_ones_do_not():
    macs = {"stem": 2.0, "fc1": 48.0, "fc2": 48.0, "head": 2.0}
    noise = {"stem": 50.0, "fc1": 20.0, "fc2": 20.0, "head": 0.1}
    assert float_sets(noise, macs) == (("stem",), ("stem",))
    assert float_sets(dict.fromkeys(macs, 1.0), dict.fromkeys(macs, 1.0)) == ((), ())


def test_products_of_next_to_no_work_do_not_hide_the_noisy_ones():
    # a gate of one row: loud for its work, and nothing of the whole
    macs = {"gate": 1e-6, "stem": 2.0, "fc1": 49.0, "fc2": 49.0}
    noise = {"gate": 0.2, "stem": 60.0, "fc1": 20.0, "fc2": 20.0}
    assert float_sets(noise, macs) == (("stem",), ("stem",))


def test_eighty_percent_stay_in_int8():
    macs = {f"site{i}": 10.0 for i in range(10)}
    noise = {name: 1000.0 ** (i == 0) * 10.0 ** (i == 1) for i, name in enumerate(macs)}
    for kept in float_sets(noise, macs):
        assert 100 - sum(macs[name] for name in kept) >= 80
    # A grouped convolution that no runtime gains from is in the MACs and not in the noise.
    grouped = {name: value for name, value in noise.items() if name != "site9"}
    assert float_sets(grouped, macs) == (("site0",), ("site0",))


def test_the_second_set_fills_what_the_first_wastes():
    macs = {"a": 3.0, "b": 2.5, "c": 2.5, "rest": 77.0, "never quantised": 15.0}
    noise = {"a": 1000.0, "b": 700.0, "c": 700.0, "rest": 1.0}
    assert float_sets(noise, macs) == (("a",), ("b", "c"))


def test_knapsack_is_optimal():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, weights = rng.random(8).tolist(), (rng.integers(50, 600, 8) / 1000).tolist()
        found = _knapsack(values, weights)
        assert sum(weights[i] for i in found) <= 1
        best = max(
            sum(values[i] for i in chosen)
            for count in range(9)
            for chosen in itertools.combinations(range(8), count)
            if sum(weights[i] for i in chosen) <= 1
        )
        assert sum(values[i] for i in found) == pytest.approx(best)


def test_pinned_choices_repeat_a_run_without_measuring(vit_graph: ir.Model, pixels: np.ndarray):
    feeds = [{"pixel_values": pixels}]
    first = quantize_int8(vit_graph, QuantScheme(), lambda: iter(feeds), Int8Section())
    again = quantize_int8(
        vit_graph, QuantScheme(), lambda: iter(feeds), Int8Section(), pinned=first.choices
    )
    assert again.search.candidates == 0
    assert again.noise == {}
    a, b = (ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (first, again))
    assert a == b
