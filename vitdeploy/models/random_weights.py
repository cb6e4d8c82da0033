"""Random weights whose output depends on the input, for trying everything but accuracy.

Freshly initialised models often ignore their input: LayerScale starts near zero, weights are
small, BatchNorm has seen nothing. Fidelity figures on such a model would say nothing.
"""

import math

import torch
from torch import nn

from vitdeploy.errors import ModelError

_LAYER_SCALES = ("gamma", "gamma_1", "gamma_2", "lambda1")
_NEAR_ZERO = 1e-4
_IMAGES = 16
"""Behind the statistics of BatchNorm. Attention averages over an image, so that it is images that
vary: with 4, LeViT's logits for other images have a standard deviation of 77, with 16 of 5."""
_MOST_PIXELS = 4 * 1024 * 1024
"""Of all these images together."""


def randomise_(model: nn.Module, seed: int, image_size: int) -> None:
    """Give `model` seeded weights that keep the variance of their input.

    Linear and convolution weights get standard deviation 1/sqrt(fan in); norms stay near the
    identity; LayerScale is 1; other parameters keep the initialisation of their library unless
    they are zero. BatchNorm statistics are those of rendered inputs.

    Raises:
        ModelError: the model does not run at this size.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        done = _randomise_layers_(model, generator)
        for name, parameter in model.named_parameters():
            if id(parameter) in done:
                continue
            if name.rpartition(".")[2] in _LAYER_SCALES or "layer_scale" in name:
                parameter.fill_(1.0)
            elif float(parameter.abs().max()) < _NEAR_ZERO:
                _fill_normal_(parameter, 0.02, generator)
        _fill_statistics_(model, _rendered_input(image_size, generator))


def _randomise_layers_(model: nn.Module, generator: torch.Generator) -> set[int]:
    """Draw the weights of layers of known kinds; return the ids of the parameters drawn."""
    done: set[int] = set()
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, nn.Parameter):
            continue
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            _fill_normal_(weight, 1 / math.sqrt(weight[0].numel()), generator)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)):
            _fill_normal_(weight, 0.1, generator)
            weight.add_(1.0)
        else:
            continue
        done.add(id(weight))
        if isinstance(bias, nn.Parameter):
            _fill_normal_(bias, 0.1, generator)
            done.add(id(bias))
    return done


def _fill_normal_(tensor: torch.Tensor, std: float, generator: torch.Generator) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(std))


def _rendered_input(image_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return (N, 3, H, W) float32 inputs of unit variance, spectrum between photograph and noise.

    N is 16, or fewer of large images.

    Each octave has 0.7 of the amplitude of the one before. With the 0.5 of photographs, hard
    edges would leave the range that BatchNorm has seen, and activations would grow layer by layer.
    """
    size = (image_size, image_size)
    count = max(4, min(_IMAGES, _MOST_PIXELS // image_size**2))
    images = torch.zeros(count, 3, *size)
    for octave in range(2, max(3, int(math.log2(image_size)) + 1)):
        cells = torch.randn(count, 3, 2**octave, 2**octave, generator=generator)
        images += nn.functional.interpolate(cells, size=size, mode="bicubic") * 0.7**octave
    return images / images.std()


def _fill_statistics_(model: nn.Module, images: torch.Tensor) -> None:
    """Set running mean and variance of every BatchNorm to what `images` give."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain average
        norm.train()
    try:
        model(images)
    except (RuntimeError, ValueError, AssertionError) as e:
        size = f"{images.shape[2]}x{images.shape[3]}"
        raise ModelError(
            f"the model does not run on an input of {size} pixels: {str(e).rstrip('.')}. "
            "Choose another --image-size, or leave it out."
        ) from e
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
