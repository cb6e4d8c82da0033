"""What a run adds to TensorRT's graphs: lint verdicts, and the package a device builds from.

The graphs are `targets`', the files of the package `device`'s, the rules `lint`'s; this module
brings them together, for only a run has the golden images and what every graph makes of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.bundle import Artifact
from vitdeploy.device import (
    PackageCase,
    PackageGraph,
    PackageOptions,
    PackagePart,
    graph_from_file,
    write_package,
)
from vitdeploy.errors import ExportError
from vitdeploy.lint import Known, LintReport, lint_file
from vitdeploy.runner import Outputs
from vitdeploy.targets import HALF_SUFFIX
from vitdeploy.targets.onnx import OrtRunner
from vitdeploy.targets.tensorrt_runner import input_specs

LINT_NAME = "lint.json"
_FUSION = ".fusion.json"
_MOST_FALLBACKS = 3
_KINDS = (".strong.onnx", ".weak.onnx")


def lint_graphs(artifacts: Sequence[Artifact], version: str) -> Path:
    """Return `lint.json`, written beside the graphs.

    Args:
        artifacts: all parts of one target.
        version: the target's `lint_version`.

    Raises:
        ExportError: a graph breaks a rule that keeps an engine from being built, or makes it wrong.
    """
    folder = artifacts[0].path.parent
    reports = []
    for artifact in artifacts:
        profiled = frozenset(tensor.name for tensor in artifact.inputs)
        reports += [lint_file(path, version, Known(profiled)) for path in graphs_of(artifact)]
    broken = [report for report in reports if report.errors]
    if broken:
        raise ExportError(_broken_message(broken[0]))
    path = folder / LINT_NAME
    text = json.dumps([report.to_dict() for report in reports], indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path


def package_graphs(
    artifacts: Sequence[Artifact],
    golden: Mapping[str, Sequence[PackageCase]],
    options: PackageOptions,
) -> tuple[Path, ...]:
    """Return the files of the device package, written beside the graphs of all parts.

    Args:
        artifacts: all parts of a target that is packaged.
        golden: by part, inputs and FP32 outputs of at least one case.
        options: of the package as a whole.

    Raises:
        DataError: a golden output is not finite.
    """
    parts = tuple(_package_part(item, golden[item.part]) for item in artifacts)
    return write_package(artifacts[0].path.parent, parts, options)


def fusion_notes(artifacts: Sequence[Artifact]) -> list[str]:
    """Return a line on each graph whose kernels a builder listed: what runs in INT8, what fused."""
    return [
        _fusion_note(artifact.target, path)
        for artifact in artifacts
        for path in artifact.files
        if path.name.endswith(_FUSION)
    ]


def size_notes(artifacts: Sequence[Artifact]) -> list[str]:
    """Return a line on how large a target's files are, where a device does not load them all."""
    held = sum(artifact.bytes for artifact in artifacts)
    loaded = sum(artifact.run_bytes for artifact in artifacts)
    if held == loaded:
        return []
    return [
        f"{artifacts[0].target}: a device loads {loaded / 1e6:.2f} MB, the size given here; the "
        f"files for every version and precision take {held / 1e6:.2f} MB together."
    ]


def graphs_of(artifact: Artifact) -> tuple[Path, ...]:
    """Return the ONNX graphs among an artefact's files, in their order."""
    return tuple(path for path in artifact.files if path.name.endswith(_KINDS))


def _package_part(artifact: Artifact, golden: Sequence[PackageCase]) -> PackagePart:
    read = {tensor.name for tensor in artifact.inputs}
    cases = tuple(
        PackageCase({name: v for name, v in case.inputs.items() if name in read}, case.reference)
        for case in golden
    )
    return PackagePart(
        name=artifact.part,
        inputs=input_specs(artifact.inputs),
        outputs=tuple(tensor.name for tensor in artifact.outputs),
        graphs=tuple(_package_graph(artifact, path, cases) for path in graphs_of(artifact)),
        golden=cases,
    )


def _package_graph(artifact: Artifact, path: Path, cases: Sequence[PackageCase]) -> PackageGraph:
    """Return a graph's record, with what ONNX Runtime makes of the golden inputs through it."""
    is_half = path.name.startswith(f"{artifact.part}{HALF_SUFFIX}.")
    precision = "fp16" if is_half else artifact.precision
    data = tuple(p for p in artifact.files if p.name.startswith(path.name) and p != path)
    with OrtRunner(path) as runner:
        outputs = tuple(_as_float32(runner(dict(case.inputs))) for case in cases)
    return graph_from_file(precision, path, outputs, data)


def _as_float32(outputs: Outputs) -> Outputs:
    return {name: value.astype(np.float32, copy=False) for name, value in outputs.items()}


def _fusion_note(target: str, path: Path) -> str:
    seen = json.loads(path.read_text(encoding="utf-8"))
    note = (
        f"{target}, {path.name.removesuffix(_FUSION)}: {seen['builder']} runs "
        f"{seen['int8_products']} of {seen['products']} products in INT8 "
        f"({seen['quantized_products']} are quantised) and fuses {seen['fused_attention']} of "
        f"{seen['attention']} attention layers ({seen['int8_attention']} in INT8)"
    )
    fallen = [f"{item['name']} ({item['reason']})" for item in seen["fallbacks"]]
    if fallen:
        more = f" and {len(fallen) - _MOST_FALLBACKS} more" if len(fallen) > _MOST_FALLBACKS else ""
        note += f"; fell back: {', '.join(fallen[:_MOST_FALLBACKS])}{more}"
    return note + "."


def _broken_message(report: LintReport) -> str:
    first = next(f for f in report.findings if f.severity == "error")
    return (
        f"'{report.file}' breaks {report.errors} rule(s) of {report.version}; at '{first.node}': "
        f"{first.why}. To mend it: {first.mend}. Nothing was written."
    )
