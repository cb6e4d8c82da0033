"""Segment Anything (arXiv 2304.02643), modelled by transformers.

Weights come from the publisher's `sam_vit_*.pth`, from transformers folders, or are random.
"""

from collections.abc import Mapping
from typing import Any

from vitdeploy.models.pruning_record import RECORD_KEY, PruningRecord, record_from_config
from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions, Rebuild

ALIASES: Mapping[str, Alias] = {
    "sam-vitb": Alias("hf:facebook/sam-vit-base", 1024),
    "sam-vitl": Alias("hf:facebook/sam-vit-large", 1024),
    "sam-vith": Alias("hf:facebook/sam-vit-huge", 1024),
    "sam-scenes": Alias("packaged:sam_scenes", 128),
}
_PUBLISHER_EPSILON = 1e-5
"""Of the decoder's norms at the publisher (torch's default); transformers' configurations say
1e-6, which changes the masks a little."""


def _vision(width: int, depth: int, heads: int, whole: tuple[int, ...]) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "global_attn_indexes": list(whole),
            "mlp_dim": 4 * width,
        }
    }


# as in segment_anything/build_sam.py, so that the publisher's files load without a network
_KNOWN = {
    "facebook/sam-vit-base": _vision(768, 12, 12, (2, 5, 8, 11)),
    "facebook/sam-vit-large": _vision(1024, 24, 16, (5, 11, 17, 23)),
    "facebook/sam-vit-huge": _vision(1280, 32, 16, (7, 15, 23, 31)),
}


def owns(architecture: str) -> bool:
    """Return False: timm's `samvit_*` are image encoders alone."""
    return False


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return image encoder and mask decoder; see `segment_anything.loading` for what it raises."""
    from transformers import SamConfig, SamModel

    from vitdeploy.models.pruned import apply_record_
    from vitdeploy.models.segment_anything import folder, loading, parts, publisher
    from vitdeploy.models.segment_anything.decoder import MaskDecoder
    from vitdeploy.models.segment_anything.encoder import SamImageEncoder

    weights = loading.read_weights(reference, options)
    fields = dict(loading.read_config(reference, _KNOWN))
    record = record_from_config(fields) or PruningRecord()
    fields.pop(RECORD_KEY, None)
    config = loading.parsed(SamConfig, fields, reference)
    if weights is not None and publisher.is_publisher_layout(weights.tensors):
        publisher.require_encoder(weights.tensors, "blocks", weights.what)
        config.mask_decoder_config.layer_norm_eps = _PUBLISHER_EPSILON
        weights = loading.renamed(weights, publisher.transformers_from_publisher)
    elif weights is not None:
        weights = loading.renamed(weights, publisher.with_shared_positions)
    native, patch = config.vision_config.image_size, config.vision_config.patch_size
    size = loading.chosen_size(options, native, patch)

    def build() -> SamModel:
        model = SamModel._from_config(config, attn_implementation="eager")
        apply_record_(model, record)
        return model

    model = loading.filled_model(build, weights, options.seed)
    side = size // patch
    features = {"image_embeddings": (config.vision_config.output_channels, side, side)}
    decoder = MaskDecoder(model, size, frame="longest_side", single_mask=options.single_mask)
    return loading.loaded_sam(
        reference,
        weights,
        loading.preprocess_of(reference, size, "corner"),
        (
            parts.encoder_part(SamImageEncoder(model.vision_encoder, size), size, features),
            parts.decoder_part(decoder, size, features),
        ),
        (native, "positions are resampled (absolute bicubic, relative linear), windows kept"),
        Rebuild("sam", pruning=folder.record_in_export(record), whole=model),
    )
