"""Folds are found, refused with a reason, and undo outliers that hide in the weights."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.compress.test_int8 import sqnr_db
from vitdeploy.compress.calibrate import Probe, collect_statistics
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.compress.smoothing import (
    find_groups,
    smoothing_scale,
    strength_from_label,
    strengths,
)
from vitdeploy.errors import CompressionError
from vitdeploy.graph.folds import layernorm_scale
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.sites import find_weight_sites
from vitdeploy.recipe import Int8Choices, Int8Section
from vitdeploy.targets.onnx import runner_from_model

SYMMETRIC = QuantScheme(activation=ir.DataType.INT8, symmetric_activations=True)
EVERYTHING = Int8Section(placement="all")


def group_of(model: ir.Model, pixels: np.ndarray):
    sites = find_weight_sites(model)
    groups, refusals = find_groups(model, sites)
    statistics = collect_statistics(
        model, [Probe("normed", -1, 3)], lambda: iter([{"pixel_values": pixels}])
    )
    return groups, refusals, statistics


def test_the_norm_is_found_with_its_reader(vit_graph: ir.Model, pixels: np.ndarray):
    groups, _, _ = group_of(vit_graph, pixels)
    assert [(g.name, g.fold, g.can_shift) for g in groups] == [("norm", "layernorm_scale", True)]
    assert [reader.site.name for reader in groups[0].readers] == ["fc1"]


def test_a_norm_whose_reader_stays_in_float_is_refused_with_the_reason(vit_graph: ir.Model):
    sites = [site for site in find_weight_sites(vit_graph) if site.name != "fc1"]
    groups, refusals = find_groups(vit_graph, sites)
    assert groups == []
    assert [(r.name, r.reason) for r in refusals] == [("norm", "its reader fc1 stays in float")]


@pytest.mark.parametrize("label", ["off", "shift", "0.5", "1+shift"])
def test_a_fold_of_any_strength_keeps_the_function(
    label: str, vit_graph: ir.Model, pixels: np.ndarray
):
    groups, _, statistics = group_of(vit_graph, pixels)
    strength = strength_from_label(groups[0], label, statistics)
    assert strength.label == label
    copy = vit_graph.clone()
    find_groups(copy, find_weight_sites(copy))[0][0].apply_(copy, strength.scale, strength.shift)
    # float32 rounding of the rewritten weights: 120 dB is one part in a million.
    assert sqnr_db(vit_graph, copy, pixels) > 110


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_scaling_a_channel_scales_its_s_by_the_same(alpha: float):
    rng = np.random.default_rng(0)
    magnitude, weights, factor = rng.random(16) + 0.1, rng.random(16) + 0.1, rng.random(16) * 500
    before = smoothing_scale(magnitude, weights, alpha)
    after = smoothing_scale(magnitude * factor, weights / factor, alpha)
    ratio = after / before / factor
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_silent_channels_are_left_alone():
    scale = smoothing_scale(np.array([0.0, 1.0, 4.0]), np.array([1.0, 1.0, 1.0]), 0.5)
    assert scale[0] == 1.0
    assert scale[2] / scale[1] == pytest.approx(2.0)
    assert smoothing_scale(np.zeros(3), np.ones(3), 0.5).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("scheme", [QuantScheme(), SYMMETRIC], ids=["u8", "s8"])
@pytest.mark.parametrize("strength", [32.0, 512.0])
def test_injected_outliers_cost_less_than_a_decibel(
    scheme: QuantScheme, strength: float, vit_graph: ir.Model, pixels: np.ndarray
):
    feeds = [{"pixel_values": pixels}]

    def quantized(model: ir.Model, folds: str) -> ir.Model:
        options = Int8Section(placement="all", folds=folds)
        return quantize_int8(model, scheme, lambda: iter(feeds), options).model

    hurt = vit_graph.clone()
    factors = np.ones(8)
    factors[[1, 5]] = 1 / strength
    layernorm_scale.apply_(hurt, layernorm_scale.find(hurt)[0], factors)
    assert sqnr_db(vit_graph, hurt, pixels) > 100
    clean = sqnr_db(vit_graph, quantized(vit_graph, "search"), pixels)
    assert sqnr_db(hurt, quantized(hurt, "off"), pixels) < clean - 5
    assert sqnr_db(hurt, quantized(hurt, "search"), pixels) > clean - 1


def test_the_estimate_ranks_like_the_measurement(vit_graph: ir.Model, pixels: np.ndarray):
    """With a strong outlier "off" must not be among the best estimates."""
    factors = np.ones(8)
    factors[2] = 1 / 128
    layernorm_scale.apply_(vit_graph, layernorm_scale.find(vit_graph)[0], factors)
    groups, _, statistics = group_of(vit_graph, pixels)
    ranked = [strength.label for strength in strengths(groups[0], statistics, QuantScheme())]
    assert ranked.index("off") > len(ranked) // 2


def test_pins_that_do_not_fit_are_refused(vit_graph: ir.Model, pixels: np.ndarray):
    feeds = [{"pixel_values": pixels}]
    for choices in (
        Int8Choices(strengths={"norm": "much"}),
        Int8Choices(strengths={"no-such-norm": "0.5"}),
        Int8Choices(clips={"no-such-value": 0.9}),
    ):
        with pytest.raises(CompressionError, match=r"int8\.choices"):
            quantize_int8(vit_graph, QuantScheme(), lambda: iter(feeds), EVERYTHING, pinned=choices)


def test_bias_correction_takes_away_the_mean_error(vit_graph: ir.Model):
    pixels = np.random.default_rng(5).standard_normal((64, 3, 16, 16)).astype(np.float32) + 1.0
    feeds = [{"pixel_values": pixels}]
    drift = {}
    for corrected in (False, True):
        options = Int8Section(
            placement="all", folds="off", bias_correction=corrected, keep_float=("fc1", "fc2")
        )
        # Four-bit weights make the drift visible above the noise.
        scheme = QuantScheme(weight_bits=4)
        result = quantize_int8(vit_graph, scheme, lambda: iter(feeds), options)
        with runner_from_model(vit_graph) as a, runner_from_model(result.model) as b:
            difference = b(feeds[0])["logits"] - a(feeds[0])["logits"]
        drift[corrected] = np.abs(difference.mean(0)).max()
    assert drift[True] < 0.35 * drift[False]
