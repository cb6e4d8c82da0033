"""`diagnose`: which layers of an INT8 artefact lose the accuracy, and what to do about it.

`pairing` puts the FP32 graph and the artefact side by side, `measuring`, `extremes` and
`switching` run them, `advice` concludes, `schema` is the result and `html` draws it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Artifact, Bundle, load_bundle, read_golden, verify
from vitdeploy.data import ImageLoader, Preprocess, scan_images, synthetic_set
from vitdeploy.diagnosis.advice import Evidence, advise
from vitdeploy.diagnosis.extremes import measure_extremes
from vitdeploy.diagnosis.layer_time import times_by_layer
from vitdeploy.diagnosis.measuring import Batches, Errors, measure_errors, measure_maps
from vitdeploy.diagnosis.pairing import Pair, pair_models
from vitdeploy.diagnosis.reference import reference_graph, rotated_as
from vitdeploy.diagnosis.schema import BlockRow, Coverage, Diagnosis, PartDiagnosis, SiteRow
from vitdeploy.diagnosis.switching import (
    Noise,
    artefact_with_switches,
    fp32_with_switches,
    measure_noise,
)
from vitdeploy.errors import UnsupportedError, UsageError
from vitdeploy.graph.work import macs_by_node
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.runner import Feeds
from vitdeploy.version import __version__

__all__ = ["Diagnosis", "diagnose"]

TARGET = "onnx"
"""The artefact that is read: the only one whose graph can be taken apart."""
SWITCHED_IMAGES = 8
"""Images the gain at the output is measured on; every product needs a run of its own."""


def diagnose(
    bundle: str | Path,
    *,
    calib: str | None = None,
    samples: int = 32,
    seconds: float = 60.0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Return which products and blocks of a bundle's INT8 artefact make its error, and its time.

    Args:
        bundle: folder that `vitdeploy export --int8` wrote.
        calib: images to look at, or `synthetic`; the bundle's golden inputs where None.
        samples: how many of them.
        seconds: budget for measuring what each product in float would gain.
        progress: told of the stages.

    Raises:
        UsageError: no bundle there.
        UnsupportedError: no INT8 ONNX artefact in it, or its FP32 graph is not to be had.
        DataError: a file is missing or changed, images cannot be read, or outputs are not finite.
    """
    if samples < 1 or not 0 <= seconds < float("inf"):
        raise UsageError("diagnose needs at least 1 sample and a budget of at least 0 seconds.")
    told = progress or SilentProgress()
    loaded = load_bundle(Path(bundle))
    artifacts = _artifacts(loaded)
    told.stage("verify")
    verify(loaded)
    parts = []
    images = 0
    for artifact in artifacts:
        batches = _batches(loaded, artifact, calib, samples)
        told.stage("reference")
        original = reference_graph(loaded, artifact)
        graphs = (original, rotated_as(artifact, loaded, original))
        part, images = _diagnose_part(graphs, artifact, batches, seconds, told)
        told.stage("time")
        time = times_by_layer(loaded, artifact.part, next(iter(batches())))
        parts.append(part.model_copy(update={"time": time}))
    return Diagnosis(
        vitdeploy_version=__version__,
        model=loaded.manifest.model.name,
        target=TARGET,
        images=images,
        images_from="golden" if calib is None else Path(calib).resolve().name,
        parts=tuple(parts),
    )


def _artifacts(loaded: Bundle) -> tuple[Artifact, ...]:
    found = loaded.artifacts(TARGET)
    if not found:
        others = ", ".join(sorted({artifact.target for artifact in loaded.artifacts()}))
        raise UnsupportedError(
            f"'{loaded.path.name}' has artefacts for {others} only, whose graphs cannot be taken "
            "apart. Export it with --target onnx too: the same products are quantised there."
        )
    quantized = tuple(artifact for artifact in found if artifact.precision == "int8")
    if not quantized:
        raise UnsupportedError(
            f"'{loaded.path.name}' has precision {found[0].precision}; diagnose looks for what "
            "INT8 loses. Export with --int8."
        )
    return quantized


def _batches(loaded: Bundle, artifact: Artifact, calib: str | None, samples: int) -> Batches:
    """Return what starts a pass over the images, in the artefact's own batch where it is fixed."""
    fixed = artifact.inputs[0].shape[0]
    if calib is None:
        golden = read_golden(loaded.path, artifact.part).inputs
        size = fixed if isinstance(fixed, int) else len(next(iter(golden.values())))
        count = len(next(iter(golden.values())))
        return lambda: (
            _filled({n: v[start : start + size] for n, v in golden.items()}, fixed)
            for start in range(0, count, size)
        )
    preprocess = Preprocess.from_dict(loaded.manifest.preprocess)
    every = synthetic_set(samples, 0) if calib == "synthetic" else scan_images(calib)
    chosen = every.sample(samples, 0)
    size = fixed if isinstance(fixed, int) else 1 if min(preprocess.size) > 256 else 4

    def passes() -> Iterator[Feeds]:
        for pixels, _ in ImageLoader(chosen, preprocess).batches(size):
            yield _filled({artifact.inputs[0].name: pixels}, fixed)

    return passes


def _filled(feeds: Feeds, fixed: int | str) -> Feeds:
    """Return feeds of the fixed batch, short ones filled up with their own images."""
    if not isinstance(fixed, int):
        return feeds
    return {name: np.resize(value, (fixed, *value.shape[1:])) for name, value in feeds.items()}


def _diagnose_part(
    graphs: tuple[ir.Model, ir.Model],
    artifact: Artifact,
    batches: Batches,
    seconds: float,
    told: Progress,
) -> tuple[PartDiagnosis, int]:
    """Return the diagnosis; `graphs` is the FP32 graph, and the same in the artefact's rotation."""
    original, reference = graphs
    quantized = ir.load(artifact.path)
    told.stage("folds")
    maps = measure_maps(pair_models(reference, quantized, quantized=False), batches)
    told.stage("errors")
    pair = pair_models(reference, quantized)
    errors = measure_errors(pair, maps, batches)
    told.stage("extremes")
    extremes = measure_extremes(pair_models(original, quantized), batches)
    told.stage("noise")
    fp32 = fp32_with_switches(pair_models(reference, quantized), maps, _few(batches))
    noise = measure_noise(fp32, list(errors.made_db), seconds)
    in_float = artefact_with_switches(pair_models(reference, quantized), maps, _few(batches))
    first = artifact.inputs[0].shape[0]
    macs = macs_by_node(reference, first if isinstance(first, int) else 1)
    sites = _site_rows(pair, errors, noise, macs)
    coverage = _coverage(sites, macs)
    evidence = Evidence(errors.output_db, sites, extremes.norms, coverage, extremes.fp16)
    part = PartDiagnosis(
        part=artifact.part,
        output_db=errors.output_db,
        sites=sites,
        blocks=tuple(
            BlockRow(
                name=block.name,
                made_db=errors.block_made_db[block.name],
                inherited_db=errors.block_inherited_db[block.name],
            )
            for block in pair.blocks
        ),
        norms=extremes.norms,
        coverage=coverage,
        fp16=extremes.fp16,
        advice=advise(evidence, None if noise.reason else in_float.output_db),
    )
    return part, errors.images


def _few(batches: Batches) -> Batches:
    def passes() -> Iterator[Feeds]:
        seen = 0
        for feeds in batches():
            yield feeds
            seen += len(next(iter(feeds.values())))
            if seen >= SWITCHED_IMAGES:
                return

    return passes


def _site_rows(
    pair: Pair, errors: Errors, noise: Noise, macs: dict[str, int | None]
) -> tuple[SiteRow, ...]:
    """Return the products, worst first: by share of the output's error, else by their own."""
    rows = []
    for site in pair.sites:
        name = site.name
        is_int8 = site.quantize is not None
        in_float = None if is_int8 else "it is in float"
        share = noise.share_percent(name)
        own_macs = macs.get(name)
        rows.append(
            SiteRow(
                name=name,
                block=site.block,
                kind=site.reference.kind,
                is_int8=is_int8,
                macs=own_macs,
                macs_reason=None if own_macs is not None else "its shapes are unknown",
                made_db=errors.made_db.get(name),
                made_db_reason=in_float,
                inherited_db=errors.inherited_db[name],
                clipped_percent=errors.clipped_percent.get(name),
                clipped_percent_reason=in_float,
                output_share_percent=share,
                output_share_percent_reason=(
                    None if share is not None else in_float or noise.reason or "there is no error"
                ),
            )
        )
    return tuple(sorted(rows, key=_badness))


def _badness(row: SiteRow) -> tuple[bool, float, float]:
    share = row.output_share_percent
    made = row.made_db if row.made_db is not None else row.inherited_db
    return (not row.is_int8, -(share if share is not None else 0.0), made)


def _coverage(sites: Sequence[SiteRow], macs: dict[str, int | None]) -> Coverage:
    unknown = [name for name, count in macs.items() if count is None]
    reason = f"the shapes of {unknown[0]} are unknown" if unknown else None
    with_weights = sum(row.macs or 0 for row in sites)
    in_int8 = sum(row.macs or 0 for row in sites if row.is_int8)
    total = sum(count or 0 for count in macs.values())
    return Coverage(
        weights_percent=None if reason else 100.0 * in_int8 / max(with_weights, 1),
        weights_percent_reason=reason,
        all_percent=None if reason else 100.0 * in_int8 / max(total, 1),
        all_percent_reason=reason,
        kept_float=tuple(row.name for row in sites if not row.is_int8),
    )
