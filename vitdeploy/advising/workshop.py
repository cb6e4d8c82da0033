"""What all candidates share: the models, the images, the reference's outputs, the FP32 graphs.

Each is made when it is first needed and then kept, so that no model is loaded or exported twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vitdeploy.advising.cache import weights_sha256
from vitdeploy.advising.candidates import ORIGINAL, Candidate
from vitdeploy.bundle import BundleWriter
from vitdeploy.comparing import reference_outputs
from vitdeploy.compress.folding import Memory
from vitdeploy.compress.int4 import Int4Result
from vitdeploy.data import packaged_path
from vitdeploy.errors import UsageError
from vitdeploy.image_sets import NEEDS_CALIBRATION, Chosen, choose_sets
from vitdeploy.job import ExportedPart, Job, Reference, Work
from vitdeploy.measure import StageClock
from vitdeploy.models import load
from vitdeploy.models.spec import LoadedModel
from vitdeploy.pipeline import load_options, suited
from vitdeploy.progress import Progress
from vitdeploy.recipe import INT4_OPSET, INT4_PRECISIONS, GateSection, ModelSection, Recipe
from vitdeploy.stages import check_parts, export_parts
from vitdeploy.targets import load_target


@dataclass(frozen=True)
class _Graphs:
    """The FP32 graphs of one variant at one opset, and what quantising learnt from them."""

    exported: list[ExportedPart]
    memories: dict[str, Memory] = field(default_factory=dict)
    int4: dict[tuple[str, str], Int4Result] = field(default_factory=dict)


class Workshop:
    """Makes what candidates share, once each; its files go with the folder it is given."""

    def __init__(
        self, recipe: Recipe, pruned: Mapping[str, Path], folder: Path, progress: Progress
    ) -> None:
        """Load the model and its variants.

        Args:
            recipe: of the model as given; its precision says whether calibration images are needed.
            pruned: model folders by the names of their variants.
            folder: for graphs, until all is done.
            progress: told of stages and steps.

        Raises:
            VitdeployError: as `models.load` and `choose_sets`; UsageError for a variant that is
                not one of this model.
        """
        progress.stage("load")
        original = load(load_options(recipe))
        self.recipe = recipe = suited(recipe, original)
        self.folder, self.progress = folder, progress
        self.models = {ORIGINAL: original}
        for name, source in pruned.items():
            variant = load(load_options(recipe_of_variant(recipe, source)))
            _require_same_form(original, variant, name)
            self.models[name] = variant
        self.images = choose_sets(recipe, self.models[ORIGINAL])
        self._graphs: dict[tuple[str, int], _Graphs] = {}

    @cached_property
    def weights(self) -> Mapping[str, str]:
        """By variant, the SHA-256 of its weights."""
        return {name: weights_sha256(loaded) for name, loaded in self.models.items()}

    @cached_property
    def image_digests(self) -> Sequence[str]:
        """SHA-256 of the images to calibrate and to compare on."""
        sources = (self.images.calibration, self.images.evaluation)
        return [source.images.digest() for source in sources if source is not None]

    def job(self, candidate: Candidate, recipe: Recipe, writer: BundleWriter) -> Job:
        """Return what building and comparing a candidate needs, on the shared graphs."""
        work = self._work(recipe)
        graphs = self._graphs_of(candidate, work)
        return Job(
            work,
            graphs.exported,
            self._images_for(recipe),
            self._reference,
            writer,
            graphs.memories,
            graphs.int4,
        )

    def whole(self, recipe: Recipe) -> list[ExportedPart]:
        """Return the FP32 graphs of the model as given, which candidates are timed beside."""
        found = [graphs for (name, _), graphs in self._graphs.items() if name == ORIGINAL]
        if found:
            return found[0].exported
        candidate = Candidate(ORIGINAL, "fp32", recipe.targets[0])
        return self._graphs_of(candidate, self._work(recipe)).exported

    @cached_property
    def _reference(self) -> Reference:
        self.progress.stage("reference")
        return reference_outputs(self._work(self.recipe), self.models[ORIGINAL], self.images)

    def _work(self, recipe: Recipe) -> Work:
        return Work(recipe, StageClock(), self.progress)

    def _images_for(self, recipe: Recipe) -> Chosen:
        """Return the images that a run of this recipe alone would have."""
        if recipe.precision in NEEDS_CALIBRATION:
            return self.images
        return replace(self.images, calibration=None)

    def _graphs_of(self, candidate: Candidate, work: Work) -> _Graphs:
        target = load_target(candidate.target)
        opset = work.recipe.export.opset or target.OPSET
        if candidate.precision in INT4_PRECISIONS:
            opset = max(opset, INT4_OPSET)
        key = candidate.variant, opset
        if key not in self._graphs:
            self.progress.stage("export")
            number = list(self.models).index(candidate.variant)
            folder = self.folder / f"graphs-{number}-{opset}"
            exported = export_parts(
                work,
                self.models[candidate.variant],
                self.images,
                BundleWriter(folder),
                {candidate.target: target},
            )
            self.progress.stage("parity")
            check_parts(exported, self.images, work.recipe)
            self._graphs[key] = _Graphs(exported)
        return self._graphs[key]


def recipe_of_variant(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe for a pruned model folder in the place of the model.

    Without its gates: a run of it knows the folder's own FP32 model alone, to which the limits
    do not refer.
    """
    asked = recipe.model
    model = ModelSection(source=str(folder), image_size=asked.image_size, outputs=asked.outputs)
    return recipe.model_copy(update={"model": model, "gates": GateSection()})


def with_named_images(recipe: Recipe, original: LoadedModel) -> Recipe:
    """Return the recipe with the packaged images of the original named, where it has none else.

    A model folder alone does not tell which of the packaged sets fits it.
    """
    name = original.spec.calibration_set
    calibration, evaluation = recipe.calibration, recipe.evaluation
    if evaluation.path is None and calibration.path is None:
        path = str(packaged_path(f"{name}/eval"))
        evaluation = evaluation.model_copy(update={"path": path})
    if calibration.path is None:
        path = str(packaged_path(f"{name}/calib"))
        calibration = calibration.model_copy(update={"path": path})
    return recipe.model_copy(update={"calibration": calibration, "evaluation": evaluation})


def _require_same_form(original: LoadedModel, variant: LoadedModel, name: str) -> None:
    """Raise UsageError where a variant's results cannot be compared with the original's."""
    for label, seen, wanted in (
        ("reads pictures by", variant.spec.preprocess, original.spec.preprocess),
        ("has the outputs", _outputs(variant), _outputs(original)),
    ):
        if seen != wanted:
            raise UsageError(
                f"--pruned '{name}' {label} {seen}, the model {wanted}; give folders that "
                "`vitdeploy prune` or `vitdeploy distill` made of this model."
            )


def _outputs(loaded: LoadedModel) -> list[tuple[str, str, tuple[int | str, ...]]]:
    return [(part.name, t.name, t.shape) for part in loaded.parts for t in part.outputs]
