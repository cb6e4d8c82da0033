"""Rotations are tried, win where outliers lie off the axes, and are pinned."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.compress.test_int8 import sqnr_db
from tests.graph.exactness import canonical
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.folding import measure_activations
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.compress.rotating import SEEDS, rotate_
from vitdeploy.compress.search import FoldRequest, SearchInput, search
from vitdeploy.errors import CompressionError
from vitdeploy.graph.folds import rotation
from vitdeploy.graph.linear import scale_outputs_
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.sites import find_weight_sites
from vitdeploy.recipe import Int8Choices, Int8Section
from vitdeploy.targets.onnx import runner_from_model


@pytest.fixture
def images() -> np.ndarray:
    shape = canonical("vit").graph.inputs[0].shape
    size = [int(d) for d in list(shape)[1:]]
    return np.random.default_rng(0).standard_normal((12, *size)).astype(np.float32)


def with_outliers(model: ir.Model) -> ir.Model:
    """Make the stream loud along a few directions that are no axes."""
    (site,) = rotation.find(model)
    for linear in site.stream.writers:
        factors = np.ones(linear.out_channels)
        factors[[3, 11]] = 40.0
        scale_outputs_(model.graph, linear, factors)
    rotate_(model, {site.name: 77})
    return model


def quantized(model: ir.Model, images: np.ndarray, **options):
    feeds = [{"pixel_values": images}]
    section = Int8Section(placement="all", rounding="nearest", **options)
    return quantize_int8(model, QuantScheme(), lambda: iter(feeds), section)


def test_rotating_keeps_the_function(images: np.ndarray):
    model = canonical("vit")
    (site,) = rotation.find(model)
    turned = model.clone()
    rotate_(turned, {site.name: SEEDS[0]})
    name = turned.graph.outputs[0].name
    with runner_from_model(model) as a, runner_from_model(turned) as b:
        x, y = (r({"pixel_values": images})[name] for r in (a, b))
    # float32 rounding of the rotated weights
    assert np.abs(x - y).max() < 1e-4 * np.abs(x).max()
    assert not np.array_equal(x, y)


def test_a_rotation_is_among_the_candidates_and_what_is_chosen_is_pinned(images: np.ndarray):
    model = with_outliers(canonical("vit"))
    found = quantized(model, images)
    (site,) = rotation.find(model)
    assert set(found.choices.rotations) <= {site.name}
    assert found.search.candidates > len(SEEDS)
    feeds = [{"pixel_values": images}]
    section = Int8Section(placement="all", rounding="nearest")
    again = quantize_int8(model, QuantScheme(), lambda: iter(feeds), section, pinned=found.choices)
    a, b = (ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (found, again))
    assert a == b


@pytest.mark.parametrize(("tokens", "shifted"), [(0, True), (512, False)])
def test_values_are_not_shifted_where_the_softmax_may_be_quantised(
    tokens: int, shifted: bool, images: np.ndarray
):
    model = canonical("vit")
    sites = find_weight_sites(model)
    scheme = QuantScheme(most_int8_attention_tokens=tokens)
    options = Int8Section(clip="minmax", search_seconds=0.0)
    names = frozenset(site.name for site in sites)
    budget = Budget(0.0)
    statistics = measure_activations(model, lambda: iter([{"pixel_values": images}]), budget)
    request = FoldRequest(names, scheme, options, budget)
    found = search(SearchInput(model, sites, statistics, lambda: iter(()), request))
    values = [g for g, _ in found.folds if g.fold == "value_scale"]
    assert values
    assert {group.can_shift for group in values} == {shifted}


def test_no_time_means_no_rotation_and_a_note(images: np.ndarray):
    found = quantized(canonical("vit"), images, search_seconds=0.0)
    assert found.choices.rotations == {}
    assert "rotation of the residual stream" in found.search.skipped
    assert found.search.candidates == 0
    assert sqnr_db_of(canonical("vit"), found.model, images) > 20


def sqnr_db_of(model: ir.Model, other: ir.Model, images: np.ndarray) -> float:
    assert model.graph.outputs[0].name == "logits"
    return sqnr_db(model, other, images)


def test_a_pinned_stream_that_is_not_there_is_refused(images: np.ndarray):
    feeds = [{"pixel_values": images}]
    with pytest.raises(CompressionError, match="does not have"):
        quantize_int8(
            canonical("vit"),
            QuantScheme(),
            lambda: iter(feeds),
            Int8Section(),
            pinned=Int8Choices(rotations={"no-such-norm": 1}),
        )


def test_a_stream_that_cannot_be_rotated_is_refused():
    model = canonical("res_post_norm")
    name = rotation.find(model)[0].name
    with pytest.raises(CompressionError, match="cannot rotate the stream"):
        rotate_(model, {name: 1})
