"""What a rule, a finding and the verdicts of a whole graph are; the rules themselves in `rules`."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from vitdeploy.lint.graph import LintGraph, name_of
from vitdeploy.lint.versions import TensorRT, shown

Severity = Literal["error", "warning"]
Verdict = Literal["pass", "fail", "not_applicable"]


@dataclass(frozen=True)
class Finding:
    """One place where a rule is broken."""

    node: str
    """The node's name, else its operator and outputs; or the name of a value."""
    why: str
    mend: str = ""
    """How to mend it; the rule's own where empty."""
    severity: Severity | None = None
    """The rule's own where None."""


def found(node: ir.Node, why: str, mend: str = "", severity: Severity | None = None) -> Finding:
    """Return a finding at `node`."""
    return Finding(name_of(node), why, mend, severity)


@dataclass(frozen=True)
class Rule:
    """One numbered rule."""

    number: int
    id: str
    severity: Severity
    title: str
    why: str
    """Why TensorRT asks for it."""
    mend: str
    applies: Callable[[LintGraph, TensorRT], bool]
    """Whether the graph holds what the rule speaks of, and the version asks for it."""
    check: Callable[[LintGraph, TensorRT], Iterable[Finding]]


@dataclass(frozen=True)
class RuleResult:
    """What one rule found."""

    number: int
    id: str
    severity: Severity
    title: str
    verdict: Verdict
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class LintReport:
    """The verdict of every rule on one graph."""

    version: TensorRT
    file: str
    results: tuple[RuleResult, ...]
    notes: tuple[str, ...] = ()
    """What was looked at only in part."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, in the order of the rules."""
        return tuple(finding for result in self.results for finding in result.findings)

    @property
    def errors(self) -> int:
        """How many findings keep an engine from being built, or make it wrong."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """How many findings cost speed or need a look."""
        return sum(finding.severity == "warning" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return {
            "target": self.version.target,
            "trt_version": shown(self.version.number),
            "file": self.file,
            "rules": [dataclasses.asdict(result) for result in self.results],
            "notes": list(self.notes),
            "errors": self.errors,
            "warnings": self.warnings,
        }


def judge(rule: Rule, graph: LintGraph, version: TensorRT) -> RuleResult:
    """Return what `rule` says of `graph`; its own advice completes each finding."""
    applies = rule.applies(graph, version)
    findings = tuple(
        dataclasses.replace(
            finding,
            mend=finding.mend or rule.mend,
            severity=finding.severity or rule.severity,
        )
        for finding in (rule.check(graph, version) if applies else ())
    )
    verdict: Verdict = "fail" if findings else "pass" if applies else "not_applicable"
    return RuleResult(rule.number, rule.id, rule.severity, rule.title, verdict, findings)
