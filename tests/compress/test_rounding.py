"""GPTQ against a plain transcription of its formulas, and against rounding to nearest."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from tests.compress.test_int8 import quantize, sqnr_db
from tests.conftest import tiny_vit_graph
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.rounding import (
    DAMPING,
    Grid,
    collect_moments,
    gptq,
    is_suited,
    round_weights,
)
from vitdeploy.graph.qdq import quantize_weight
from vitdeploy.graph.sites import array_of, find_weight_sites
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model

AMPLE = 1e9
ROWS = {"fc1": 4.0, "fc2": 4.0, "head": 1.0}


def correlated(rows: int, channels: int, seed: int = 0) -> np.ndarray:
    """(rows, channels) inputs most of whose power lies in a third of the directions."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((rows, channels // 3)) @ rng.standard_normal(
        (channels // 3, channels)
    )
    return few + 0.1 * rng.standard_normal((rows, channels))


def by_the_paper(matrix: np.ndarray, moments: np.ndarray, bits: int) -> np.ndarray:
    """Codes by eliminating one channel at a time from the inverse (2210.17323, equations 2, 3)."""
    largest = 2 ** (bits - 1) - 1
    steps = (np.abs(matrix).max(axis=1) / largest).astype(np.float32).astype(np.float64)
    order = np.argsort(-np.diag(moments), kind="stable")
    inverse = np.linalg.inv(moments + DAMPING * np.diag(moments).mean() * np.eye(len(moments)))
    weights, codes = matrix.astype(np.float64), np.zeros(matrix.shape)
    for channel in order:
        codes[:, channel] = np.clip(np.rint(weights[:, channel] / steps), -largest, largest)
        error = weights[:, channel] - codes[:, channel] * steps
        row = inverse[channel]
        weights = weights - np.outer(error / row[channel], row)
        inverse = inverse - np.outer(row, row) / row[channel]
    return codes


@pytest.mark.parametrize("bits", [4, 8])
def test_the_codes_are_those_of_the_paper(bits: int):
    x = correlated(600, 150)  # halves of halves, and no power of two
    matrix = np.random.default_rng(1).standard_normal((6, 150)).astype(np.float32)
    codes, _ = gptq(matrix, x.T @ x, Grid(bits))
    expected = by_the_paper(matrix, x.T @ x, bits)
    # Cholesky and elimination round differently; a code at .5 may fall to either side.
    assert np.mean(codes != expected) < 0.01


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 16)])
def test_it_beats_rounding_to_nearest(bits: int, group: int | None):
    x = correlated(500, 48)
    matrix = np.random.default_rng(1).standard_normal((20, 48)).astype(np.float32)
    codes, scales = gptq(matrix, x.T @ x, Grid(bits, group))
    assert scales.shape == (20, 48 // (group or 48))
    steps = np.repeat(scales, group or 48, axis=1)
    nearest = np.rint(matrix / steps) * steps
    error = np.square(x @ (codes * steps - matrix).T).sum()
    assert error < 0.3 * np.square(x @ (nearest - matrix).T).sum()
    assert np.abs(codes).max() <= 2 ** (bits - 1) - 1


def test_uncorrelated_channels_are_rounded_to_nearest():
    matrix = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    codes, scales = gptq(matrix, np.diag(np.arange(1.0, 13.0)), Grid())
    expected = quantize_weight(matrix, 0)
    np.testing.assert_array_equal(codes, expected.codes)
    np.testing.assert_array_equal(scales[:, 0], expected.scales)


def test_silent_channels_and_zero_weights_are_no_trouble():
    matrix = np.zeros((3, 8), np.float32)
    codes, scales = gptq(matrix, np.zeros((8, 8)), Grid())
    assert not codes.any()
    assert np.isfinite(scales).all()


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups of 5 do not divide 8"):
        gptq(np.ones((2, 8), np.float32), np.eye(8), Grid(4, 5))


def test_moments_are_those_of_the_activation(vit_graph: ir.Model, pixels: np.ndarray):
    sites = [site for site in find_weight_sites(vit_graph) if is_suited(site)]
    assert [site.name for site in sites] == ["fc1", "fc2", "head"]
    batches = [{"pixel_values": pixels[:4]}, {"pixel_values": pixels[4:]}]
    found = collect_moments(vit_graph, sites, lambda: iter(batches), rows_per_channel=AMPLE)
    copy = vit_graph.clone()
    copy.graph.outputs.append(next(o for n in copy.graph for o in n.outputs if o.name == "normed"))
    with runner_from_model(copy) as runner:
        x = runner({"pixel_values": pixels})["normed"].reshape(-1, 8).astype(np.float64)
    assert found["normed"].rows == len(x)
    # summed in float32
    np.testing.assert_allclose(found["normed"].product, x.T @ x, rtol=1e-4, atol=1e-3)
    assert found["pooled"].rows == len(pixels)


def test_moments_do_not_depend_on_what_else_is_asked_for(vit_graph: ir.Model, pixels: np.ndarray):
    sites = [site for site in find_weight_sites(vit_graph) if is_suited(site)]
    batches = [{"pixel_values": pixels[start : start + 1]} for start in range(6)]
    together = collect_moments(vit_graph, sites, lambda: iter(batches), rows_per_channel=4)
    alone = collect_moments(vit_graph, sites[:1], lambda: iter(batches), rows_per_channel=4)
    name = str(sites[0].activation.name)
    # 16 tokens an image: two images are 4 rows for each of the 8 channels
    assert together[name].rows == alone[name].rows == 32
    np.testing.assert_allclose(together[name].product, alone[name].product, rtol=1e-6)


def test_products_seen_on_too_few_tokens_are_left_alone(vit_graph: ir.Model, pixels: np.ndarray):
    sites = [site for site in find_weight_sites(vit_graph) if site.name != "patch"]
    feeds = [{"pixel_values": pixels}]
    found = round_weights(vit_graph, sites, lambda: iter(feeds), Grid(), Budget(AMPLE), ROWS)
    # 6 images give the head 6 rows for 8 channels
    assert list(found) == ["fc1", "fc2"]
    for site in sites[:2]:
        assert found[site.name].codes.shape == array_of(site.weight).shape


def test_without_time_nothing_is_rounded_and_that_is_noted(vit_graph: ir.Model, pixels: np.ndarray):
    sites = [site for site in find_weight_sites(vit_graph) if site.name != "patch"]
    budget = Budget(0.0)
    feeds = [{"pixel_values": pixels}]
    assert round_weights(vit_graph, sites, lambda: iter(feeds), Grid(), budget, ROWS) == {}
    assert budget.skipped == ["GPTQ rounding of 3 products"]


def test_each_product_is_asked_for_before_it_is_rounded(vit_graph: ir.Model, pixels: np.ndarray):
    sites = [site for site in find_weight_sites(vit_graph) if site.name != "patch"]
    feeds = [{"pixel_values": pixels}]
    times = itertools.count()
    budget = Budget(8.0, clock=lambda: float(next(times)))  # every look at the clock is a second
    found = round_weights(vit_graph, sites, lambda: iter(feeds), Grid(), budget, ROWS)
    assert list(found) == ["fc1"]
    assert budget.skipped == ["GPTQ rounding of 2 products"]


def test_the_artefact_gains(pixels: np.ndarray):
    model = tiny_vit_graph()
    many = np.random.default_rng(2).standard_normal((40, 3, 16, 16)).astype(np.float32)
    results = {
        rounding: quantize(
            model,
            many,
            # the convolution is rounded to nearest either way
            Int8Section(placement="all", folds="off", rounding=rounding, keep_float=("patch",)),
            weight_bits=4,  # so that the weights' errors outweigh those of the activations
        )
        for rounding in ("gptq", "nearest")
    }
    assert results["gptq"].choices.rounded == ("fc1", "fc2", "head")
    assert results["nearest"].choices.rounded == ()
    db = {name: sqnr_db(model, result.model, pixels) for name, result in results.items()}
    # 0.8 dB; random weights make inputs that are hardly correlated, trained models gain more
    assert db["gptq"] > db["nearest"] + 0.4
