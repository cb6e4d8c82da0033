import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from tests.conftest import tiny_vit_graph
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.compress.placement import (
    PASS_COST,
    Placement,
    Quantization,
    _knapsack,
    first_images,
    float_sets,
    halved,
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


def chain_of_products(count: int) -> ir.Model:
    """x (N, 8) through `count` products with a Relu behind each; product i gives y<i>."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(count):
        matrix = rng.random((8, 8), np.float32) / 4
        weights.append(numpy_helper.from_array(matrix, f"w{i}"))
        read = f"y{i - 1}" if i else "x"
        nodes.append(helper.make_node("MatMul", [read, f"w{i}"], [f"p{i}"], f"product{i}"))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"y{i}"], f"relu{i}"))
    shape = ("N", 8)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"y{count - 1}", onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


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
    assert result.placement_reason == "7 passes of one image exceed 0 s"
    assert result.kept_float == ()


def test_the_loudest_sites_are_found_in_few_passes():
    names = [f"site{i}" for i in range(64)]
    macs = {name: 1.0 + (i % 3) for i, name in enumerate(names)}
    own = dict.fromkeys(names, 1.0) | {"site5": 900.0, "site41": 500.0}
    passes = 0

    def noise_of(switched: Collection[str]) -> float:
        nonlocal passes
        passes += 1
        return sum(own[name] for name in switched)

    noise = halved(names, macs, noise_of, 25)
    assert passes <= 25
    assert list(noise) == names
    assert noise["site5"] == 900.0
    assert noise["site41"] == 500.0
    assert sum(noise.values()) == pytest.approx(sum(own.values()))
    assert max(value for name, value in noise.items() if value < 500) < 10
    # with time for all, it is what one at a time gives
    assert halved(names, macs, noise_of, 1000) == own


def test_groups_are_measured_where_time_is_short():
    model, feeds = chain_of_products(16), {"x": np.random.default_rng(1).random((2, 8), np.float32)}
    quantization = quantization_of(model, QuantScheme())
    names = list(quantization.weights)
    coarse = dict.fromkeys(quantization.ranges, ActivationRange(-6.0, 6.0))
    coarse["y2"] = ActivationRange(-300.0, 300.0)  # what product 3 reads
    quantization = replace(quantization, ranges=coarse)
    macs = dict.fromkeys(names, 1.0)

    def measured(budget: Budget) -> Placement:
        return measure_placement(model, quantization, macs, lambda: iter([feeds]), budget)

    alone = measured(Budget(60.0))
    # the clock stands, so that every pass seems free and the estimate alone decides
    budget = Budget(60.0, clock=lambda: 0.0)
    budget.image_seconds = 60.0 / PASS_COST / 12
    grouped = measured(budget)
    assert grouped.reason is None
    assert list(grouped.noise) == names
    for placement in (alone, grouped):
        assert max(placement.noise, key=placement.noise.__getitem__) == "product3"
        assert placement.kept_float == ("product3",)
    budget.image_seconds = 60.0
    assert measured(budget).reason == "7 passes of one image exceed 60 s"


def test_a_tight_budget_measures_fewer_images():
    model = tiny_vit_graph()
    feeds = {"pixel_values": np.zeros((6, 3, 16, 16), np.float32)}
    assert len(first_images(model, feeds, 0.5)["pixel_values"]) == 3
    assert first_images(model, feeds, 0.1) == {}
    model.graph.inputs[0].shape = ir.Shape([6, 3, 16, 16])
    assert first_images(model, feeds, 0.5) == {}


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
