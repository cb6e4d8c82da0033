"""Model folders of pruned models: applying the record of what was removed, loading, saving.

The folder has the layout of the library that models it (timm's hub layout, or that of
transformers' `save_pretrained`), with the record in config.json. What to remove is chosen in
`compress.prune`.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from vitdeploy.errors import CompressionError, ModelError, UnsupportedError
from vitdeploy.models.checkpoint import (
    StateDict,
    find_weights,
    load_strictly_,
    read_state_dict,
)
from vitdeploy.models.mlp_sites import find_mlp_sites
from vitdeploy.models.outputs import library_model
from vitdeploy.models.pruning_record import RECORD_KEY, PruningRecord, record_from_config
from vitdeploy.models.reference import read_folder_config, read_json
from vitdeploy.models.segment_anything.folder import record_in_library, sam_state
from vitdeploy.models.spec import LoadedModel
from vitdeploy.models.surgery import keep_channels_, keep_heads_, remove_blocks_
from vitdeploy.models.trace import find_attention_sites
from vitdeploy.models.transformers_input import config_from_preprocess

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def load_pruned(folder: str | Path) -> nn.Module:
    """Return the pruned model in a folder that vitdeploy wrote: a plain module of its library.

    What comes back is the timm (or transformers) model itself, in eval mode, FP32, on the CPU;
    it can be trained, traced and exported as any other.

    Raises:
        ModelError: no such folder, not a pruned one, or its weights do not fit the record.
    """
    folder = Path(folder).expanduser()
    kind, config = read_folder_config(folder)
    record = record_from_config(config)
    if record is None:
        library = "timm" if kind == "timm-folder" else "transformers"
        raise ModelError(
            f"'{folder}' holds no pruned model: its config.json has no '{RECORD_KEY}'. "
            f"{library} itself loads it."
        )
    model = _whole_timm(folder) if kind == "timm-folder" else _whole_transformers(folder, config)
    apply_record_(model, record)
    fill_(model, find_weights(folder))
    return model.eval()


def fill_(model: nn.Module, file: Path) -> None:
    """Load the weights of a pruned model into one of its shapes; a pooler without any is dropped.

    Raises:
        ModelError: the file cannot be read, or does not fit.
    """
    weights = read_state_dict(file)
    if getattr(model, "pooler", None) is not None and not any("pooler." in key for key in weights):
        model.pooler = None
    load_strictly_(model, weights, f"pruned model '{file.name}'")


def apply_record_(model: nn.Module, record: PruningRecord) -> None:
    """Give a model of the whole architecture the shapes of the pruned one.

    Which hidden channels stay is of no interest to shapes: the first ones do.

    Raises:
        ModelError: the record does not fit the architecture.
    """
    if record.reparameterised:
        from timm.utils import reparameterize_model

        reparameterize_model(model, inplace=True)
    heads = {site.path: site for site in find_attention_sites(model)}
    mlps = {site.path: site for site in find_mlp_sites(model)}
    unknown = [path for path in record.heads if path not in heads]
    unknown += [path for path in record.mlp if path not in mlps]
    if unknown:
        raise ModelError(
            f"config.json records that {', '.join(unknown[:5])} was pruned, which "
            f"{type(model).__name__} does not have. Its architecture and arguments must be those "
            "of the model that was pruned."
        )
    try:
        for path, kept in record.heads.items():
            keep_heads_(model, heads[path], kept)
        for path, width in record.mlp.items():
            keep_channels_(model, mlps[path], range(width))
        remove_blocks_(model, record.blocks)
    except (CompressionError, AttributeError) as e:
        raise ModelError(f"'{RECORD_KEY}' in config.json does not fit the architecture: {e}") from e


def save_model_folder(loaded: LoadedModel, folder: Path) -> None:
    """Write a model as a folder that `vitdeploy` loads by its path, and `load_pruned` too.

    Args:
        loaded: pruned, or trained further.
        folder: an existing, empty folder.

    Raises:
        UnsupportedError: a model of several parts that is not SAM, or one from an ONNX file.
    """
    require_savable(loaded)
    assert loaded.rebuild is not None
    record = loaded.rebuild.pruning
    model, _ = library_model(loaded.parts[0].module)
    if loaded.rebuild.layout == "sam":
        record = record_in_library(record)
        whole = loaded.rebuild.whole
        config = _save_transformers(loaded, whole, folder, sam_state(whole, model))
    elif loaded.rebuild.layout == "timm":
        config = _save_timm(loaded, model, folder)
    else:
        config = _save_transformers(loaded, model, folder, model.state_dict())
    if record != PruningRecord():
        config[RECORD_KEY] = record.to_dict()
    _write_json(folder / CONFIG, config)


def require_savable(loaded: LoadedModel) -> None:
    """Return where `save_model_folder` can write the model; call it before long work.

    Raises:
        UnsupportedError: a model of several parts that is not SAM, or one from an ONNX file.
    """
    if loaded.rebuild is None:
        raise UnsupportedError(
            f"'{loaded.spec.name}' cannot be saved as a model folder in this version; models of "
            "timm and transformers with one part, and SAM, can. To prune it on the way to a "
            "bundle, use `vitdeploy export` or a recipe."
        )


def _whole_timm(folder: Path) -> Any:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=False)


def _whole_transformers(folder: Path, config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    names = config.get("architectures") or [""]
    classifies = "ForImageClassification" in names[0]
    auto = AutoModelForImageClassification if classifies else AutoModel
    return auto.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager")


def _save_timm(loaded: LoadedModel, model: Any, folder: Path) -> dict[str, Any]:
    """Write the weights as timm does, and return its config.json with our preprocessing."""
    from timm.models import save_for_hf

    rebuild, preprocess = loaded.rebuild, loaded.spec.preprocess
    assert rebuild is not None
    names = loaded.spec.label_names
    more = {"label_names": list(names)} if names else {}
    save_for_hf(model, str(folder), more, dict(rebuild.arguments), safe_serialization=True)
    config = read_json(folder / CONFIG)
    config["pretrained_cfg"] |= {
        "input_size": [3, *preprocess.size],
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": preprocess.crop_mode,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    return config


def _save_transformers(
    loaded: LoadedModel, model: Any, folder: Path, state: StateDict
) -> dict[str, Any]:
    """Write weights and preprocessing, and return the config.json of the whole architecture."""
    from safetensors.torch import save_file

    weights = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    prepared = config_from_preprocess(loaded.spec.preprocess)
    _write_json(folder / "preprocessor_config.json", prepared)
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    return config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
