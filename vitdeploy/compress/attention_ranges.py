"""Ranges of INT8 attention: extremes of q, k and v, and where the codes of the softmax end.

A clip search for q, k and v gained 0.04 dB on Swin. Nearly all noise is the softmax's, whose few
large values share 127 codes with many small ones, so its largest code is searched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.calibrate import (
    Batches,
    Probe,
    RangeCandidate,
    collect_range_errors,
    collect_statistics,
)
from vitdeploy.graph.attention import AttentionGraphSite
from vitdeploy.graph.attention_qdq import operands
from vitdeploy.graph.qdq import ActivationRange, QuantScheme
from vitdeploy.runner import Feeds

CEILINGS = (1.5, 1.25, 1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the largest softmax value that was seen: what is tried as the largest code, up to 1. Packed
attention (OpenVINO's) must be nearly silent, and there nothing that was seen is cut: a site of
vit-digits was so on 128 images and made 6 dB of noise on one of 500."""
EXTREMES_MACS = 5e11
"""Work that goes into extremes; no time, for a run with pinned choices sees the same images. Rare
images pass those of 16 (vit-digits on OpenVINO, two draws: 55 and 57 dB; 60 and 60 with 128)."""
_LEAST_IMAGES = 16


@dataclass(frozen=True, eq=False)
class AttentionRanges:
    """Ranges of all operands by value name; a softmax's ends at its ceiling once that is known."""

    model: ir.Model
    """FP32 graph."""
    scheme: QuantScheme
    softmaxes: Mapping[str, Probe]
    """By site."""
    whole: dict[str, ActivationRange]
    """Of all images: what ships."""
    judged: dict[str, ActivationRange]
    """Of every other batch, the first included, to be judged on the batches between."""

    def find_ceilings_(self, batches: Batches) -> None:
        """End the codes of each softmax where its error on `batches` is least."""
        packs = self.scheme.packs_attention
        shares = [share for share in CEILINGS if share >= 1.0 or not packs]
        tried = {
            probe: sorted(
                {min(self.judged[probe.value_name].high * share, 1.0) for share in shares}
            )
            for probe in self.softmaxes.values()
        }
        candidates = {
            probe: [RangeCandidate(ActivationRange(0.0, top)) for top in tops]
            for probe, tops in tried.items()
        }
        errors = collect_range_errors(self.model, candidates, self.scheme, batches)
        for probe, tops in tried.items():
            name = probe.value_name
            best = tops[int(np.argmin(errors[name].sum(axis=1)))]
            seen = min(self.whole[name].high, 1.0) if packs else 0.0
            self.judged[name] = ActivationRange(0.0, best)
            self.whole[name] = ActivationRange(0.0, max(best, seen))

    def set_ceilings_(self, ceilings: Mapping[str, float]) -> None:
        """End the codes of each softmax as an earlier run chose, by site."""
        for site, ceiling in ceilings.items():
            self.whole[self.softmaxes[site].value_name] = ActivationRange(0.0, ceiling)

    def ceilings(self) -> dict[str, float]:
        """Return by site the largest softmax value that its codes reach."""
        return {site: self.whole[probe.value_name].high for site, probe in self.softmaxes.items()}


def attention_ranges(
    model: ir.Model,
    sites: Sequence[AttentionGraphSite],
    scheme: QuantScheme,
    images: Sequence[Feeds],
) -> AttentionRanges:
    """Return the extremes of all operands of the given attention.

    Raises:
        CompressionError: no images, NaN activations.
    """
    listed = {site.name: _probes(site, scheme) for site in sites}
    unique = {probe.value_name: probe for probes in listed.values() for probe in probes}
    found = collect_statistics(model, list(unique.values()), lambda: iter(images))
    return AttentionRanges(
        model,
        scheme,
        {name: probes[-1] for name, probes in listed.items()},
        {name: own.range for name, own in found.items()},
        {name: (own.half or own).range for name, own in found.items()},
    )


def images_for_extremes(batches: Batches, macs: float, *, is_fixed: bool) -> list[Feeds]:
    """Return the first batches, as many as the work allows, at least 16 images where there are.

    Args:
        batches: a pass over the calibration images.
        macs: of an image.
        is_fixed: whether batches must stay whole; the last one is cropped otherwise.
    """
    left = max(_LEAST_IMAGES, int(EXTREMES_MACS / max(macs, 1.0)))
    chosen = []
    for feeds in batches():
        if left <= 0:
            break
        whole = is_fixed or images_in(feeds) <= left
        chosen.append(feeds if whole else {name: value[:left] for name, value in feeds.items()})
        left -= images_in(feeds)
    return chosen


def images_in(feeds: Feeds) -> int:
    """Return how many images a batch has."""
    return len(next(iter(feeds.values())))


def _probes(site: AttentionGraphSite, scheme: QuantScheme) -> list[Probe]:
    """Return a probe of each of the site's `operands`, the softmax last."""
    values = [node.inputs[index] for node, index in operands(site, scheme)]
    return [
        Probe(str(v.name), -1, len(v.shape) if v.shape is not None else 4)
        for v in values
        if v is not None
    ]
