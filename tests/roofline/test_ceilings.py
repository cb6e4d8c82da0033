"""Ceilings are measured once and kept; a damaged file is measured again."""

import os
from pathlib import Path

import pytest

from vitdeploy.openvino_core import openvino_core
from vitdeploy.report.profile import Ceilings
from vitdeploy.roofline import ceilings
from vitdeploy.roofline.ceilings import ceilings_of_machine, ceilings_path, measure_ceilings


@pytest.fixture(scope="module")
def measured() -> Ceilings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "_SECONDS", 0.02)
        patch.setattr(ceilings, "_LEAST_RUNS", 2)
        patch.setattr(ceilings, "_SHAPES", ((256, 512, 512),))
        patch.setattr(ceilings, "_COPIED_BYTES", 2**24)
        return measure_ceilings(1)


def test_every_type_is_measured_or_says_why_not(measured: Ceilings):
    assert set(measured.tops) == {"fp32", "bf16", "fp16", "int8"}
    for kind, tops in measured.tops.items():
        if tops is None:
            assert kind in measured.tops_reason
        else:
            # from a slow core of a small board to a fast one of a server, shared with others
            assert 1e-4 < tops < 20
    assert measured.bandwidth_gbs > 0.05
    assert measured.threads == 1


def test_int8_is_the_engine_s_int8_and_not_its_float(measured: Ceilings):

    for model in (ceilings._product, ceilings._pointwise):
        compiled = openvino_core().compile_model(model("int8", (64, 64, 64)), "CPU")
        nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
        types = {
            node["runtimePrecision"].astype(str)
            for node in nodes
            if node["layerType"].astype(str) in ("FullyConnected", "Convolution")
        }
        assert types
        assert types <= {"u8", "i8"}
    assert measured.tops["int8"] is not None


def test_it_is_measured_once(measured: Ceilings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    times: list[int] = []

    def measure(threads: int) -> Ceilings:
        times.append(threads)
        return measured

    monkeypatch.setattr(ceilings, "measure_ceilings", measure)
    folder = tmp_path / "new"
    assert ceilings_of_machine(1, folder) == measured
    assert ceilings_of_machine(1, folder) == measured
    assert times == [1]
    assert len(list(folder.iterdir())) == 1
    ceilings_of_machine(2, folder)
    assert times == [1, 2]
    ceilings_path(1, folder).write_text("{damaged")
    assert ceilings_of_machine(1, folder) == measured
    assert times == [1, 2, 1]


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ceilings_path(1).parent == tmp_path / "vitdeploy"
    monkeypatch.setattr(os, "cpu_count", lambda: 77)
    assert ceilings_path(1) != ceilings_path(2)


def test_a_folder_that_cannot_be_written_costs_only_time(
    measured: Ceilings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda threads: measured)
    (tmp_path / "file").write_text("")
    assert ceilings_of_machine(1, tmp_path / "file") == measured
