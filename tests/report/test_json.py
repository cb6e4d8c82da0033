"""`report.json` is the golden file byte for byte and never holds NaN."""

import json

import pytest

from tests.report.__main__ import GOLDEN
from tests.report.samples import failing_sample, sample
from vitdeploy.report import WRITERS, FidelityRow, Report


def test_the_golden_report_comes_back_byte_for_byte():
    text = GOLDEN.read_text(encoding="utf-8")
    assert WRITERS["json"].render(Report.model_validate_json(text)) == text
    assert WRITERS["json"].render(sample()) == text, "run python -m tests.report"


def test_keys_are_in_a_stable_order():
    shuffled = sample(
        environment=dict(reversed(sample().environment.items())),
        size_bytes=dict(reversed(sample().size_bytes.items())),
    )
    assert WRITERS["json"].render(shuffled) == WRITERS["json"].render(sample())
    data = json.loads(WRITERS["json"].render(sample()))
    assert list(data) == list(Report.model_fields)


def test_nan_that_got_past_the_schema_is_refused():
    row = FidelityRow.model_construct(
        **{**sample().fidelity[0].model_dump(), "value": float("nan")}
    )
    for changes in ({"speedup": {"onnx": float("inf")}}, {"fidelity": (row,)}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            WRITERS["json"].render(sample().model_copy(update=changes))


def test_names_keep_their_letters():
    assert json.loads(WRITERS["json"].render(failing_sample()))["model"]["name"].startswith("<scr")
