"""Rules about the file as a whole: onnx.checker (0), the opset (14), dynamic dimensions (19).

A profile is no part of a file but of a build: its lack is an error only where the build is known.
"""

from collections.abc import Iterator

import onnx

from vitdeploy.lint.graph import LintGraph
from vitdeploy.lint.rule import Finding, Rule
from vitdeploy.lint.versions import OLDEST_OPSET, TensorRT, first_taking_opset

_TYPE_ERRORS = ("TypeInferenceError", "inconsistent type", "unsupported type")


def one_line(error: Exception) -> str:
    """Return what an error of a library says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _checker(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for name in graph.unmade:
        yield Finding(f"value {name}", "it is read, and no node, input or constant makes it")
    if graph.unmade:
        return
    try:
        # The path, not the bytes: it alone works beyond 2 GB.
        onnx.checker.check_model(graph.inferred if graph.file is None else str(graph.file))
    except onnx.checker.ValidationError as error:
        yield Finding("the whole graph", one_line(error))
        return
    try:
        onnx.shape_inference.infer_shapes(graph.inferred, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        text = one_line(error)
        # Inference also fails on graphs that are right (onnx 1.23: MeanVarianceNormalization).
        sure = any(sign in text for sign in _TYPE_ERRORS)
        yield Finding(
            "the whole graph",
            f"types or shapes disagree: {text}",
            severity="error" if sure else "warning",
        )


def _opset(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    if graph.opset > version.newest_opset:
        yield Finding(
            f"opset {graph.opset}",
            f"{version} documents opsets up to {version.newest_opset}; the first that documents "
            f"{graph.opset} is {first_taking_opset(graph.opset)}",
            f"export with opset {version.newest_opset} or older",
        )
    elif graph.opset < OLDEST_OPSET:
        yield Finding(
            f"opset {graph.opset}",
            f"parsers document opsets from {OLDEST_OPSET} on",
            "raise it with onnx.version_converter",
        )


def _profiles(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for value in graph.inputs:
        name = str(value.name)
        shape = graph.shape(value)
        if shape is None:
            yield Finding(
                f"input {name}",
                "it has no shape, not even a rank",
                "declare it in the graph",
                "error",
            )
        elif None in shape and name not in graph.known.profiled:
            dims = ", ".join("?" if size is None else str(size) for size in shape)
            if graph.known.is_packaged:
                why = f"its shape ({dims}) is not fixed, and package.json has no range for it"
                yield Finding(f"input {name}", why, "export the bundle again", "error")
            else:
                yield Finding(f"input {name}", f"its shape ({dims}) is not fixed")


CHECKER = Rule(
    0,
    "onnx-checker",
    "error",
    "onnx.checker accepts the graph",
    "what ONNX itself refuses, some parser will refuse too, or misread",
    "export the model again; a later version of the exporter may write it right",
    lambda graph, version: True,
    _checker,
)
OPSET = Rule(
    14,
    "opset",
    "error",
    "the opset is one that the parser documents",
    "operators of a newer opset may mean something else than the parser takes them for",
    "export with an opset between",
    lambda graph, version: True,
    _opset,
)
PROFILES = Rule(
    19,
    "dynamic-profile",
    "warning",
    "every dynamic input gets an optimisation profile when the engine is built",
    "without one the builder stops and trtexec silently builds for size 1; in a bundle whose "
    "package.json lacks it, this is an error",
    "build with --minShapes, --optShapes and --maxShapes (or add_optimization_profile) and lint "
    "with --profiled NAME, or export with fixed sizes; a bundle's build.sh has its profiles",
    lambda graph, version: bool(graph.inputs),
    _profiles,
)
