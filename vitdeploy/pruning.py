"""`prune`: what `vitdeploy prune` does, from a model's name to a model folder.

Also the images that importance is found on, the latency of a candidate on a target, and the step
as a recipe's run takes it. The pruning itself is in `compress.prune`, the folder's format in
`models.pruned`.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitdeploy.compress.prune import PruneInputs, PruneResult, prune_model
from vitdeploy.compress.prune.importance import NEEDS_IMAGES, Batch
from vitdeploy.data import ImageSet, packaged_set, synthetic_set
from vitdeploy.errors import DataError, UnsupportedError, UsageError
from vitdeploy.image_sets import Source, scan_for_model
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.models import LoadedModel, load_model
from vitdeploy.models.pruned import require_savable, save_model_folder
from vitdeploy.models.pruning_record import record_from_config
from vitdeploy.models.reference import read_json
from vitdeploy.onnx_export import example_feeds, onnx_from_part
from vitdeploy.output import (
    create_sibling,
    raise_if_full,
    replace_folder,
    require_free_output,
)
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.recipe import (
    MeasureSection,
    PruneSection,
    Recipe,
    is_onnx_source,
    recipe_from_dict,
)
from vitdeploy.targets import BuildRequest, load_target

LATENCY_SECONDS = 2.0
"""For timing one candidate; some ten are built and timed."""


@dataclass(frozen=True)
class PruneReport:
    """What a pruning did, and where the model is now."""

    folder: Path
    result: PruneResult
    images: str | None
    """Name of the image set, None where the criterion needs none."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        result = self.result
        return {
            "model": result.loaded.spec.name,
            "folder": str(self.folder),
            "prune": result.section.model_dump(mode="json"),
            "images": self.images,
            "before": vars(result.before),
            "after": vars(result.after),
            "kept_heads": {path: list(ids) for path, ids in result.kept.heads.items()},
            "kept_widths": {path: len(ids) for path, ids in result.kept.channels.items()},
            "removed_blocks": list(result.kept.removed_blocks),
            "notes": list(result.notes),
        }


def prune(
    model: str,
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **sections: Any,
) -> PruneReport:
    """Return what was pruned of one model; the sections are those of a `Recipe`.

    `prune("vit-base", "smaller", prune={"heads": 0.3, "mlp": 0.3})` is what
    `vitdeploy prune vit-base --prune-heads 0.3 --prune-mlp 0.3 -o smaller` does. `model` may also
    be given more exactly: `prune("vit-base", ..., model_options={"checkpoint": "w.safetensors"})`.

    Raises:
        VitdeployError: as `prune_from_recipe`; UsageError for an unknown section.
    """
    options = dict(sections.pop("model_options", {}))
    recipe = recipe_from_dict({"model": {"source": model, **options}, **sections}, "prune")
    return prune_from_recipe(recipe, output, force=force, progress=progress)


def prune_from_recipe(
    recipe: Recipe,
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> PruneReport:
    """Prune a model and write it as a model folder, whole or not at all; return what was done.

    Args:
        recipe: its model, what to prune, seed, and for a latency to reach the first target.
        output: the folder to write; `vitdeploy export` and `load_pruned` take it as MODEL.
        force: replace a pruned model that is there.
        progress: told of stages and steps.

    Raises:
        UsageError: nothing to prune, the folder exists, or the model is an ONNX file.
        VitdeployError: as `load_model`, `prune_loaded` and `save_model_folder`.
    """
    progress = progress or SilentProgress()
    folder, model, section, seed = Path(output), recipe.model, recipe.prune, recipe.seed
    if section is None:
        raise UsageError("nothing to prune: give prune={'heads': 0.3, 'mlp': 0.3}, or a size.")
    if is_onnx_source(model.source):
        raise UsageError(
            f"'{model.source}' is an ONNX file; pruning needs the torch model: an alias, "
            "timm:NAME, hf:REPO or a model folder."
        )
    _require_free(folder, force=force)
    latency_ms = latency_to_reach(recipe)
    progress.stage("load")
    loaded = load_model(model, seed)
    require_savable(loaded)
    images = pruning_images(section, loaded, seed)
    progress.stage("prune")
    result = prune_loaded(loaded, section, images, seed, progress, latency_ms)
    for note in (*loaded.spec.notes, *result.notes):
        progress.note(note)
    progress.stage("write")
    _write(result.loaded, folder)
    return PruneReport(folder, result, images.images.name if images else None)


def prune_loaded(
    loaded: LoadedModel,
    section: PruneSection,
    images: Source | None,
    seed: int,
    progress: Progress,
    latency_ms: Callable[[LoadedModel], float] | None = None,
) -> PruneResult:
    """Return `loaded` pruned; the step as a run takes it.

    Args:
        loaded: stays as it is, to be the reference.
        section: what to remove.
        images: of `pruning_images`.
        seed: see `prune`.
        progress: told of images done.
        latency_ms: measures a candidate, where a latency is to be reached.

    Raises:
        CompressionError: see `prune_model`.
        DataError: images that cannot be read.
    """

    def batches() -> Iterator[Batch]:
        assert images is not None
        labels = None if images.images.labels is None else np.asarray(images.images.labels)
        height, width = images.preprocess.size
        for pixels, indices in images.batches(16 if height * width <= 256 * 256 else 2):
            yield pixels, None if labels is None else labels[indices]

    def told(done: int) -> None:
        progress.step(done, len(images) if images is not None else done)

    source = None if images is None else batches
    return prune_model(loaded, section, PruneInputs(source, seed, latency_ms, told))


def latency_to_reach(recipe: Recipe) -> Callable[[LoadedModel], float] | None:
    """Return what measures candidates, where the recipe has a latency to reach; None elsewhere.

    Raises:
        UnsupportedError: nothing can be timed on the first target here.
    """
    section = recipe.prune
    if section is None or section.to_latency_ms is None or section.found_share is not None:
        return None
    return latency_on(recipe.targets[0], recipe.export.batch, recipe.measure)


def latency_on(
    name: str, batch: int | str = "dynamic", measure: MeasureSection | None = None
) -> Callable[[LoadedModel], float]:
    """Return what measures a model in FP32 on a target: median milliseconds of one run.

    Args:
        name: of the target.
        batch: what the graph is fixed to, or `dynamic`.
        measure: of the recipe; its batch is run where the graph is fixed to none.

    Raises:
        UnsupportedError: nothing can be timed on this target here.
    """
    target = load_target(name)
    reason = target.untimed_reason()
    if reason is not None:
        raise UnsupportedError(
            f"a latency to reach is measured, and target '{name}' cannot be timed here: {reason}. "
            "Prune to --to-gmacs, or on another target."
        )

    measure = measure or MeasureSection()
    count = batch if isinstance(batch, int) else measure.batch

    def latency_ms(loaded: LoadedModel) -> float:
        part = loaded.parts[0]
        shape = (2, 3, *loaded.spec.preprocess.size)
        pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model = onnx_from_part(part, pixels, batch, target.OPSET)
        with TemporaryDirectory(prefix="vitdeploy-prune-") as folder:
            artifact = target.build(BuildRequest(part.name, model, "fp32", Path(folder), None))
            with target.open(artifact, measure.threads) as runner:
                subject = Subject("candidate", runner, example_feeds(part, pixels, count), count)
                return measure_latency([subject], LATENCY_SECONDS)["candidate"].p50_ms

    return latency_ms


def pruning_images(
    section: PruneSection, loaded: LoadedModel, seed: int, default: str | None = None
) -> Source | None:
    """Return the images that importance is found on; None for a criterion that needs none.

    Args:
        section: its path, else `default` (a recipe's calibration path), else the packaged set.
        loaded: the model; its classes must be those of the images.
        seed: of drawing them.
        default: a path, `synthetic`, or None.

    Raises:
        DataError: nothing is there, the classes are not the model's, or there is one class only.
        UsageError: a model of the user's own without images.
    """
    if section.criterion not in NEEDS_IMAGES:
        return None
    path = section.path or default
    if path == "synthetic":
        return Source(synthetic_set(section.samples, seed), loaded.spec.preprocess)
    if path is not None:
        return Source(_labelled(path, loaded).sample(section.samples, seed), loaded.spec.preprocess)
    if loaded.spec.source.startswith("folder:"):
        raise UsageError(
            f"'{loaded.spec.name}' is a model of your own, so criterion '{section.criterion}' "
            "needs images like those it will see: --calib FOLDER (class folders use the labels), "
            "--calib synthetic for a trial, or --criterion magnitude, which needs none."
        )
    found = packaged_set(loaded.spec.calibration_set, "calib")
    return Source(found.sample(section.samples, seed), loaded.spec.preprocess)


def _labelled(path: str, loaded: LoadedModel) -> ImageSet:
    """Return the user's images; labels count only for a model with a value per class.

    Raises:
        DataError: all labels are the same, so that nothing tells classes apart.
    """
    found = scan_for_model(path, loaded)
    if found.labels is not None and len(set(found.labels)) == 1:
        raise DataError(
            f"all {len(found)} images of '{found.name}' are of one class, so nothing shows which "
            "heads tell classes apart. Give a folder with one folder per class, or the images "
            "alone, without class folders: then the model's own outputs are the labels."
        )
    return found


def _require_free(folder: Path, *, force: bool) -> None:
    """Return where a model folder can be written; only a pruned model of ours is replaced."""
    ours = (folder / "config.json").is_file() and (
        record_from_config(read_json(folder / "config.json")) is not None
    )
    if not (force and ours):
        require_free_output(folder, force=force)


def _write(loaded: LoadedModel, folder: Path) -> None:
    """Write the model folder beside its place, then put it there."""
    staged = create_sibling(folder.resolve(), "partial")
    try:
        save_model_folder(loaded, staged)
        replace_folder(staged, folder.resolve())
    except BaseException as error:
        raise_if_full(error, folder)
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
