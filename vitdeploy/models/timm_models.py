"""Building and filling models of timm, for every family whose modelling timm does.

A family adds what timm does not know of it: which sizes it takes, and how it is finished for
export (`TimmAdapter`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.data import Preprocess
from vitdeploy.errors import ModelError, UnsupportedError, UsageError, suggest
from vitdeploy.models.hub import hub_access, quiet_libraries
from vitdeploy.models.pruning_record import PruningRecord, record_from_config
from vitdeploy.models.reference import Reference, read_json
from vitdeploy.models.spec import LoadedModel, LoadOptions, ModelSpec, Rebuild

# What building a model from a wrong configuration is seen to raise.
_BUILD_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, KeyError, AttributeError)


@dataclass(frozen=True)
class TimmAdapter:
    """What a family adds to timm."""

    size_arguments: Callable[[Any, int], dict[str, Any]]
    """(model at its own size, pixels) -> arguments of `timm.create_model`; raises `ModelError`
    where the architecture cannot take the size."""
    finish: Callable[[Any], Any] = lambda model: model
    """Returns the model as it is exported, once the weights are in."""
    size_note: str = "position embeddings are resampled (bicubic)"
    """What another image size does to the weights."""


def load_timm(reference: Reference, options: LoadOptions, adapter: TimmAdapter) -> LoadedModel:
    """Return the timm model of `reference`, filled as `options` say.

    Raises:
        ModelError: the name, the folder, the weights or the image size do not do.
        UsageError: logits of a model without a classifier; two sources of weights.
        UnsupportedError: the input is not a square RGB image.
    """
    import torch

    from vitdeploy.models.encoders import select_outputs
    from vitdeploy.models.outputs import FEATURE_NAMES, TimmFeatures, choose_outputs, loaded_model
    from vitdeploy.models.publishers import is_reparameterised

    if options.checkpoint is not None and options.random_weights:
        raise UsageError("--checkpoint and --random-weights exclude each other; give one.")
    model, native_size, weights, arguments = _filled_model(reference, options, adapter)
    config = model.pretrained_cfg
    size = options.image_size or native_size
    has_classifier = getattr(model, "num_classes", 0) > 0
    outputs = choose_outputs(options.outputs, reference.name, has_classifier=has_classifier)
    tag = config.get("tag")
    pinned = f".{tag}" if weights == "pretrained" and tag and "." not in reference.value else ""
    spec = ModelSpec(
        name=reference.shown_name,
        family=reference.family,
        source=reference.source + pinned,
        task="classification",
        preprocess=_preprocess(model, size),
        label_names=tuple(config.get("label_names") or ()),
        weights=weights,
        calibration_set="digits" if reference.family == "digits" else "photos",
        notes=size_notes(native_size, size, adapter.size_note),
    )
    keys = set(model.state_dict())
    pruning = _pruning(reference)
    if is_reparameterised(keys):  # by the file, which was published so
        pruning = dataclasses.replace(pruning, reparameterised=True)
    module = model.float().eval()
    if not pruning.reparameterised:  # which cannot be done twice
        with torch.device("meta" if options.weightless else "cpu"):
            module = adapter.finish(module)
    if set(module.state_dict()) != keys:
        pruning = dataclasses.replace(pruning, reparameterised=True)
    rebuild = Rebuild("timm", arguments, pruning)
    if outputs == "features":
        return loaded_model(spec, TimmFeatures(module), FEATURE_NAMES, rebuild)
    if outputs == "logits":
        return loaded_model(spec, module, ("logits",), rebuild)
    kinds, name = tuple(outputs.split(",")), reference.shown_name
    selected, names = select_outputs(module, kinds, size, name, has_classifier=has_classifier)
    return loaded_model(spec, selected, names, rebuild)


def size_notes(native_size: int, size: int, effect: str) -> tuple[str, ...]:
    """Return what the user should know of an image size other than the model's own, in pixels."""
    if size == native_size:
        return ()
    note = f"image size {size} instead of {native_size}: {effect}"
    if size <= 2 * native_size:
        return (note,)
    return (
        note,
        f"image size {size} is more than twice the training size {native_size}: "
        "expect lower accuracy without fine-tuning",
    )


def check_multiple(image_size: int, step: int) -> None:
    """Raise where `image_size` is no positive multiple of `step`, both in pixels.

    Raises:
        ModelError: names the nearest sizes that are allowed.
    """
    if image_size > 0 and image_size % step == 0:
        return
    below = image_size // step * step
    near = f"{below} or {below + step}" if below > 0 else f"{step}"
    raise ModelError(
        f"--image-size {image_size}: this model takes multiples of {step} pixels. Nearest: {near}."
    )


def _filled_model(
    reference: Reference, options: LoadOptions, adapter: TimmAdapter
) -> tuple[Any, int, Any, dict[str, Any]]:
    """Return the model with its weights, the size it is trained for, and `ModelSpec.weights`.

    Last come the arguments that build the architecture again, beyond its name.
    """
    name = f"hf-hub:{reference.value}" if reference.kind == "hf" else reference.value
    if reference.folder is not None:
        name = f"local-dir:{reference.folder}"
    model = _built(name, {}, options, reference)
    native_size = _square_size(model, reference)
    arguments: dict[str, Any] = {}
    if options.image_size is not None and options.image_size != native_size:
        arguments = adapter.size_arguments(model, options.image_size)
    if getattr(model, "dynamic_img_size", False):  # would resample positions at every inference
        arguments = {"img_size": options.image_size or native_size, "dynamic_img_size": False}
    if arguments:
        model = _built(name, arguments, options, reference)
    all_arguments = {**_folder_config(reference).get("model_args", {}), **arguments}
    if options.weightless:
        return model, native_size, "none", all_arguments
    if options.random_weights:
        from vitdeploy.models.random_weights import randomise_

        randomise_(model, options.seed, options.image_size or native_size)
        return model, native_size, "random", all_arguments
    file = options.checkpoint
    if file is None and reference.folder is None:
        model = _pretrained(name, arguments, reference)
        return model, native_size, "pretrained", all_arguments
    from vitdeploy.models.publishers import fill_from_file_

    if file is None:
        from vitdeploy.models.checkpoint import find_weights

        file = find_weights(Path(str(reference.folder)))
    fill_from_file_(model, file, resample=options.image_size is not None)
    packaged = reference.kind == "packaged" and options.checkpoint is None
    return model, native_size, "packaged" if packaged else "checkpoint", all_arguments


def _folder_config(reference: Reference) -> dict[str, Any]:
    """Return the parsed config.json of a model folder; empty where there is no folder."""
    return {} if reference.folder is None else read_json(reference.folder / "config.json")


def _pruning(reference: Reference) -> PruningRecord:
    """Return what was removed from the architecture, by the record in its folder."""
    return record_from_config(_folder_config(reference)) or PruningRecord()


def _built(
    name: str, arguments: Mapping[str, Any], options: LoadOptions, reference: Reference
) -> Any:
    """Return the model with its library's seeded initialisation, pruned where its folder says."""
    import timm
    import torch

    from vitdeploy.models.pruned import apply_record_

    access = hub_access(reference.source) if reference.kind == "hf" else quiet_libraries()
    try:
        with (
            access,
            torch.random.fork_rng(devices=[]),
            torch.device("meta" if options.weightless else "cpu"),
            torch.no_grad(),
        ):
            torch.manual_seed(options.seed)
            model = timm.create_model(name, pretrained=False, **arguments)
    except (*_BUILD_ERRORS, OSError) as e:
        raise ModelError(
            f"timm cannot build '{reference.name}': {str(e).rstrip('.')}."
            f"{_architecture_hint(reference)}"
        ) from e
    apply_record_(model, _pruning(reference))
    return model


def _architecture_hint(reference: Reference) -> str:
    import timm

    if reference.folder is None:
        return ""
    architecture = str(_folder_config(reference).get("architecture"))
    if timm.is_model(architecture.partition(".")[0]):
        return " Check model_args in config.json."
    return (
        f" Its config.json names the architecture '{architecture}', which timm "
        f"{timm.__version__} does not have.{suggest(architecture, timm.list_models())}"
    )


def _pretrained(name: str, arguments: Mapping[str, Any], reference: Reference) -> Any:
    """Return the model with the weights of its hub, through timm's own download and conversion."""
    import timm

    from vitdeploy.models.checkpoint import check_finite

    try:
        with hub_access(reference.source):
            model = timm.create_model(name, pretrained=True, **arguments)
    except _BUILD_ERRORS as e:
        raise ModelError(
            f"timm cannot load pretrained weights of '{reference.name}': {str(e).rstrip('.')}. "
            "Use --checkpoint FILE, a model folder, or --random-weights."
        ) from e
    check_finite(model.state_dict(), reference.name)
    return model


def _square_size(model: Any, reference: Reference) -> int:
    """Return the pixels of the model's square RGB input.

    Raises:
        UnsupportedError: another number of channels, or height is not width.
    """
    import timm

    channels, height, width = timm.data.resolve_data_config({}, model=model)["input_size"]
    if channels != 3 or height != width:
        raise UnsupportedError(
            f"'{reference.name}' takes inputs of {channels}x{height}x{width}; this version takes "
            "square RGB images (3 channels) only."
        )
    return int(height)


def _preprocess(model: Any, size: int) -> Preprocess:
    import timm

    config = timm.data.resolve_data_config({}, model=model)
    red, green, blue = (float(value) for value in config["mean"])
    red_std, green_std, blue_std = (float(value) for value in config["std"])
    interpolation = str(config["interpolation"])
    return Preprocess(
        size=(size, size),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        # timm's training-time choice between two; it evaluates such models with bilinear
        interpolation="bilinear" if interpolation == "random" else interpolation,
        crop_pct=float(config["crop_pct"]),
        crop_mode=str(config["crop_mode"]),
    )
