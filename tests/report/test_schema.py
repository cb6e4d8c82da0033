"""The schema refuses what a reader could misread, and says so; the published copy is current."""

import json
import math

import pytest
from pydantic import ValidationError

from tests.report.__main__ import GOLDEN, SCHEMA, schema_text
from tests.report.samples import failing_sample, sample, two_part_sample
from vitdeploy.errors import DataError, UnsupportedError, UsageError
from vitdeploy.report import (
    PERCENTAGES,
    ArtifactRow,
    FidelityRow,
    GateRow,
    LatencyRow,
    ModelInfo,
    Report,
    json_schema,
    read_report,
)

DESIGN_FIELDS = {
    "fidelity": {"target", "part", "metric", "reference", "value", "delta", "unit", "n"},
    "latency": {
        *("target", "engine", "precision", "batch", "threads", "p50_ms", "p90_ms", "p99_ms"),
        *("mean_ms", "samples", "throughput_ips"),
    },
    "gates": {"name", "limit", "value", "passed"},
    "stages": {"name", "seconds", "peak_rss_bytes"},
}


def latency(**changes):
    row = sample().latency[0].model_dump()
    return LatencyRow.model_validate({**row, **changes})


def fidelity(**changes):
    row = sample().fidelity[0].model_dump()
    return FidelityRow.model_validate({**row, **changes})


def test_the_published_schema_is_up_to_date():
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run python -m tests.report"


def test_the_schema_holds_the_contract():
    schema = json_schema()
    assert {"speedup", "size_bytes", "environment", "recipe_sha256"} <= set(schema["required"])
    for field, names in DESIGN_FIELDS.items():
        row = schema["$defs"][schema["properties"][field]["items"]["$ref"].rsplit("/", 1)[1]]
        assert names <= set(row["required"])
    for definition in (schema, *schema["$defs"].values()):
        reasons = {name for name in definition["properties"] if name.endswith("_reason")}
        assert {name.removesuffix("_reason") for name in reasons} <= set(definition["properties"])


def test_the_golden_report_validates():
    report = read_report(GOLDEN)
    assert report == sample()
    assert report.passed
    assert report.targets == ("onnx", "openvino")


@pytest.mark.parametrize("make", [sample, failing_sample, two_part_sample])
def test_reports_satisfy_the_published_schema(make):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema")
    data = make().model_dump(mode="json")
    jsonschema.Draft202012Validator(json_schema()).validate(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate({**data, "gates": None})


def test_a_null_needs_its_reason_and_a_value_must_have_none():
    with pytest.raises(ValidationError, match="p50_ms is null, so p50_ms_reason must say why"):
        latency(p50_ms=None)
    with pytest.raises(ValidationError, match="p50_ms_reason must say why"):
        latency(p50_ms=None, p50_ms_reason="")
    with pytest.raises(ValidationError, match="p50_ms has a value, so p50_ms_reason must be null"):
        latency(p50_ms_reason="because")
    assert latency(p50_ms=None, p50_ms_reason="no such engine here").p50_ms is None
    with pytest.raises(ValidationError, match="calibration_reason must say why"):
        sample(calibration=None)
    with pytest.raises(ValidationError, match="recipe_sha256_reason must say why"):
        sample(recipe_sha256=None)


def test_a_missing_speedup_needs_the_reason_of_its_target():
    with pytest.raises(ValidationError, match=r"exactly the keys .*: \['onnx'\], not \[\]"):
        sample(speedup={"onnx": None, "openvino": 2.0})
    with pytest.raises(ValidationError, match=r"\[\], not \['onnx'\]"):
        sample(speedup={"onnx": 1.0}, speedup_reason={"onnx": "x"})
    assert sample(speedup={"onnx": None}, speedup_reason={"onnx": "not measured"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_taken(value):
    with pytest.raises(ValidationError, match="finite number"):
        fidelity(value=value)
    with pytest.raises(ValidationError, match="finite number"):
        sample(speedup={"onnx": value})


def test_p99_of_few_samples_is_refused():
    with pytest.raises(ValidationError, match="p99_ms of 99 samples means nothing"):
        latency(samples=99)
    assert latency(samples=100).p99_ms is not None
    assert latency(samples=99, p99_ms=None, p99_ms_reason="99 samples; 100 are needed")


def test_percentiles_do_not_fall():
    with pytest.raises(ValidationError, match="percentiles must not fall"):
        latency(p50_ms=2.0, p90_ms=1.0)


@pytest.mark.parametrize("metric", sorted(PERCENTAGES))
def test_percentages_run_from_0_to_100(metric):
    with pytest.raises(ValidationError, match=r"not in 0\.\.100"):
        fidelity(metric=metric, value=100.5, unit="percent")
    assert fidelity(metric=metric, value=100.0, unit="percent").value == 100.0


def test_a_gate_without_a_value_cannot_pass():
    with pytest.raises(ValidationError, match="has no value, so it cannot pass"):
        GateRow(name="min_speedup", limit=1, value=None, value_reason="untimed", passed=True)


def test_passed_means_every_gate():
    assert not failing_sample().passed
    assert two_part_sample().passed  # no gate, nothing to fail


@pytest.mark.parametrize("path", ["/home/me/out/model.onnx", "C:\\out\\model.onnx", "a/../../b"])
def test_no_machine_path_gets_into_a_report(path):
    row = sample().artifacts[0].model_dump()
    with pytest.raises(ValidationError, match="must be relative to the bundle"):
        ArtifactRow.model_validate({**row, "path": path})


def test_time_is_utc():
    assert sample(created="2025-01-31T12:00:00+00:00")
    for created in ("2025-01-31T12:00:00", "2025-01-31T12:00:00+02:00", "yesterday"):
        with pytest.raises(ValidationError):
            sample(created=created)


def test_unknown_fields_and_changes_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        sample(accuracy=1.0)
    with pytest.raises(ValidationError, match="frozen"):
        sample().notes = ()
    with pytest.raises(ValidationError, match="weights"):
        ModelInfo.model_validate({**sample().model.model_dump(), "weights": "stolen"})


def test_reading_says_what_is_wrong_with_the_file(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(UsageError, match="There is no report"):
        read_report(path)
    path.write_text("{")
    with pytest.raises(DataError, match="Cannot read the report"):
        read_report(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="is not a report"):
        read_report(path)
    data = json.loads(GOLDEN.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, "schema_version": 2}))
    with pytest.raises(UnsupportedError, match="schema_version 2"):
        read_report(path)
    path.write_text(json.dumps({**data, "model": {}, "surprise": 1}))
    with pytest.raises(DataError) as caught:
        read_report(path)
    assert "model.name: Field required" in str(caught.value)
    assert "surprise: Extra inputs" in str(caught.value)


def test_reading_takes_every_report_back_unchanged(tmp_path):
    for make in (sample, failing_sample, two_part_sample):
        path = tmp_path / "report.json"
        path.write_text(make().model_dump_json())
        assert read_report(path) == make()
        assert isinstance(read_report(path), Report)
