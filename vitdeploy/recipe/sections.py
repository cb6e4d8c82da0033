"""Sections of a recipe about the model, its images, the graph's form, gates and measuring."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vitdeploy.recipe.names import canonical_outputs

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def is_onnx_source(source: str) -> bool:
    """Return whether MODEL names an ONNX file."""
    return source.lower().endswith(".onnx")


class Section(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PreprocessSection(Section):
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


class ModelSection(Section):
    """Which model, from where."""

    source: str = Field(
        min_length=1,
        description="Alias, timm:NAME, hf:REPO, a model folder, or an FP32 .onnx file.",
    )
    checkpoint: str | None = Field(
        None, description="Weights file, in timm's key layout or its publisher's."
    )
    random_weights: bool = Field(False, description="Draw seeded weights; stamped in the report.")
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = Field(
        None, description="Height and width in pixels; the model's own when null."
    )
    outputs: str | None = Field(
        None,
        description="What the artefact returns: logits, features, cls, patch, pooled, mean, "
        "pyramid, attention or pixel-shuffle-K, several with commas; logits where the model has "
        "a classifier, else features, when null.",
    )
    video: bool = Field(
        False, description="Of SAM 2: also memory attention and memory encoder, to track objects."
    )
    preprocess: PreprocessSection | None = Field(
        None, description="Of an .onnx file; other models bring their own. ImageNet's when null."
    )

    @field_validator("outputs")
    @classmethod
    def _known_outputs(cls, value: str | None) -> str | None:
        return None if value is None else canonical_outputs(value)

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


class CalibrationSection(Section):
    """The images whose statistics set the activation ranges."""

    path: str | None = Field(
        None,
        description="Folder, folder of class folders, list file, or 'synthetic'; "
        "the packaged set of the alias when null.",
    )
    samples: int = Field(256, ge=1, description="How many images, class-stratified and seeded.")


class EvaluationSection(Section):
    """The images on which artefact and reference are compared."""

    path: str | None = Field(None, description="As for calibration; packaged set when null.")
    samples: Annotated[int, Field(ge=1)] | None = Field(None, description="All when null.")


class ExportSection(Section):
    """The form of the ONNX graph."""

    batch: Literal["dynamic"] | Annotated[int, Field(ge=1, le=4096)] = "dynamic"
    opset: Annotated[int, Field(ge=17, le=23)] | None = Field(
        None, description="ONNX opset; the target's own when null."
    )
    tiles: Annotated[int, Field(ge=2, le=64)] | None = Field(
        None,
        description="Most tiles of the model's input size that the predictor cuts a picture into, "
        "with the whole picture as a thumbnail; pictures are not cut when null.",
    )
    bake_preprocessing: bool = Field(
        False,
        description="Resize, crop and normalise in the graph, which then reads pictures (batch, "
        "height, width, 3) uint8; onnx and openvino.",
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


class GateSection(Section):
    """Limits whose violation makes the run exit with 10."""

    max_drop_points: float | None = Field(
        None, ge=0, description="Largest loss of top-1, agreement, or 100 x centred cosine."
    )
    min_speedup: float | None = Field(
        None, gt=0, description="Least ratio of median latencies, FP32 reference / artefact."
    )
    max_latency_ms: float | None = Field(None, gt=0, description="Largest median latency.")


class MeasureSection(Section):
    """How latency is measured."""

    batch: int = Field(1, ge=1)
    seconds: float = Field(10.0, ge=0, le=3600, description="Budget for all artefacts; 0 skips.")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="All cores when null.")
    search_seconds: Annotated[float, Field(ge=0, le=3600)] | None = Field(
        None,
        description="Budget for each round of timing one target's candidates (of `auto` and INT8: "
        "settings and placements, ways of attention, kinds of cores); `seconds` when null, 0 takes "
        "the first.",
    )

    @property
    def budget_seconds(self) -> float:
        """Seconds that timing the candidates of one target may take."""
        return self.seconds if self.search_seconds is None else self.search_seconds
