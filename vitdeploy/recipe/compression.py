"""Sections of a recipe about the steps that make a model smaller; one class a step.

Data only: the steps themselves are in `compress`.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vitdeploy.recipe.names import TargetName
from vitdeploy.recipe.sections import Section


class PruneSection(Section):
    """What is removed of the torch model before it is exported: shares, or a size to reach."""

    heads: float = Field(0.0, ge=0, lt=1, description="Share of all attention heads.")
    mlp: float = Field(0.0, ge=0, lt=1, description="Share of all hidden channels of MLPs.")
    blocks: float = Field(0.0, ge=0, lt=1, description="Share of all blocks; they go first.")
    to_gmacs: float | None = Field(
        None, gt=0, description="Prune heads and MLPs alike until 10^9 MACs an image are this."
    )
    to_million_parameters: float | None = Field(None, gt=0, description="The same, by parameters.")
    to_latency_ms: float | None = Field(
        None,
        gt=0,
        description="The same, by the median latency measured in FP32 on the first target.",
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


class MergeTokensSection(Section):
    """Fewer tokens in a plain ViT: similar patches become one. Not exact, and only on request."""

    share: float = Field(gt=0, le=0.5, description="Of the patch tokens, gone at each merge.")
    blocks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=2)] = Field(
        (), description="Before which blocks, one or two; a sixth into the depth when empty."
    )

    @field_validator("blocks")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("blocks are given once each, in ascending order")
        return value


class Int8Choices(Section):
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


class Int8Section(Section):
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


class Int4Choices(Section):
    """What was chosen for one target; a resolved recipe pins it."""

    scales: dict[str, str] = Field(
        default_factory=dict,
        description="By LayerNorm or attention layer: off, or the power of the activations' "
        "magnitude by which weights are scaled up before they are rounded.",
    )
    kept_int8: tuple[str, ...] = Field((), description="Products found too noisy for INT4.")


class Int4Section(Section):
    """How weights become INT4. Targets share it: their graphs hold the same codes."""

    block_size: Literal[16, 32, 64, 128] = Field(
        64,
        description="Input channels that share a scale; halved, down to 16, until it divides a "
        "product's channels. What no block divides stays INT8.",
    )
    zero_points: bool = Field(
        False, description="Codes with a zero point in each block; not for TensorRT."
    )
    rounding: Literal["gptq", "nearest"] = Field(
        "gptq",
        description="How weights are rounded: so that the errors of one product's weights cancel "
        "on calibration images, or each to the nearest code.",
    )
    scales: Literal["search", "off"] = Field(
        "search",
        description="Whether exact folds scale up the weights of loud channels where that helps.",
    )
    placement: Literal["measured", "all"] = Field(
        "measured",
        description="Whether products that carry far more noise than weights stay INT8; at least "
        "90 % of the weights that can be INT4 are, unless `mixed`.",
    )
    mixed: bool = Field(
        False, description="Choose 4 or 8 bits by product, for one of the goals below."
    )
    max_size_percent: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Goal of `mixed`: size of the graph in per cent of FP32's."
    )
    min_sqnr_db: float | None = Field(
        None, description="Goal of `mixed`: SQNR on calibration images; 30 where none is given."
    )
    keep_int8: tuple[str, ...] = Field(
        (), description="Node names, or prefixes ending in '*', that stay INT8."
    )
    search_seconds: float = Field(
        120.0,
        ge=0,
        description="Budget for trying scales and measuring products, for one part; rounding "
        "comes on top.",
    )
    choices: dict[TargetName, Int4Choices] = Field(
        default_factory=dict, description="By target: choices of an earlier run; nothing to search."
    )

    @model_validator(mode="after")
    def _goals_belong_to_mixed(self) -> "Int4Section":
        goals = [self.max_size_percent, self.min_sqnr_db]
        if not self.mixed and any(goal is not None for goal in goals):
            raise ValueError("'max_size_percent' and 'min_sqnr_db' are goals of 'mixed'; set it")
        if all(goal is not None for goal in goals):
            raise ValueError("give one of 'max_size_percent' and 'min_sqnr_db', not both")
        return self
