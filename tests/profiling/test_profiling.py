"""`profile_artifacts` on real engines: every figure is there or says why not."""

import os
from pathlib import Path

import pytest

from vitdeploy.errors import DataError, ExportError, ModelError, UnsupportedError, UsageError
from vitdeploy.profiling import ProfileOptions, profile_artifacts, report_of_profile
from vitdeploy.report.profile import ProfileResult


@pytest.fixture(scope="module")
def result(onnx_file: Path, ir_file: Path) -> ProfileResult:
    options = ProfileOptions(batches=(1, 4), streams=(1, 2), seconds=0.6, threads=1)
    return profile_artifacts([onnx_file, ir_file], options)


def test_every_artefact_batch_and_stream_is_a_row(result: ProfileResult):
    seen = [(row.name, row.batch, row.streams) for row in result.timings]
    assert seen == [
        (name, batch, streams)
        for name in ("tiny.onnx", "tiny.xml")
        for streams in (1, 2)
        for batch in (1, 4)
    ]


def test_a_row_s_figures_agree_with_each_other(result: ProfileResult):
    for row in result.timings:
        assert 0 < row.quantiles_ms[0] <= row.p50_ms <= row.p90_ms <= row.quantiles_ms[-1]
        assert row.quantiles_ms[10] == pytest.approx(row.p50_ms)
        assert row.samples >= row.rounds >= 3
        assert row.threads == 1
        if row.streams == 1:
            assert row.throughput_ips == pytest.approx(1000 * row.batch / row.p50_ms)
            assert row.jitter_ms is not None
        else:
            assert "overlap" in str(row.jitter_ms_reason)


def test_ratios_are_against_the_first_at_the_same_batch_and_streams(result: ProfileResult):
    assert result.reference == "tiny.onnx"
    own = [row.ratio for row in result.timings if row.name == "tiny.onnx"]
    assert all(ratio is not None and ratio.value == 1.0 for ratio in own)
    assert all(row.ratio is not None for row in result.timings)
    assert result.speedup["tiny.onnx"].value == 1.0
    assert result.speedup["tiny.xml"].value > 0


def test_loading_memory_and_size_are_measured(result: ProfileResult, onnx_file: Path):
    for row in result.loads:
        assert row.load_ms > 0
        assert row.first_ms > 0
        assert row.warmup_runs > 1
        assert "--isolate" in str(row.process_peak_bytes_reason)
    assert result.loads[0].size_bytes == onnx_file.stat().st_size
    binary = onnx_file.with_suffix(".bin").stat().st_size
    ir_size = onnx_file.with_suffix(".xml").stat().st_size + binary
    assert result.loads[2].size_bytes == ir_size


def test_threads_are_pinned_while_it_runs_and_free_again_after(result: ProfileResult):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no call to pin a process")
    assert result.machine.pinned_cpus is not None
    assert len(result.machine.pinned_cpus) == 1
    assert len(os.sched_getaffinity(0)) == os.cpu_count() or result.machine.pinned_cpus == (0,)


def test_it_passes_through_json_and_becomes_a_report(result: ProfileResult):
    assert ProfileResult.model_validate_json(result.model_dump_json()) == result
    report = report_of_profile(result)
    assert [(row.target, row.batch) for row in report.latency] == [
        *(("tiny.onnx", 1), ("tiny.onnx", 4), ("tiny.xml", 1), ("tiny.xml", 4))
    ]
    assert report.speedup["tiny.onnx"] == 1.0
    assert report.size_bytes["tiny.onnx"] == result.loads[0].size_bytes
    assert report.profile == result


def test_a_process_each_tells_the_memory_of_each(onnx_file: Path, ir_file: Path):
    options = ProfileOptions(seconds=0.1, threads=1, is_isolated=True)
    result = profile_artifacts([onnx_file, ir_file], options)
    assert result.is_isolated
    ort, openvino = (row.process_peak_bytes or 0 for row in result.loads)
    # each holds numpy and one engine: more than Python alone, less than this process
    assert 30e6 < ort < 500e6
    assert 30e6 < openvino < 500e6
    assert all(row.samples > 3 for row in result.timings)


def test_the_roofline_has_each_artefact_that_can_be_counted(
    onnx_file: Path, ir_file: Path, monkeypatch: pytest.MonkeyPatch
):
    from vitdeploy.profiling import limits
    from vitdeploy.report.profile import Ceilings

    ceilings = Ceilings(
        tops={"fp32": 0.1, "int8": 0.4, "bf16": 0.2},
        bandwidth_gbs=10.0,
        threads=1,
        measured_with="given",
    )
    monkeypatch.setattr(limits, "ceilings_of_machine", lambda threads, folder: ceilings)
    options = ProfileOptions(batches=(4,), seconds=0.1, threads=1, with_roofline=True)
    result = profile_artifacts([onnx_file, ir_file, "vit-digits"], options)
    roofline = result.roofline
    assert roofline is not None
    first, second, model = roofline.artefacts
    assert (first.name, second.name, model.name) == ("tiny.onnx", "tiny.xml", "vit-digits:onnx")
    assert sum(first.macs.values()) == sum(second.macs.values())
    assert first.batch == 4
    assert 0 < first.limit_ms < first.p50_ms
    assert list(roofline.skipped) == ["vit-digits:torch/model"]
    assert "not counted" in roofline.skipped["vit-digits:torch/model"]
    # a model's name is its torch module and the FP32 graph of it
    torch_row, onnx_row = result.timings[2:]
    assert (torch_row.name, onnx_row.name) == ("vit-digits:torch", "vit-digits:onnx")
    assert (torch_row.threads, onnx_row.threads) == (1, 1)
    torch_load, onnx_load = result.loads[2:]
    assert torch_load.size_bytes == pytest.approx(onnx_load.size_bytes, rel=0.05)


def test_an_error_in_another_process_is_the_same_error(tmp_path: Path, onnx_file: Path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_file.read_bytes().replace(b"LayerNormalization", b"LayerNormalizatioX"))
    for isolated in (False, True):
        with pytest.raises(ExportError, match=r"cannot load 'broken\.onnx'"):
            profile_artifacts([broken], ProfileOptions(seconds=0.0, is_isolated=isolated))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": (0,)}, "--batch 0"),
        ({"batches": (1, 1)}, "each once"),
        ({"streams": ()}, "--streams nothing"),
        ({"seconds": float("nan")}, "finite seconds"),
        ({"threads": 0}, "threads"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_options_out_of_range_are_refused(onnx_file: Path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        profile_artifacts([onnx_file], ProfileOptions(**changes))


@pytest.mark.parametrize(
    ("device", "missing"),
    [
        ("cuda", "CUDAExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("gpu", "compute-runtime"),
        ("npu", "linux-npu-driver"),
    ],
)
def test_a_device_that_is_absent_is_named(
    onnx_file: Path, device: str, missing: str, monkeypatch: pytest.MonkeyPatch
):
    import onnxruntime
    import openvino

    class Core:
        available_devices = ("CPU",)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(UnsupportedError, match=missing):
        profile_artifacts([onnx_file], ProfileOptions(device=device))


def test_what_is_no_artefact_is_refused(tmp_path: Path, onnx_file: Path):
    options = ProfileOptions(seconds=0.0)
    with pytest.raises(UsageError, match="needs an artefact"):
        profile_artifacts([], options)
    with pytest.raises(UsageError, match="same name"):
        profile_artifacts([onnx_file, onnx_file], options)
    with pytest.raises(UsageError, match="is not a bundle"):
        profile_artifacts([tmp_path], options)
    with pytest.raises(UsageError, match="no ONNX file"):
        profile_artifacts(["absent.onnx"], options)
    with pytest.raises(ModelError, match="unknown model"):
        profile_artifacts(["absent"], options)
    for name in ("not.onnx", "not.xml"):
        (tmp_path / name).write_text("nothing")
        with pytest.raises(ExportError, match=name):
            profile_artifacts([tmp_path / name], options)


def test_an_input_of_unknown_size_is_refused(tmp_path: Path, onnx_file: Path):
    import onnx

    model = onnx.load(onnx_file)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(DataError, match="only the batch may be"):
        profile_artifacts([tmp_path / "open.onnx"], ProfileOptions(seconds=0.0))
