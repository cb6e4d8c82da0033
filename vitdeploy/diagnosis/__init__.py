"""`diagnose`: which layers of an INT8 artefact lose the accuracy, and what to do about it.

`artefact` and `reference` find the two graphs, `pairing` puts them side by side, `measuring`,
`extremes` and `switching` run them, `layer_time` and `fusing` say what the engines make of them,
`advice` concludes, `schema` is the result and `html` draws it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Artifact, Bundle, load_bundle, read_golden, verify
from vitdeploy.data import ImageLoader, Preprocess, scan_images, synthetic_set
from vitdeploy.data.baked import PICTURES
from vitdeploy.diagnosis.advice import Evidence, advise
from vitdeploy.diagnosis.artefact import choose_artifacts, graph_of, is_half, shipped_db
from vitdeploy.diagnosis.extremes import measure_extremes
from vitdeploy.diagnosis.fusing import fusion_rows
from vitdeploy.diagnosis.layer_time import times_by_layer
from vitdeploy.diagnosis.measuring import Batches, Errors, measure_errors, measure_maps
from vitdeploy.diagnosis.pairing import Pair, in_form_of, int8_attention, pair_models
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

SWITCHED_IMAGES = 8
"""Images the gain at the output is measured on; every product needs a run of its own."""


def diagnose(
    bundle: str | Path,
    *,
    target: str | None = None,
    calib: str | None = None,
    samples: int = 32,
    seconds: float = 60.0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Return which products and blocks of a bundle's INT8 artefact make its error, and its time.

    Args:
        bundle: folder that `vitdeploy export --int8` wrote.
        target: whose artefact is read; the first whose graph can be taken apart where None.
        calib: images to look at, or `synthetic`; the bundle's golden inputs where None.
        samples: how many of them.
        seconds: budget for measuring what each product in float would gain.
        progress: told of the stages.

    Raises:
        UsageError: no bundle there, or not of this target.
        UnsupportedError: no INT8 artefact that can be taken apart, or no FP32 graph to be had.
        ExportError: TensorRT's builder, which is here, refuses a graph of the bundle.
        DataError: a file is missing or changed, images cannot be read, or outputs are not finite.
    """
    if samples < 1 or not 0 <= seconds < float("inf"):
        raise UsageError("diagnose needs at least 1 sample and a budget of at least 0 seconds.")
    told = progress or SilentProgress()
    loaded = load_bundle(Path(bundle))
    artifacts = choose_artifacts(loaded, target)
    if any(artifact.inputs[0].name == PICTURES for artifact in artifacts):
        raise UnsupportedError(
            f"'{loaded.path.name}' prepares pictures in its graph, which diagnose cannot compare "
            "with the model; export it without --bake-preprocessing and diagnose that."
        )
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
        told.stage("fusion")
        fusion, notes = fusion_rows(loaded, artifact.part)
        parts.append(part.model_copy(update={"time": time, "fusion": fusion, "notes": notes}))
    return Diagnosis(
        vitdeploy_version=__version__,
        model=loaded.manifest.model.name,
        target=artifacts[0].target,
        images=images,
        images_from="golden" if calib is None else Path(calib).resolve().name,
        parts=tuple(parts),
    )


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
    quantized = graph_of(artifact, graphs[0])
    original, reference = (in_form_of(quantized, graph) for graph in graphs)
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
    coverage = _coverage(sites, macs, int8_attention(quantized))
    told.stage("outputs")
    half = shipped_db(artifact, original, batches) if is_half(artifact) else None
    evidence = Evidence(errors.output_db, sites, extremes.norms, coverage, extremes.fp16)
    part = PartDiagnosis(
        part=artifact.part,
        output_db=errors.output_db,
        half_db=half,
        half_db_reason=None if half is not None else "its float layers are FP32",
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


def _coverage(
    sites: Sequence[SiteRow], macs: dict[str, int | None], attention: Sequence[str]
) -> Coverage:
    unknown = [name for name, count in macs.items() if count is None]
    reason = f"the shapes of {unknown[0]} are unknown" if unknown else None
    with_weights = sum(row.macs or 0 for row in sites)
    in_int8 = sum(row.macs or 0 for row in sites if row.is_int8)
    attention_in_int8 = sum(macs.get(name) or 0 for name in attention)
    total = sum(count or 0 for count in macs.values())
    return Coverage(
        weights_percent=None if reason else 100.0 * in_int8 / max(with_weights, 1),
        weights_percent_reason=reason,
        all_percent=None if reason else 100.0 * (in_int8 + attention_in_int8) / max(total, 1),
        all_percent_reason=reason,
        kept_float=tuple(row.name for row in sites if not row.is_int8),
    )
