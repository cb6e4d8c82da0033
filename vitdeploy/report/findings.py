"""What a run found out beside its figures: noisy blocks, outlier channels, the worst images."""

from typing import Annotated

from pydantic import Field

from vitdeploy.report.row import Name, Row

Picture = Annotated[str, Field(pattern=r"^data:image/(jpeg|png);base64,[A-Za-z0-9+/]+=*$")]
"""A small picture as a data URI, so that a report is one file."""


class BlockNoise(Row):
    """How much of the error that INT8 makes comes from one block of a part."""

    target: Name
    part: Name
    block: Name = Field(description="`other` for products outside of all blocks.")
    noise: float = Field(
        ge=0,
        description="Squared error of the part's output over its square, with one product of the "
        "block in INT8, summed over its products.",
    )
    products: int = Field(ge=1)


class OutlierRow(Row):
    """How unlike the channels of a LayerNorm's output are, before and after the exact folds."""

    target: Name
    part: Name
    norm: Name
    before: float = Field(ge=0, description="Largest over median of the channels' largest |x|.")
    after: float | None = Field(None, ge=0, description="The same in the artefact.")
    after_reason: str | None = None


class WorstImage(Row):
    """One of the images on which an artefact differs most from the FP32 model."""

    target: Name
    image: Name = Field(description="Its file, without folders.")
    metric: Name
    value: float
    picture: Picture = Field(description="The image; of a model that segments, with the prompt.")
    reference: str = Field(description="What FP32 says: a class, or words about its mask.")
    own: str = Field(description="What the artefact says.")
    truth: str | None = Field(None, description="Its label, where there is one.")
    reference_picture: Picture | None = Field(None, description="With FP32's mask.")
    own_picture: Picture | None = Field(None, description="With the artefact's mask.")
