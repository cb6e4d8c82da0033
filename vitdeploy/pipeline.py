"""One run, from a recipe to a bundle and its report, as a dozen plain calls.

Everything is decided by the recipe; the calls are in `stages`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vitdeploy.bundle import BundleWriter
from vitdeploy.documents import (
    Compressed,
    Findings,
    assemble_report,
    write_documents,
)
from vitdeploy.errors import UsageError
from vitdeploy.image_sets import choose_sets, reject_missing_calibration
from vitdeploy.measure import StageClock
from vitdeploy.models import describe, load
from vitdeploy.models.spec import LoadedModel, LoadOptions
from vitdeploy.output import require_free_output
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.recipe import Recipe, TargetName, recipe_from_dict
from vitdeploy.report import FidelityRow, Report
from vitdeploy.restoration import build_within_gate
from vitdeploy.stages import (
    Job,
    Work,
    check_parts,
    export_parts,
    note_all,
    reference_outputs,
    remove_reference,
    time_artifacts,
    write_golden_of,
)
from vitdeploy.targets import Target, load_target


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
        target.check_precision(recipe.precision)
    reject_missing_calibration(recipe)
    with BundleWriter(folder, force=force) as writer:
        with work.stage("load"):
            loaded = load(load_options(recipe))
            recipe = with_fixed_batch(recipe, loaded)
            work = replace(work, recipe=recipe)
            description = describe(loaded)
            images = choose_sets(recipe, loaded)
        note_all(work, (*loaded.spec.notes, *images.notes))
        with work.stage("reference"):
            reference = reference_outputs(work, loaded, images)
        with work.stage("export"):
            exported = export_parts(work, loaded, images, writer, targets)
        with work.stage("parity"):
            parity = check_parts(exported, images, recipe)
        job = Job(work, exported, images, reference, writer)
        compressed: list[Compressed] = []
        fidelity: list[FidelityRow] = []
        for name, target in targets.items():
            built, rows = build_within_gate(job, name, target)
            compressed += built
            fidelity += rows
        for item in compressed:
            writer.add_artifact(item.artifact)
        with work.stage("latency"):
            latency = time_artifacts(work, targets, compressed, exported, images)
        for part in exported:
            write_golden_of(writer, part, reference, images)
        size = sum(part.bytes for part in exported)
        stages = work.clock.records
        findings = Findings(compressed, size, fidelity, parity, latency, stages)
        report = assemble_report(recipe, loaded, description, images, findings)
        if not recipe.keep_reference:
            remove_reference(writer)
        write_documents(writer, report, loaded, resolved_recipe(recipe, compressed))
    return report


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


def resolved_recipe(recipe: Recipe, compressed: list[Compressed]) -> Recipe:
    """Return the recipe with every choice that was searched for pinned, by target."""
    choices = {
        cast("TargetName", item.artifact.target): item.quantized.choices
        for item in compressed
        if item.quantized is not None
    }
    int8 = recipe.int8.model_copy(update={"choices": choices})
    return recipe.model_copy(update={"int8": int8})
