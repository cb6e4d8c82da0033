"""What `profile` and `doctor` show has the figures; what was not measured is a dash."""

import pytest

from tests.test_display import row, shown
from vitdeploy.display_profile import print_examination, print_profile
from vitdeploy.doctor import Examination, Finding
from vitdeploy.profiling import report_of_profile
from vitdeploy.report.profile import (
    ArtefactWork,
    Ceilings,
    LayerWork,
    LoadRow,
    MachineRow,
    ProfileResult,
    Ratio,
    RooflineResult,
    TimingRow,
)

FEW = "3 rounds"


def timing(name: str, ratio: Ratio | None, **changes) -> TimingRow:
    facts = {
        "name": name, "part": "model", "engine": "onnxruntime 1.0", "device": "cpu",
        "precision": "int8", "batch": 1, "streams": 1, "threads": 2, "samples": 50, "rounds": 10,
        "p50_ms": 1.25, "p90_ms": 1.5, "p99_ms_reason": "50 samples", "mean_ms": 1.3,
        "jitter_ms": 0.02, "spread_percent": 2.0, "quantiles_ms": tuple(range(1, 22)),
        "throughput_ips": 800.0, "ratio": ratio, "ratio_reason": None if ratio else "none",
        "energy_mj_reason": "no counter", **changes,
    }  # fmt: skip
    return TimingRow(**facts)


def load(name: str) -> LoadRow:
    return LoadRow(
        name=name,
        part="model",
        streams=1,
        size_bytes=2_500_000,
        load_ms=31.0,
        first_ms=4.0,
        warmup_runs=12,
        is_warm=name == "[red]a",
        engine_peak_bytes=40_000_000,
        process_peak_bytes_reason="shared",
    )


def result(**changes) -> ProfileResult:
    missing = dict.fromkeys(
        ("pinned_cpus", "load_1m", "steal_percent", "others_percent", "throttled_percent"), None
    )
    reasons = {f"{name}_reason": "not told" for name in (*missing, "frequency_mhz", "idle_watts")}
    machine = MachineRow(is_noisy=True, findings=("others ran",), spread_percent=2.0, **reasons)
    facts = {
        "reference": "[red]a", "device": "cpu", "is_isolated": False, "seconds": 1.0,
        "timings": (
            timing("[red]a", Ratio(value=1.0, low_reason=FEW, high_reason=FEW)),
            timing("b", Ratio(value=2.5, low=2.25, high=2.75)),
        ),
        "speedup": {"b": Ratio(value=2.5, low=2.25, high=2.75)},
        "loads": (load("[red]a"), load("b")), "machine": machine,
        "roofline_reason": "not asked for", "notes": ("noisy machine: others ran",), **changes,
    }  # fmt: skip
    return ProfileResult(**facts)


def test_a_profile_shows_times_ratios_and_costs(capsys: pytest.CaptureFixture[str]):
    print_profile(report_of_profile(result()))
    text = shown(capsys)
    assert row(text, "[red]a") == [
        *("model", "int8", "onnxruntime 1.0", "1", "1 x 2", "1.25", "1.5", "-", "0.02"),
        *("800", "1.00x"),
    ]
    assert row(text, "b")[-1] == "2.50x (2.25 to 2.75)"
    loads = text[text.index("Loading and memory") :]
    assert row(loads, "[red]a") == ["model", "1", "2.5", "31", "4", "12", "40", "-"]
    assert row(loads, "b")[5] == "12, still falling"
    assert "note: noisy machine: others ran" in text
    assert "mJ/image" not in text


def test_energy_is_a_column_where_it_was_measured(capsys: pytest.CaptureFixture[str]):
    energy = {"energy_mj": 12.5, "energy_mj_reason": None}
    rows = (timing("[red]a", None, **energy), timing("b", None, p99_ms=3.0, p99_ms_reason=None))
    print_profile(report_of_profile(result(timings=(rows[0],))))
    text = shown(capsys)
    assert "mJ/image" in text
    assert row(text, "[red]a")[-2:] == ["-", "12.5"]


def test_the_roofline_is_two_tables(capsys: pytest.CaptureFixture[str]):
    layer = {
        "kind": "MatMul", "milliseconds": 0.5, "share_percent": 40.0, "bytes": 10,
        "is_memory_bound": True,
    }  # fmt: skip
    layers = (
        LayerWork(name="fc1", type="int8", macs=4_000_000, utilisation_percent=31.0, **layer),
        LayerWork(
            name="norm", type="fp32", macs_reason="no", utilisation_percent_reason="no", **layer
        ),
    )
    work = ArtefactWork(
        name="b", part="model", precision="int8", batch=1, macs={"int8": 4_000_000},
        bytes=2_000_000, p50_ms=1.0, limit_ms=0.25, compute_percent=25.0, bandwidth_percent=12.5,
        utilisation_percent=25.0, products_percent=80.0, layers=layers,
    )  # fmt: skip
    ceilings = Ceilings(
        tops={"fp32": 0.5, "bf16": None},
        tops_reason={"bf16": "none here"},
        bandwidth_gbs=20.0,
        threads=2,
        measured_with="openvino 1.0",
    )
    roofline = RooflineResult(
        ceilings=ceilings, artefacts=(work,), skipped={"a/model": "it does not tell"}
    )
    print_profile(report_of_profile(result(roofline=roofline, roofline_reason=None)))
    text = shown(capsys)
    assert "ceilings on 2 thread(s): fp32 0.5 TOPS; memory 20 GB/s" in text
    far = text[text.index("How far from the limit") :]
    assert row(far, "b") == [
        *("model", "1", "0.004", "2", "1", "0.25", "25.0", "12.5", "25.0"),
    ]
    assert row(far, "fc1") == ["MatMul", "int8", "40.0", "0.004", "31 (memory)"]
    assert row(far, "norm") == ["MatMul", "fp32", "40.0", "-", "-"]
    assert "no roofline of a/model: it does not tell" in text


def test_a_machine_and_its_troubles_are_shown(capsys: pytest.CaptureFixture[str]):
    trouble = Finding("warning", "[b]slow[/b] disk", "buy another")
    print_examination(Examination({"[red]": "[/]"}, (trouble,)), as_json=False)
    text = shown(capsys)
    assert row(text, "[red]") == ["[/]"]
    assert "warning: [b]slow[/b] disk\n  mend: buy another" in text
    print_examination(Examination({}, ()), as_json=False)
    assert "Nothing known to go wrong" in shown(capsys)
