"""What `vitdeploy inspect` shows of a loaded model: sizes, work and parts. No measurement."""

from dataclasses import dataclass
from typing import Any

from vitdeploy.data import Preprocess
from vitdeploy.models.spec import AttentionSite, ExportPart, LoadedModel, TensorSpec


@dataclass(frozen=True)
class PartDescription:
    """One exportable part."""

    name: str
    parameters: int
    gmacs: float | None
    """10^9 multiply-accumulates of one image: convolutions and matrix products, attention too.
    None for an ONNX file whose shapes cannot be inferred."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ModelDescription:
    """A loaded model in figures."""

    name: str
    family: str
    source: str
    task: str
    weights: str
    parameters: int
    gmacs: float | None
    tokens: int | None
    """Tokens of the longest softmax row; None without attention."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    preprocess: Preprocess
    attention: tuple[AttentionSite, ...]
    parts: tuple[PartDescription, ...]
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe(loaded: LoadedModel) -> ModelDescription:
    """Return the figures of `loaded`.

    Raises:
        ModelError: a part does not run at its own input size.
    """
    spec = loaded.spec
    parts = tuple(_describe_part(part, spec.preprocess.size[0]) for part in loaded.parts)
    known = [part.gmacs for part in parts if part.gmacs is not None]
    return ModelDescription(
        name=spec.name,
        family=spec.family,
        source=spec.source,
        task=spec.task,
        weights=spec.weights,
        parameters=sum(part.parameters for part in parts),
        gmacs=sum(known) if len(known) == len(parts) else None,
        tokens=max((site.tokens for site in loaded.attention if site.tokens), default=None),
        image_size=spec.preprocess.size,
        preprocess=spec.preprocess,
        attention=loaded.attention,
        parts=parts,
        label_names=spec.label_names,
        notes=spec.notes,
    )


def _describe_part(part: ExportPart, image_size: int) -> PartDescription:
    if part.file is not None:
        from vitdeploy.models.onnx_file import figures_of

        figures = figures_of(part)
        parameters, gmacs = figures.parameters, figures.gmacs
    else:
        parameters = sum(p.numel() for p in part.module.parameters())
        gmacs = _gmacs(part, image_size)
    return PartDescription(part.name, parameters, gmacs, part.inputs, part.outputs)


def _gmacs(part: ExportPart, image_size: int) -> float:
    """Return the work for one picture; of a part with an example, for the smallest one."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vitdeploy.models.trace import run_shapes

    def count(module: Any, *tensors: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*tensors)
        return int(counter.get_total_flops())

    if part.example is None:
        operations = int(run_shapes(part.module, image_size, count))
    else:
        feeds = part.example(1)
        tensors = (torch.from_numpy(feeds[tensor.name]) for tensor in part.inputs)
        operations = count(part.module, *tensors)
    # the counter counts a multiply-accumulate as two operations
    return operations / 2e9
