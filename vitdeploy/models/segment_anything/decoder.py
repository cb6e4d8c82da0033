"""The mask decoder as it is exported, with the tensors of Segment Anything's reference ONNX.

Prompts in, masks out: the prompt encoder, the decoder and the resizing of the masks to the picture
are one graph. Works on the layers of transformers' SAM and SAM 2 alike.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

Frame = Literal["longest_side", "stretch"]
"""How a picture was fitted to the model's square: resized to its longest side and padded at the
right and bottom (SAM), or stretched (SAM 2)."""

_MULTIPLE_CLICKS = 2.5
"""Above this number of points, padding point included, the prompt is taken as unambiguous."""
_LARGEST_PICTURE = 65536
"""Pixels along one axis; a bound the exporter is told, so that sizes may come from a tensor."""


Masks = tuple[torch.Tensor, ...]
"""Masks at the picture's size, IoU predictions and low-resolution masks; for video also object
pointers and object scores."""


class Prompt(NamedTuple):
    """The prompt tensors of `MaskDecoder.forward`."""

    coords: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    has_mask: torch.Tensor


class MaskDecoder(nn.Module):  # type: ignore[misc]
    """Returns masks for prompts on one picture, like the reference's `SamOnnxModel`."""

    def __init__(self, model: Any, image_size: int, *, frame: Frame, single_mask: bool) -> None:
        """Take the prompt encoder and mask decoder of `model`.

        Args:
            model: `SamModel`, `Sam2Model`, or anything with their three prompt and decoder parts.
            image_size: pixels of the square the image encoder reads.
            frame: how pictures are fitted to that square.
            single_mask: choose one mask a prompt, as the reference's `--return-single-mask` does.
        """
        super().__init__()
        encoder = model.prompt_encoder
        self.image_size = image_size
        self.frame: Frame = frame
        self.single_mask = single_mask
        self.decoder = model.mask_decoder
        self.masks = 1 if single_mask else int(self.decoder.num_mask_tokens)
        self.mask_embed = encoder.mask_embed
        self.no_mask_embed = encoder.no_mask_embed
        self.register_buffer("frequencies", encoder.shared_embedding.positional_embedding.detach())
        self.register_buffer("label_table", _label_table(encoder))
        side = image_size // int(model.config.prompt_encoder_config.patch_size)
        self.mask_size = (4 * side, 4 * side)
        self.register_buffer("positions", self._positions(side))

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> Masks:
        """Return masks (P, M, height, width), IoU predictions (P, M), low-resolution masks.

        All float32. Masks are logits: above 0 is inside. M is 4 (the mask for several points,
        then three for an ambiguous one), or 1 with `single_mask`.

        Args:
            image_embeddings: (1, C, h, w) of the image encoder.
            point_coords: (P, N, 2) x and y in pixels of the model's frame, for P prompts.
            point_labels: (P, N): 1 inside, 0 outside, 2 and 3 the corners of a box (top left,
                bottom right), -1 padding, of which a prompt without box has one.
            mask_input: (1, 1, 4 h, 4 w) logits of an earlier mask.
            has_mask_input: (1,): 1 uses `mask_input`, 0 ignores it.
            orig_im_size: (2,) height and width in pixels of the masks wanted.
        """
        prompt = Prompt(point_coords, point_labels, mask_input, has_mask_input)
        return self.decode(image_embeddings, (), prompt, orig_im_size)[0]

    def decode(
        self,
        image_embeddings: torch.Tensor,
        high_resolution: tuple[torch.Tensor, ...],
        prompt: Prompt,
        orig_im_size: torch.Tensor,
    ) -> tuple[Masks, torch.Tensor]:
        """Return what `forward` does, and the decoder's tokens (P, 2 + M + N, C) as they end.

        `high_resolution` is as in `HighResolutionMaskDecoder`.
        """
        sparse = self._embed_points(prompt.coords, prompt.labels)
        dense = self._embed_mask(prompt.mask, prompt.has_mask)
        low, quality, tokens = self._predict(image_embeddings + dense, sparse, high_resolution)
        if self.single_mask:
            low, quality = _select(low, quality, prompt.coords.shape[1])
        return (self._upscaled(low, orig_im_size), quality, low), tokens

    def _embed_points(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return (P, N, C): where each point is, plus what it means."""
        places = self._encode((coords + 0.5) / self.image_size)
        labels = labels.unsqueeze(-1)
        kinds = torch.arange(-1, len(self.label_table) - 1, dtype=labels.dtype)
        meaning = (labels == kinds).to(places.dtype) @ self.label_table
        return places * (labels != -1) + meaning

    def _embed_mask(self, mask: torch.Tensor, has_mask: torch.Tensor) -> torch.Tensor:
        """Return (1, C, h, w)."""
        without = self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return has_mask * self.mask_embed(mask) + (1 - has_mask) * without

    def _predict(
        self, image: torch.Tensor, sparse: torch.Tensor, high_resolution: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return all low-resolution masks (P, 4, 4 h, 4 w), IoU predictions (P, 4), tokens."""
        decoder = self.decoder
        prompts = sparse.shape[0]
        first = [decoder.obj_score_token.weight] if high_resolution else []
        own = torch.cat([*first, decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(prompts, -1, -1), sparse], dim=1)
        channels, height, width = image.shape[1:]
        last, keys = decoder.transformer(
            point_embeddings=tokens.unsqueeze(1),
            image_embeddings=image.expand(prompts, -1, -1, -1),
            image_positional_embeddings=self.positions,
            attention_similarity=None,
        )
        # iou token, then one token a mask
        found = last.squeeze(1)[:, len(first) :]
        features = keys.squeeze(1).transpose(1, 2).reshape(-1, channels, height, width)
        features = self._upscaled_features(features, high_resolution)
        weights = torch.stack(
            [mlp(found[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        rows, columns = features.shape[2:]
        masks = (weights @ features.flatten(2)).reshape(-1, weights.shape[1], rows, columns)
        return masks, decoder.iou_prediction_head(found[:, 0]), last.squeeze(1)

    def _upscaled_features(
        self, features: torch.Tensor, high_resolution: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Return (P, C / 8, 4 h, 4 w) of `features` (P, C, h, w)."""
        decoder = self.decoder
        fine, middle = high_resolution or (0.0, 0.0)
        features = decoder.upscale_layer_norm(decoder.upscale_conv1(features) + middle)
        features = decoder.upscale_conv2(decoder.activation(features)) + fine
        return decoder.activation(features)

    def _upscaled(self, masks: torch.Tensor, orig_im_size: torch.Tensor) -> torch.Tensor:
        """Return `masks` at the picture's size, what lies on padding cut away."""
        if self.frame == "longest_side":
            masks = _resized(masks, self.image_size, self.image_size)
            longest = torch.maximum(orig_im_size[0], orig_im_size[1])
            used = torch.floor(self.image_size / longest * orig_im_size + 0.5).to(torch.int64)
            masks = masks[..., : _extent(used[0], self.image_size), :]
            masks = masks[..., : _extent(used[1], self.image_size)]
        wanted = orig_im_size.to(torch.int64)
        height, width = (_extent(wanted[axis], _LARGEST_PICTURE) for axis in (0, 1))
        return _resized(masks, height, width)

    def _positions(self, side: int) -> torch.Tensor:
        """Return (1, C, side, side): where each image token is, its centre in 0..1."""
        centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return self._encode(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1).unsqueeze(0)

    def _encode(self, places: torch.Tensor) -> torch.Tensor:
        """Return (..., C) random Fourier features of x and y in 0..1 (..., 2)."""
        angles = 2 * math.pi * ((2 * places - 1) @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class HighResolutionMaskDecoder(nn.Module):  # type: ignore[misc]
    """Returns masks of SAM 2, whose decoder also reads two finer feature maps."""

    def __init__(
        self, model: Any, image_size: int, *, single_mask: bool, object_head: Any = None
    ) -> None:
        """Take the prompt encoder and mask decoder of a `Sam2Model`; see `MaskDecoder`.

        Args:
            model: as there.
            image_size: as there.
            single_mask: as there.
            object_head: `video.ObjectHead`, whose outputs follow the masks; None for pictures.
        """
        super().__init__()
        self.inner = MaskDecoder(model, image_size, frame="stretch", single_mask=single_mask)
        self.object_head = object_head
        self.masks = self.inner.masks
        self.mask_size = self.inner.mask_size

    def forward(  # noqa: PLR0913, PLR0917 - one argument a tensor of the graph's interface
        self,
        image_embeddings: torch.Tensor,
        high_res_feats_0: torch.Tensor,
        high_res_feats_1: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> Masks:
        """Return what `MaskDecoder.forward` does.

        Args:
            image_embeddings: (1, C, h, w).
            high_res_feats_0: (1, C / 8, 4 h, 4 w).
            high_res_feats_1: (1, C / 4, 2 h, 2 w).
            point_coords: as the other tensors, see `MaskDecoder.forward`.
            point_labels: (P, N).
            mask_input: (1, 1, 4 h, 4 w).
            has_mask_input: (1,).
            orig_im_size: (2,).
        """
        prompt = Prompt(point_coords, point_labels, mask_input, has_mask_input)
        finer = (high_res_feats_0, high_res_feats_1)
        masks, tokens = self.inner.decode(image_embeddings, finer, prompt, orig_im_size)
        if self.object_head is None:
            return masks
        # an object token, a token for the IoU, one a mask
        return (*masks, *self.object_head(tokens[:, 0], tokens[:, 2 : 2 + self.masks]))


def _label_table(encoder: Any) -> torch.Tensor:
    """Return (5, C): what labels -1, 0, 1, 2 and 3 add to a point."""
    kinds = encoder.point_embed
    # SAM has one embedding a label, SAM 2 one table
    table = [kinds.weight] if isinstance(kinds, nn.Embedding) else [kind.weight for kind in kinds]
    return torch.cat([encoder.not_a_point_embed.weight, *table]).detach()


def _select(
    masks: torch.Tensor, quality: torch.Tensor, points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one mask a prompt: the first for several points, else the best of the others."""
    first = torch.zeros(quality.shape[1])
    first[0] = 1000.0
    best = (quality + (points - _MULTIPLE_CLICKS) * first).argmax(dim=1)
    place = torch.arange(masks.shape[0]) * masks.shape[1] + best
    return (
        masks.flatten(0, 1).index_select(0, place).unsqueeze(1),
        quality.flatten().index_select(0, place).unsqueeze(1),
    )


def _extent(pixels: torch.Tensor, largest: int) -> int:
    """Return the number in `pixels`; while exporting, a symbol between 1 and `largest`."""
    extent = pixels.item()
    torch._check(extent >= 1)
    torch._check(extent <= largest)
    return extent  # type: ignore[no-any-return]


def _resized(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    size = (height, width)
    return functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)
