"""Teachers: any loaded model, asked about pictures that were prepared for the student.

Where their answers are kept is in `store`, what is made of them in `objective`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vitdeploy.compress.distill.answers import (
    Answers,
    answering,
    answers_from_outputs,
    kinds_given,
)
from vitdeploy.data import Preprocess
from vitdeploy.errors import CompressionError
from vitdeploy.models.spec import LoadedModel


@dataclass(frozen=True)
class Lesson:
    """A model that shall teach, and how."""

    loaded: LoadedModel
    weight: float = 1.0
    resize: bool = False
    """Whether pictures are resized where it sees another size than the student."""


@dataclass(frozen=True)
class Teacher:
    """A model that answers for the student's pictures."""

    name: str
    fingerprint: str
    """SHA-256 of its weights."""
    weight: float
    ask: Callable[[torch.Tensor], Answers]
    """Student's pixels (B, 3, H, W) float32 -> answers, without gradients."""
    shapes: dict[str, tuple[int, ...]]
    """Of the answers on one picture, by kind."""


class Recast(nn.Module):  # type: ignore[misc]
    """Turns pixels normalised and sized for one model into those of another."""

    def __init__(self, given: Preprocess, wanted: Preprocess) -> None:
        super().__init__()
        scale = np.divide(given.std, wanted.std)
        shift = np.divide(np.subtract(given.mean, wanted.mean), wanted.std)
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32)[:, None, None])
        self.size = None if given.size == wanted.size else wanted.size
        self.is_same = given.mean == wanted.mean and given.std == wanted.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, H', W') float32 for (B, 3, H, W)."""
        if not self.is_same:
            pixels = pixels * self.scale + self.shift
        if self.size is None:
            return pixels
        return nn.functional.interpolate(
            pixels, self.size, mode="bilinear", antialias=self.size < pixels.shape[2:]
        )


def teacher_from_model(
    lesson: Lesson, student: Preprocess, kinds: frozenset[str], device: Any
) -> Teacher:
    """Return a model as a teacher that gives `kinds`, on `device` (an ONNX file stays on the CPU).

    Args:
        lesson: the model and its part in the loss.
        student: preprocessing of the pixels it will be shown.
        kinds: of answers.
        device: of torch.

    Raises:
        CompressionError: it sees another size and may not resize, or cannot give `kinds`.
    """
    loaded = lesson.loaded
    own = loaded.spec.preprocess
    if own.size != student.size and not lesson.resize:
        raise CompressionError(
            f"teacher '{loaded.spec.name}' sees {own.size[0]} x {own.size[1]} pixels, the student "
            f"{student.size[0]} x {student.size[1]}. Give them one size (--image-size of the "
            "student, or image_size of the teacher in a recipe), or let the student's pictures be "
            "resized for the teacher: --resize-teacher."
        )
    kinds = kinds_given(loaded, kinds)
    recast = Recast(student, own).to(device)
    if loaded.parts[0].file is not None:
        answer = _onnx_answers(loaded)
        fingerprint = _of_file(loaded)
    else:
        module = answering(loaded, kinds).eval().requires_grad_(requires_grad=False).to(device)
        answer = module
        fingerprint = _of_weights(module)

    def ask(pixels: torch.Tensor) -> Answers:
        with torch.no_grad():
            found = answer(recast(pixels))
        return {kind: found[kind] for kind in sorted(kinds)}

    shown = ask(torch.zeros(2, 3, *student.size, device=device))
    shapes = {kind: tuple(value.shape[1:]) for kind, value in shown.items()}
    return Teacher(loaded.spec.name, fingerprint, lesson.weight, ask, shapes)


def _onnx_answers(loaded: LoadedModel) -> Callable[[torch.Tensor], Answers]:
    from vitdeploy.targets.onnx import OrtRunner

    part = loaded.parts[0]
    assert part.file is not None
    runner = OrtRunner(part.file)
    batch = part.inputs[0].shape[0]

    def answer(pixels: torch.Tensor) -> Answers:
        size = batch if isinstance(batch, int) else len(pixels)
        rows = []
        for group in pixels.float().cpu().split(size):
            filled = np.resize(group.numpy(), (size, *group.shape[1:]))
            outputs = runner({part.inputs[0].name: filled})
            rows.append({name: value[: len(group)] for name, value in outputs.items()})
        joined = {
            "logits" if name == loaded.class_output else name: torch.from_numpy(
                np.concatenate([row[name] for row in rows])
            ).to(pixels.device)
            for name in rows[0]
        }
        return answers_from_outputs(joined)

    return answer


def _of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _of_file(loaded: LoadedModel) -> str:
    """Return the SHA-256 of an ONNX file and of the data beside it."""
    path = loaded.parts[0].file
    assert path is not None
    digest = hashlib.sha256(path.read_bytes())
    for data in sorted(path.parent.glob(f"{path.name}?data")):
        digest.update(data.read_bytes())
    return digest.hexdigest()
