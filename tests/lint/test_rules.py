"""Every rule fails on its bad graph, passes on its good one, and says where and why."""

import pytest

from tests.lint import graphs
from tests.lint.cases import CASES, Case
from tests.lint.verdicts import lint, result
from vitdeploy.lint import RULES

NUMBERED = range(1, 31)


def test_every_number_has_a_rule_a_bad_graph_and_a_good_one():
    assert [rule.number for rule in RULES] == [0, *NUMBERED]
    assert [case.number for case in CASES] == list(NUMBERED)
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_a_rule_fails_on_its_bad_graph(case: Case):
    report = lint(case.bad(), case.version, compute_capability=case.card)
    broken = result(report, case.number)
    rule = RULES[case.number]
    assert broken.verdict == "fail"
    for finding in broken.findings:
        assert finding.severity == rule.severity
        assert finding.node
        assert finding.why
        assert finding.mend


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_a_rule_passes_on_its_good_graph(case: Case):
    report = lint(case.good(), case.version, compute_capability=case.good_card)
    assert result(report, case.number).verdict == "pass"
    assert report.errors == 0, report.findings


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_a_bad_graph_breaks_no_unrelated_rule_of_errors(case: Case):
    """Invalid ONNX (0) and a Q/DQ on a bias (25) go with some of the rules."""
    report = lint(case.bad(), case.version, compute_capability=case.card)
    numbers = {r.number for r in report.results for f in r.findings if f.severity == "error"}
    assert numbers <= {0, case.number}


def test_a_rule_that_has_no_say_does_not_apply():
    verdicts = {r.number: r.verdict for r in lint(graphs.plain()).results}
    assert verdicts[1] == "not_applicable"
    assert verdicts[17] == "not_applicable"
    assert verdicts[9] == "pass"
