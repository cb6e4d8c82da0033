"""The `distill` section of a recipe: who teaches whom, on which images, and how it is trained.

Data only: the step itself is in `compress.distill`. What the numbers are called, and their
defaults, follow timm's training script and DeiT's (arXiv 2012.12877).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitdeploy.recipe.sections import Section

ArgumentValue = bool | int | float | str | list[int] | list[float]
Share = Annotated[float, Field(ge=0, le=1)]


class TeacherSection(Section):
    """One model that teaches."""

    source: str = Field(
        min_length=1, description="Alias, timm:NAME, hf:REPO, a model folder, or an .onnx file."
    )
    checkpoint: str | None = Field(None, description="Weights file in timm's format.")
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = Field(
        None, description="Pixels that the teacher sees; its own when null."
    )
    resize: bool = Field(
        False, description="Resize the student's pictures where the teacher sees another size."
    )
    weight: float = Field(1.0, gt=0, description="Of this teacher's terms among all teachers'.")


class StudentSection(Section):
    """The model that is trained, where it is not the recipe's own."""

    source: str = Field(min_length=1, description="Alias, timm:NAME, or a model folder.")
    arguments: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        description="Of timm's create_model: embed_dim, depth, drop_path_rate, ...; only where "
        "'initialise' is not 'weights'.",
    )
    checkpoint: str | None = Field(None, description="Weights file in timm's format.")
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = Field(
        None, description="Pixels; the model's own when null, and the teacher's from scratch."
    )
    initialise: Literal["weights", "scratch", "teacher"] = Field(
        "weights",
        description="Begin from the model's weights, from timm's initialisation, or from layers "
        "and channels selected from the first teacher (arXiv 2311.18823).",
    )

    @model_validator(mode="after")
    def _one_beginning(self) -> "StudentSection":
        if self.initialise != "weights" and self.checkpoint is not None:
            raise ValueError("'checkpoint' belongs to initialise: weights")
        if self.initialise == "weights" and self.arguments:
            raise ValueError(
                "'arguments' change the architecture, so its weights do not fit; use initialise: "
                "scratch or teacher"
            )
        return self


class AugmentSection(Section):
    """How a picture is changed before each look at it; all of it is timm's."""

    crop_scale: tuple[Share, Share] = Field(
        (0.08, 1.0), description="Share of the picture's area that a random crop covers."
    )
    flip: Share = Field(0.5, description="Probability of a horizontal flip.")
    color_jitter: float = Field(0.0, ge=0)
    auto_augment: str | None = Field(None, description="timm's name, as rand-m9-mstd0.5-inc1.")
    interpolation: Literal["bilinear", "bicubic", "random"] | None = Field(
        None, description="Of the random crop; the model's own when null."
    )
    erasing: Share = Field(0.0, description="Probability of erasing a rectangle (noise).")
    mixup: float = Field(0.0, ge=0, description="Alpha of mixup; 0 is off.")
    cutmix: float = Field(0.0, ge=0, description="Alpha of CutMix; 0 is off.")
    mix_probability: Share = 1.0
    switch_probability: Share = Field(0.5, description="Of CutMix where both are on.")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Of the labels.")
    repeats: int = Field(
        1, ge=1, description="Looks at a picture within an epoch (repeated augmentation)."
    )

    @property
    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


class TrainingSection(Section):
    """How the student's weights are found."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(
        128, ge=1, description="Pictures of one optimiser step, over all processes."
    )
    accumulation: int = Field(1, ge=1, description="Forward passes that make up one step.")
    optimizer: str = Field("adamw", description="A name of timm's.")
    lr: float = Field(5e-4, gt=0, le=1e30, description="Peak learning rate, used as it is.")
    min_lr: float = Field(1e-6, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "tanh", "poly", "constant"] = "cosine"
    schedule_by: Literal["step", "epoch"] = Field(
        "step", description="When the rate changes; DeiT changes it by epoch."
    )
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Factor of the rate from each layer to the one below; none when null."
    )
    clip_grad: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the gradient; not clipped when null."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of the running mean of the weights, which is then kept."
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = Field(0, ge=0, le=256, description="Processes that read pictures, per trainer.")
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between checkpoints; one after each epoch all the same."
    )


class DistillSection(Section):
    """Who teaches whom, on what, by which losses."""

    path: str = Field(min_length=1, description="Training images; class folders give labels.")
    eval_path: str | None = Field(None, description="Images for top-1 after every epoch.")
    student: StudentSection | None = Field(
        None, description="The recipe's model (as pruned) when null."
    )
    teachers: tuple[TeacherSection, ...] = Field(
        (), description="The recipe's model as loaded, before it is pruned, when empty."
    )
    loss: Literal["soft", "hard", "none"] = Field(
        "soft",
        description="The teacher's distribution (KL), its decision (cross entropy), or no logits.",
    )
    token: bool | None = Field(
        None, description="Teach the distillation token; where the student has one when null."
    )
    alpha: Share = Field(0.5, description="Share of the teacher's logits in the loss.")
    tau: float = Field(1.0, gt=0, description="Temperature of 'soft'; DeiT uses 3 there.")
    features: float = Field(
        0.0, ge=0, description="Weight of matching the teacher's pooled features and patches."
    )
    store: str = Field(
        "auto",
        description="Folder that keeps the teachers' outputs for other runs too; 'off' asks the "
        "teachers at every step; 'auto' keeps them while this run lasts, and is off with mixup.",
    )
    views: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Augmentations of each picture that the store holds; epochs go through them "
        "in turn. As many as are looked at when null.",
    )
    augment: AugmentSection = AugmentSection()
    training: TrainingSection = TrainingSection()

    @model_validator(mode="after")
    def _consistent(self) -> "DistillSection":
        if self.augment.mixes and self.store not in ("auto", "off"):
            raise ValueError(
                "a store keeps outputs of single pictures, which mixup and cutmix do not show; "
                "set both to 0, or store: off"
            )
        if self.augment.mixes and self.training.batch_size % 2:
            raise ValueError("mixup and cutmix pair pictures: training.batch_size must be even")
        return self

    @property
    def is_stored(self) -> bool:
        """Whether the teachers' outputs are computed once, before the training."""
        return self.store != "off" and not self.augment.mixes

    @property
    def looks(self) -> int:
        """How many augmentations of each picture there are."""
        return self.views or self.training.epochs * self.augment.repeats
