"""Models of transformers for another image size: positions resampled as each model does it."""

import copy
from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from vitdeploy.errors import ModelError
from vitdeploy.models.pruned import apply_record_
from vitdeploy.models.pruning_record import PruningRecord
from vitdeploy.models.timm_models import check_multiple

_CLASS_TOKEN_BIASES = 3
"""Rows of BEiT's table behind those of patches: to the class token, from it, of it to itself."""


def native_size(config: Any, default: int) -> int:
    """Return the pixels of the side the positions are for; `default` where nothing depends on it.

    Some configurations give height and width.
    """
    size = getattr(config, "image_size", None) or default
    return max(size) if isinstance(size, (list, tuple)) else int(size)


def resized_model(model: Any, config: Any, size: int, pruning: PruningRecord) -> Any:
    """Return the model for inputs of `size` pixels, its positions resampled by its own method.

    Args:
        model: of transformers, with its weights.
        config: of the whole architecture.
        size: pixels of the image's side.
        pruning: what the model has lost of it.

    Raises:
        ModelError: the size is no multiple of the patch, or the positions cannot be resampled.
    """
    check_multiple(size, _step(config))
    native = native_size(config, size)
    if native == size:
        return model
    smaller = copy.deepcopy(config)
    smaller.image_size = [size, size] if isinstance(config.image_size, (list, tuple)) else size
    resized = type(model)._from_config(smaller, attn_implementation="eager")
    apply_record_(resized, pruning)
    weights = model.state_dict()
    wanted = resized.state_dict()
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, tensor in _resampled(module, resized.get_submodule(path), size):
                weights[f"{path}.{name}".lstrip(".")] = tensor
    differing = [key for key in wanted if weights[key].shape != wanted[key].shape]
    if differing:
        raise ModelError(
            f"--image-size {size}: a {config.model_type} model for {native} pixels cannot be "
            f"resampled ({', '.join(differing[:10])}). Use {native}."
        )
    resized.load_state_dict(weights)
    if getattr(model, "pooler", True) is None:
        resized.pooler = None
    return resized


def _step(config: Any) -> int:
    """Return the pixels that an image's side must be a multiple of."""

    def longest(name: str) -> int:
        sides = getattr(config, name, None) or 1
        return max(sides) if isinstance(sides, (tuple, list)) else int(sides)

    if hasattr(config, "patch_stride"):  # Hiera's patches overlap, and attention has units of them
        return longest("patch_stride") * longest("masked_unit_size")
    return longest("patch_size")


def _resampled(module: Any, new: Any, size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module's own that hold positions, for another image size.

    Args:
        module: any part of a model.
        new: the same part of a model of that size.
        size: pixels of its image's side.
    """
    positions = getattr(module, "position_embeddings", None)
    learned = getattr(module, "position_embedding", None)
    if hasattr(module, "num_relative_distance"):
        yield "relative_position_bias_table", _resampled_bias(module, new)
    if not hasattr(module, "interpolate_pos_encoding"):
        return
    asked = signature(module.interpolate_pos_encoding).parameters
    if isinstance(positions, torch.Tensor):
        like = torch.zeros(new.position_embeddings.shape)
        own = (positions,) if "pos_embeds" in asked else ()  # Hiera
        yield "position_embeddings", module.interpolate_pos_encoding(like, *own, size, size)
    elif isinstance(learned, nn.Embedding):
        like = torch.zeros(1, *new.position_embedding.weight.shape)
        yield "position_embedding.weight", module.interpolate_pos_encoding(like, size, size)[0]


def _resampled_bias(module: Any, new: Any) -> torch.Tensor:
    """Return BEiT's biases by distance (distances + 3, heads) for another number of patches.

    As the module itself does where it is called for other sizes: the distances between patches are
    a map, bilinear; the three rows of the class token stay.
    """

    def distances(bias: Any) -> tuple[int, int]:
        rows, columns = bias.window_size
        return 2 * rows - 1, 2 * columns - 1

    table = module.relative_position_bias_table
    between = table[:-_CLASS_TOKEN_BIASES].reshape(1, *distances(module), -1).permute(0, 3, 1, 2)
    resampled = interpolate(between, size=distances(new), mode="bilinear").permute(0, 2, 3, 1)
    return torch.cat([resampled.flatten(0, 2), table[-_CLASS_TOKEN_BIASES:]])
