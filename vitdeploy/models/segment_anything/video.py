"""SAM 2's video memory as parts: what attends to earlier frames, and what remembers one.

The layers are transformers'; the shapes are an exporter's: sizes that grow with the video are axes
of inputs, and every table (positions, temporal encodings) is in the graph, so that whoever runs
the parts keeps two lists, of memories and of object pointers, and nothing else.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from vitdeploy.errors import ModelError
from vitdeploy.models.segment_anything.parts import drawn_feeds
from vitdeploy.models.spec import ExportPart, TensorSpec

FRAMES, POINTERS = "frames", "pointers"
_USUAL = {
    "multimask_output_in_sam": True,
    "multimask_output_for_tracking": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "enable_temporal_pos_encoding_for_object_pointers": True,
}
"""What the tracker does; all published models are configured so."""


def require_usual(config: Any, image_size: int) -> None:
    """Return where a tracker needs to know nothing of a `Sam2VideoConfig` but its sizes.

    Raises:
        ModelError: another way of choosing masks or encoding time, or another image size.
    """
    for name, usual in _USUAL.items():
        if getattr(config, name) != usual:
            raise ModelError(
                f"this model's {name} is {getattr(config, name)}; video parts can be made where "
                f"it is {usual}. Export it without --video."
            )
    native = int(config.prompt_encoder_config.image_size)
    if image_size != native:
        raise ModelError(
            f"video parts are made for the model's own {native} pixels, whose grid the memory's "
            f"rotary positions are of; --image-size is {image_size}. Leave it out."
        )


class ObjectHead(nn.Module):  # type: ignore[misc]
    """What a tracker needs of the mask decoder beside masks: a pointer a mask, and a score."""

    def __init__(self, model: Any) -> None:
        """Take the layers of a `Sam2VideoModel`."""
        super().__init__()
        self.score = model.mask_decoder.pred_obj_score_head
        self.project = model.object_pointer_proj
        self.no_object = model.no_object_pointer

    def forward(
        self, score_token: torch.Tensor, mask_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pointers (P, M, C) and object scores (P, 1): above 0 the object is in the frame.

        Args:
            score_token: (P, C) of the decoder.
            mask_tokens: (P, M, C) of the decoder.
        """
        score = self.score(score_token)
        seen = (score > 0).to(score.dtype).unsqueeze(1)
        return seen * self.project(mask_tokens) + (1 - seen) * self.no_object, score


class MemoryAttention(nn.Module):  # type: ignore[misc]
    """The image embeddings of a frame, made to know what came before."""

    def __init__(self, model: Any) -> None:
        """Take the memory attention of a `Sam2VideoModel`."""
        super().__init__()
        config, inner = model.config, model.memory_attention
        self.layers, self.norm = inner.layers, inner.layer_norm
        self.heads = int(config.memory_attention_num_attention_heads)
        self.no_memory = model.no_memory_embedding
        self.temporal = model.memory_temporal_positional_encoding
        self.pointer_time = model.temporal_positional_encoding_projection_layer
        self.longest = float(config.max_object_pointers_in_encoder - 1)
        rows, columns = (int(side) for side in model.backbone_feature_sizes[-1])
        channels, self.memory_channels = int(model.hidden_dim), int(model.mem_dim)
        cpu, kind = torch.device("cpu"), torch.float32
        with torch.no_grad():
            own = model.vision_encoder.neck.position_encoding(
                (1, channels, rows, columns), cpu, kind
            )
            there = model.memory_encoder.position_encoding(
                (1, self.memory_channels, rows, columns), cpu, kind
            )
            cosine, sine = inner.rotary_emb(own, inner.position_ids)
        self.register_buffer("positions", own.flatten(2).transpose(1, 2).contiguous())
        self.register_buffer("memory_positions", there.flatten(2).transpose(1, 2).contiguous())
        self.register_buffer("cosine", cosine.reshape(rows * columns, -1).contiguous())
        self.register_buffer("sine", sine.reshape(rows * columns, -1).contiguous())
        places = torch.arange(channels // 2, dtype=kind)
        self.register_buffer("periods", 10000 ** (2 * (places // 2) / (channels // 2)))

    def forward(
        self,
        image_embeddings: torch.Tensor,
        memories: torch.Tensor,
        memory_ages: torch.Tensor,
        object_pointers: torch.Tensor,
        pointer_ages: torch.Tensor,
    ) -> torch.Tensor:
        """Return (1, C, h, w), which the mask decoder takes for `image_embeddings`.

        Args:
            image_embeddings: (1, C, h, w) of the image encoder.
            memories: (T, D, h, w) of earlier frames, of the memory encoder.
            memory_ages: (T,) how many frames ago; 0 for a frame with prompts, however long ago.
            object_pointers: (K, C) of earlier frames, of the mask decoder.
            pointer_ages: (K,) how many frames ago.
        """
        coarse = image_embeddings - self.no_memory.reshape(1, -1, 1, 1)
        queries = coarse.flatten(2).transpose(1, 2) + 0.1 * self.positions
        values = memories.flatten(2).transpose(1, 2)  # (T, h w, D)
        row = torch.remainder(memory_ages.to(torch.int64) - 1, self.temporal.shape[0])
        times = self.temporal.reshape(self.temporal.shape[0], 1, -1).index_select(0, row)
        pointers = object_pointers.reshape(1, -1, self.memory_channels)
        split = object_pointers.shape[1] // self.memory_channels
        angles = (pointer_ages / self.longest).unsqueeze(-1) / self.periods
        when = self.pointer_time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        when = when.unsqueeze(1).expand(-1, split, -1).reshape(1, -1, self.memory_channels)
        memory = (values, values + self.memory_positions + times, pointers, pointers + when)
        for layer in self.layers:
            queries = self._layer(layer, queries, memory)
        return self.norm(queries).transpose(1, 2).reshape(image_embeddings.shape)

    def _layer(
        self, layer: Any, queries: torch.Tensor, memory: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Return the queries (1, h w, C) after self-attention, memory and MLP."""
        values, keys, pointers, pointer_keys = memory
        own, cross = layer.self_attn, layer.cross_attn_image
        normed = layer.layer_norm1(queries)
        turned = self._turned(self._split(own.k_proj(normed)))
        queries = queries + self._attended(own, normed, turned, own.v_proj(normed))
        normed = layer.layer_norm2(queries)
        width = cross.k_proj.out_features
        # every frame's keys turn by the same angles; pointers, which have no place, do not
        spatial = self._turned(self._split(cross.k_proj(keys))).transpose(1, 2)
        frames = spatial.reshape(1, -1, width)
        every = torch.cat([frames, cross.k_proj(pointer_keys)], dim=1)
        seen = torch.cat([values.reshape(1, -1, self.memory_channels), pointers], dim=1)
        queries = queries + self._attended(cross, normed, self._split(every), cross.v_proj(seen))
        normed = layer.layer_norm3(queries)
        return queries + layer.linear2(layer.activation(layer.linear1(normed)))

    def _attended(
        self, attention: Any, normed: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Return (1, h w, C); `keys` are (1, heads, tokens, d), turned already."""
        query = self._turned(self._split(attention.q_proj(normed)))
        scores = (query * attention.scaling) @ keys.transpose(2, 3)
        found = scores.softmax(dim=-1) @ self._split(values)
        return attention.o_proj(found.transpose(1, 2).flatten(2))

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (N, heads, tokens, d) of (N, tokens, heads d)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _turned(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (N, heads, h w, d) with each pair of channels turned by its place's angle."""
        pairs = tokens.unflatten(-1, (-1, 2))
        crossed = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        return tokens * self.cosine + crossed * self.sine


class MemoryEncoder(nn.Module):  # type: ignore[misc]
    """What is remembered of one frame: its features and the mask found in it."""

    def __init__(self, model: Any, image_size: int) -> None:
        """Take the memory encoder of a `Sam2VideoModel`."""
        super().__init__()
        inner, config = model.memory_encoder, model.config
        self.downsampler, self.projection = inner.mask_downsampler, inner.feature_projection
        self.fuser, self.out = inner.memory_fuser, inner.projection
        self.no_memory = model.no_memory_embedding
        self.hidden = model.occlusion_spatial_embedding_parameter
        self.scale = float(config.sigmoid_scale_for_mem_enc)
        self.bias = float(config.sigmoid_bias_for_mem_enc)
        self.image_size = image_size

    def forward(
        self,
        image_embeddings: torch.Tensor,
        mask: torch.Tensor,
        object_score: torch.Tensor,
        is_prompted: torch.Tensor,
    ) -> torch.Tensor:
        """Return a memory (1, D, h, w).

        Args:
            image_embeddings: (1, C, h, w) of the image encoder.
            mask: (1, 1, 4 h, 4 w) low-resolution logits.
            object_score: (1, 1) of the mask decoder.
            is_prompted: (1,): 1 where a person said what the object is, in this frame.
        """
        coarse = image_embeddings - self.no_memory.reshape(1, -1, 1, 1)
        size = (self.image_size, self.image_size)
        logits = functional.interpolate(mask, size=size, mode="bilinear", align_corners=False)
        hard = (logits > 0).to(logits.dtype)
        inside = is_prompted * hard + (1 - is_prompted) * logits.sigmoid()
        fused = self.projection(coarse) + self.downsampler(self.scale * inside + self.bias)
        memory = self.out(self.fuser(fused))
        if self.hidden is None:
            return memory
        lost = 1 - (object_score > 0).to(memory.dtype)
        return memory + lost.reshape(1, 1, 1, 1) * self.hidden.reshape(1, -1, 1, 1)


def video_parts(model: Any, image_size: int) -> tuple[ExportPart, ExportPart]:
    """Return `memory_attention` and `memory_encoder` of a `Sam2VideoModel`."""
    rows, columns = (int(side) for side in model.backbone_feature_sizes[-1])
    channels, memory = int(model.hidden_dim), int(model.mem_dim)
    embeddings = TensorSpec("image_embeddings", (1, channels, rows, columns))
    attention = (
        embeddings,
        TensorSpec("memories", (FRAMES, memory, rows, columns)),
        TensorSpec("memory_ages", (FRAMES,)),
        TensorSpec("object_pointers", (POINTERS, channels)),
        TensorSpec("pointer_ages", (POINTERS,)),
    )
    encoder = (
        embeddings,
        TensorSpec("mask", (1, 1, 4 * rows, 4 * columns)),
        TensorSpec("object_score", (1, 1)),
        TensorSpec("is_prompted", (1,)),
    )
    return (
        ExportPart(
            name="memory_attention",
            module=MemoryAttention(model).eval(),
            inputs=attention,
            outputs=(TensorSpec("tracked_embeddings", embeddings.shape),),
            example=_example(attention),
        ),
        ExportPart(
            name="memory_encoder",
            module=MemoryEncoder(model, image_size).eval(),
            inputs=encoder,
            outputs=(TensorSpec("memory", (1, memory, rows, columns)),),
            example=_example(encoder),
        ),
    )


def _example(
    inputs: tuple[TensorSpec, ...],
) -> Callable[[int], dict[str, NDArray[np.float32]]]:
    """Return what draws `count` remembered frames with one pointer more."""

    def draw(count: int) -> dict[str, NDArray[np.float32]]:
        rng = np.random.default_rng(count)
        feeds = drawn_feeds(inputs, {FRAMES: count, POINTERS: count + 1}, rng)
        for name in ("memory_ages", "pointer_ages"):
            if name in feeds:
                feeds[name][:] = np.arange(len(feeds[name]))
        if "is_prompted" in feeds:
            feeds["is_prompted"][:] = count % 2
            feeds["object_score"][:] = (-1.0) ** (count // 2)
        return feeds

    return draw
