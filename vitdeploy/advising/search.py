"""The loop over candidates: what is known is recalled, the rest tried while there is time."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from vitdeploy.advising.cache import Records, key_from
from vitdeploy.advising.candidates import (
    ORIGINAL,
    Candidate,
    all_candidates,
    next_candidate,
    skip_reason,
)
from vitdeploy.advising.deadline import Deadline, OutOfTimeError
from vitdeploy.advising.files import command_for
from vitdeploy.advising.front import pareto_front, recommended_reason, recommended_row
from vitdeploy.advising.request import Request
from vitdeploy.advising.schema import Advice, AdviceRow, Status, Tried
from vitdeploy.advising.trial import attempt, recipe_for, require_possible
from vitdeploy.advising.workshop import Workshop, recipe_of_variant, with_named_images
from vitdeploy.environment import describe_environment
from vitdeploy.errors import CompressionError, ExportError, UsageError, VitdeployError
from vitdeploy.image_sets import NEEDS_CALIBRATION, reject_missing_calibration
from vitdeploy.recipe import GateSection, ModelSection, Recipe, recipe_from_dict, yaml_from_recipe
from vitdeploy.version import __version__

_LATE = "not tried yet; the same command, run again, goes on here"
_DROPPED = "time ended while it was tried; run again, the same command tries it after all others"


class Search:
    """Candidates, tried and waiting."""

    def __init__(
        self, request: Request, workshop: Workshop, records: Records, deadline: Deadline
    ) -> None:
        self.request, self.workshop, self.records = request, workshop, records
        self.deadline = deadline
        self.found: dict[Candidate, Tried] = {}
        self.dropped: set[Candidate] = set()
        """Those whose trial an earlier run's time did not suffice for; they are tried last."""
        self.waiting = list(
            all_candidates(list(workshop.models), request.precisions, request.targets)
        )
        self.total = len(self.waiting)

    @property
    def rows(self) -> list[AdviceRow]:
        """Rows of what is known, in the order in which it became so."""
        return [tried.row for tried in self.found.values()]

    def run(self) -> None:
        """Try candidates until all are known or time is up."""
        for candidate in list(self.waiting):
            self._recall(candidate)
        while self.waiting and not self.deadline.is_over:
            others = [one for one in self.waiting if one not in self.dropped]
            candidate = next_candidate(others or self.waiting, self.rows, self.request.objective)
            reason = skip_reason(candidate, self.rows, self.request.max_drop)
            if reason is not None:
                self._keep(candidate, _without_result(candidate, "skipped", reason))
                continue
            self.deadline.title = f"[{len(self.found) + 1}/{self.total}] {candidate.name}: "
            try:
                self._try(candidate)
            except OutOfTimeError:
                self.records.drop(self._key(candidate, self._recipe(candidate)))
                self.dropped.add(candidate)
                return

    def advice(self, output: Path) -> Advice:
        """Return all that is known; `output` is where its recipe will lie."""
        objective, limit = self.request.objective, self.request.max_drop
        model = self.request.recipe.model.source
        best = self.best
        waiting = [
            _without_result(item, "waiting", _DROPPED if item in self.dropped else _LATE).row
            for item in self.waiting
        ]
        return Advice(
            vitdeploy_version=__version__,
            model=model,
            objective=objective,
            max_drop_points=limit,
            budget_seconds=self.request.budget_seconds,
            seconds=self.deadline.spent,
            rows=(*self.rows, *waiting),
            front=tuple(row.name for row in pareto_front(self.rows, objective)),
            recommended=best.name if best else None,
            recommended_reason=recommended_reason(self.rows, objective, limit),
            command=command_for(best, model, output) if best else None,
            is_complete=not waiting,
            notes=tuple(self._notes(best)),
            environment=describe_environment(),
        )

    @property
    def best(self) -> AdviceRow | None:
        """The candidate to recommend; None where none keeps the limit."""
        return recommended_row(self.rows, self.request.objective, self.request.max_drop)

    def recommended_recipe(self) -> Recipe | None:
        """Return the recipe that makes the recommended artefact again; None where there is none."""
        best = self.best
        if best is None:
            return None
        tried = next(item for item in self.found.values() if item.row == best)
        found = recipe_from_dict(yaml.safe_load(tried.recipe))
        recipe = with_places_of(found, self.workshop.recipe)
        if best.variant == ORIGINAL:
            return recipe
        recipe = with_named_images(recipe, self.workshop.models[ORIGINAL])
        return recipe_of_variant(recipe, self.request.variants[best.variant])

    def _notes(self, best: AdviceRow | None) -> Iterator[str]:
        if best is not None and best.variant != ORIGINAL:
            yield (
                f"{best.variant} was compared with the model as given. The recipe has no gate, for "
                "a run of it compares with the pruned model itself."
            )
        yield from self.workshop.images.notes

    def _recall(self, candidate: Candidate) -> None:
        """Take a candidate off the list whose result is known, or cannot be had."""
        try:
            recipe = self._recipe(candidate)
            require_possible(recipe, self.request.objective)
        except VitdeployError as error:
            self._keep(candidate, _without_result(candidate, "failed", str(error)))
            return
        key = self._key(candidate, recipe)
        known = self.records.read(key)
        if known is None and self.records.was_dropped(key):
            self.dropped.add(candidate)
        if known is not None:
            row = known.row.model_copy(
                update={
                    "name": candidate.name,
                    "variant": candidate.variant,
                    "is_from_cache": True,
                }
            )
            self._keep(candidate, known.model_copy(update={"row": row}))

    def _try(self, candidate: Candidate) -> None:
        """Try a candidate; a failure is a result too, and kept where another try would fail."""
        recipe = self._recipe(candidate)
        key = self._key(candidate, recipe)
        try:
            tried = attempt(candidate, recipe, self.workshop, self.request.objective)
        except (CompressionError, ExportError) as error:
            tried = _without_result(candidate, "failed", str(error))
        except (VitdeployError, MemoryError) as error:
            reason = str(error) or "not enough memory"
            self._keep(candidate, _without_result(candidate, "failed", reason))
            return
        self.records.write(key, tried)
        self._keep(candidate, tried)

    def _keep(self, candidate: Candidate, tried: Tried) -> None:
        self.found[candidate] = tried
        self.waiting.remove(candidate)
        if tried.row.status == "done":
            self.deadline.is_enforced = True

    def _recipe(self, candidate: Candidate) -> Recipe:
        return recipe_for(candidate, self.workshop.recipe)

    def _key(self, candidate: Candidate, recipe: Recipe) -> str:
        weights = self.workshop.weights
        if recipe.precision not in NEEDS_CALIBRATION:  # the limit changes only how to quantise
            recipe = recipe.model_copy(update={"gates": GateSection()})
        return key_from(
            {
                "reference": weights[ORIGINAL],
                "weights": weights[candidate.variant],
                "images": self.workshop.image_digests,
                "recipe": yaml_from_recipe(with_places_of(recipe, None)),
                "energy": self.request.objective == "energy",
                "environment": describe_environment(),
            }
        )


def with_places_of(recipe: Recipe, other: Recipe | None) -> Recipe:
    """Return the recipe with the other's model, limits and folders of images; no places where None.

    Their content is in a record's key; where it lies may be another place the next time.
    """
    if other is None:
        other = Recipe(model=ModelSection(source="any"), gates=recipe.gates)
    calibration = recipe.calibration.model_copy(update={"path": other.calibration.path})
    evaluation = recipe.evaluation.model_copy(update={"path": other.evaluation.path})
    return recipe.model_copy(
        update={
            "model": other.model,
            "gates": other.gates,
            "calibration": calibration,
            "evaluation": evaluation,
        }
    )


def with_calibration(recipe: Recipe) -> Recipe:
    """Return the recipe with calibration images, or in FP32 where none are given or packaged.

    Raises:
        DataError: a path to images does not exist.
    """
    quantised = recipe.model_copy(update={"precision": "int8"})
    try:
        reject_missing_calibration(quantised)
    except UsageError:
        return recipe.model_copy(update={"precision": "fp32"})
    return quantised


def _without_result(candidate: Candidate, status: Status, reason: str) -> Tried:
    row = AdviceRow(
        name=candidate.name,
        variant=candidate.variant,
        precision=candidate.precision,
        target=candidate.target,
        status=status,
        reason=reason,
    )
    return Tried(row=row, recipe="")
