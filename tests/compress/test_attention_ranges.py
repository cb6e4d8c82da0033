"""Ranges of INT8 attention: on how many images, and where the codes of a softmax may end."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.compress.attention_ranges import (
    EXTREMES_MACS,
    attention_ranges,
    images_for_extremes,
    images_in,
)
from vitdeploy.compress.calibrate import Probe, collect_statistics
from vitdeploy.errors import CompressionError
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.runner import Feeds

PIXELS = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
BLANK = {"pixel_values": np.zeros_like(PIXELS[:2])}
SHOWN = {"pixel_values": PIXELS[2:]}


def scheme(*, packs: bool) -> QuantScheme:
    return QuantScheme(activation=ir.DataType.UINT8, packs_attention=packs)


def tops(model: ir.Model, images: list[Feeds]) -> dict[str, float]:
    """By attention: the largest value of its softmax."""
    outputs = {site.name: site.softmax.outputs[0] for site in find_attention(model)}
    probes = [Probe(str(value.name), -1, 4) for value in outputs.values()]
    found = collect_statistics(model, probes, lambda: iter(images))
    return {site: found[str(value.name)].range.high for site, value in outputs.items()}


def test_what_ships_packed_covers_both_halves_and_what_is_judged_only_one():
    model = canonical("vit")
    first, every = tops(model, [BLANK]), tops(model, [BLANK, SHOWN])
    assert all(every[site] > 1.25 * top for site, top in first.items())
    sites = find_attention(model)
    ranges = attention_ranges(model, sites, scheme(packs=True), [BLANK, SHOWN])
    ranges.find_ceilings_(lambda: iter([BLANK]))
    assert ranges.ceilings() == pytest.approx(every)
    judged = {
        site: ranges.judged[probe.value_name].high for site, probe in ranges.softmaxes.items()
    }
    assert judged == pytest.approx(first)


def test_only_attention_that_is_not_packed_may_cut_what_was_seen():
    model = canonical("vit")
    quiet, every = tops(model, [BLANK]), tops(model, [SHOWN])
    found = {}
    for packs in (True, False):
        ranges = attention_ranges(model, find_attention(model), scheme(packs=packs), [SHOWN])
        ranges.find_ceilings_(lambda: iter([BLANK]))
        found[packs] = ranges.ceilings()
    assert found[True] == pytest.approx(every)
    assert all(quiet[site] < found[False][site] < every[site] for site in every)


def test_pinned_ceilings_are_taken_as_they_are():
    model = canonical("vit")
    ranges = attention_ranges(model, find_attention(model), scheme(packs=True), [SHOWN])
    pinned = {site.name: 0.25 + number for number, site in enumerate(find_attention(model))}
    ranges.set_ceilings_(pinned)
    assert ranges.ceilings() == pinned


@pytest.mark.parametrize(
    ("macs", "is_fixed", "counts"),
    [
        (EXTREMES_MACS, False, [10, 6]),
        (EXTREMES_MACS, True, [10, 10]),
        (EXTREMES_MACS / 25, False, [10, 10, 5]),
        (0.0, False, [10, 10, 10]),
    ],
)
def test_work_says_how_many_images_give_extremes(macs: float, is_fixed: bool, counts: list[int]):
    batches = [{"pixel_values": np.zeros((10, 3, 1, 1), np.float32)}] * 3
    chosen = images_for_extremes(lambda: iter(batches), macs, is_fixed=is_fixed)
    assert [images_in(feeds) for feeds in chosen] == counts


def test_refuses_to_take_extremes_of_nothing():
    model = canonical("vit")
    with pytest.raises(CompressionError, match="no image"):
        attention_ranges(model, find_attention(model), scheme(packs=True), [])
