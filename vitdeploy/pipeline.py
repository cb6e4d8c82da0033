"""One run, from a recipe to a bundle and its report, as a dozen plain calls.

Everything is decided by the recipe; the calls are in `stages`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitdeploy.baking import bake_preprocessing, require_bakeable
from vitdeploy.bundle import BundleWriter
from vitdeploy.comparing import reference_outputs
from vitdeploy.device import PackageOptions
from vitdeploy.device_package import fusion_notes, lint_graphs, package_graphs, size_notes
from vitdeploy.documents import (
    assemble_report,
    tiling_of,
    write_documents,
)
from vitdeploy.errors import UsageError
from vitdeploy.findings import REFERENCE, Findings
from vitdeploy.golden_set import device_cases, write_golden_of, write_golden_of_target
from vitdeploy.image_sets import choose_sets, reject_missing_calibration, stamps_of
from vitdeploy.job import Job, Work, note_all
from vitdeploy.measure import StageClock
from vitdeploy.models import describe, load
from vitdeploy.models.spec import LoadedModel, LoadOptions
from vitdeploy.outliers import block_noise, outlier_rows
from vitdeploy.output import require_free_output
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.recipe import PruneSection, Recipe, TargetName, recipe_from_dict
from vitdeploy.report import Report
from vitdeploy.selection import Selection, require_variant, select
from vitdeploy.stages import (
    check_parts,
    export_parts,
    output_notes,
    recognition_notes,
    remove_reference,
    time_artifacts,
    without_modules,
)
from vitdeploy.targets import Target, load_baker, load_target

_SMALLER = f"{REFERENCE}/smaller"
"""Where the FP32 graphs of a pruned or trained model lie while a run lasts."""

if TYPE_CHECKING:
    from vitdeploy.compress.distill import DistillResult
    from vitdeploy.compress.merge_tokens import MergeResult
    from vitdeploy.compress.prune import PruneResult


def run(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Do what the recipe says; return the report of the bundle that was written.

    A failed gate is no exception: see `Report.passed`.

    Args:
        recipe: what to do.
        output: bundle folder; wins over the recipe's.
        force: replace a bundle that is already there.
        progress: told of stages and steps.

    Raises:
        VitdeployError: one of its subclasses, by cause; nothing is written then.
    """
    work = Work(recipe, StageClock(), progress or SilentProgress())
    folder = output_folder(recipe, output)
    require_free_output(folder, force=force)
    targets: dict[str, Target] = {name: load_target(name) for name in recipe.targets}
    for target in targets.values():
        require_variant(recipe, target)
        if recipe.export.bake_preprocessing:
            load_baker(target.NAME)
    reject_missing_calibration(recipe)
    with BundleWriter(folder, force=force) as writer:
        with work.stage("load"):
            loaded = load(load_options(recipe))
            recipe = suited(recipe, loaded)
            work = replace(work, recipe=recipe)
            images = choose_sets(recipe, loaded)
        note_all(work, (*loaded.spec.notes, *images.notes))
        kept, smaller = _made_smaller(work, loaded, folder, force=force)
        description = describe(kept)
        with work.stage("reference"):
            reference = reference_outputs(work, loaded, images)
        with work.stage("export"):
            whole = export_parts(work, loaded, images, writer, targets)
            exported = (
                whole
                if kept is loaded
                else export_parts(work, kept, images, writer, targets, _SMALLER)
            )
        with work.stage("parity"):
            parity = check_parts(exported, images, recipe)
        # what follows works on the graphs, which need the memory of the torch modules
        del kept
        loaded = replace(loaded, parts=tuple(replace(p, module=None) for p in loaded.parts))
        whole, exported = without_modules(whole), without_modules(exported)
        job = Job(work, exported, images, reference, writer)
        selected = {name: select(job, target) for name, target in targets.items()}
        compressed = [item for found in selected.values() for item in found.compressed]
        fidelity = [row for found in selected.values() for row in found.judged.rows]
        with work.stage("outliers"):
            noise, outliers = block_noise(compressed), outlier_rows(job, compressed)
        with work.stage("latency"):
            latency = time_artifacts(
                work, targets, compressed, whole, images, apart=reference.is_slow
            )
        selected = _finished(job, selected)
        compressed = [item for found in selected.values() for item in found.compressed]
        _write_packages(job, selected, loaded, stamps_of(images, recipe))
        stages = work.clock.records
        notes = [*smaller.notes, *recognition_notes(exported)]
        notes += _target_notes(job, selected)
        untimed = {name: reason for name, t in targets.items() if (reason := t.untimed_reason())}
        findings = Findings(
            compressed,
            sum(part.bytes for part in whole),
            fidelity,
            parity,
            latency,
            stages,
            notes,
            untimed=untimed,
            worst_images=[row for found in selected.values() for row in found.judged.worst],
            sensitivity=noise,
            outliers=outliers,
        )
        report = assemble_report(recipe, loaded, description, images, findings)
        if not recipe.keep_reference:
            remove_reference(writer)
        smaller.write_documents(writer)
        write_documents(writer, report, loaded, resolved_recipe(recipe, selected, smaller.prune))
    smaller.end(folder)
    return report


@dataclass(frozen=True)
class Smaller:
    """What the torch steps say of a model that they changed."""

    prune: PruneSection | None
    """As carried out, with what was searched for."""
    notes: tuple[str, ...]
    training: Mapping[str, str] = field(default_factory=dict)
    """Documents of a training by file name."""

    def write_documents(self, writer: BundleWriter) -> None:
        """Write what a training tells of itself into the bundle."""
        for name, text in self.training.items():
            writer.add_file(name).write_text(text, encoding="utf-8", newline="\n")

    def end(self, folder: Path) -> None:
        """Remove what a training towards the bundle `folder` kept to go on."""
        if self.training:
            from vitdeploy.distilling import end_training

            end_training(folder)


def _made_smaller(
    work: Work, loaded: LoadedModel, folder: Path, *, force: bool
) -> tuple[LoadedModel, Smaller]:
    """Return what the recipe's torch steps make of a model; `loaded` stays the reference."""
    pruned = _pruned(work, loaded)
    kept = pruned.loaded if pruned else loaded
    taught = _distilled(work, (loaded, kept), folder, force=force)
    kept = taught.loaded if taught else kept
    merged = _merged(work, kept)
    kept = merged.loaded if merged else kept
    notes = tuple(note for step in (pruned, taught, merged) if step for note in step.notes)
    documents: Mapping[str, str] = {}
    if taught:
        from vitdeploy.distilling import training_documents

        documents = training_documents(taught)
    return kept, Smaller(pruned.section if pruned else None, notes, documents)


def _pruned(work: Work, loaded: LoadedModel) -> "PruneResult | None":
    """Return the model with what the recipe prunes removed; `loaded` stays the reference."""
    section = work.recipe.prune
    if section is None:
        return None
    from vitdeploy.pruning import (  # torch, which a file needs not
        latency_to_reach,
        prune_loaded,
        pruning_images,
    )

    recipe = work.recipe
    latency_ms = latency_to_reach(recipe)
    with work.stage("prune"):
        seed = recipe.seed
        images = pruning_images(section, loaded, seed, recipe.calibration.path)
        result = prune_loaded(loaded, section, images, seed, work.progress, latency_ms)
    note_all(work, result.notes)
    return result


def _distilled(
    work: Work, models: tuple[LoadedModel, LoadedModel], folder: Path, *, force: bool
) -> "DistillResult | None":
    """Return the student that the recipe trains; `models` are the reference and what is left."""
    section = work.recipe.distill
    if section is None:
        return None
    from vitdeploy.distilling import Trial, distill_in_run  # torch, which a file needs not

    with work.stage("distill"):
        trial = Trial(work.recipe.seed, work.progress, force=force)
        return distill_in_run(models, section, folder, trial)


def _merged(work: Work, loaded: LoadedModel) -> "MergeResult | None":
    """Return the model with the token merging that the recipe asks for."""
    section = work.recipe.merge_tokens
    if section is None:
        return None
    from vitdeploy.compress.merge_tokens import merge_tokens  # torch, which a file needs not

    with work.stage("merge tokens"):
        result = merge_tokens(loaded, section)
    note_all(work, result.notes)
    return result


def _finished(job: Job, selected: dict[str, Selection]) -> dict[str, Selection]:
    """Return what was kept in its final form, listed in the bundle with its golden tensors."""
    for name, found in selected.items():
        write_golden_of_target(job.writer, name, found.judged)
    for part in job.exported:
        write_golden_of(job, part)
    if job.work.recipe.export.bake_preprocessing:
        selected = bake_preprocessing(job, selected)
    for found in selected.values():
        for item in found.compressed:
            job.writer.add_artifact(item.artifact)
    return selected


def _target_notes(job: Job, selected: Mapping[str, Selection]) -> list[str]:
    """Return what is to be said of each target: its choice, its builder, its files."""
    notes = []
    for found in selected.values():
        built = [item.artifact for item in found.compressed]
        notes += [*found.notes, *fusion_notes(built), *size_notes(built)]
        notes += output_notes(job, built)
    return notes


def _write_packages(
    job: Job, selected: Mapping[str, Selection], loaded: LoadedModel, stamps: tuple[str, ...]
) -> None:
    """Lint the graphs where there are rules; write what their device needs beside them."""
    export = job.work.recipe.export
    for name, found in selected.items():
        artifacts = [item.artifact for item in found.compressed]
        target = load_target(name)
        version = target.lint_version(artifacts[0])
        if version is not None:
            with job.work.stage(f"lint {name}"):
                lint_graphs(artifacts, version)
        if target.IS_PACKAGED:
            options = PackageOptions(loaded.spec.name, export.trt_version, stamps)
            with job.work.stage(f"package {name}"):
                package_graphs(artifacts, device_cases(job), options)
            job.work.progress.note(
                f"{name}: the engine is built on the device: run {name}/build.sh there, or "
                "`vitdeploy build`."
            )


def export(
    model: str,
    *,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **sections: Any,
) -> Report:
    """Return the report of one exported model; the sections are those of a `Recipe`.

    `export("vit-digits", precision="int8", targets=["onnx"])` is what
    `vitdeploy export vit-digits --int8 --target onnx` does. `model` may also be given more
    exactly: `export("vit-base", model_options={"checkpoint": "w.safetensors"})`.

    Raises:
        VitdeployError: as `run`; UsageError for an unknown section.
    """
    options = dict(sections.pop("model_options", {}))
    recipe = recipe_from_dict({"model": {"source": model, **options}, **sections}, "export")
    return run(recipe, output=output, force=force, progress=progress)


def output_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the bundle folder: as asked, else ./<model>-<precision>."""
    if output is not None:
        return Path(output)
    if recipe.output is not None:
        return Path(recipe.output)
    stem = recipe.model.source.rstrip("/\\").replace("\\", "/").split("/")[-1].split(":")[-1]
    name = stem.removesuffix(".onnx")
    if name in ("", ".", ".."):
        raise UsageError(f"no output name follows from '{recipe.model.source}'; give --output DIR.")
    return Path(f"{name}-{recipe.precision}")


def suited(recipe: Recipe, loaded: LoadedModel) -> Recipe:
    """Return the recipe as a loaded model allows it.

    Raises:
        UsageError: it asks for tiles, and the model answers for whole pictures.
        UnsupportedError: it asks for preprocessing in the graph, which this one's cannot be.
    """
    tiling_of(recipe, loaded)
    require_bakeable(recipe, loaded)
    return with_fixed_batch(recipe, loaded)


def with_fixed_batch(recipe: Recipe, loaded: LoadedModel) -> Recipe:
    """Return the recipe with the batch that an ONNX file is fixed to, where it is."""
    first = loaded.parts[0].inputs[0].shape[0]
    if loaded.parts[0].file is None or not isinstance(first, int):
        return recipe
    export = recipe.export.model_copy(update={"batch": first})
    return recipe.model_copy(update={"export": export})


def load_options(recipe: Recipe) -> LoadOptions:
    """Return what `models.load` needs of a recipe."""
    model = recipe.model
    batch = recipe.export.batch
    return LoadOptions(
        source=model.source,
        checkpoint=Path(model.checkpoint) if model.checkpoint else None,
        random_weights=model.random_weights,
        image_size=model.image_size,
        outputs=model.outputs,
        seed=recipe.seed,
        preprocess=model.preprocess,
        batch=batch if isinstance(batch, int) else None,
        video=model.video,
    )


def resolved_recipe(
    recipe: Recipe, selected: Mapping[str, Selection], prune: PruneSection | None = None
) -> Recipe:
    """Return the recipe with every choice that was searched for pinned, by target."""
    int8 = {
        cast("TargetName", name): item.quantized.choices
        for name, found in selected.items()
        for item in found.compressed
        if item.quantized is not None
    }
    engine = {
        cast("TargetName", name): found.choice
        for name, found in selected.items()
        if found.choice is not None
    }
    int4 = {
        cast("TargetName", name): item.int4.choices
        for name, found in selected.items()
        for item in found.compressed
        if item.int4 is not None
    }
    section = recipe.int8.model_copy(update={"choices": int8})
    blocks = recipe.int4.model_copy(update={"choices": int4})
    return recipe.model_copy(
        update={"int8": section, "int4": blocks, "choices": engine, "prune": prune}
    )
