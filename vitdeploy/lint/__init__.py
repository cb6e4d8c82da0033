"""Whether TensorRT will take an ONNX graph, and run it fast: numbered rules, each with a verdict.

Works on any graph, from this package or from elsewhere, and needs no TensorRT. The rules are in
`rules`, the facts about versions in `versions`.
"""

import dataclasses
import json
from pathlib import Path

import onnx_ir as ir

from vitdeploy.device.onboard.contents import PACKAGE_FORMAT, PACKAGE_NAME
from vitdeploy.errors import ModelError
from vitdeploy.lint.graph import Known, LintGraph, control_flow, lint_graph, name_of
from vitdeploy.lint.rule import Finding, LintReport, Rule, RuleResult, judge
from vitdeploy.lint.rules import RULES
from vitdeploy.lint.rules.file import one_line
from vitdeploy.lint.versions import DEFAULT_VERSION, RTX, TensorRT, version_from_text

__all__ = [
    "DEFAULT_VERSION",
    "RTX",
    "RULES",
    "Finding",
    "Known",
    "LintReport",
    "Rule",
    "RuleResult",
    "lint_file",
    "lint_model",
]


def lint_file(path: Path, version: str = DEFAULT_VERSION, known: Known | None = None) -> LintReport:
    """Return the verdict of every rule on an ONNX file.

    Weights in external data stay on the disk; constants are read where a rule needs them. Inputs
    for which a device package's `package.json` beside the file has a profile count as profiled.

    Args:
        path: the file.
        version: `8.6`, `10.3`, `11` ..., or `trt-rtx`.
        known: what the file does not say of how the engine will be built.

    Raises:
        ModelError: no such file, no ONNX, damaged, or without its external data.
        UsageError: a version that is not known.
    """
    trt = version_from_text(version)
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no ONNX file '{path}'. Give the path of an .onnx file.")
    try:
        model = ir.load(path)
    except Exception as error:
        raise _damaged(path, one_line(error)) from error
    if not len(model.graph):
        raise _damaged(path, "it has no nodes")
    _require_external_data(model, path)
    known = known or Known()
    packaged = profiled_by_package(path)
    if packaged is not None:
        known = dataclasses.replace(known, profiled=known.profiled | packaged, is_packaged=True)
    return _report(lint_graph(model, known, path), trt, path.name)


def lint_model(
    model: ir.Model, version: str = DEFAULT_VERSION, known: Known | None = None
) -> LintReport:
    """Return the verdict of every rule on a model in memory, which stays as it is.

    Args:
        model: any graph.
        version: `8.6`, `10.3`, `11` ..., or `trt-rtx`.
        known: what the graph does not say of how the engine will be built.

    Raises:
        UsageError: a version that is not known.
    """
    trt = version_from_text(version)
    return _report(lint_graph(model, known or Known()), trt, str(model.graph.name or "model"))


def profiled_by_package(path: Path) -> frozenset[str] | None:
    """Return the inputs that the package around a graph builds with a profile; None without one."""
    try:
        contents = json.loads((path.parent / PACKAGE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no package: the graph stands alone
        return None
    if not isinstance(contents, dict) or contents.get("format") != PACKAGE_FORMAT:
        return None
    return frozenset(i["name"] for part in contents["parts"] for i in part["inputs"])


def _report(graph: LintGraph, version: TensorRT, shown: str) -> LintReport:
    results = tuple(judge(rule, graph, version) for rule in RULES)
    notes = [
        f"{node.op_type} '{name_of(node)}' is control flow: its bodies were linted too, but which "
        "one runs is decided on the device; a graph with one fixed path is faster"
        for node in control_flow(graph.nodes)
    ]
    return LintReport(version, shown, results, tuple(notes))


def _require_external_data(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = (folder / tensor.location).resolve()
        if not place.is_relative_to(folder):
            raise ModelError(
                f"'{path.name}' keeps its weights in '{tensor.location}', outside its own folder. "
                "Put the file and its data in one folder, with onnx.save."
            )
        if not place.is_file():
            raise ModelError(
                f"'{path.name}' keeps its weights in '{tensor.location}', which is not beside it. "
                "Copy that file too."
            )
        needed_bytes = (tensor.offset or 0) + (tensor.length or 0)
        if place.stat().st_size < needed_bytes:
            raise ModelError(
                f"'{tensor.location}', the data of '{path.name}', ends at byte "
                f"{place.stat().st_size} of {needed_bytes}. Copy it again, whole."
            )


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(f"'{path.name}' is not a valid ONNX file: {reason}. Export it again.")
