"""Engines built ahead of time by TensorRT for RTX, which needs no GPU for it.

The builder's log names every kernel of the engine with its types and the ONNX nodes in it; what
can be said from that is `fusion_report`'s.
"""

import importlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.device.onboard.contents import InputSpec
from vitdeploy.errors import ExportError, UnsupportedError

LIBRARY = "tensorrt_rtx"
CARDS = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities one engine serves: GeForce RTX 30, 40 and 50, their professional sisters,
A100, and GB10. Turing (7.5) would give up kernels that the others have."""
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), ")
_TYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TACTIC = re.compile(r"TacticName: ([^,]*),")


@dataclass(frozen=True)
class EngineLayer:
    """One kernel of an engine."""

    name: str
    kind: str
    """`gemm`, `correlation` (convolution), `runtime_fusion`, `kgen`, ..."""
    tactic: str
    input_types: tuple[str, ...]
    """Of its activations: `Int8`, `Half`, `Float`."""
    constant_types: tuple[str, ...]
    """Of its weights and scales."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that it computes, in part or whole."""


@dataclass(frozen=True)
class BuiltRtxEngine:
    """A serialised engine and what the builder said of it."""

    data: bytes
    version: str
    """Of TensorRT for RTX."""
    cards: tuple[str, ...]
    """Compute capabilities."""
    build_seconds: float
    layers: tuple[EngineLayer, ...]


def require_builder() -> Any:
    """Return the module `tensorrt_rtx`.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise UnsupportedError(
            f"the builder of TensorRT needs the package tensorrt-rtx, which is not here ({error}). "
            "Install it: pip install 'vitdeploy[rtx]'. It exists for Linux and Windows on x86-64; "
            "--target trt needs nothing."
        ) from error


def build_rtx_engine(
    path: Path, inputs: Sequence[InputSpec], cards: Sequence[str] = CARDS
) -> BuiltRtxEngine:
    """Return the engine of a strongly typed graph.

    Args:
        path: ONNX file; its external data lies beside it.
        inputs: with a range for every dynamic dimension.
        cards: compute capabilities.

    Raises:
        UnsupportedError: the package is not installed.
        ExportError: the parser or the builder refuses the graph; the node and reason are given.
    """
    trt = require_builder()
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise ExportError(
            f"TensorRT for RTX {trt.__version__} does not read '{path.name}': "
            f"{_parser_errors(parser)}"
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(builder, config, inputs)
    _set_cards(trt, config, cards)
    start = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reasons = "; ".join(log.errors[:3]) or "it gives no reason"
        raise ExportError(
            f"TensorRT for RTX {trt.__version__} does not build '{path.name}': {reasons}"
        )
    layers = layers_from_log(log.layers)
    return BuiltRtxEngine(
        bytes(plan), trt.__version__, tuple(cards), time.monotonic() - start, layers
    )


def layers_from_log(text: str) -> tuple[EngineLayer, ...]:
    """Return the kernels that the builder's verbose log lists after "Layers:"."""
    found = []
    for line in text.splitlines():
        match = _LAYER.match(line)
        if match is None:
            continue
        before, _, after = line.partition(", TacticName: ")
        activations, _, rest = before.partition("Constants: [")
        constants = rest.partition("Outputs: [")[0]
        tactic = _TACTIC.search(f"TacticName: {after}")
        found.append(
            EngineLayer(
                match["name"],
                match["kind"],
                tactic[1] if tactic else "",
                tuple(_TYPE.findall(activations)),
                tuple(_TYPE.findall(constants)),
                tuple(_NODE.findall(after)),
            )
        )
    return tuple(found)


def _logger(trt: Any) -> Any:
    """Return a logger that keeps errors and the list of layers."""

    class BuildLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers += message

    return BuildLog()


def _parser_errors(parser: Any) -> str:
    found = []
    for number in range(min(parser.num_errors, 3)):
        error = parser.get_error(number)
        found.append(f"{error.node_operator()} '{error.node_name()}': {error.desc()}")
    return "; ".join(found) or "it gives no reason"


def _add_profile(builder: Any, config: Any, inputs: Sequence[InputSpec]) -> None:
    dynamic = [tensor for tensor in inputs if tensor.is_dynamic]
    if dynamic:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            profile.set_shape(tensor.name, tensor.minimum, tensor.optimum, tensor.maximum)
        config.add_optimization_profile(profile)


def _set_cards(trt: Any, config: Any, cards: Sequence[str]) -> None:
    config.num_compute_capabilities = len(cards)
    for number, card in enumerate(cards):
        capability = getattr(trt.ComputeCapability, f"SM{card.replace('.', '')}")
        config.set_compute_capability(capability, number)
