"""SAM 2 and 2.1 (arXiv 2408.00714) on single images, modelled by transformers.

Weights come from the publisher's `sam2_hiera_*.pt` and `sam2.1_hiera_*.pt`, from transformers
folders, or are random. With `LoadOptions.video` a model of video gives the parts of its memory too;
without, its image parts alone.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ModelError
from vitdeploy.manifest import TrackingEntry
from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import ExportPart, LoadedModel, LoadOptions

if TYPE_CHECKING:
    from vitdeploy.models.segment_anything.loading import Weights

_SIZES = ("tiny", "small", "base-plus", "large")
ALIASES: Mapping[str, Alias] = {
    f"{version}-{size}": Alias(f"hf:facebook/{version}-hiera-{size}", 1024)
    for version in ("sam2", "sam2.1")
    for size in _SIZES
}


def _hiera(
    width: int, depths: tuple[int, ...], whole: tuple[int, ...], *, background: int = 7
) -> dict[str, Any]:
    heads = 1 if width == 96 else 2
    widths = [width * 2**stage for stage in range(4)]
    return {
        "vision_config": {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": width,
                "num_attention_heads": heads,
                "blocks_per_stage": list(depths),
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
                "window_size_per_stage": [8, 4, 16, 8] if width == 144 else [8, 4, 14, 7],
                "global_attention_blocks": list(whole),
                "window_positional_embedding_background_size": [background, background],
            },
            "backbone_channel_list": widths[::-1],
        }
    }


# as in the publisher's sam2/configs, so that a checkpoint loads without a network
_TRUNKS = {
    "tiny": _hiera(96, (1, 2, 7, 2), (5, 7, 9)),
    "small": _hiera(96, (1, 2, 11, 2), (7, 10, 13)),
    "base-plus": _hiera(112, (2, 3, 16, 3), (12, 16, 20), background=14),
    "large": _hiera(144, (2, 6, 36, 4), (23, 33, 43)),
}
_KNOWN = {
    f"facebook/{version}-hiera-{size}": trunk
    for version in ("sam2", "sam2.1")
    for size, trunk in _TRUNKS.items()
}


def owns(architecture: str) -> bool:
    """Return False: timm's `hiera_*` are image classifiers."""
    return False


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return image encoder and mask decoder, and the memory where video is asked for.

    See `segment_anything.loading` for what it raises.
    """
    if options.video:
        return _load_video(reference, options)
    from transformers import Sam2Config, Sam2Model

    from vitdeploy.models.segment_anything import loading, publisher, sam2_publisher
    from vitdeploy.models.segment_anything.decoder import HighResolutionMaskDecoder
    from vitdeploy.models.segment_anything.hiera import STEP

    fields = dict(loading.read_config(reference, _KNOWN))
    fields.pop("model_type", None)  # `sam2_video` has the same fields and more
    config = loading.parsed(Sam2Config, fields, reference)
    weights = loading.read_weights(reference, options)
    if weights is not None and publisher.is_publisher_layout(weights.tensors):
        publisher.require_encoder(weights.tensors, "trunk", weights.what)
        weights = loading.renamed(weights, sam2_publisher.sam2_from_publisher)
    elif weights is not None:
        ignored = tuple(Sam2Model._keys_to_ignore_on_load_unexpected or ())
        weights = loading.renamed(
            weights, lambda named: publisher.with_shared_positions(_of_images(named, ignored))
        )
    native = int(config.prompt_encoder_config.image_size)
    size = loading.chosen_size(options, native, STEP)
    model = loading.filled_model(
        lambda: Sam2Model._from_config(config, attn_implementation="eager"), weights, options.seed
    )
    decoder = HighResolutionMaskDecoder(model, size, single_mask=options.single_mask)
    return _loaded(reference, weights, (model, decoder, size))


def _loaded(
    reference: Reference,
    weights: "Weights | None",
    made: tuple[Any, Any, int],
    further: tuple[ExportPart, ...] = (),
) -> LoadedModel:
    """Return the parts of (model, mask decoder, image size), and `further` ones behind them."""
    from vitdeploy.models.segment_anything import loading, parts
    from vitdeploy.models.segment_anything.hiera import Sam2ImageEncoder

    model, decoder, size = made
    features = _features(model.config, size)
    return loading.loaded_sam(
        reference,
        weights,
        loading.preprocess_of(reference, size, "squash"),
        (
            parts.encoder_part(Sam2ImageEncoder(model, size), size, features),
            parts.decoder_part(decoder, size, features),
            *further,
        ),
        (
            int(model.config.prompt_encoder_config.image_size),
            "positions are resampled (bicubic), windows kept",
        ),
    )


def _features(config: Any, size: int) -> dict[str, tuple[int, int, int]]:
    """Return what the image encoder gives for one picture, by name: (C, h, w)."""
    side = size // int(config.prompt_encoder_config.patch_size)
    width = int(config.mask_decoder_config.hidden_size)
    return {
        "image_embeddings": (width, side, side),
        "high_res_feats_0": (width // 8, 4 * side, 4 * side),
        "high_res_feats_1": (width // 4, 2 * side, 2 * side),
    }


def _load_video(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return all four parts of a model of video.

    Raises:
        ModelError: also for weights in the publisher's layout, and for what `require_usual` says.
    """
    from transformers import Sam2VideoConfig, Sam2VideoModel

    from vitdeploy.models.segment_anything import loading, publisher, video
    from vitdeploy.models.segment_anything.decoder import HighResolutionMaskDecoder
    from vitdeploy.models.segment_anything.hiera import STEP

    fields = dict(loading.read_config(reference, _KNOWN))
    fields.pop("model_type", None)
    config = loading.parsed(Sam2VideoConfig, fields, reference)
    native = int(config.prompt_encoder_config.image_size)
    size = loading.chosen_size(options, native, STEP)
    video.require_usual(config, size)
    weights = loading.read_weights(reference, options)
    if weights is not None and publisher.is_publisher_layout(weights.tensors):
        raise ModelError(
            f"{weights.what} is in its publisher's layout, of which vitdeploy reads the image "
            "parts alone; give the transformers folder of the model for --video."
        )
    if weights is not None:
        weights = loading.renamed(weights, publisher.with_shared_positions)
    model = loading.filled_model(
        lambda: Sam2VideoModel._from_config(config, attn_implementation="eager"),
        weights,
        options.seed,
        is_mapped=False,  # rotary tables are buffers of the library's that no file has
    )
    decoder = HighResolutionMaskDecoder(
        model, size, single_mask=False, object_head=video.ObjectHead(model)
    )
    mask_config = config.mask_decoder_config
    loaded = _loaded(reference, weights, (model, decoder, size), video.video_parts(model, size))
    return dataclasses.replace(
        loaded,
        tracking=TrackingEntry(
            most_memories=config.num_maskmem,
            most_pointers=config.max_object_pointers_in_encoder,
            stability_delta=mask_config.dynamic_multimask_stability_delta,
            stability_threshold=mask_config.dynamic_multimask_stability_thresh,
        ),
    )


def _of_images(weights: Mapping[str, Any], ignored: tuple[str, ...]) -> dict[str, Any]:
    """Return `weights` without those of the video memory."""
    memory = [re.compile(pattern) for pattern in ignored]
    return {n: value for n, value in weights.items() if not any(m.search(n) for m in memory)}
