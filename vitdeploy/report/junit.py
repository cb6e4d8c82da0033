"""`junit.xml`: gates and export parity as test cases, for a release pipeline."""

import re
from xml.etree import ElementTree as ET

from vitdeploy.report.schema import GateRow, ParityRow, Report

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """Return a JUnit document: one case per gate and per parity check, failures with a message."""
    gates = [_gate_case(gate) for gate in report.gates]
    parity = [_parity_case(row) for row in report.parity]
    root = ET.Element("testsuites", name="vitdeploy")
    for name, cases in (("gates", gates), ("parity", parity)):
        suite = ET.SubElement(
            root,
            "testsuite",
            name=f"vitdeploy.{name}",
            tests=str(len(cases)),
            failures=str(sum(case.find("failure") is not None for case in cases)),
            errors="0",
            skipped="0",
        )
        if report.created:
            suite.set("timestamp", report.created)
        properties = ET.SubElement(suite, "properties")
        for key, value in _properties(report):
            ET.SubElement(properties, "property", name=key, value=_clean(value))
        suite.extend(cases)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _properties(report: Report) -> list[tuple[str, str]]:
    return [
        ("model", report.model.name),
        ("precision", report.precision.requested),
        ("vitdeploy", report.vitdeploy_version),
        *(("stamp", stamp) for stamp in report.stamps),
    ]


def _gate_case(gate: GateRow) -> ET.Element:
    case = ET.Element("testcase", classname="vitdeploy.gates", name=_clean(gate.name))
    if not gate.passed:
        seen = f"not measured: {gate.value_reason}" if gate.value is None else f"{gate.value:.6g}"
        _fail(case, "gate", f"{gate.name}: limit {gate.limit:.6g}, value {seen}")
    return case


def _parity_case(row: ParityRow) -> ET.Element:
    name = f"{row.part} at batch {row.batch}"
    case = ET.Element("testcase", classname="vitdeploy.parity", name=_clean(name))
    if not row.passed:
        _fail(
            case,
            "parity",
            f"{name}: the FP32 ONNX differs from torch by {row.max_abs_diff:.3g} "
            f"(relative {row.max_relative:.3g}), allowed is {row.tolerance:.3g}",
        )
    return case


def _fail(case: ET.Element, kind: str, message: str) -> None:
    failure = ET.SubElement(case, "failure", type=kind, message=_clean(message))
    failure.text = _clean(message)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
