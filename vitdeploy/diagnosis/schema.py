"""What `diagnose` finds, as data with a schema version; nothing here measures or renders."""

from typing import Literal

from pydantic import Field

from vitdeploy.report.row import Name, Row

NO_ERROR_DB = 200.0
"""Stands for no error at all."""


class SiteRow(Row):
    """One product with weights."""

    name: Name
    block: str = Field(description="The block it belongs to; empty where its name tells none.")
    kind: Name
    is_int8: bool
    macs: int | None = Field(None, ge=0, description="Multiply-accumulates per image.")
    macs_reason: str | None = None
    made_db: float | None = Field(
        None, description="SQNR of its output where its input is that of the FP32 model."
    )
    made_db_reason: str | None = None
    inherited_db: float = Field(
        description="SQNR of its output in the INT8 model: what it was given and what it made."
    )
    clipped_percent: float | None = Field(
        None, ge=0, le=100, description="Share of its FP32 input outside the range of its codes."
    )
    clipped_percent_reason: str | None = None
    output_share_percent: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Error of the model's output with it alone in INT8, of the sum over all.",
    )
    output_share_percent_reason: str | None = None


class BlockRow(Row):
    """One block of the model, at its output."""

    name: Name
    made_db: float = Field(description="SQNR where the block's input is that of the FP32 model.")
    inherited_db: float = Field(description="SQNR in the INT8 model.")


class NormRow(Row):
    """How unlike the channels of a LayerNorm's output are, before and after the folds."""

    name: Name
    before: float = Field(ge=0, description="Largest over median of the channels' largest |x|.")
    after: float | None = Field(None, ge=0, description="The same in the artefact.")
    after_reason: str | None = None


class OverflowRow(Row):
    """A tensor of the FP32 model that FP16 may not hold."""

    name: Name
    quantity: Literal["value", "sum of squares"] = Field(
        description="The tensor itself, or the sum inside a LayerNorm that reads it."
    )
    max_abs: float = Field(ge=0)
    overflows: bool


class Coverage(Row):
    """How much runs in INT8."""

    weights_percent: float | None = Field(
        None, ge=0, le=100, description="Of the MACs of products with weights."
    )
    weights_percent_reason: str | None = None
    all_percent: float | None = Field(
        None, ge=0, le=100, description="Of all MACs, attention's own products included."
    )
    all_percent_reason: str | None = None
    kept_float: tuple[str, ...] = Field((), description="Products with weights left in float.")


class Advice(Row):
    """What to do."""

    keep_float: tuple[str, ...] = Field(
        (), description="Names for `int8.keep_float` of the recipe, worst first; none if no use."
    )
    expected_db: float | None = Field(None, description="Output SQNR with these in float.")
    expected_db_reason: str | None = None
    lines: tuple[str, ...] = Field(description="For people.")


class LayerTimeRow(Row):
    """One layer of an engine's own graph."""

    name: Name
    kind: Name = Field(description="The engine's operator, with its kernel where it tells.")
    milliseconds: float = Field(ge=0)
    percent: float = Field(ge=0, le=100, description="Of all layers together.")
    is_int8: bool


class TimeByLayer(Row):
    """Where the time of one artefact goes, as its engine counts."""

    target: Name
    batch: int = Field(ge=1)
    total_ms: float = Field(ge=0, description="Of all layers; counting makes an engine slower.")
    float_products_percent: float = Field(
        ge=0,
        le=100,
        description="Products of matrices in float: what more INT8 could at most take.",
    )
    int8_products_percent: float = Field(ge=0, le=100)
    layers: tuple[LayerTimeRow, ...] = Field(description="The slowest, slowest first.")


class FallbackRow(Row):
    """A product or attention that an engine does not run as its graph asks."""

    name: Name
    reason: Name


class FusionRow(Row):
    """What one builder made of a part: products in INT8, attention in one kernel."""

    target: Name
    builder: Name
    is_forecast: bool = Field(
        description="Whether the device's own TensorRT, which may choose otherwise, is another one."
    )
    kernels: int = Field(ge=0)
    products: int = Field(ge=0, description="Products with constant weights.")
    quantized_products: int | None = Field(None, ge=0, description="Those with Q/DQ in the graph.")
    quantized_products_reason: str | None = None
    int8_products: int = Field(ge=0, description="Those that run in INT8.")
    attention: int | None = Field(None, ge=0, description="Attention layers in the graph.")
    attention_reason: str | None = None
    fused_attention: int = Field(ge=0, description="Those that are one kernel.")
    int8_attention: int = Field(ge=0, description="Those whose kernel reads q, k and v in INT8.")
    fallbacks: tuple[FallbackRow, ...] = ()


class PartDiagnosis(Row):
    """One part of the model."""

    part: Name
    output_db: float = Field(description="SQNR of all outputs together, INT8 against FP32.")
    half_db: float | None = Field(
        None, description="The same of the artefact with its FP16 layers, as it runs here."
    )
    half_db_reason: str | None = "its float layers are FP32"
    sites: tuple[SiteRow, ...] = Field(description="Worst first.")
    blocks: tuple[BlockRow, ...] = Field(description="In the order of the model.")
    norms: tuple[NormRow, ...]
    coverage: Coverage
    fp16: tuple[OverflowRow, ...] = Field(
        description="Tensors beyond a quarter of FP16's largest value, largest first."
    )
    advice: Advice
    time: tuple[TimeByLayer, ...] = Field(
        (), description="By target that runs here, or was timed on its device."
    )
    fusion: tuple[FusionRow, ...] = Field((), description="By builder that tells.")
    notes: tuple[str, ...] = Field((), description="What could not be found out, and why.")


class Diagnosis(Row):
    """Which layers of a bundle's INT8 artefact lose the accuracy."""

    schema_version: Literal[1] = 1
    vitdeploy_version: Name
    model: Name
    target: Name
    images: int = Field(ge=1)
    images_from: Name = Field(description="`golden`, or the name of the image set.")
    parts: tuple[PartDiagnosis, ...]
