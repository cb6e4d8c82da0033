"""What an engine consists of, from the JSON of TensorRT's engine inspector.

Up to 10.x a layer's tensors carry `Format/Datatype` and the engine lists `Bindings`; from 11 on
they carry `Format` and `DataType`, and the list is called `I/O Tensors`. Both are read. Which
layers are products, and which are fused attention, is told by names: TensorRT does not say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .failure import MEASUREMENT, Failure

_ATTENTION = re.compile(r"mha|fmha|flash_?attention|IAttention", re.IGNORECASE)
# `correlation` is a convolution and `runtime_fusion` a product with what follows it (`FcAdd`).
_PRODUCT = re.compile(
    r"gemm|conv|correlation|runtime_fusion|matmul|matrix_?multiply|fully_?connected|_fc",
    re.IGNORECASE,
)
# A kernel that only moves or converts is no product, whatever the layers' names in it say.
_MOVES = frozenset({"reformat", "noop", "shuffle", "constant", "signal", "wait", "copy"})


@dataclass(frozen=True)
class LayerInfo:
    """One layer of an engine."""

    name: str
    kind: str
    """TensorRT's LayerType; empty where only names are known."""
    input_types: tuple[str, ...]
    """`Int8`, `Half`, `Float` and so on, as TensorRT writes them."""
    is_product: bool
    is_attention: bool

    @property
    def is_int8(self) -> bool:
        """Return whether what it multiplies is INT8; a residual beside it need not be."""
        return bool(self.input_types) and self.input_types[0].lower().startswith("int8")


@dataclass(frozen=True)
class EngineInfo:
    """All layers, and the names of inputs and outputs."""

    layers: tuple[LayerInfo, ...]
    io_names: tuple[str, ...]


def engine_info_from_json(text: str) -> EngineInfo:
    """Return what the inspector's JSON of a whole engine says.

    Raises:
        Failure: it is no such JSON.
    """
    try:
        data = json.loads(text)
        layers = tuple(_layer(item) for item in data["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"cannot read what the engine inspector says ({error!r}).", MEASUREMENT
        ) from error
    listed = data.get("I/O Tensors", data.get("Bindings", []))
    names = tuple(item["Name"] if isinstance(item, dict) else str(item) for item in listed)
    return EngineInfo(layers, names)


def inspect_engine(trt: Any, engine: Any) -> EngineInfo:
    """Return the layers of an engine that was built with detailed profiling verbosity."""
    inspector = engine.create_engine_inspector()
    return engine_info_from_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def count_rows(info: EngineInfo, times_ms: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Return layers with times, INT8 products and fused attention, as the report has them.

    Products inside fused attention are counted with the attention alone.
    """
    known = {layer.name: layer for layer in info.layers}
    named: list[tuple[str, float | None]] = list(times_ms)
    if not named:
        named = [(layer.name, None) for layer in info.layers]
    products = [layer for layer in info.layers if layer.is_product]
    attention = [layer for layer in info.layers if layer.is_attention]
    return {
        "layers": [_layer_row(name, ms, known.get(name)) for name, ms in named],
        "products": len(products),
        "int8_products": sum(layer.is_int8 for layer in products),
        "fused_attention": len(attention),
        "int8_attention": sum(layer.is_int8 for layer in attention),
    }


def _layer_row(name: str, ms: float | None, layer: LayerInfo | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "mean_ms": ms, "kind": layer.kind if layer else None}
    row["input_types"] = list(layer.input_types) if layer else []
    row["is_product"] = layer is not None and (layer.is_product or layer.is_attention)
    if ms is None:
        row["mean_ms_reason"] = "not timed"
    return row


def _layer(item: Any) -> LayerInfo:
    if isinstance(item, str):  # the engine was built without detailed verbosity
        item = {"Name": item}
    name, kind = str(item["Name"]), str(item.get("LayerType", ""))
    words = f"{name} {kind} {item.get('TacticName', '')}"
    computes = kind.lower() not in _MOVES
    is_attention = computes and bool(_ATTENTION.search(words))
    return LayerInfo(
        name=name,
        kind=kind,
        input_types=tuple(_type(tensor) for tensor in item.get("Inputs", ())),
        is_product=computes and not is_attention and bool(_PRODUCT.search(words)),
        is_attention=is_attention,
    )


def _type(tensor: Mapping[str, Any]) -> str:
    for key in ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format"):
        if key in tensor:
            return str(tensor[key]).split(" ")[0]
    return "unknown"
