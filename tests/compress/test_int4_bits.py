"""Which products stay INT8: measured one at a time, for a size, an accuracy, or by proportion."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.compress.int4_graph import batches, small_vit
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.int4 import bits
from vitdeploy.compress.int4.bits import Goal, Stored, choose_bits, corrected_bias
from vitdeploy.compress.placement import halved
from vitdeploy.graph.linear import linear_at, set_bias_
from vitdeploy.graph.sites import WeightSite, array_of, find_weight_sites
from vitdeploy.runner import Feeds
from vitdeploy.targets.onnx import runner_from_model

AMPLE = 1e9
LOUD = "blocks.0.mlp.fc1/MatMul"


def sites() -> list[WeightSite]:
    return [site for site in find_weight_sites(small_vit()) if site.kind == "MatMul"]


def noisy(loud: float = 0.3) -> dict[str, Stored]:
    """Weights that are off by 1 %, and those of one product by more."""
    rng = np.random.default_rng(0)
    found = {}
    for site in sites():
        weight = array_of(site.weight)
        share = loud if site.name == LOUD else 0.01
        off = weight + share * weight.std() * rng.standard_normal(weight.shape)
        found[site.name] = Stored(off.astype(np.float32), None, weight.size / 2)
    return found


def test_noise_is_that_of_each_product_alone():
    stored = noisy()
    found = choose_bits(small_vit(), stored, Goal(), batches(8), Budget(AMPLE))
    model = small_vit()
    site = next(s for s in find_weight_sites(model) if s.name == LOUD)
    feeds: Feeds = next(iter(batches(8)()))
    with runner_from_model(model) as runner:
        expected = runner(feeds)["logits"].astype(np.float64)
    site.weight.const_value = ir.tensor(stored[LOUD].weight, name=site.weight.name)
    with runner_from_model(model) as runner:
        error = np.square(runner(feeds)["logits"] - expected).sum() / np.square(expected).sum()
    assert found.noise[LOUD] == pytest.approx(error, rel=1e-3)
    assert max(found.noise, key=lambda name: found.noise[name]) == LOUD


def test_what_is_out_of_proportion_is_kept(monkeypatch: pytest.MonkeyPatch):
    # the product is a seventh of so small a model
    monkeypatch.setattr(bits, "LEAST_INT4_PERCENT", 80.0)
    kept = choose_bits(small_vit(), noisy(), Goal(), batches(8), Budget(AMPLE)).kept_int8
    assert kept == (LOUD,)


def test_even_noise_keeps_nothing():
    found = choose_bits(small_vit(), noisy(0.01), Goal(), batches(8), Budget(AMPLE))
    assert found.kept_int8 == ()


def test_a_size_is_spent_on_the_worst_for_their_size():
    stored = noisy()
    spare = stored[LOUD].extra_bytes + 1
    found = choose_bits(small_vit(), stored, Goal(spare_bytes=spare), batches(8), Budget(AMPLE))
    assert found.kept_int8 == (LOUD,)
    assert (
        choose_bits(small_vit(), stored, Goal(spare_bytes=0.0), batches(8), Budget(AMPLE)).kept_int8
        == ()
    )


def test_an_accuracy_takes_the_fewest():
    loose = choose_bits(small_vit(), noisy(), Goal(sqnr_db=-20), batches(8), Budget(AMPLE))
    assert loose.kept_int8 == ()
    tight = choose_bits(small_vit(), noisy(), Goal(sqnr_db=28), batches(8), Budget(AMPLE))
    assert tight.kept_int8[0] == LOUD
    assert len(tight.kept_int8) < len(noisy())
    never = choose_bits(small_vit(), noisy(), Goal(sqnr_db=300), batches(8), Budget(AMPLE))
    assert set(never.kept_int8) == set(noisy())


def test_without_time_the_weights_own_errors_stand_in():
    found = choose_bits(small_vit(), noisy(), Goal(), batches(8), Budget(0.0))
    assert "exceed the budget" in (found.reason or "")
    # their squares are 0.3 of the weights' and 0.01
    assert found.noise[LOUD] == pytest.approx(0.09, rel=0.1)


def test_groups_are_measured_on_one_image_where_time_is_short(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def few(names, sizes, measure, passes):
        seen.append(passes)
        return halved(names, sizes, measure, 7)

    monkeypatch.setattr(bits, "_read", lambda *given: [])
    monkeypatch.setattr(bits, "halved", few)
    found = choose_bits(small_vit(), noisy(), Goal(), batches(8), Budget(AMPLE))
    assert found.reason is None
    assert seen == [2 * len(noisy())]
    assert max(found.noise, key=found.noise.__getitem__) == LOUD


def test_too_many_weights_are_not_switched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bits, "MOST_BYTES", 1000)
    found = choose_bits(small_vit(), noisy(), Goal(), batches(8), Budget(AMPLE))
    assert "too many to switch" in (found.reason or "")


def test_the_corrected_bias_takes_off_the_mean_error():
    model = small_vit()
    site = next(s for s in find_weight_sites(model) if s.name == LOUD)
    linear = linear_at(site.node)
    assert linear is not None
    set_bias_(model.graph, linear, np.arange(256.0))
    weight = array_of(site.weight) + np.float32(0.01)
    mean = np.linspace(-1, 2, 64).astype(np.float32)
    found = corrected_bias(site, weight, mean)
    # float32 weights: their difference has 1e-8 of rounding
    np.testing.assert_allclose(found, np.arange(256.0) - 0.01 * mean.sum(), atol=1e-5)
    assert corrected_bias(site, weight, None) is None
