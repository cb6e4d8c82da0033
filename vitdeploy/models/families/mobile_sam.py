"""MobileSAM (arXiv 2306.14289): SAM's prompts and decoder behind a TinyViT modelled by timm.

Weights are the publisher's `mobile_sam.pt`, or random.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

if TYPE_CHECKING:
    from vitdeploy.models.segment_anything.tiny_vit import MobileSam

ALIASES: Mapping[str, Alias] = {"mobile-sam": Alias("hf:dhkim2810/MobileSAM", 1024)}
TRUNK = "tiny_vit_5m_224"
IMAGE_SIZE = 1024
_STEP = 32


def owns(architecture: str) -> bool:
    """Return False: timm's `tiny_vit_*` are image classifiers."""
    return False


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return image encoder and mask decoder; see `segment_anything.loading` for what it raises."""
    return load_trunk(reference, options, {})


def load_trunk(reference: Reference, options: LoadOptions, trunk: Mapping[str, Any]) -> LoadedModel:
    """Return the model with arguments of its own for timm's TinyViT; see `load`.

    Raises:
        ModelError: no weights are given, or they do not fit.
    """
    from vitdeploy.models.segment_anything import loading, parts, publisher
    from vitdeploy.models.segment_anything.decoder import MaskDecoder
    from vitdeploy.models.segment_anything.tiny_vit import (
        TinyVitImageEncoder,
        mobile_sam_from_publisher,
    )

    if options.checkpoint is None and not options.random_weights:
        raise ModelError(
            f"'{reference.name}' has no weights in a hub layout that could be downloaded. Give the "
            "publisher's file: --checkpoint mobile_sam.pt, or --random-weights for a trial."
        )
    weights = loading.read_weights(reference, options)
    if weights is not None:
        if not publisher.is_publisher_layout(weights.tensors):
            raise UsageError("--checkpoint of mobile-sam must be the publisher's mobile_sam.pt.")
        publisher.require_encoder(weights.tensors, "layers", weights.what)
        weights = loading.renamed(weights, mobile_sam_from_publisher)
    size = loading.chosen_size(options, IMAGE_SIZE, _STEP)
    # timm computes a table of indices while it builds, so this small model is built for real
    model = loading.filled_model(lambda: build(trunk), weights, options.seed, is_mapped=False)
    config = model.config.vision_config
    side = size // config.patch_size
    features = {"image_embeddings": (config.output_channels, side, side)}
    decoder = MaskDecoder(model, size, frame="longest_side", single_mask=options.single_mask)
    return loading.loaded_sam(
        reference,
        weights,
        loading.preprocess_of(reference, size, "corner"),
        (
            parts.encoder_part(TinyVitImageEncoder(model), size, features),
            parts.decoder_part(decoder, size, features),
        ),
        (IMAGE_SIZE, "windows keep their size"),
    )


def build(trunk: Mapping[str, Any]) -> "MobileSam":
    """Return the model with its libraries' initialisation."""
    import timm
    from transformers import SamConfig, SamModel

    from vitdeploy.models.segment_anything.tiny_vit import MobileSam

    tiny = timm.create_model(TRUNK, **trunk)
    config = SamConfig(
        vision_config={"hidden_size": tiny.num_features, "num_hidden_layers": 0},
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )
    return MobileSam(tiny, SamModel._from_config(config, attn_implementation="eager"))
