"""Rules about operators that the parser does not import, or not in every form."""

from collections.abc import Iterator

from vitdeploy.lint.graph import LintGraph, is_standard, text
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.rules.forms import unsupported_forms
from vitdeploy.lint.versions import TensorRT, first_taking_operator

_INTEGER = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"})
_NO_PLUGINS = ("com.microsoft", "com.ms", "ai.onnx.", "org.pytorch", "pkg.")
_EINSUM_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz->., ")
_RESIZE_MODES = (
    *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
)
_FULL_EINSUM = (10, 12)
_SCATTER_NONE = (10, 15)
_FUNCTIONS = (10, 0)


def _always(_graph: LintGraph, _version: TensorRT) -> bool:
    return True


def _is_integer(op_type: str) -> bool:
    return op_type in _INTEGER or op_type.startswith("QLinear")


def _integer_operators(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for node in graph.nodes:
        if _is_integer(node.op_type):
            yield found(node, f"TensorRT has no importer for {node.op_type}")


def _foreign_operators(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for node in graph.nodes:
        if is_standard(node) or "trt" in f"{node.domain} {node.op_type}".lower():
            continue
        name = f"{node.domain}.{node.op_type}"
        if node.domain.startswith(_NO_PLUGINS):
            yield found(node, f"{name} is an operator of another runtime")
        else:
            yield found(
                node,
                f"{name} is no operator of ONNX",
                f"load a plugin named {node.op_type} before parsing, or write it with standard "
                "operators",
                "warning",
            )


def _resize(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for node in graph.of("Resize"):
        antialias = node.attributes.get("antialias")
        policy = text(node, "keep_aspect_ratio_policy", "stretch")
        if antialias is not None and antialias.as_int():
            yield found(node, "it smooths (antialias = 1), which no importer takes")
        mode = text(node, "coordinate_transformation_mode", "half_pixel")
        if mode not in _RESIZE_MODES:
            yield found(node, f"it maps pixels as {mode}; taken are {', '.join(_RESIZE_MODES)}")
        if policy != "stretch":
            yield found(node, f"keep_aspect_ratio_policy is {policy}; 'stretch' alone is taken")


def _einsum(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    for node in graph.of("Einsum"):
        equation = text(node, "equation", "")
        strange = sorted(set(equation) - _EINSUM_LETTERS)
        if strange:
            yield found(node, f"'{equation}' has {' '.join(strange)}; a to z alone are taken")
        if version.parser >= _FULL_EINSUM:
            continue
        terms = [term.strip() for term in equation.split("->")[0].split(",")]
        if "..." in equation:
            yield found(node, f"'{equation}' has an ellipsis, which TensorRT 10.12 takes")
        letters = [[c for c in term if c.isalpha()] for term in terms]
        if any(len(set(term)) < len(term) for term in letters):
            yield found(node, f"'{equation}' takes a diagonal, which TensorRT 10.12 takes")


def _unsupported_operators(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    for node in graph.nodes:
        if is_standard(node) and version.lacks(node.op_type):
            yield found(
                node,
                f"{version} has no importer for {node.op_type}; "
                f"{first_taking_operator(node.op_type)} has",
            )
    for node in graph.of("ScatterND"):
        reduction = text(node, "reduction", "none")
        if reduction != "none":
            yield found(node, f"ScatterND with reduction '{reduction}' is not taken")
        elif "reduction" in node.attributes and version.parser < _SCATTER_NONE:
            yield found(
                node,
                "parsers before TensorRT 10.15 refuse the attribute reduction, be it 'none'",
                "leave the attribute out: 'none' is the default",
            )
    yield from unsupported_forms(graph, version)
    if graph.functions and version.parser < _FUNCTIONS:
        names = ", ".join(graph.functions)
        yield Finding(
            f"functions {names}",
            f"{version} has no local functions; TensorRT 10.0 has",
            "inline them with onnx.inliner.inline_local_functions",
        )


def _layernorm_outputs(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for node in graph.of("LayerNormalization"):
        further = [str(value.name) for value in node.outputs[1:] if value.name]
        if further:
            yield found(node, f"it makes {', '.join(further)} too, read or not")


INTEGER_OPERATORS = Rule(
    8,
    "integer-operators",
    "error",
    "no QLinear operators, MatMulInteger, ConvInteger or DynamicQuantizeLinear",
    "TensorRT reads quantisation from Q/DQ pairs alone",
    "quantise statically in the QDQ format",
    _always,
    _integer_operators,
)
FOREIGN_OPERATORS = Rule(
    9,
    "foreign-operators",
    "error",
    "standard operators alone",
    "a graph that ONNX Runtime has optimised holds operators only it knows",
    "give the graph as it was exported, before a runtime optimised it",
    _always,
    _foreign_operators,
)
RESIZE = Rule(
    10,
    "resize",
    "error",
    "Resize without antialias, in a mode that is taken",
    "TensorRT has no antialiased resize, and not every mapping of pixels",
    "resize before the model, or bake the resampled constant in (position embeddings)",
    lambda graph, version: graph.has("Resize"),
    _resize,
)
EINSUM = Rule(
    11,
    "einsum",
    "error",
    "Einsum in lower case, written out",
    "the importer takes the letters a to z; ellipses and diagonals only since 10.12",
    "rename the letters and write out the ellipsis, or use MatMul and Transpose",
    lambda graph, version: graph.has("Einsum"),
    _einsum,
)
UNSUPPORTED_OPERATORS = Rule(
    12,
    "unsupported-operators",
    "error",
    "every operator, form and element type has an importer",
    "the parser stops at the first operator it does not know",
    "export the model without it, or replace it by supported operators",
    _always,
    _unsupported_operators,
)
LAYERNORM_OUTPUTS = Rule(
    13,
    "layernorm-outputs",
    "error",
    "LayerNormalization with its first output alone",
    "mean and inverse deviation are outputs for training; the parser refuses them",
    "remove the further outputs from the node",
    lambda graph, version: graph.has("LayerNormalization"),
    _layernorm_outputs,
)
