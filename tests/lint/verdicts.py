"""Linting a proto in tests, and what one rule says of it."""

import onnx
import onnx_ir as ir

from vitdeploy.lint import Known, LintReport, RuleResult, lint_model


def lint(model: onnx.ModelProto, version: str = "10.3", **known: object) -> LintReport:
    """The report; `known` are fields of `Known`."""
    return lint_model(ir.from_proto(model), version, Known(**known))  # type: ignore[arg-type]


def result(report: LintReport, number: int) -> RuleResult:
    """What rule `number` found."""
    return next(r for r in report.results if r.number == number)


def whys(model: onnx.ModelProto, number: int, version: str = "10.3", **known: object) -> str:
    """The reasons of rule `number`, empty where it found nothing."""
    return "; ".join(f.why for f in result(lint(model, version, **known), number).findings)
