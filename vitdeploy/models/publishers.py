"""Weights from a file into a model of timm, whatever names their publisher gave them.

timm converts most layouts (`checkpoint_filter_fn` beside each architecture). Here that is called,
and done what it leaves over: weights of pretraining alone, layouts it knows for one class of model
only, files that were re-parameterised before they were published, and the check that nothing that
counts is lost.
"""

import contextlib
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitdeploy.errors import ModelError
from vitdeploy.models.checkpoint import StateDict, load_strictly_, read_state_dict, shorten
from vitdeploy.models.hub import quiet_libraries
from vitdeploy.models.torchscript_archive import is_torchscript

# What timm's conversions are seen to raise on keys of another architecture.
_CONVERSION_ERRORS = (
    *(RuntimeError, TypeError, ValueError, AssertionError, KeyError, AttributeError, IndexError),
)
_PRETRAINING = re.compile(
    r"^(mask_token$|decoder_|lm_head\.|local_cls_norm\.|dino_head\.|ibot_head\.)"
)
"""MAE's decoder, BEiT's and DINOv2's targets: no encoder reads them."""
_CLASS_POSITIONS = 2
"""Tokens with positions of their own beside the patches: class and distillation."""
_REPARAMETERISED = re.compile(r"(^|\.)(lkb_reparam|reparam_conv)\.")


def is_reparameterised(names: Any) -> bool:
    """Return whether parameters of these names are those of branches that were merged."""
    return any(_REPARAMETERISED.search(name) for name in names)


def fill_from_file_(model: Any, file: Path, *, resample: bool) -> None:
    """Load `file` through the conversions for this architecture, timm's and those here.

    The conversion also resamples what depends on sizes. That is refused for patches, which are
    another architecture, and for positions unless `resample` (an image size was asked for).

    Raises:
        ModelError: the file does not do, or does not fit.
    """
    from timm.utils import reparameterize_model

    raw = read_state_dict(file)
    if is_torchscript(file):
        require_quick_gelu(raw, model)
    if is_reparameterised(raw) and not is_reparameterised(model.state_dict()):
        reparameterize_model(model, inplace=True)
    weights = timm_weights(raw, model)
    for key, value in raw.items():
        if key in weights and value.ndim > 1 and weights[key].shape != value.shape:
            patches = "patch_embed" in key and value.ndim == 4
            positions = "relative_position" in key or (
                "pos_embed" in key and not _has_same_grid(value, weights[key])
            )
            if patches or (positions and not resample):
                weights[key] = value
    load_strictly_(model, weights, f"checkpoint '{file.name}'")


def _has_same_grid(published: Any, converted: Any) -> bool:
    """Return True where positions differ by those of class and distillation token at most.

    DINOv2's with registers become part of the class token. Squares of 2 and more lie further apart.
    """
    dropped: int = abs(published.shape[1] - converted.shape[1]) if published.ndim == 3 else 0
    return published.ndim == 3 and dropped <= _CLASS_POSITIONS


def timm_weights(raw: Mapping[str, torch.Tensor], model: Any) -> StateDict:
    """Return a checkpoint's weights under the names that `model` has, resampled to its sizes.

    Keys of another architecture are returned as they came, for the caller to refuse.

    Args:
        raw: as read from the file.
        model: of timm; re-parameterised where the file is.

    Raises:
        ModelError: the conversion would drop weights that change what the model computes.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    source = _apple_names(raw) if is_reparameterised(raw) else dict(raw)
    weights = dict(source)
    # FastViT's conversion (timm 1.0.31) renames what already has timm's names
    if convert is not None and not _fits(source, model):
        with (
            contextlib.suppress(*_CONVERSION_ERRORS),
            quiet_libraries(),
            contextlib.redirect_stdout(io.StringIO()),  # EVA's prints what it skips
        ):
            weights = convert(dict(source), model)
        _refuse_lost_biases(raw, weights)
    return _own_names(weights, set(model.state_dict()))


def require_quick_gelu(raw: Mapping[str, torch.Tensor], model: Any) -> None:
    """Raise where OpenAI's own archive of CLIP meets an architecture with the exact GELU.

    OpenAI trained with x * sigmoid(1.702 x); others published the same names with GELU.

    Raises:
        ModelError: names the architectures that fit.
    """
    activations = {type(layer).__name__ for layer in model.modules()}
    if "visual.conv1.weight" in raw and not {"QuickGELU", "QuickGELUTanh"} & activations:
        raise ModelError(
            "OpenAI's CLIP was trained with QuickGELU and this architecture has another "
            "activation, so its outputs would not be OpenAI's. Choose a name with "
            "`clip_quickgelu` (for instance timm:vit_base_patch32_clip_quickgelu_224)."
        )


def _fits(weights: Mapping[str, torch.Tensor], model: Any) -> bool:
    """Return True where `weights` are those of `model` as they are: same names, same shapes."""
    expected = model.state_dict()
    return weights.keys() == expected.keys() and all(
        weights[key].shape == value.shape for key, value in expected.items()
    )


def _own_names(weights: Mapping[str, torch.Tensor], expected: set[str]) -> StateDict:
    """Return `weights` with the names that timm's conversion leaves over put right."""
    renamed = {}
    for name, value in weights.items():
        key = name
        if key not in expected:
            # DeiT III, which timm converts while it downloads only
            key = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key)
            # ml-fastvit's positional encodings after re-parameterisation
            key = key.replace(".pos_emb.pos_enc.reparam_conv.", ".pos_emb.reparam_conv.")
        if key in expected or not _PRETRAINING.match(key):
            renamed[key] = value
    return renamed


def _apple_names(raw: Mapping[str, torch.Tensor]) -> StateDict:
    """Return ml-fastvit's re-parameterised names as the unmerged ones that timm converts."""
    return {
        re.sub(r"^network\.(\d+)\.reparam_conv\.", r"network.\1.pe.reparam_conv.", key).replace(
            ".lkb_reparam.", ".reparam_conv."
        ): value
        for key, value in raw.items()
    }


def _refuse_lost_biases(raw: Mapping[str, torch.Tensor], weights: Mapping[str, Any]) -> None:
    """Raise where DINOv3's query and value biases have values and the model has no such biases.

    Raises:
        ModelError: names the keys and the architecture that has them.
    """
    lost = []
    for key, value in raw.items():
        if not key.endswith(".qkv.bias") or key in weights:
            continue
        query, _, values = value.chunk(3)
        kept = key.replace("qkv.bias", "q_bias") in weights
        if not kept and bool(torch.cat((query, values)).any()):
            lost.append(key)
    if lost:
        raise ModelError(
            f"the checkpoint has biases of query and value that this architecture has not: "
            f"{shorten(lost)}. Choose the one that has them: timm's names end in _qkvb (for "
            "instance timm:vit_small_patch16_dinov3_qkvb)."
        )
