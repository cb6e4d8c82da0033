"""Models of transformers: `hf:REPO`, or a folder of `save_pretrained`.

Code from a repository is never run. Classifiers and image encoders only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import ModelError, UnsupportedError, UsageError
from vitdeploy.models.pruning_record import PruningRecord, record_from_config
from vitdeploy.models.reference import Alias, Reference, read_json
from vitdeploy.models.spec import LoadedModel, LoadOptions, ModelSpec, Rebuild

ALIASES: Mapping[str, Alias] = {}

# What transformers is seen to raise on configurations and weights that do not do.
_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, EOFError)


def owns(architecture: str) -> bool:
    """Return False: these are found by their layout, not by a timm name."""
    return False


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model in FP32 with eager attention, which exports as plain MatMul and Softmax.

    Raises:
        ModelError: the name, the configuration, the weights or the image size do not do.
        UsageError: logits of a model without a classifier; two sources of weights.
        UnsupportedError: the input is not a square RGB image.
    """
    from vitdeploy.models.encoders import select_outputs
    from vitdeploy.models.outputs import TransformersOutputs, choose_outputs, loaded_model
    from vitdeploy.models.picture_input import reading_pictures
    from vitdeploy.models.resized import native_size, resized_model
    from vitdeploy.models.timm_models import size_notes
    from vitdeploy.models.transformers_input import preprocess_from_config

    if options.checkpoint is not None and options.random_weights:
        raise UsageError("--checkpoint and --random-weights exclude each other; give one.")
    config = config_of(reference)
    preprocess, notes = preprocess_from_config(config, processor_of(reference), options.image_size)
    model, weights, more = filled_model(reference, options, config)
    notes += more
    size = preprocess.size[0]
    native = native_size(config, size)
    model = resized_model(model, config, size, _pruning(config))
    has_classifier = _is_classifier(config) and int(config.num_labels) > 0
    outputs = choose_outputs(options.outputs, reference.name, has_classifier=has_classifier)
    names: tuple[str, ...] = ("logits",)
    pruning = _pruning(config)
    if outputs != "logits" and _is_classifier(config):
        pruning = pruning.below(f"{model.base_model_prefix}.")
        model = model.base_model
    if outputs != "logits":
        model = reading_pictures(model, size)
    if outputs == "features":
        names = _feature_names(model, size)
    labels = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    named = has_classifier and not all(label.startswith("LABEL_") for label in labels)
    spec = ModelSpec(
        name=reference.shown_name,
        family=reference.family,
        source=reference.source,
        task="classification",
        preprocess=preprocess,
        label_names=labels if named else (),
        weights=weights,
        notes=notes + size_notes(native, size, "position embeddings are resampled (bicubic)"),
    )
    is_wrapped = outputs != "logits" and not hasattr(model, "save_pretrained")
    rebuild = None if is_wrapped else Rebuild("transformers", pruning=pruning)
    model = model.float().eval()
    if outputs in ("logits", "features"):
        return loaded_model(spec, TransformersOutputs(model, names), names, rebuild)
    kinds, name = tuple(outputs.split(",")), reference.shown_name
    selected, names = select_outputs(model, kinds, size, name, has_classifier=False)
    return loaded_model(spec, selected, names, rebuild)


def config_of(reference: Reference) -> Any:
    """Return the parsed config.json of an RGB model that transformers knows.

    Raises:
        ModelError: it does not know the model.
        UnsupportedError: the model reads other than three channels.
    """
    from transformers import AutoConfig

    from vitdeploy.models.hub import hub_access, quiet_libraries

    access = quiet_libraries() if reference.folder else hub_access(reference.source)
    try:
        with access:
            config = AutoConfig.from_pretrained(reference.value, trust_remote_code=False)
    except (*_ERRORS, OSError) as e:
        raise ModelError(
            f"transformers does not know the model '{reference.name}': {_first_line(e)} "
            "Code from a repository is not run; the model_type must be one that transformers has."
        ) from e
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise UnsupportedError(
            f"'{reference.name}' takes inputs of {channels} channels; this version takes RGB only."
        )
    return config


def processor_of(reference: Reference) -> dict[str, Any] | None:
    """Return the parsed preprocessor_config.json, or None where the model has none."""
    name = "preprocessor_config.json"
    if reference.folder is not None:
        return read_json(reference.folder / name) if (reference.folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from vitdeploy.models.hub import hub_access

    with hub_access(reference.source):
        try:
            return read_json(Path(hf_hub_download(reference.value, name)))
        except EntryNotFoundError:
            return None


def _is_classifier(config: Any) -> bool:
    names = getattr(config, "architectures", None) or [""]
    return "ForImageClassification" in names[0]


def _skeleton(config: Any, reference: Reference) -> Any:
    """Return the model with its library's initialisation; the caller seeds it."""
    from transformers import AutoModel, AutoModelForImageClassification

    from vitdeploy.models.hub import quiet_libraries

    auto = AutoModelForImageClassification if _is_classifier(config) else AutoModel
    try:
        with quiet_libraries():
            return auto.from_config(config, attn_implementation="eager")
    except _ERRORS as e:
        raise ModelError(
            f"transformers cannot build '{reference.name}' (model_type '{config.model_type}'): "
            f"{_first_line(e)} Supported: image classifiers and image encoders."
        ) from e


def filled_model(
    reference: Reference,
    options: LoadOptions,
    config: Any,
) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the model with its weights, `ModelSpec.weights`, and notes."""
    import torch

    from vitdeploy.models.checkpoint import check_finite, read_state_dict
    from vitdeploy.models.random_weights import randomise_
    from vitdeploy.models.resized import native_size

    device = torch.device("meta" if options.weightless else "cpu")
    with torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(options.seed)
        model = _skeleton(config, reference)
    pruning = _pruning(config)
    if options.weightless and pruning == PruningRecord():
        return model, "none", ()
    if pruning != PruningRecord():
        return _filled_pruned(model, options, reference, pruning)
    if options.random_weights:
        randomise_(model, options.seed, native_size(config, 224))
        return model, "random", ()
    source: dict[str, Any] = {"pretrained_model_name_or_path": reference.value}
    what = f"'{reference.name}'"
    if options.checkpoint is not None:
        source = {
            "pretrained_model_name_or_path": None,
            "state_dict": read_state_dict(options.checkpoint),
        }
        what = f"checkpoint '{options.checkpoint.name}'"
    model, report = _from_pretrained(type(model), source, config, reference)
    notes = _check_report_(model, report, what)
    check_finite(model.state_dict(), what)
    local = options.checkpoint is not None or reference.folder is not None
    return model, "checkpoint" if local else "pretrained", notes


def _pruning(config: Any) -> PruningRecord:
    """Return what was removed from the architecture, by the record in its config.json."""
    return record_from_config(config.to_dict()) or PruningRecord()


def _filled_pruned(
    model: Any, options: LoadOptions, reference: Reference, pruning: PruningRecord
) -> tuple[Any, Any, tuple[str, ...]]:
    """Return as `filled_model`; transformers' own loading knows the whole architecture only."""
    from vitdeploy.models.checkpoint import find_weights
    from vitdeploy.models.pruned import apply_record_, fill_
    from vitdeploy.models.random_weights import randomise_
    from vitdeploy.models.resized import native_size

    apply_record_(model, pruning)
    if options.random_weights:
        randomise_(model, options.seed, native_size(model.config, 224))
        return model, "random", ()
    file = options.checkpoint
    if file is None and reference.folder is None:
        raise UnsupportedError(
            f"'{reference.name}' is a pruned model on a hub; download it and give its folder."
        )
    file = file or find_weights(Path(str(reference.folder)))
    fill_(model, file)
    return model, "checkpoint", ()


def _from_pretrained(
    kind: Any,
    source: Mapping[str, Any],
    config: Any,
    reference: Reference,
) -> tuple[Any, dict[str, Any]]:
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    from vitdeploy.models.hub import hub_access, quiet_libraries

    local = reference.folder is not None or source["pretrained_model_name_or_path"] is None
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_libraries() if local else hub_access(reference.source):
            model, report = kind.from_pretrained(
                **source,
                config=config,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed in the report, and refused below
            )
    except (*_ERRORS, OSError, UnpicklingError, SafetensorError) as e:
        raise ModelError(
            f"cannot load the weights of '{reference.name}': {_first_line(e)} They are missing, "
            "truncated, or hold more than tensors (refused, since reading could run code). "
            "Save them again with save_pretrained, or use --checkpoint FILE."
        ) from e
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    return model, report


def _check_report_(model: Any, report: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Refuse weights that leave the model partly random; return notes on what is benign.

    Benign: a pooler without weights, which is then dropped, and the unused head of another task.
    """
    from vitdeploy.models.checkpoint import refuse_mismatch, shorten

    missing = sorted(report["missing_keys"])
    unexpected = sorted(report["unexpected_keys"])
    shapes = [
        f"{key}: {tuple(found)} in the checkpoint, {tuple(wanted)} in the model"
        for key, found, wanted in sorted(report["mismatched_keys"], key=lambda row: str(row[0]))
    ]
    notes: tuple[str, ...] = ()
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
        missing = []
        notes += ("the weights have no pooler: there is no pooler_output",)
    saved_as = (getattr(model.config, "architectures", None) or [""])[0]
    if unexpected and saved_as not in ("", type(model).__name__):
        notes += (f"weights of the head of {saved_as} are not used: {shorten(unexpected)}",)
        unexpected = []
    refuse_mismatch(what, missing, unexpected, shapes)
    return notes


def _feature_names(model: Any, size: int) -> tuple[str, ...]:
    """Return which of the two feature outputs the model has.

    Raises:
        ModelError: it has no `last_hidden_state`.
    """
    from vitdeploy.models.outputs import FEATURE_NAMES
    from vitdeploy.models.trace import run_shapes

    result = run_shapes(model.eval(), size, lambda copied, images: dict(copied(images)))
    names = tuple(name for name in FEATURE_NAMES if result.get(name) is not None)
    if FEATURE_NAMES[0] not in names:
        raise ModelError(
            f"{type(model).__name__} returns {', '.join(result)}; an image encoder must return "
            "last_hidden_state. Supported: image classifiers and image encoders."
        )
    return names


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200] + "."
