"""What a run writes beside the artefacts: the report, the manifest's head, the model card."""

from collections.abc import Sequence
from datetime import datetime, timezone

from vitdeploy.bundle import Artifact, Bundle, BundleWriter
from vitdeploy.compress.int8 import SearchCost
from vitdeploy.data import Preprocess
from vitdeploy.environment import describe_environment, package_versions
from vitdeploy.errors import UsageError
from vitdeploy.findings import REFERENCE, Compressed, Findings, Measured
from vitdeploy.gates import check_gates
from vitdeploy.image_sets import Chosen, stamps_of
from vitdeploy.manifest import Manifest, ModelEntry, TilingEntry
from vitdeploy.models.description import ModelDescription
from vitdeploy.models.spec import LoadedModel
from vitdeploy.notes import advice, int4_notes, placement_notes
from vitdeploy.onnx_export import Parity
from vitdeploy.recipe import Recipe, recipe_sha256, yaml_from_recipe
from vitdeploy.report import (
    WRITERS,
    ArtifactRow,
    FidelityRow,
    GateRow,
    LatencyRow,
    ModelInfo,
    ParityRow,
    PrecisionInfo,
    Report,
    SearchRow,
    StageRow,
    WorstImage,
)
from vitdeploy.report.schema import MIN_SAMPLES_FOR_P99
from vitdeploy.version import __version__


def assemble_report(
    recipe: Recipe,
    loaded: LoadedModel,
    description: ModelDescription,
    images: Chosen,
    findings: Findings,
) -> Report:
    """Return the report of a run, its gates checked."""
    speedup, speedup_reason = _speedups(recipe, findings)
    medians: dict[str, float | None] = {
        name: _median(findings.latency, name) for name in recipe.targets
    }
    gates = check_gates(recipe.gates, recipe.targets, findings.fidelity, speedup, medians)
    stamps = stamps_of(images, recipe)
    return Report(
        vitdeploy_version=__version__,
        created=_now(),
        model=_model_info(loaded, description),
        precision=PrecisionInfo(requested=recipe.precision),
        artifacts=tuple(_artifact_row(item) for item in findings.compressed),
        stamps=stamps,
        calibration=images.calibration.describe() if images.calibration else None,
        calibration_reason=None if images.calibration else f"{recipe.precision} needs none",
        evaluation=images.evaluation.describe(),
        fidelity=tuple(findings.fidelity),
        latency=tuple(latency_row(item) for item in findings.latency),
        speedup=speedup,
        speedup_reason=speedup_reason,
        size_bytes={REFERENCE: findings.reference_bytes}
        | _sizes([item.artifact for item in findings.compressed]),
        parity=tuple(_parity_row(row) for row in findings.parity),
        gates=tuple(gates),
        stages=tuple(
            StageRow(name=s.name, seconds=s.seconds, peak_rss_bytes=s.peak_rss_bytes)
            for s in findings.stages
        ),
        search=tuple(_search_rows(findings)),
        sensitivity=tuple(findings.sensitivity),
        outliers=tuple(findings.outliers),
        worst_images=tuple(_named(row, loaded.spec.label_names) for row in findings.worst_images),
        environment=describe_environment(),
        recipe_sha256=recipe_sha256(recipe),
        notes=(
            *loaded.spec.notes,
            *images.notes,
            *findings.selection,
            *placement_notes(findings.compressed),
            *int4_notes(findings.compressed),
            *advice(recipe, speedup),
        ),
    )


def tiling_of(recipe: Recipe, loaded: LoadedModel) -> TilingEntry | None:
    """Return how pictures are cut into inputs of the model, None where the recipe asks for none.

    Raises:
        UsageError: the model classifies, or segments what is pointed at.
    """
    most = recipe.export.tiles
    if most is None:
        return None
    if loaded.class_output is not None or len(loaded.parts) > 1:
        raise UsageError(
            f"--tiles {most}: '{loaded.spec.name}' answers for a whole picture (classes or masks), "
            "not for a tile. Tiles are for encoders; choose what it returns with --outputs, for "
            "instance patch or pixel-shuffle-2."
        )
    return TilingEntry(tile_size=loaded.spec.preprocess.size[0], max_tiles=most)


def write_documents(
    writer: BundleWriter, report: Report, loaded: LoadedModel, recipe: Recipe
) -> None:
    """Write report.json, report.html, model_card.md and recipe.yaml; describe the manifest."""
    spec = loaded.spec
    writer.describe(
        Manifest(
            model=ModelEntry(
                name=spec.name,
                family=spec.family,
                source=spec.source,
                task=spec.task,
                weights=spec.weights,
            ),
            preprocess=spec.preprocess.to_dict(),
            tracking=loaded.tracking,
            tiling=tiling_of(recipe, loaded),
            label_names=spec.label_names,
            stamps=report.stamps,
            versions=package_versions(),
        )
    )
    texts = {
        "report.json": WRITERS["json"].render(report),
        "report.html": WRITERS["html"].render(report),
        "recipe.yaml": yaml_from_recipe(recipe.model_copy(update={"output": None})),
    }
    for name, text in texts.items():
        writer.add_file(name).write_text(text, encoding="utf-8", newline="\n")
    card = WRITERS["markdown"].render(report, writer.manifest().model_dump(mode="json"))
    writer.add_file("model_card.md").write_text(card, encoding="utf-8", newline="\n")


def report_of_bundle(
    bundle: Bundle, fidelity: tuple[FidelityRow, ...], gates: tuple[GateRow, ...]
) -> Report:
    """Return the report of a check, made from the manifest and what was measured now."""
    manifest = bundle.manifest
    unknown = "not measured by a check; see the bundle's own report"
    artifacts = bundle.artifacts()
    size = Preprocess.from_dict(manifest.preprocess).size
    return Report(
        vitdeploy_version=__version__,
        created=_now(),
        model=ModelInfo(
            **manifest.model.model_dump(),
            image_size=(size[0], size[1]),
            parameters_reason=unknown,
            gmacs_reason=unknown,
        ),
        precision=PrecisionInfo(requested="/".join(sorted({a.precision for a in artifacts}))),
        artifacts=tuple(_artifact_row(Compressed(item), unknown) for item in artifacts),
        stamps=manifest.stamps,
        calibration_reason=unknown,
        evaluation_reason="compared on the bundle's golden inputs",
        fidelity=fidelity,
        size_bytes=_sizes(artifacts),
        gates=gates,
        environment=describe_environment(),
        recipe_sha256_reason=unknown,
    )


def latency_row(measured: Measured) -> LatencyRow:
    """Return the report's row of one timing; p99 is null below 100 samples."""
    timing = measured.timing
    count = len(timing.samples_ms)
    enough = count >= MIN_SAMPLES_FOR_P99
    return LatencyRow(
        target=measured.target,
        part=measured.part,
        engine=measured.engine,
        precision=measured.precision,
        batch=timing.batch,
        threads=measured.threads,
        p50_ms=timing.p50_ms,
        p90_ms=timing.percentile(90),
        p99_ms=timing.percentile(99) if enough else None,
        p99_ms_reason=None if enough else f"{count} samples; {MIN_SAMPLES_FOR_P99} are needed",
        mean_ms=timing.mean_ms,
        samples=count,
        throughput_ips=timing.throughput_ips,
        quantiles_ms=tuple(timing.percentile(share) for share in range(0, 101, 5)),
    )


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _model_info(loaded: LoadedModel, description: ModelDescription) -> ModelInfo:
    spec = loaded.spec
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        source=spec.source,
        task=spec.task,
        weights=spec.weights,
        image_size=spec.preprocess.size,
        parameters=description.parameters,
        gmacs=description.gmacs,
        gmacs_reason=None if description.gmacs is not None else "the file's shapes are unknown",
    )


def _artifact_row(item: Compressed, unknown: str | None = None) -> ArtifactRow:
    artifact = item.artifact
    share = item.quantized.int8_macs_percent if item.quantized else None
    reason = unknown or f"precision {artifact.precision} has no INT8"
    return ArtifactRow(
        target=artifact.target,
        part=artifact.part,
        precision=artifact.precision,
        path=f"{artifact.path.parent.name}/{artifact.path.name}",
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        int8_macs_percent=share,
        int8_macs_percent_reason=None if share is not None else reason,
        int4_weights_percent=item.int4.int4_weights_percent if item.int4 else None,
        activations=item.activations.type if item.activations else None,
        activations_sqnr_db=item.activations.sqnr_db if item.activations else None,
    )


def _named(row: WorstImage, label_names: Sequence[str]) -> WorstImage:
    """Return the row with the classes' names for their numbers, as far as there are any."""

    def words(said: str | None) -> str | None:
        number = (said or "").removeprefix("class ")
        known = number.isdigit() and int(number) < len(label_names)
        return label_names[int(number)] if known and label_names[int(number)] else said

    told = {name: words(getattr(row, name)) for name in ("reference", "own", "truth")}
    return row.model_copy(update=told)


def _parity_row(row: Parity) -> ParityRow:
    return ParityRow(
        part=row.part,
        batch=row.batch,
        max_abs_diff=row.max_abs_diff,
        max_relative=row.max_relative,
        tolerance=row.tolerance,
        passed=row.passed,
    )


def _sizes(artifacts: Sequence[Artifact]) -> dict[str, int]:
    """Return by target the size of what a device loads, all parts together."""
    sizes: dict[str, int] = {}
    for artifact in artifacts:
        sizes[artifact.target] = sizes.get(artifact.target, 0) + artifact.run_bytes
    return sizes


def _median(latency: Sequence[Measured], target: str) -> float | None:
    """Return the sum of the parts' median latencies in milliseconds, None if not measured."""
    medians = [item.timing.p50_ms for item in latency if item.target == target]
    return sum(medians) if medians else None


def _speedups(recipe: Recipe, findings: Findings) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return by target the ratio of medians FP32 reference / artefact, or why there is none."""
    reference = _median(findings.latency, REFERENCE)
    values: dict[str, float | None] = {}
    for name in recipe.targets:
        own = _median(findings.latency, name)
        values[name] = reference / own if reference and own else None
    missing = {
        name: findings.untimed.get(name, "latency was not measured")
        for name, value in values.items()
        if value is None
    }
    return values, missing


def _search_rows(findings: Findings) -> list[SearchRow]:
    rows = []
    for item in findings.compressed:
        if item.quantized is None or item.quantized.search == SearchCost():
            continue
        own = item.quantized.search
        rows.append(
            SearchRow(
                target=item.artifact.target,
                part=item.artifact.part,
                seconds=own.seconds,
                candidates=own.candidates,
                skipped=own.skipped,
            )
        )
    return rows
