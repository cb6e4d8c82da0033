"""One run, from a recipe to a bundle and its report, as a dozen plain calls.

Everything is decided by the recipe; the calls are in `stages`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitdeploy.bundle import BundleWriter
from vitdeploy.device import PackageOptions
from vitdeploy.device_package import (
    LINTED_TARGETS,
    PACKAGED_TARGETS,
    fusion_notes,
    lint_graphs,
    package_graphs,
)
from vitdeploy.documents import (
    REFERENCE,
    Findings,
    assemble_report,
    write_documents,
)
from vitdeploy.errors import UnsupportedError, UsageError
from vitdeploy.image_sets import choose_sets, reject_missing_calibration, stamps_of
from vitdeploy.measure import StageClock
from vitdeploy.models import describe, load
from vitdeploy.models.spec import LoadedModel, LoadOptions
from vitdeploy.output import require_free_output
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.recipe import Recipe, TargetName, recipe_from_dict
from vitdeploy.report import Report
from vitdeploy.selection import Selection, require_variant, select
from vitdeploy.stages import (
    Job,
    Work,
    check_parts,
    device_golden,
    export_parts,
    note_all,
    reference_outputs,
    remove_reference,
    time_artifacts,
    write_golden_of,
    write_golden_of_target,
)
from vitdeploy.targets import Target, load_target

if TYPE_CHECKING:
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
    reject_missing_calibration(recipe)
    with BundleWriter(folder, force=force) as writer:
        with work.stage("load"):
            loaded = load(load_options(recipe))
            _require_picture_parts(loaded)
            recipe = with_fixed_batch(recipe, loaded)
            work = replace(work, recipe=recipe)
            images = choose_sets(recipe, loaded)
        note_all(work, (*loaded.spec.notes, *images.notes))
        pruned = _pruned(work, loaded)
        kept = pruned.loaded if pruned else loaded
        description = describe(kept)
        with work.stage("reference"):
            reference = reference_outputs(work, loaded, images)
        with work.stage("export"):
            whole = export_parts(work, loaded, images, writer, targets)
            exported = whole
            if pruned:
                exported = export_parts(work, kept, images, writer, targets, f"{REFERENCE}/pruned")
        with work.stage("parity"):
            parity = check_parts(exported, images, recipe)
        job = Job(work, exported, images, reference, writer)
        selected = {name: select(job, target) for name, target in targets.items()}
        compressed = [item for found in selected.values() for item in found.compressed]
        fidelity = [row for found in selected.values() for row in found.judged.rows]
        for item in compressed:
            writer.add_artifact(item.artifact)
        with work.stage("latency"):
            latency = time_artifacts(work, targets, compressed, whole, images)
        for name, found in selected.items():
            write_golden_of_target(writer, name, found.judged)
        for part in exported:
            write_golden_of(writer, part, reference, images)
        _write_packages(job, selected, loaded, stamps_of(images, recipe))
        size = sum(part.bytes for part in whole)
        stages = work.clock.records
        notes = list(pruned.notes) if pruned else []
        for found in selected.values():
            notes += [*found.notes, *fusion_notes([item.artifact for item in found.compressed])]
        untimed = {name: reason for name, t in targets.items() if (reason := t.untimed_reason())}
        findings = Findings(
            compressed, size, fidelity, parity, latency, stages, notes, untimed=untimed
        )
        report = assemble_report(recipe, loaded, description, images, findings)
        if not recipe.keep_reference:
            remove_reference(writer)
        write_documents(writer, report, loaded, resolved_recipe(recipe, selected, pruned))
    return report


def _require_picture_parts(loaded: LoadedModel) -> None:
    """Raise UnsupportedError where a part reads more than pictures, which no run feeds yet."""
    prompted = [part.name for part in loaded.parts if part.example is not None]
    if prompted:
        raise UnsupportedError(
            f"'{loaded.spec.name}' has a part that reads prompts ({', '.join(prompted)}); such "
            "models load, but runs of them are not available in this version. See `vitdeploy "
            "inspect`, and `vitdeploy.onnx_export.onnx_from_part` for the FP32 graphs."
        )


def _pruned(work: Work, loaded: LoadedModel) -> "PruneResult | None":
    """Return the model with what the recipe prunes removed; `loaded` stays the reference."""
    section = work.recipe.prune
    if section is None:
        return None
    from vitdeploy.pruning import prune_loaded, pruning_images  # torch, which a file needs not

    with work.stage("prune"):
        seed = work.recipe.seed
        images = pruning_images(section, loaded, seed, work.recipe.calibration.path)
        result = prune_loaded(loaded, section, images, seed, work.progress)
    note_all(work, result.notes)
    return result


def _write_packages(
    job: Job, selected: Mapping[str, Selection], loaded: LoadedModel, stamps: tuple[str, ...]
) -> None:
    """Lint the graphs of TensorRT's targets; write what their device needs beside them."""
    export = job.work.recipe.export
    for name, found in selected.items():
        artifacts = [item.artifact for item in found.compressed]
        if name in LINTED_TARGETS:
            with job.work.stage(f"lint {name}"):
                lint_graphs(artifacts, export.trt_version)
        if name in PACKAGED_TARGETS:
            options = PackageOptions(loaded.spec.name, export.trt_version, stamps)
            with job.work.stage(f"package {name}"):
                package_graphs(artifacts, device_golden(job), export.batch, options)
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
    )


def resolved_recipe(
    recipe: Recipe, selected: Mapping[str, Selection], pruned: "PruneResult | None" = None
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
    section = recipe.int8.model_copy(update={"choices": int8})
    prune = pruned.section if pruned else None
    return recipe.model_copy(update={"int8": section, "choices": engine, "prune": prune})
