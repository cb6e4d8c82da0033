"""What the builder made of a graph: which products run in INT8, which attention is one kernel.

Read from the kernels that TensorRT for RTX lists (`rtx_builder`). For `trt` it is a forecast: the
device's own TensorRT chooses its own kernels, and says so in its own report.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from vitdeploy.bundle import Artifact, TensorInfo
from vitdeploy.errors import DataError, UnsupportedError
from vitdeploy.graph.surgery import constant_of
from vitdeploy.targets import BuildRequest, tensor_infos
from vitdeploy.targets.rtx_builder import (
    LIBRARY,
    BuiltRtxEngine,
    EngineLayer,
    build_rtx_engine,
    require_builder,
)
from vitdeploy.targets.tensorrt_runner import input_specs

_FILE = "fusion.json"
_LARGEST_FORECAST_BYTES = 1_000_000_000
"""Building the engine of a larger graph, only to describe it, takes minutes and much memory."""
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_FUSED_ATTENTION = "mha"


@dataclass(frozen=True)
class Fallback:
    """A product or attention that is not what the graph asks for."""

    name: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """What became of the products and the attention of one graph."""

    builder: str
    cards: tuple[str, ...]
    """Compute capabilities that the engine was built for."""
    engine_bytes: int
    kernels: int
    products: int
    """Products with constant weights."""
    quantized_products: int
    """Those with Q/DQ on both sides in the graph."""
    int8_products: int
    """Those that run in INT8."""
    attention: int
    fused_attention: int
    """Attention whose two products and softmax are one kernel."""
    int8_attention: int
    """Fused attention that reads q, k and v in INT8."""
    fallbacks: tuple[Fallback, ...]


def fusion_from_engine(model: ir.Model, built: BuiltRtxEngine) -> FusionReport:
    """Return the report of an engine.

    Args:
        model: the strongly typed graph that it was built from.
        built: with its kernels.
    """
    by_node = _layers_by_node(built.layers)
    products = [node for node in model.graph if _is_product(node)]
    quantized = [node for node in products if _is_quantized(node)]
    slow = [f for node in quantized if (f := _product_fallback(node, by_node)) is not None]
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    attention = {str(node.name): _products_around(node) for node in softmaxes}
    attention = {name: pair for name, pair in attention.items() if len(pair) == 2}
    kernels = {name: _fused_kernel(name, pair, by_node) for name, pair in attention.items()}
    fused = {name: kernel for name, kernel in kernels.items() if kernel is not None}
    unfused = [
        _attention_fallback(name, attention[name], by_node) for name in kernels.keys() - fused
    ]
    return FusionReport(
        builder=f"TensorRT for RTX {built.version}",
        cards=built.cards,
        engine_bytes=len(built.data),
        kernels=len(built.layers),
        products=len(products),
        quantized_products=len(quantized),
        int8_products=len(quantized) - len(slow),
        attention=len(attention),
        fused_attention=len(fused),
        int8_attention=sum(_reads_int8(kernel) for kernel in fused.values()),
        fallbacks=(*slow, *sorted(unfused, key=lambda f: f.name)),
    )


def _reads_int8(attention: EngineLayer) -> bool:
    """Return whether q, k and v are INT8; a bias of the scores stays float."""
    types = attention.input_types
    return set(types) == {"Int8"} or types.count("Int8") >= 3


def write_fusion(strong: Path, request: BuildRequest) -> tuple[Path, ...]:
    """Write `<part>.fusion.json` beside a strong graph, where a builder is installed.

    Raises:
        ExportError: the builder refuses the graph.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        return ()
    if strong.stat().st_size > _LARGEST_FORECAST_BYTES:
        return ()
    report = _forecast(strong, tensor_infos(request.model.graph.inputs))
    return (write_report(report, request.folder / f"{request.part}.{_FILE}"),)


def write_report(report: FusionReport, path: Path) -> Path:
    """Write the report as JSON; two builds of one graph write the same bytes."""
    text = json.dumps(asdict(report), indent=2)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path


def read_report(path: Path) -> FusionReport:
    """Return the report that `write_report` wrote.

    Raises:
        DataError: the file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        fallbacks = tuple(Fallback(**item) for item in data.pop("fallbacks"))
        return FusionReport(**{**data, "cards": tuple(data["cards"])}, fallbacks=fallbacks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read '{path.name}': {error}. Export the model again.") from error


def fusion_of_artifact(artifact: Artifact) -> FusionReport:
    """Return what the builder made of an artefact: as written beside it, else built here and now.

    Raises:
        UnsupportedError: nothing is written, and no builder is here that reads its graph.
        ExportError: the builder refuses the graph.
        DataError: the written report is damaged.
    """
    for path in artifact.files:
        if path.name == f"{artifact.part}.{_FILE}":
            return read_report(path)
    strong = [path for path in artifact.files if path.name == f"{artifact.part}.strong.onnx"]
    if not strong:
        raise UnsupportedError(
            f"what TensorRT fuses in '{artifact.path.name}' is not known before the device builds "
            "it: the builder at hand reads strongly typed graphs alone"
        )
    require_builder()
    return _forecast(strong[0], artifact.inputs)


def _forecast(strong: Path, inputs: tuple[TensorInfo, ...]) -> FusionReport:
    return fusion_from_engine(ir.load(strong), build_rtx_engine(strong, input_specs(inputs)))


def _layers_by_node(layers: Sequence[EngineLayer]) -> dict[str, list[EngineLayer]]:
    found: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for node in layer.nodes:
            found.setdefault(node, []).append(layer)
    return found


def _is_product(node: ir.Node) -> bool:
    """Return whether a node multiplies by a constant weight, plain or behind DequantizeLinear."""
    if node.op_type not in _PRODUCTS:
        return False
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        weight = producer.inputs[0]
    return constant_of(weight) is not None


def _is_quantized(node: ir.Node) -> bool:
    makers = [value.producer() for value in node.inputs[:2] if value is not None]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _computing(layers: Sequence[EngineLayer]) -> list[EngineLayer]:
    """Return the kernels that multiply; others only carry a product's name for its epilogue."""
    return [
        layer
        for layer in layers
        if layer.kind in ("gemm", "correlation", "runtime_fusion")
        or _FUSED_ATTENTION in layer.tactic
    ]


def _is_int8_product(layer: EngineLayer) -> bool:
    """Return whether a kernel multiplies codes with codes; one that dequantises has no weight."""
    return layer.input_types[:1] == ("Int8",) and "Int8" in layer.constant_types


def _product_fallback(
    node: ir.Node, by_node: Mapping[str, Sequence[EngineLayer]]
) -> Fallback | None:
    name = str(node.name)
    kernels = _computing(by_node.get(name, ()))
    if not kernels:
        return Fallback(name, "no kernel of the engine names it")
    if any(_is_int8_product(kernel) for kernel in kernels):
        return None
    seen = ", ".join(kernels[0].input_types + kernels[0].constant_types) or "nothing"
    return Fallback(name, f"its kernel '{kernels[0].name}' reads {seen}: dequantised before")


def _products_around(softmax: ir.Node) -> tuple[str, ...]:
    """Return the names of the products of two activations before and after a softmax."""
    above, below = _nearest(softmax, upward=True), _nearest(softmax, upward=False)
    return tuple(str(node.name) for node in (above, below) if node is not None)


def _nearest(node: ir.Node, *, upward: bool, most: int = 12) -> ir.Node | None:
    """Return the first product of two activations up or down from `node`."""
    front, seen = [node], {node}
    for _ in range(most):
        following = []
        for current in front:
            near = current.predecessors() if upward else current.successors()
            for other in near:
                if other in seen:
                    continue
                if other.op_type == "MatMul" and not _is_product(other):
                    return other
                seen.add(other)
                following.append(other)
        front = following
    return None


def _fused_kernel(
    softmax: str, products: Sequence[str], by_node: Mapping[str, Sequence[EngineLayer]]
) -> EngineLayer | None:
    for layer in by_node.get(softmax, ()):
        if _FUSED_ATTENTION in layer.tactic and set(products) <= set(layer.nodes):
            return layer
    return None


def _attention_fallback(
    softmax: str, products: Sequence[str], by_node: Mapping[str, Sequence[EngineLayer]]
) -> Fallback:
    kernels = {layer.name for name in (softmax, *products) for layer in by_node.get(name, ())}
    return Fallback(softmax, f"its products and softmax are {len(kernels)} kernels")
