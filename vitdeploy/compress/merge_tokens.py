"""Token merging: similar patches become one token at one or two blocks, so that the rest is faster.

Not exact, so never done unless asked for. Bipartite soft matching as in ToMe (arXiv 2210.09461),
once or twice with a fixed number of tokens instead of in every block, so that the graph is static
(MatMul, TopK, Gather) and the attention after it keeps the form that engines fuse: ToMe's
proportional attention, an additive mask, is left out. Behind the last block every patch gets its
token back, so that dense outputs and mean pooling keep their meaning.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from vitdeploy.errors import CompressionError
from vitdeploy.models.outputs import library_model
from vitdeploy.models.spec import LoadedModel
from vitdeploy.models.trace import trace
from vitdeploy.recipe import MergeTokensSection

DEFAULT_DEPTH_SHARE = 1 / 6
"""Where the merge is by default: before block 2 of 12. Earlier saves more and costs more."""


@dataclass(frozen=True)
class MergeResult:
    """A model that merges tokens, and what that means."""

    loaded: LoadedModel
    blocks: tuple[int, ...]
    """Before which blocks tokens are merged."""
    patches: tuple[int, ...]
    """Patch tokens at the start, and behind each merge."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        counts = " -> ".join(str(count) for count in self.patches)
        places = ", ".join(str(block) for block in self.blocks)
        return (
            f"token merging: {counts} patch tokens, before block {places}. This is not exact: "
            "compare with a lower --image-size at the same latency.",
        )


def merge_tokens(loaded: LoadedModel, section: MergeTokensSection) -> MergeResult:
    """Return `loaded` with token merging; it stays as it is.

    Raises:
        CompressionError: the model is no plain ViT, or a block is not one of its blocks.
    """
    from timm.models.vision_transformer import VisionTransformer

    name = loaded.spec.name
    part = loaded.parts[0]
    model = library_model(part.module)[0] if part.module is not None else None
    if len(loaded.parts) > 1 or not (
        isinstance(model, VisionTransformer) and isinstance(model.blocks, nn.Sequential)
    ):
        raise CompressionError(
            f"'{name}' cannot merge tokens: its blocks know where tokens lie (windows, relative or "
            "rotary positions), or it is no torch model of timm's ViT kind. Plain ViT, DeiT, "
            "DINOv2, CLIP and SigLIP towers can; for others use a lower --image-size."
        )
    depth = len(model.blocks)
    blocks = section.blocks or (max(1, round(depth * DEFAULT_DEPTH_SHARE)),)
    if max(blocks) >= depth:
        raise CompressionError(
            f"merge_tokens.blocks {blocks}: '{name}' has {depth} blocks; allowed: 1..{depth - 1}."
        )
    module = copy.deepcopy(part.module)
    smaller = library_model(module)[0]
    prefix = int(smaller.num_prefix_tokens)
    patches = _patch_counts(smaller, section.share, len(blocks), name)
    removed = {block: patches[i] - patches[i + 1] for i, block in enumerate(blocks)}
    smaller.blocks = MergingBlocks(list(smaller.blocks), removed, prefix).eval()
    traced = trace(module, loaded.spec.preprocess.size[0])
    merged = dataclasses.replace(
        loaded,
        parts=(dataclasses.replace(part, module=module),),
        attention=traced.attention,
        rebuild=None,
    )
    return MergeResult(merged, tuple(blocks), patches)


def _patch_counts(model: nn.Module, share: float, merges: int, name: str) -> tuple[int, ...]:
    """Return the number of patch tokens before the merges and behind each."""
    counts = [int(model.patch_embed.num_patches)]
    for _ in range(merges):
        gone = round(share * counts[-1])
        if not 0 < gone <= counts[-1] // 2:
            raise CompressionError(
                f"'{name}' has {counts[-1]} patch tokens where a share of {share:g} is to be "
                f"merged, {gone} of them; allowed: 1..{counts[-1] // 2}."
            )
        counts.append(counts[-1] - gone)
    return tuple(counts)


class Merge(NamedTuple):
    """Which merged token every patch token became part of, and the merged tokens."""

    tokens: torch.Tensor
    """(N, prefix + kept, C)."""
    places: torch.Tensor
    """(N, patches) int64: index among the kept patch tokens."""


def merge_most_similar(
    tokens: torch.Tensor, metric: torch.Tensor, removed: int, prefix: int
) -> Merge:
    """Return the tokens with the `removed` most similar pairs of patches averaged.

    Every second patch (the even ones) looks for the most similar odd one; the best matches join.

    Args:
        tokens: (N, prefix + patches, C).
        metric: (N, prefix + patches, M); similarity is the cosine of these.
        removed: how many patch tokens go, at most half of them.
        prefix: class and register tokens in front, which never merge.
    """
    patches = tokens.shape[1] - prefix
    even = torch.arange(0, patches, 2)
    odd = torch.arange(1, patches, 2)
    direction = nn.functional.normalize(metric[:, prefix:], dim=-1)
    scores = direction[:, even] @ direction[:, odd].transpose(1, 2)
    best, partner = scores.max(dim=-1)
    order = best.topk(len(even), dim=-1, sorted=True).indices
    gone, stay = order[:, :removed], order[:, removed:]
    own = tokens[:, prefix:]
    sources, kept = own[:, even], own[:, odd]
    joined = partner.gather(1, gone)
    # (N, odd, removed): 1 where a source joins a kept token; a product adds faster than a scatter
    joins = (joined.unsqueeze(1) == torch.arange(len(odd)).view(1, -1, 1)).to(tokens.dtype)
    sums = kept + joins @ _rows(sources, gone)
    means = sums / (1 + joins.sum(dim=-1, keepdim=True))
    merged = torch.cat([tokens[:, :prefix], _rows(sources, stay), means], dim=1)
    rank = order.argsort(dim=-1)
    offset = len(even) - removed
    of_even = torch.where(rank < removed, partner + offset, rank - removed)
    of_odd = (torch.arange(len(odd)) + offset).unsqueeze(0).expand(tokens.shape[0], -1)
    back = torch.cat([even, odd]).argsort()
    return Merge(merged, torch.cat([of_even, of_odd], dim=1)[:, back])


def unmerge(tokens: torch.Tensor, places: torch.Tensor, prefix: int) -> torch.Tensor:
    """Return (N, prefix + patches, C): every patch with the token it became part of."""
    return torch.cat([tokens[:, :prefix], _rows(tokens[:, prefix:], places)], dim=1)


def _rows(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return (N, K, C): of each image the rows at `indices` (N, K)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class MergingBlocks(nn.Sequential):  # type: ignore[misc]
    """A ViT's blocks with merges in between; paths of the blocks stay what they were."""

    def __init__(self, blocks: Sequence[nn.Module], removed: dict[int, int], prefix: int) -> None:
        """Take the blocks.

        Args:
            blocks: of a plain ViT.
            removed: by index of a block: how many patch tokens go before it.
            prefix: class and register tokens in front.
        """
        super().__init__(*blocks)
        self.removed = dict(removed)
        self.prefix = prefix

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the last block's output for all patches, (N, prefix + patches, C) as it came."""
        places: list[torch.Tensor] = []
        for index, block in enumerate(self):
            if index in self.removed:
                metric = _mean_key(block, tokens)
                merge = merge_most_similar(tokens, metric, self.removed[index], self.prefix)
                tokens = merge.tokens
                places.append(merge.places)
            tokens = block(tokens)
        for place in reversed(places):
            tokens = unmerge(tokens, place, self.prefix)
        return tokens


def _mean_key(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return (N, T, head_dim): the keys of the block to come, averaged over its heads.

    The mean of the heads' keys is one small product with the mean of their weights.
    """
    attention = block.attn
    width = attention.qkv.out_features // 3
    heads = int(attention.num_heads)
    rows = slice(width, 2 * width)
    weight = attention.qkv.weight[rows].unflatten(0, (heads, -1)).mean(dim=0)
    bias = attention.qkv.bias
    mean_bias = None if bias is None else bias[rows].unflatten(0, (heads, -1)).mean(dim=0)
    return nn.functional.linear(block.norm1(tokens), weight, mean_bias)
