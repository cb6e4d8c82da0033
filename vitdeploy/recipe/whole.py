"""The recipe as a whole: everything one run was asked to do, and nothing else."""

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from vitdeploy.errors import UsageError, suggest
from vitdeploy.recipe.compression import Int4Section, Int8Section, MergeTokensSection, PruneSection
from vitdeploy.recipe.distillation import DistillSection
from vitdeploy.recipe.names import (
    INT4_OPSET,
    INT4_PRECISIONS,
    AttentionForm,
    Precision,
    TargetName,
    canonical_precision,
    canonical_target,
)
from vitdeploy.recipe.sections import (
    CalibrationSection,
    EvaluationSection,
    ExportSection,
    GateSection,
    MeasureSection,
    ModelSection,
    Section,
)


class EngineChoice(Section):
    """What was fastest on one target; a resolved recipe pins it, and nothing is timed again."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "w4a16", "w4a8"]
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Session settings of the engine."
    )
    attention: AttentionForm = Field(
        "as-exported",
        description="As the model's layers are, with q, k and v from layers of their own, as "
        "ONNX Runtime's own operator, which reads such layers, or with empty tokens for a "
        "multiple of 8 or 32 of them.",
    )


class Recipe(Section):
    """One run, complete: `pipeline.run` needs nothing else."""

    schema_version: Literal[1] = 1
    model: ModelSection
    precision: Precision = "fp32"
    targets: tuple[TargetName, ...] = Field(("onnx",), min_length=1)
    calibration: CalibrationSection = CalibrationSection()
    evaluation: EvaluationSection = EvaluationSection()
    prune: PruneSection | None = Field(None, description="Nothing is removed when null.")
    distill: DistillSection | None = Field(None, description="Nothing is trained when null.")
    merge_tokens: MergeTokensSection | None = Field(None, description="All stay when null.")
    export: ExportSection = ExportSection()
    int8: Int8Section = Int8Section()
    int4: Int4Section = Int4Section()
    gates: GateSection = GateSection()
    measure: MeasureSection = MeasureSection()
    choices: dict[TargetName, EngineChoice] = Field(
        default_factory=dict,
        description="By target: precision and settings that an earlier run found fastest.",
    )
    keep_reference: bool = Field(False, description="Ship the FP32 ONNX in `reference/` too.")
    seed: int = Field(0, ge=0, le=2**32 - 1)
    output: str | None = Field(None, description="Bundle folder; ./<model>-<precision> when null.")

    @model_validator(mode="after")
    def _choices_are_of_the_precision(self) -> "Recipe":
        for target, choice in self.choices.items():
            if self.precision not in ("auto", choice.precision):
                raise ValueError(
                    f"choices.{target}.precision is '{choice.precision}', but the recipe asks for "
                    f"'{self.precision}'; take the choice out, or ask for 'auto'"
                )
        return self

    @model_validator(mode="after")
    def _heads_are_kept(self) -> "Recipe":
        if self.prune is not None and "attention" in (self.model.outputs or "").split(","):
            raise ValueError(
                "model.outputs 'attention' has a map for every head, so no pruned model gives what "
                "the whole one does; run `vitdeploy prune` first and export the folder it writes"
            )
        return self

    @model_validator(mode="after")
    def _int4_fits(self) -> "Recipe":
        if self.precision not in INT4_PRECISIONS:
            return self
        if self.export.opset is not None and self.export.opset < INT4_OPSET:
            raise ValueError(
                f"export.opset is {self.export.opset}, but INT4 weights came with opset "
                f"{INT4_OPSET}; leave it out"
            )
        tensorrt = [name for name in self.targets if name.startswith("trt")]
        if self.int4.zero_points and tensorrt:
            raise ValueError(
                f"int4.zero_points: TensorRT's INT4 has none, so they are not for {tensorrt[0]}"
            )
        return self

    @field_validator("precision", mode="before")
    @classmethod
    def _known_precision(cls, value: Any) -> Any:
        return canonical_precision(value) if isinstance(value, str) else value

    @field_validator("targets", mode="before")
    @classmethod
    def _known_targets(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)):
            return value
        return tuple(dict.fromkeys(canonical_target(v) if isinstance(v, str) else v for v in value))


def recipe_from_dict(data: Any, origin: str = "recipe") -> Recipe:
    """Return the validated recipe.

    Raises:
        UsageError: one message that lists every mistake, each with its place.
    """
    if not isinstance(data, dict):
        raise UsageError(
            f"{origin}: a mapping with at least 'model: {{source: NAME}}' is expected, "
            f"{type(data).__name__} found."
        )
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        # A union reports once per member; its members' names are no part of the recipe.
        mistakes = list(
            dict.fromkeys(_explain(detail) for detail in error.errors(include_url=False))
        )
        lines = [f"{origin}: {len(mistakes)} mistake(s)", *(f"  {m}" for m in mistakes)]
        raise UsageError("\n".join(lines)) from None


def recipe_from_yaml(path: str | Path) -> Recipe:
    """Return the recipe in the YAML file at `path`; read safely, nothing is executed.

    Raises:
        UsageError: the file is missing, is no YAML, or has mistakes (all are listed).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"recipe '{path}' cannot be read: {error.strerror}. Give the path of a YAML file."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe '{path}' is not UTF-8 text; give a YAML file.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"recipe '{path}' is not valid YAML: {error}") from error
    return recipe_from_dict(data, origin=path.name)


def yaml_from_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that `recipe_from_yaml` reads back to an equal recipe."""
    data = recipe.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def recipe_sha256(recipe: Recipe) -> str:
    """Return the SHA-256 of what decides the artefact's bytes and gates (not `output`)."""
    text = yaml_from_recipe(recipe.model_copy(update={"output": None}))
    return hashlib.sha256(text.encode()).hexdigest()


def _explain(detail: Any) -> str:
    """Return "place: what is wrong" with the nearest known key for an unknown one."""
    loc = detail["loc"]
    if loc[:2] == ("export", "batch") and len(loc) > 2:
        seen = detail.get("input")
        return f"export.batch: 'dynamic' or a number from 1 to 4096 is expected (got {seen!r})"
    place = ".".join(str(part) for part in loc) or "recipe"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        key = str(detail["loc"][-1])
        return f"{place}: unknown key; allowed: {', '.join(known)}.{suggest(key, known)}"
    message = detail["msg"].removeprefix("Value error, ")
    seen = detail.get("input")
    shown = f" (got {seen!r})" if isinstance(seen, str | int | float | bool) else ""
    return f"{place}: {message}{shown}"


def _known_keys(place: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed in the section at `place`."""
    section: Any = Recipe
    for part in place:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[part].annotation
        else:  # the key of a mapping whose values are sections
            section = get_args(section)[-1]
        inner = [a for a in get_args(section) if isinstance(a, type) and issubclass(a, BaseModel)]
        if inner and get_origin(section) is not dict:  # an optional section
            section = inner[0]
    return list(section.model_fields)
