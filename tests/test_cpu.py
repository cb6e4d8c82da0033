"""Processor features, read from texts of processors that this machine need not have."""

import platform
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import psutil
import pytest
from openvino import opset13 as ops

from vitdeploy import cpu
from vitdeploy.cpu import cpu_has, cpu_name, has_core_kinds, has_sibling_threads
from vitdeploy.openvino_core import openvino_core
from vitdeploy.targets import openvino

ICE_LAKE = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bitalg

processor\t: 1
flags\t\t: fpu
"""
SAPPHIRE_RAPIDS = "flags : avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8\n"
ALDER_LAKE = "flags : avx2 avx_vnni\n"
HASWELL = "model name : Intel(R) Core(TM) i7-4770\nflags : fpu sse2 avx2 fma\n"
CORTEX_A76 = "BogoMIPS : 108.00\nFeatures : fp asimd aes asimddp\n"
CORTEX_A53 = "Features : fp asimd aes\n"
# Whole words only: this is no flag of ours, though it begins with one.
LOOKALIKE = "flags : amx_tiles xavx_vnni\n"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the module another /proc/cpuinfo."""

    def use(text: str) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(cpu, "_cpuinfo", lambda: text)
        forget()

    yield use
    monkeypatch.undo()
    forget()


def forget() -> None:
    cpu._flags.cache_clear()
    cpu.cpu_name.cache_clear()


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (ICE_LAKE, {"vnni"}),
        (SAPPHIRE_RAPIDS, {"vnni", "amx", "bf16"}),
        (ALDER_LAKE, {"vnni"}),
        (HASWELL, set()),
        # Arm's dot product does not saturate, so INT8 may use all 8 bits as with VNNI
        (CORTEX_A76, {"vnni", "dot"}),
        (CORTEX_A53, set()),
        (LOOKALIKE, set()),
        ("", set()),
    ],
)
def test_features(text: str, features: set[str], pretend: Callable[[str], None]):
    pretend(text)
    assert {name for name in ("vnni", "amx", "bf16", "dot") if cpu_has(name)} == features


def test_an_unknown_feature_is_a_bug():
    with pytest.raises(KeyError):
        cpu_has("sse")


def test_name(pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch):
    pretend(ICE_LAKE)
    assert cpu_name() == "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    pretend(CORTEX_A76)
    assert cpu_name() == "aarch64"


def test_the_scheme_of_onnx_runtime_follows_the_cpu(pretend: Callable[[str], None]):
    """u8 x s8 products saturate in 16 bits where VNNI is missing."""
    from vitdeploy.targets import load_target

    pretend(HASWELL)
    assert load_target("onnx").quant_scheme().weight_bits == 7
    pretend(ICE_LAKE)
    assert load_target("onnx").quant_scheme().weight_bits == 8


@pytest.mark.parametrize(
    ("cores", "threads", "has"), [(4, 8, True), (4, 4, False), (None, 8, False)]
)
def test_sibling_threads(cores, threads, has, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: threads if logical else cores)
    assert has_sibling_threads() is has


def test_core_kinds_are_those_that_linux_lists(tmp_path: Path):
    assert not has_core_kinds(tmp_path)
    (tmp_path / "cpu_core").mkdir()
    assert not has_core_kinds(tmp_path)
    (tmp_path / "cpu_atom").mkdir()
    assert has_core_kinds(tmp_path)


def test_openvino_names_the_kinds_of_cores_and_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino, "has_core_kinds", lambda: True)
    monkeypatch.setattr(openvino, "has_sibling_threads", lambda: True)
    ways = openvino.scheduling()
    assert {name for way in ways for name in way} == {
        "SCHEDULING_CORE_TYPE",
        "ENABLE_HYPER_THREADING",
    }
    value = ops.parameter([1], ov.Type.f32)
    for way in ways:  # it raises for what it does not know
        openvino_core().compile_model(ov.Model([ops.relu(value)], [value]), "CPU", dict(way))
