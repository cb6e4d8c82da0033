"""Weights into a SAM model of transformers without a second copy, and the `LoadedModel` around it.

Files are mapped into memory (safetensors, or a zip of torch.save), the model is built without
weights, and its parameters become the mapped tensors: a 2.5 GB checkpoint costs no 5 GB.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vitdeploy.data import Preprocess
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models.checkpoint import (
    StateDict,
    find_weights,
    load_strictly_,
    read_state_dict,
)
from vitdeploy.models.hub import hub_access, quiet_libraries
from vitdeploy.models.random_weights import randomise_
from vitdeploy.models.reference import Reference, read_json
from vitdeploy.models.spec import ExportPart, LoadedModel, LoadOptions, ModelSpec, Rebuild
from vitdeploy.models.timm_models import check_multiple, size_notes
from vitdeploy.models.trace import trace

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_BUILD_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError)
_STATISTICS_SIZE = 128
"""Pixels of the pictures that random BatchNorm statistics come from."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Weights:
    """The tensors of one checkpoint, mapped from its file."""

    tensors: StateDict
    what: str
    """For messages: `checkpoint 'NAME'`."""
    kind: Literal["pretrained", "checkpoint", "packaged"]


def read_weights(reference: Reference, options: LoadOptions) -> Weights | None:
    """Return the weights that `options` ask for; None for random ones.

    Raises:
        UsageError: `--checkpoint` with `--random-weights`.
        ModelError: they cannot be had, read, or trusted.
    """
    if options.checkpoint is not None and options.random_weights:
        raise UsageError("--checkpoint and --random-weights exclude each other; give one.")
    if options.random_weights:
        return None
    kind: Literal["pretrained", "checkpoint", "packaged"] = "checkpoint"
    if options.checkpoint is not None:
        file = options.checkpoint
    elif reference.folder is not None:
        file = find_weights(reference.folder)
        kind = "packaged" if reference.kind == "packaged" else "checkpoint"
    else:
        file, kind = _downloaded(reference), "pretrained"
    return Weights(read_state_dict(file), f"checkpoint '{file.name}'", kind)


def renamed(weights: Weights, rename: Callable[[StateDict], StateDict]) -> Weights:
    """Return `weights` with other names."""
    return dataclasses.replace(weights, tensors=rename(weights.tensors))


def read_config(reference: Reference, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the parsed config.json of a folder or hub repository; `known` ones need no network.

    Raises:
        ModelError: it cannot be had or read.
    """
    if reference.folder is not None:
        return read_json(reference.folder / "config.json")
    if reference.value in known:
        return known[reference.value]
    from huggingface_hub import hf_hub_download

    with hub_access(reference.source):
        return read_json(Path(hf_hub_download(reference.value, "config.json")))


def parsed(config: Callable[..., Any], fields: dict[str, Any], reference: Reference) -> Any:
    """Return transformers' configuration object of the fields of a config.json.

    Raises:
        ModelError: transformers refuses them.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        with quiet_libraries():
            return config(**fields)
    except (*_BUILD_ERRORS, StrictDataclassError) as e:
        raise ModelError(
            f"transformers cannot read the configuration of '{reference.name}': {e}. Check its "
            "config.json."
        ) from e


def filled_model(
    build: Callable[[], Any], weights: Weights | None, seed: int, *, is_mapped: bool = True
) -> Any:
    """Return the model of transformers that `build` makes, in FP32 and eval mode.

    Args:
        build: makes the model with its library's initialisation.
        weights: what to load under the model's own names; None for random ones.
        seed: of the random ones.
        is_mapped: build without memory and use the tensors of `weights` as they are.

    Raises:
        ModelError: the configuration does not build, or the weights do not fit.
    """
    try:
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if weights is None:
                return _randomised(build(), seed).eval()
            with torch.device("meta" if is_mapped else "cpu"):
                model = build()
    except _BUILD_ERRORS as e:
        raise ModelError(f"transformers cannot build the model: {e}. Check its config.json.") from e
    load_strictly_(model, weights.tensors, weights.what, assign=is_mapped)
    return model.float().eval()


def chosen_size(options: LoadOptions, native: int, patch: int) -> int:
    """Return the pixels of the square input.

    Raises:
        ModelError: the size is no multiple of the patch.
    """
    if options.image_size is not None:
        check_multiple(options.image_size, patch)
    return options.image_size or native


def preprocess_of(reference: Reference, size: int, crop_mode: str) -> Preprocess:
    """Return bilinear resizing to `size`; mean and std are the folder's own, else ImageNet's."""
    fields: dict[str, Any] = {}
    file = None if reference.folder is None else reference.folder / "preprocessor_config.json"
    if file is not None and file.is_file():
        fields = read_json(file)
    mean, std = (tuple(fields.get(f"image_{k}") or d) for k, d in (("mean", _MEAN), ("std", _STD)))
    return Preprocess((size, size), mean, std, "bilinear", 1.0, crop_mode)


def loaded_sam(
    reference: Reference,
    weights: Weights | None,
    preprocess: Preprocess,
    parts: tuple[ExportPart, ...],
    size_note: tuple[int, str],
    rebuild: Rebuild | None = None,
) -> LoadedModel:
    """Return the model of `parts`, image encoder first.

    Args:
        reference: what the user named.
        weights: what was loaded; None for random ones.
        preprocess: how pictures get in.
        parts: image encoder, mask decoder, and what a later version adds.
        size_note: native size in pixels, and what another one does to the weights.
        rebuild: for saving it as a folder, where that can be done.
    """
    size = preprocess.size[0]
    spec = ModelSpec(
        name=reference.shown_name,
        family=reference.family,
        source=reference.source,
        task="segmentation",
        preprocess=preprocess,
        weights="random" if weights is None else weights.kind,
        calibration_set="scenes" if reference.kind == "packaged" else "photos",
        notes=size_notes(size_note[0], size, size_note[1]),
    )
    return LoadedModel(spec, parts, trace(parts[0].module, size).attention, rebuild)


def _randomised(model: Any, seed: int) -> Any:
    """Return `model` with random weights whose output depends on picture and prompt."""
    randomise_(model, seed, _STATISTICS_SIZE)
    frequencies = model.prompt_encoder.shared_embedding.positional_embedding
    with torch.no_grad():
        # transformers draws them with half the encoder's width as deviation; the publisher with 1
        generator = torch.Generator().manual_seed(seed)
        frequencies.copy_(torch.randn(frequencies.shape, generator=generator))
    return model


def _downloaded(reference: Reference) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with hub_access(reference.source):
        try:
            return Path(hf_hub_download(reference.value, _HUB_FILES[0]))
        except EntryNotFoundError:
            return Path(hf_hub_download(reference.value, _HUB_FILES[1]))
