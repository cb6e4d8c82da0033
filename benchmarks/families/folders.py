"""Model folders of the matrix's rows: a config.json without weights, for --random-weights.

A row is loaded the way a user's own model is, through a folder in the layout of its library.
"""

import json
from pathlib import Path

from benchmarks.families.rows import Row


def write_folder(row: Row, folder: Path) -> Path:
    """Write the config.json of a row's small model; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if row.library == "timm":
        _write_timm_config(row, folder)
    else:
        _write_transformers_config(row, folder)
    return folder


def _write_timm_config(row: Row, folder: Path) -> None:
    import timm

    own = timm.models.get_pretrained_cfg(row.architecture)
    arguments = dict(row.arguments)
    config = {
        "architecture": row.architecture,
        "num_classes": arguments.pop("num_classes", own.num_classes),
        "model_args": arguments,
        "pretrained_cfg": own.to_dict(remove_source=True, remove_null=True),
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _write_transformers_config(row: Row, folder: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(row.architecture, **row.arguments)
    if hasattr(config, "image_size"):
        is_pair = isinstance(config.image_size, (list, tuple))
        config.image_size = [row.size, row.size] if is_pair else row.size
    if row.head:
        config.architectures = [row.head]
    config.save_pretrained(folder)
