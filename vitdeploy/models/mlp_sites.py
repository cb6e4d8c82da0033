"""Where a model's MLPs are, and which of their hidden channels can be removed alone.

Found by structure and by the names that timm and transformers share, never by architecture.
"""

from collections.abc import Iterator

from torch import nn

from vitdeploy.models.spec import MlpSite

# Layers that make the hidden channels, and the one that reads them.
_NAMES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("fc1",), "fc2"),
    (("fc1_g", "fc1_x"), "fc2"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("lin1",), "lin2"),
    (("weights_in",), "weights_out"),
    (("proj_in",), "proj_out"),
    (("intermediate.dense",), "output.dense"),
)
# A squeeze-and-excitation layer looks like an MLP, but scales channels by a pooled signal.
_NOT_MLP = ("SE", "SqueezeExcite", "EffectiveSE")


def find_mlp_sites(module: nn.Module) -> tuple[MlpSite, ...]:
    """Return the MLPs of `module` whose hidden channels do not mix before they are read.

    Left out is an MLP with a norm or a spatial convolution over its hidden channels: removing
    some would change what is left.
    """
    return tuple(_sites(module))


def _sites(module: nn.Module) -> Iterator[MlpSite]:
    for path, layer in module.named_modules():
        if type(layer).__name__.startswith(_NOT_MLP):
            continue
        for names, output in _NAMES:
            site = _site(layer, path, names, output)
            if site is not None:
                yield site
                break


def _site(layer: nn.Module, path: str, names: tuple[str, ...], output: str) -> MlpSite | None:
    reads = _submodule(layer, output)
    makes = [_submodule(layer, name) for name in names]
    if reads is None or not all(is_pointwise(part) for part in (reads, *makes)):
        return None
    width = columns_of(reads)
    rows = {rows_of(part) for part in makes}
    is_packed = len(makes) == 1 and rows == {2 * width}
    if rows != {width} and not is_packed:
        return None
    if _mixes_channels(layer, width, (*names, output)):
        return None
    prefix = f"{path}." if path else ""
    inputs = tuple(prefix + name for name in names)
    # transformers has MLPs that are two modules of a block: the first stands for both
    own = inputs[0].rpartition(".")[0] if "." in names[0] else path
    return MlpSite(own, inputs, prefix + output, width, is_packed)


def is_pointwise(layer: nn.Module | None) -> bool:
    """Return True for a Linear, or a convolution of one pixel over all channels."""
    if isinstance(layer, nn.Conv2d):
        return tuple(layer.kernel_size) == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def rows_of(layer: nn.Module) -> int:
    """Return the output channels of a pointwise layer."""
    return int(layer.weight.shape[0])


def columns_of(layer: nn.Module) -> int:
    """Return the input channels of a pointwise layer."""
    return int(layer.weight.shape[1])


def _submodule(layer: nn.Module, name: str) -> nn.Module | None:
    try:
        return layer.get_submodule(name)
    except AttributeError:
        return None


def _mixes_channels(layer: nn.Module, width: int, names: tuple[str, ...]) -> bool:
    """Return True where something between input and output has parameters per hidden channel.

    Only the layer's own children count: where the names are those of grandchildren (`output` of
    transformers' blocks), the layer holds attention too.
    """
    if any("." in name for name in names):
        return False
    return any(
        width in parameter.shape
        for name, child in layer.named_children()
        if name not in names
        for parameter in child.parameters()
        if not _is_before(child, layer, names)
    )


def _is_before(child: nn.Module, layer: nn.Module, names: tuple[str, ...]) -> bool:
    """Return True for a child registered ahead of the first input, as FastViT's convolution."""
    children = list(layer.children())
    first = layer.get_submodule(names[0])
    return children.index(child) < children.index(first)
