"""The loss of a student: its labels, its teachers' logits and their features.

Losses on logits are timm's (`timm.task`, DeiT arXiv 2012.12877). Its tasks run both models
themselves; here one pass of the student serves several terms and the teacher's answers may come
from a store, so the tasks are handed what the models said in place of the models.
Features are matched as by AM-RADIO (arXiv 2312.06709), each teacher through its own projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.loss import create_classification_loss
from timm.task import DistillationTeacher, TokenDistillationTask
from timm.task.distillation import FeatureDistillationTrainableModule
from torch import nn
from torch.nn import functional

from vitdeploy.compress.distill.answers import FEATURES, Answers
from vitdeploy.compress.distill.teachers import Teacher

_COSINE_SHARE = 0.9  # AM-RADIO, section 3.3: 0.9 cosine and 0.1 smooth L1 on patches


@dataclass(frozen=True)
class Aims:
    """What the loss is made of."""

    loss: Literal["soft", "hard", "none"]
    alpha: float
    tau: float
    features: float
    has_labels: bool
    smoothing: float = 0.0
    mixes: bool = False
    """Whether labels are distributions, as mixup and CutMix make them."""

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of answers that teachers give."""
        wanted = set(FEATURES) if self.features else set()
        return frozenset(wanted | (set() if self.loss == "none" else {"logits"}))

    @property
    def student_kinds(self) -> frozenset[str]:
        """Kinds of answers that the student gives."""
        labelled = {"logits"} if self.has_labels else set()
        return frozenset(self.kinds | labelled)


class Pupil(FeatureDistillationTrainableModule):  # type: ignore[misc]
    """All that is trained: the student and, by teacher and kind of feature, a projection.

    timm's class tells which parameters are of which layer and take no weight decay.
    """

    def __init__(self, student: nn.Module, answering: nn.Module, projection: nn.ModuleDict) -> None:
        super().__init__(student, projection)
        self.answering = [answering]  # in a list, as its parameters are the student's

    def forward(self, pixels: torch.Tensor) -> Answers:
        """Return the student's logits, and projected features as `<teacher>_<kind>`."""
        answers = self.answering[0](pixels)
        outputs = {name: value for name, value in answers.items() if name not in FEATURES}
        for key, project in self.projection.items():
            outputs[key] = project(answers[key.partition("_")[2]])
        return outputs


class Known(nn.Module):  # type: ignore[misc]
    """Stands for a model that has answered already, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        self.said: Any = None

    def set_distilled_training(self, enable: bool = True) -> None:
        """Do nothing; timm's task asks for it."""

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return what was said."""
        return self.said


class Objective:
    """The loss as a function of what student and teachers say."""

    def __init__(self, aims: Aims, weights: Sequence[float]) -> None:
        self.aims = aims
        self.shares = [weight / sum(weights) for weight in weights]
        soft_targets = aims.mixes and aims.has_labels
        self.criterion = create_classification_loss(
            smoothing=aims.smoothing, soft_targets=soft_targets
        )
        self.student, self.teacher = Known(), Known()
        self.task = None
        if aims.loss != "none":
            self.task = TokenDistillationTask(
                self.student,
                DistillationTeacher(self.teacher),
                criterion=self.criterion,
                distill_type=aims.loss,
                temperature=aims.tau,
                verbose=False,
            )

    def __call__(
        self, student: Answers, teachers: Sequence[Answers], targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `loss` and its parts: `label_loss`, `distill_loss`, `feature_loss`.

        Args:
            student: of `Pupil`.
            teachers: answers of each, in order.
            targets: labels (B,) int64, or distributions (B, classes) float32.
        """
        parts: dict[str, torch.Tensor] = {}
        if self.aims.has_labels:
            parts["label_loss"] = self.criterion(student["logits"], targets)
        if self.task is not None:
            parts["distill_loss"] = self._distill_loss(student, teachers)
        if self.aims.features:
            parts["feature_loss"] = self._feature_loss(student, teachers)
        alpha = self.aims.alpha if self.task is not None else 0.0
        weights = {
            "label_loss": 1 - alpha,
            "distill_loss": alpha,
            "feature_loss": self.aims.features,
        }
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": loss, **parts}

    def _distill_loss(self, student: Answers, teachers: Sequence[Answers]) -> torch.Tensor:
        logits = student["logits"]
        # Without a distillation token the one head is taught by labels and teacher alike.
        self.student.said = logits, student.get("token_logits", logits)
        terms = []
        for share, answers in zip(self.shares, teachers, strict=True):
            self.teacher.said = answers["logits"]
            # The task's own loss on labels is not used: it is the same for all teachers.
            labels = answers["logits"].argmax(-1)
            if self.aims.mixes and self.aims.has_labels:
                labels = functional.one_hot(labels, logits.shape[-1]).to(logits.dtype)
            assert self.task is not None
            terms.append(share * self.task(logits.new_zeros(1, 3, 1, 1), labels)["distill_loss"])
        return torch.stack(terms).sum()

    def _feature_loss(self, student: Answers, teachers: Sequence[Answers]) -> torch.Tensor:
        terms = []
        for number, (share, answers) in enumerate(zip(self.shares, teachers, strict=True)):
            for kind in FEATURES:
                own = student.get(f"{number}_{kind}")
                if own is not None:
                    terms.append(share * feature_loss(own, answers[kind]))
        return torch.stack(terms).sum()


def feature_loss(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return how far features are from a teacher's, averaged over pictures and places.

    1 - cosine of pooled features (B, C); for patches (B, h, w, C), of which the teacher's are
    resampled to the student's grid, 0.9 of it and 0.1 smooth L1.
    """
    if own.ndim == 2:
        return (1 - functional.cosine_similarity(own, wanted, dim=-1)).mean()
    if own.shape[1:3] != wanted.shape[1:3]:
        moved = wanted.permute(0, 3, 1, 2)
        moved = functional.interpolate(
            moved, own.shape[1:3], mode="bilinear", antialias=own.shape[1] < wanted.shape[1]
        )
        wanted = moved.permute(0, 2, 3, 1)
    angle = (1 - functional.cosine_similarity(own, wanted, dim=-1)).mean()
    return _COSINE_SHARE * angle + (1 - _COSINE_SHARE) * functional.smooth_l1_loss(own, wanted)


def projections(
    own: dict[str, tuple[int, ...]], teachers: Sequence[Teacher], seed: int
) -> nn.ModuleDict:
    """Return by `<teacher>_<kind>` a Linear from the student's features to the teacher's.

    Args:
        own: shapes of the student's features on one picture, by kind.
        teachers: whose features are to be met.
        seed: of their weights.
    """
    found = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, teacher in enumerate(teachers):
            for kind in FEATURES:
                if kind in teacher.shapes and kind in own:
                    linear = nn.Linear(own[kind][-1], teacher.shapes[kind][-1])
                    found[f"{number}_{kind}"] = linear
    return found
