"""The recipe: everything one run was asked to do, and nothing else.

Data only, so that reading a recipe loads no torch. All mistakes of a recipe are
reported at once. What the words mean is in the field descriptions; the JSON schema
generated from them is `recipes/recipe.schema.json`.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitdeploy.errors import UnsupportedError, UsageError, suggest

Precision = Literal["fp32", "fp16", "bf16", "int8", "auto"]
TargetName = Literal["onnx", "openvino", "trt", "trt-rtx"]

PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "auto")
PRECISION_SYNONYMS = {"w8a8": "int8"}
PRECISIONS_TO_COME = ("w4a8", "w4a16", "int4")
TARGET_NAMES: tuple[str, ...] = ("onnx", "openvino", "trt", "trt-rtx")
TARGET_SYNONYMS = {"ov": "openvino", "ort": "onnx", "engine": "trt"}
_TO_COME = "is not available in this version"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def is_onnx_source(source: str) -> bool:
    """Return whether MODEL names an ONNX file."""
    return source.lower().endswith(".onnx")


class _Section(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PreprocessSection(_Section):
    """How a picture becomes the input of an ONNX file, which says only its size."""

    mean: tuple[float, float, float] = Field(
        IMAGENET_MEAN, description="Per channel (R, G, B), subtracted from pixels in 0..1."
    )
    std: tuple[float, float, float] = Field(
        IMAGENET_STD, description="Per channel (R, G, B), divides what is left; above 0."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = (
        "bicubic"
    )
    crop_pct: float = Field(1.0, gt=0, le=2, description="Size over the size resized to.")
    crop_mode: Literal["center", "squash", "border"] = Field(
        "center", description="Shortest edge and crop, both edges, or longest edge and padding."
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("three numbers above 0 are needed, for pixels in 0..1")
        return value


class ModelSection(_Section):
    """Which model, from where."""

    source: str = Field(
        min_length=1,
        description="Alias, timm:NAME, hf:REPO, a model folder, or an FP32 .onnx file.",
    )
    checkpoint: str | None = Field(None, description="Weights file in timm's format.")
    random_weights: bool = Field(False, description="Draw seeded weights; stamped in the report.")
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = Field(
        None, description="Height and width in pixels; the model's own when null."
    )
    outputs: Literal["logits", "features"] | None = Field(
        None, description="What the artefact returns; what the model has when null."
    )
    preprocess: PreprocessSection | None = Field(
        None, description="Of an .onnx file; other models bring their own. ImageNet's when null."
    )

    @property
    def is_onnx(self) -> bool:
        """Whether the model comes as an ONNX file."""
        return is_onnx_source(self.source)

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSection":
        if self.checkpoint is not None and self.random_weights:
            raise ValueError("give either 'checkpoint' or 'random_weights', not both")
        if self.is_onnx and (self.checkpoint is not None or self.random_weights):
            raise ValueError("an .onnx file has its weights; no 'checkpoint' or 'random_weights'")
        if self.preprocess is not None and not self.is_onnx:
            raise ValueError("'preprocess' is for .onnx files; this model brings its own")
        return self


class CalibrationSection(_Section):
    """The images whose statistics set the activation ranges."""

    path: str | None = Field(
        None,
        description="Folder, folder of class folders, list file, or 'synthetic'; "
        "the packaged set of the alias when null.",
    )
    samples: int = Field(256, ge=1, description="How many images, class-stratified and seeded.")


class EvaluationSection(_Section):
    """The images on which artefact and reference are compared."""

    path: str | None = Field(None, description="As for calibration; packaged set when null.")
    samples: Annotated[int, Field(ge=1)] | None = Field(None, description="All when null.")


class PruneSection(_Section):
    """What is removed of the torch model before it is exported: shares, or a size to reach."""

    heads: float = Field(0.0, ge=0, lt=1, description="Share of all attention heads.")
    mlp: float = Field(0.0, ge=0, lt=1, description="Share of all hidden channels of MLPs.")
    blocks: float = Field(0.0, ge=0, lt=1, description="Share of all blocks; they go first.")
    to_gmacs: float | None = Field(
        None, gt=0, description="Prune heads and MLPs alike until 10^9 MACs an image are this."
    )
    to_million_parameters: float | None = Field(None, gt=0, description="The same, by parameters.")
    to_latency_ms: float | None = Field(
        None, gt=0, description="The same, by the median latency measured on the first target."
    )
    criterion: Literal["taylor", "gate", "magnitude", "random"] = Field(
        "taylor",
        description="How importance is found: first-order change of the loss, gradient at a gate, "
        "or without images by the weights' size or at random (controls).",
    )
    ranking: Literal["global", "layer"] = Field(
        "global", description="Units compete over all layers, or within each."
    )
    width_multiple: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="MLP channels that go at a time; 64 where the width allows when null."
    )
    path: str | None = Field(
        None, description="Images, labelled or not; those of calibration when null."
    )
    samples: int = Field(256, ge=1, description="How many images, class-stratified and seeded.")
    found_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share that an earlier run found to reach the size; nothing to search."
    )

    @property
    def has_limit(self) -> bool:
        """Whether a size is to be reached, rather than shares removed."""
        return any((self.to_gmacs, self.to_million_parameters, self.to_latency_ms))

    @model_validator(mode="after")
    def _one_aim(self) -> "PruneSection":
        limits = [self.to_gmacs, self.to_million_parameters, self.to_latency_ms]
        if sum(limit is not None for limit in limits) > 1:
            raise ValueError(
                "give one of 'to_gmacs', 'to_million_parameters' and 'to_latency_ms', not several"
            )
        if self.has_limit and (self.heads or self.mlp):
            raise ValueError("give either a size to reach, or the shares 'heads' and 'mlp'")
        if not self.has_limit and not (self.heads or self.mlp or self.blocks):
            raise ValueError("nothing to prune: give 'heads', 'mlp', 'blocks' or a size to reach")
        if self.found_share is not None and not self.has_limit:
            raise ValueError("'found_share' belongs to a size to reach")
        return self


class ExportSection(_Section):
    """The form of the ONNX graph."""

    batch: Literal["dynamic"] | Annotated[int, Field(ge=1, le=4096)] = "dynamic"
    opset: Annotated[int, Field(ge=17, le=23)] | None = Field(
        None, description="ONNX opset; the target's own when null."
    )
    trt_version: str = Field(
        "10.3",
        description="TensorRT on the device: 8.6, 10.MINOR or 11.MINOR; of target trt alone.",
    )

    @field_validator("trt_version")
    @classmethod
    def _known_version(cls, value: str) -> str:
        if not re.fullmatch(r"8\.6|1[01](\.\d{1,2})?", value):
            raise ValueError("a version of TensorRT is expected: 8.6, 10.MINOR or 11.MINOR")
        return value


class Int8Choices(_Section):
    """What a search chose for one target; a resolved recipe pins it."""

    rotations: dict[str, int] = Field(
        default_factory=dict,
        description="By residual stream (its first LayerNorm): seed of the rotation.",
    )
    strengths: dict[str, str] = Field(
        default_factory=dict,
        description="By LayerNorm or attention layer: off, shift, an alpha such as 0.5, 0.5+shift.",
    )
    clips: dict[str, float] = Field(
        default_factory=dict, description="By activation: share of its min-max range, 0..1."
    )
    kept_float: tuple[str, ...] = Field((), description="Products found too noisy for INT8.")
    rounded: tuple[str, ...] = Field((), description="Products whose weights GPTQ rounds.")
    attention_int8: dict[str, float] = Field(
        default_factory=dict,
        description="By attention layer that is INT8 throughout: the largest softmax value that "
        "its codes reach, 0..1.",
    )


class Int8Section(_Section):
    """How INT8 is reached."""

    clip: Literal["minmax", "mse"] = Field(
        "mse", description="Activation ranges: the extremes, or the range of least error."
    )
    folds: Literal["search", "off"] = Field(
        "search", description="Whether exact folds even out channels before quantising."
    )
    placement: Literal["measured", "all"] = Field(
        "measured",
        description="Whether small products that carry most of the noise stay in float; at least "
        "80 % of the MACs are INT8 either way.",
    )
    rounding: Literal["gptq", "nearest"] = Field(
        "gptq",
        description="How weights are rounded: so that the errors of one product's weights cancel "
        "on calibration images, or each to the nearest code.",
    )
    search_seconds: float = Field(
        120.0,
        ge=0,
        description="Budget of all these measurements for one target and part; the pass over the "
        "calibration images comes on top. What it leaves out is in the report.",
    )
    bias_correction: bool = Field(True, description="Take off what rounding weights adds.")
    keep_float: tuple[str, ...] = Field(
        (), description="Node names, or prefixes ending in '*', that stay in float."
    )
    choices: dict[TargetName, Int8Choices] = Field(
        default_factory=dict, description="By target: choices of an earlier run; nothing to search."
    )


class GateSection(_Section):
    """Limits whose violation makes the run exit with 10."""

    max_drop_points: float | None = Field(
        None, ge=0, description="Largest loss of top-1, agreement, or 100 x centred cosine."
    )
    min_speedup: float | None = Field(
        None, gt=0, description="Least ratio of median latencies, FP32 reference / artefact."
    )
    max_latency_ms: float | None = Field(None, gt=0, description="Largest median latency.")


class MeasureSection(_Section):
    """How latency is measured."""

    batch: int = Field(1, ge=1)
    seconds: float = Field(10.0, ge=0, le=3600, description="Budget for all artefacts; 0 skips.")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="All cores when null.")
    search_seconds: Annotated[float, Field(ge=0, le=3600)] | None = Field(
        None,
        description="Budget for timing one target's candidates (of `auto`, and of INT8 with "
        "several session settings); `seconds` when null, 0 takes the first.",
    )

    @property
    def budget_seconds(self) -> float:
        """Seconds that timing the candidates of one target may take."""
        return self.seconds if self.search_seconds is None else self.search_seconds


class EngineChoice(_Section):
    """What was fastest on one target; a resolved recipe pins it, and nothing is timed again."""

    precision: Literal["fp32", "fp16", "bf16", "int8"]
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Session settings of the engine."
    )


class Recipe(_Section):
    """One run, complete: `pipeline.run` needs nothing else."""

    schema_version: Literal[1] = 1
    model: ModelSection
    precision: Precision = "fp32"
    targets: tuple[TargetName, ...] = Field(("onnx",), min_length=1)
    calibration: CalibrationSection = CalibrationSection()
    evaluation: EvaluationSection = EvaluationSection()
    prune: PruneSection | None = Field(None, description="Nothing is removed when null.")
    export: ExportSection = ExportSection()
    int8: Int8Section = Int8Section()
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


def canonical_precision(name: str) -> str:
    """Return the precision that `name` means.

    Raises:
        ValueError: `name` is unknown, or not available in this version.
    """
    lowered = name.lower()
    lowered = PRECISION_SYNONYMS.get(lowered, lowered)
    if lowered in PRECISIONS_TO_COME:
        raise ValueError(f"precision '{name}' {_TO_COME}; use {', '.join(PRECISIONS)}")
    if lowered not in PRECISIONS:
        hint = suggest(lowered, PRECISIONS)
        raise ValueError(f"unknown precision '{name}'; allowed: {', '.join(PRECISIONS)}.{hint}")
    return lowered


def canonical_target(name: str) -> str:
    """Return the target that `name` means.

    Raises:
        ValueError: `name` is unknown.
    """
    lowered = name.lower()
    lowered = TARGET_SYNONYMS.get(lowered, lowered)
    if lowered not in TARGET_NAMES:
        hint = suggest(lowered, TARGET_NAMES)
        raise ValueError(f"unknown target '{name}'; allowed: {', '.join(TARGET_NAMES)}.{hint}")
    return lowered


def recipe_from_dict(data: Any, origin: str = "recipe") -> Recipe:
    """Return the validated recipe.

    Raises:
        UsageError: one message that lists every mistake, each with its place.
        UnsupportedError: nothing is wrong but that this version lacks what is asked for.
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
        if all(_TO_COME in mistake for mistake in mistakes):
            raise UnsupportedError("\n".join(mistakes)) from None
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
