"""How much each head, hidden channel and block matters, by one of four criteria.

`gate`: the mean over images of |d loss / d gate| (arXiv 1905.10650, equation 2). `taylor`: the
first-order change of the loss when the whole group of weights goes, |w * d loss / dw| summed over
the group and averaged over batches (arXiv 1906.10771). `magnitude` (RMS of the group's weights)
and `random` need no images and are the controls.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from vitdeploy.compress.prune.gates import gradients, recorded_gates
from vitdeploy.compress.prune.units import Sites
from vitdeploy.errors import CompressionError
from vitdeploy.models.spec import AttentionSite, MlpSite

Criterion = Literal["taylor", "gate", "magnitude", "random"]
Batch: TypeAlias = tuple[np.ndarray, np.ndarray | None]
"""Images (n, 3, H, W) float32 normalised, and labels (n,) or None."""
NEEDS_IMAGES: tuple[Criterion, ...] = ("taylor", "gate")


@dataclass(frozen=True)
class Importance:
    """By path, a score per unit: the larger, the more is lost without it."""

    heads: dict[str, np.ndarray]
    channels: dict[str, np.ndarray]
    blocks: dict[str, float]


@dataclass(frozen=True)
class Question:
    """By what, and on what, importance is found."""

    criterion: Criterion
    batches: Callable[[], Iterable[Batch]] | None
    """None where the criterion needs no images."""
    seed: int
    has_classes: bool
    """Whether the model's one output has a value per class."""
    progress: Callable[[int], None] = lambda done: None
    """Called with the number of images done."""


def find_importance(module: nn.Module, sites: Sites, question: Question) -> Importance:
    """Return the importance of all units in `sites`; `module` is left as it was.

    Raises:
        CompressionError: the criterion needs images and there are none; or gradients are not
            finite.
    """
    if question.criterion == "random":
        return _random(sites, question.seed)
    if question.criterion == "magnitude":
        scores = {p: np.sqrt(_mean(v)) for p, v in _over_groups(module, sites, torch.square)}
        return _importance(sites, scores)
    if question.batches is None:
        raise CompressionError(
            f"criterion '{question.criterion}' needs images; give --calib PATH, or use "
            "--criterion magnitude."
        )
    accumulate = _gate_scores if question.criterion == "gate" else _taylor_scores
    scores = accumulate(module, sites, question)
    _require_finite(torch.from_numpy(value) for value in scores.values())
    return _importance(sites, scores)


def objective(
    outputs: torch.Tensor | tuple[torch.Tensor, ...],
    labels: np.ndarray | None,
    has_classes: bool,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return what is differentiated, summed over the images: a scalar.

    With labels it is the cross-entropy. Without, the model is compared with itself, where every
    distance has its minimum and no gradient; its curvature there is the mean square of the
    gradient of the log-likelihood of classes drawn from the model's own distribution (Fisher's
    information), or for features of a random projection of them (Gauss-Newton).
    """
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    if has_classes:
        logits = tensors[0]
        if labels is None:
            target = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        else:
            target = torch.from_numpy(np.asarray(labels)).to(logits.device)
        return nn.functional.cross_entropy(logits, target, reduction="sum")
    total = torch.zeros((), dtype=tensors[0].dtype)
    for tensor in tensors:
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        rms = tensor.detach().square().mean().sqrt().clamp_min(1e-12)
        total = total + (tensor * direction).sum() / rms / tensor[0].numel() ** 0.5
    return total


def _losses(
    module: nn.Module, question: Question
) -> Iterator[tuple[int, Callable[[], torch.Tensor]]]:
    """Yield for each batch the number of images, and what runs it and returns the loss."""
    assert question.batches is not None
    generator = torch.Generator().manual_seed(question.seed)
    parameter = next(module.parameters())
    done = 0
    for pixels, labels in question.batches():
        images = torch.from_numpy(pixels).to(parameter)

        def run(images: torch.Tensor = images, labels: np.ndarray | None = labels) -> torch.Tensor:
            with torch.enable_grad():
                outputs = module(images)
                _require_finite(outputs if isinstance(outputs, tuple) else (outputs,))
                return objective(outputs, labels, question.has_classes, generator)

        yield len(pixels), run
        done += len(pixels)
        question.progress(done)


def _require_finite(tensors: Iterable[torch.Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise CompressionError(
            "outputs or gradients are not finite on these images, so nothing can be ranked. Check "
            "the model on them, or use --criterion magnitude."
        )


def _gate_scores(module: nn.Module, sites: Sites, question: Question) -> dict[str, np.ndarray]:
    totals: dict[str, np.ndarray] = {}
    count = 0
    with recorded_gates(module, sites) as record:
        for images, run in _losses(module, question):
            loss = run()
            for path, per_image in gradients(loss, record.gates, images).items():
                totals[path] = totals.get(path, 0.0) + np.abs(per_image).sum(0)
            count += images
    return {path: total / max(count, 1) for path, total in totals.items()}


def _taylor_scores(module: nn.Module, sites: Sites, question: Question) -> dict[str, np.ndarray]:
    totals: dict[str, np.ndarray] = {}
    count = 0
    with _all_trainable(module) as weights:
        for images, run in _losses(module, question):
            found = torch.autograd.grad(run(), weights, allow_unused=True)
            changes = {
                id(weight): (weight.detach() * gradient).abs()
                for weight, gradient in zip(weights, found, strict=True)
                if gradient is not None
            }
            for path, rows in _over_groups(module, sites, partial(_looked_up, changes)):
                totals[path] = totals.get(path, 0.0) + rows.sum(1)
            count += images
    return {path: total / max(count, 1) for path, total in totals.items()}


@contextmanager
def _all_trainable(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Give all weights of `module`, those that are frozen too, a gradient while this lasts."""
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(requires_grad=True)
    try:
        yield weights
    finally:
        for weight in frozen:
            weight.requires_grad_(requires_grad=False)


def _looked_up(changes: Mapping[int, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return changes.get(id(weight), torch.zeros_like(weight))


def _over_groups(
    module: nn.Module, sites: Sites, value: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield by path `value` of every weight in each unit's group: (units, weights) float64."""
    with torch.no_grad():
        for site in sites.attention:
            yield site.path, _stack(_head_groups(module, site, value))
        for mlp in sites.mlp:
            yield mlp.path, _stack(_channel_groups(module, mlp, value))
        for path in sites.blocks:
            block = module.get_submodule(path)
            rows = [value(p).reshape(1, -1) for p in block.parameters()]
            yield path, _stack(rows)


def _head_groups(
    module: nn.Module, site: AttentionSite, value: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    heads, dim = site.num_heads, site.head_dim
    packed = 3 if len(site.qkv) == 1 else 1
    for path in site.qkv:
        layer = module.get_submodule(path)
        for weight in (layer.weight, layer.bias):
            if weight is not None:
                rows = value(weight).reshape(packed, heads, -1)
                yield rows.transpose(0, 1).reshape(heads, -1)
    columns = value(module.get_submodule(site.proj).weight)
    yield columns.reshape(len(columns), heads, dim).transpose(0, 1).reshape(heads, -1)


def _channel_groups(
    module: nn.Module, site: MlpSite, value: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    packed = 2 if site.is_packed else 1
    for path in site.inputs:
        layer = module.get_submodule(path)
        for weight in (layer.weight, layer.bias):
            if weight is not None:
                rows = value(weight).reshape(packed, site.width, -1)
                yield rows.transpose(0, 1).reshape(site.width, -1)
    columns = value(module.get_submodule(site.output).weight)
    yield columns.transpose(0, 1).reshape(site.width, -1)


def _stack(rows: Iterable[torch.Tensor]) -> np.ndarray:
    return np.asarray(torch.cat([part.double() for part in rows], dim=1).cpu())


def _mean(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows.mean(axis=1))


def _random(sites: Sites, seed: int) -> Importance:
    generator = np.random.default_rng(seed)
    scores = {site.path: generator.random(site.num_heads) for site in sites.attention}
    scores |= {mlp.path: generator.random(mlp.width) for mlp in sites.mlp}
    scores |= {path: generator.random(1) for path in sites.blocks}
    return _importance(sites, scores)


def _importance(sites: Sites, scores: dict[str, np.ndarray]) -> Importance:
    return Importance(
        {site.path: scores[site.path] for site in sites.attention},
        {mlp.path: scores[mlp.path] for mlp in sites.mlp},
        {path: float(scores[path][0]) for path in sites.blocks},
    )
