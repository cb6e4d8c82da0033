"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343) of transformers: two towers, two parts.

The image tower reads pictures, the text tower token ids; both return embeddings of length one,
whose products say how well a text fits a picture.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import ExportPart, LoadedModel, LoadOptions, ModelSpec, TensorSpec

ALIASES: Mapping[str, Alias] = {}

MODEL_TYPES = ("clip", "siglip")
IMAGE_EMBEDS, TEXT_EMBEDS = "image_embeds", "text_embeds"
_TEXTS = "texts"
"""The text tower's batch: always dynamic, since `--batch` counts pictures."""
_NOUNS = (
    *("dog", "cat", "bird", "horse", "sheep", "cow", "elephant", "bear", "fish", "flower"),
    *("tree", "mountain", "beach", "forest", "river", "street", "house", "bridge", "car", "bus"),
    *("train", "boat", "aeroplane", "bicycle", "person", "child", "table", "chair", "lamp", "book"),
    *("cup", "plate of food"),
)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
_NO_TOKENIZER = "the folder has no tokenizer: fidelity is measured on random tokens, not on texts"
PROMPTS = tuple(f"a photo of a {noun}" for noun in _NOUNS)
"""What fidelity is measured with, in the place of a user's own texts."""


def owns(architecture: str) -> bool:
    """Return False: these are found by their layout, not by a timm name."""
    return False


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model in FP32 as `image_encoder` and `text_encoder`.

    Raises:
        ModelError: the name, the configuration or the weights do not do, or the image size is not
            the model's own.
        UsageError: other outputs are asked for; two sources of weights.
    """
    from vitdeploy.models.families.transformers import config_of, filled_model, processor_of
    from vitdeploy.models.towers import ImageTower, TextTower, traced_part
    from vitdeploy.models.transformers_input import preprocess_from_config

    if options.checkpoint is not None and options.random_weights:
        raise UsageError("--checkpoint and --random-weights exclude each other; give one.")
    if options.outputs is not None:
        raise UsageError(
            f"--outputs {options.outputs}: '{reference.name}' has two towers, which always return "
            f"{IMAGE_EMBEDS} and {TEXT_EMBEDS}. Leave --outputs away; for the image tower alone "
            "name it in timm (for instance timm:vit_base_patch32_clip_224)."
        )
    config = config_of(reference)
    native = int(config.vision_config.image_size)
    if options.image_size not in (None, native):
        raise ModelError(
            f"--image-size {options.image_size}: the towers of '{reference.name}' were trained "
            f"together at {native} pixels. Use that."
        )
    preprocess, notes = preprocess_from_config(
        config.vision_config, processor_of(reference), options.image_size
    )
    model, weights, more = filled_model(reference, options, config)
    model = model.float().eval()
    spec = ModelSpec(
        name=reference.shown_name,
        family=reference.family,
        source=reference.source,
        task="features",
        preprocess=preprocess,
        weights=weights,
        notes=notes + more,
    )
    ids, said = _token_ids(reference, config.text_config, options.seed)
    spec = dataclasses.replace(spec, notes=spec.notes + said)
    image, attention = traced_part(ImageTower(model), native, IMAGE_EMBEDS)
    length = int(config.text_config.max_position_embeddings)
    text = ExportPart(
        "text_encoder",
        TextTower(model),
        (TensorSpec("input_ids", (_TEXTS, length), "int64"),),
        (TensorSpec(TEXT_EMBEDS, (_TEXTS, int(image.outputs[0].shape[1]))),),
        example=_example(ids),
    )
    return LoadedModel(spec, (image, text), attention)


def _token_ids(
    reference: Reference, config: Any, seed: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the prompts as (32, length) token ids, and notes; seeded ids without a tokenizer.

    Raises:
        ModelError: the tokenizer's files cannot be read.
    """
    from transformers import AutoTokenizer

    from vitdeploy.models.hub import quiet_libraries

    length = int(config.max_position_embeddings)
    if not _has_tokenizer(reference):
        return _seeded_ids(config, length, seed), (_NO_TOKENIZER,)
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(reference.value, trust_remote_code=False)
        found = tokenizer(list(PROMPTS), padding="max_length", truncation=True, max_length=length)
    except Exception as error:  # the tokenizers of Rust raise this very class
        raise ModelError(
            f"the tokenizer of '{reference.name}' cannot be read: {str(error)[:120]}. Save it "
            "again with save_pretrained, or remove its files to measure on random tokens."
        ) from error
    return np.asarray(found["input_ids"], dtype=np.int64), ()


def _has_tokenizer(reference: Reference) -> bool:
    """Return whether there are files of a tokenizer; without any, transformers makes an empty one.

    A repository on a hub has them.
    """
    folder = reference.folder
    return folder is None or any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _seeded_ids(config: Any, length: int, seed: int) -> NDArray[np.int64]:
    """Return texts of random tokens, each ended by the token that CLIP reads its embedding at."""
    rng = np.random.default_rng(seed)
    last = int(config.vocab_size) - 1
    end = int(config.eos_token_id) if 2 < int(config.eos_token_id) <= last else last
    ids = rng.integers(0, last, (len(PROMPTS), length))
    ids[ids == end] = 0
    ends = rng.integers(length // 2, length, len(PROMPTS))
    for row, place in zip(ids, ends, strict=True):
        row[place:] = end
    return ids.astype(np.int64)


def _example(ids: NDArray[np.int64]) -> Callable[[int], dict[str, Any]]:
    def feeds(count: int) -> dict[str, Any]:
        return {"input_ids": np.resize(ids, (count, ids.shape[1]))}

    return feeds
