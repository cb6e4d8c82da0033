"""The exportable part of a one-input model: what it returns, under the names of the ecosystem.

Classifiers return `logits` (N, classes). Image encoders return `last_hidden_state`
(N, tokens, C), after the model's last norm, and `pooler_output` (N, C), what a classifier would
read. A feature map becomes tokens row by row, the top left first. Other outputs are
`selected_outputs`'.
"""

import dataclasses
from typing import Any

import torch
from torch import nn

from vitdeploy.errors import UsageError
from vitdeploy.models.selected_outputs import SelectedOutputs
from vitdeploy.models.spec import (
    ExportPart,
    LoadedModel,
    ModelSpec,
    Outputs,
    Rebuild,
    Task,
    TensorSpec,
)
from vitdeploy.models.trace import trace

FEATURE_NAMES = ("last_hidden_state", "pooler_output")
BATCH = "batch"


class TimmFeatures(nn.Module):  # type: ignore[misc]
    """Returns `last_hidden_state` and `pooler_output` of a timm model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, tokens, C) and (N, C), float32; `pixel_values` (N, 3, H, W)."""
        features = self.model.forward_features(pixel_values)
        pooled = self.model.forward_head(features, pre_logits=True)
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return as_tokens(features, channels_last=channels_last), pooled


class TransformersOutputs(nn.Module):  # type: ignore[misc]
    """Returns the named outputs of a transformers model, as tensors."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Return one tensor, or a tuple of them; `pixel_values` (N, 3, H, W) float32."""
        result = self.model(pixel_values=pixel_values, return_dict=True)
        if self.names == ("logits",):
            return result.logits
        tokens = as_tokens(result.last_hidden_state, channels_last=False)
        if "pooler_output" not in self.names:
            return tokens
        return tokens, result.pooler_output.flatten(1)


def as_tokens(features: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """Return (N, tokens, C); `features` may be a map (N, C, H, W), or (N, H, W, C)."""
    if features.ndim != 4:
        return features
    return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def choose_outputs(wanted: Outputs | None, name: str, *, has_classifier: bool) -> Outputs:
    """Return what the model shall return.

    Raises:
        UsageError: logits of a model without a classifier.
    """
    if "logits" in (wanted or "").split(",") and not has_classifier:
        raise UsageError(
            f"--outputs {wanted}: {name} has no classifier. Leave it out, or use --outputs "
            f"features ({', '.join(FEATURE_NAMES)})."
        )
    return wanted or ("logits" if has_classifier else "features")


def library_model(module: nn.Module) -> tuple[nn.Module, str]:
    """Return the model of timm or transformers in an exported module, and the prefix of its paths.

    The prefix is empty, or ends in a dot.
    """
    if isinstance(module, (TimmFeatures, TransformersOutputs)):
        return module.model, "model."
    if isinstance(module, SelectedOutputs):
        return module.model, "encoder.model."
    return module, ""


def loaded_model(
    spec: ModelSpec, module: nn.Module, names: tuple[str, ...], rebuild: Rebuild | None = None
) -> LoadedModel:
    """Return the model with its one part, `model`; shapes and attention sites are traced.

    Raises:
        ModelError: the module does not run at the size in `spec`, or not on tensors.
    """
    module.eval()
    size = spec.preprocess.size[0]
    traced = trace(module, size)
    part = ExportPart(
        name="model",
        module=module,
        inputs=(TensorSpec("pixel_values", (BATCH, 3, size, size)),),
        outputs=tuple(
            TensorSpec(name, (BATCH, *shape[1:]))
            for name, shape in zip(names, traced.outputs, strict=True)
        ),
    )
    task: Task = "classification" if names == ("logits",) else "features"
    spec = dataclasses.replace(spec, task=task)
    return LoadedModel(spec, (part,), traced.attention, rebuild)
