"""`junit.xml`: one case per gate and parity check; what failed says limit and value."""

from xml.etree import ElementTree as ET

from tests.report.samples import failing_sample, sample
from vitdeploy.report import WRITERS


def suites(report):
    root = ET.fromstring(WRITERS["junit"].render(report))
    return {suite.get("name"): suite for suite in root}


def test_a_run_that_passed_has_no_failure():
    found = suites(sample())
    assert list(found) == ["vitdeploy.gates", "vitdeploy.parity"]
    assert [suite.get("tests") for suite in found.values()] == ["3", "2"]
    assert [suite.get("failures") for suite in found.values()] == ["0", "0"]
    names = [case.get("name") for case in found["vitdeploy.gates"].iter("testcase")]
    assert names == [gate.name for gate in sample().gates]
    assert found["vitdeploy.gates"].get("timestamp") == "2025-01-31T12:00:00Z"


def test_what_failed_says_limit_and_value():
    suite = suites(failing_sample())["vitdeploy.gates"]
    assert suite.get("failures") == "2"
    messages = [failure.get("message") for failure in suite.iter("failure")]
    assert messages[0] == "min_speedup:onnx: limit 1.5, value 0.77"
    assert "value not measured: the engine cannot run on this machine" in messages[1]


def test_a_parity_mismatch_is_a_failure():
    row = {**sample().parity[0].model_dump(), "max_abs_diff": 0.5, "passed": False}
    suite = suites(sample(parity=[row]))["vitdeploy.parity"]
    (failure,) = suite.iter("failure")
    assert "differs from torch by 0.5" in failure.get("message")
    assert "allowed is 0.0001" in failure.get("message")


def test_names_that_xml_cannot_hold_do_not_break_it():
    properties = {
        item.get("name"): item.get("value")
        for item in suites(failing_sample())["vitdeploy.gates"].iter("property")
    }
    assert properties["model"] == "<script>alert('x')</script> & \"co\""
    assert "\x00" not in WRITERS["junit"].render(failing_sample())
