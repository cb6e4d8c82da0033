"""Every known trouble is found where it is, and nowhere else, with something to do about it."""

import dataclasses

import pytest

from vitdeploy import doctor
from vitdeploy.doctor import Facts, examine, findings_of

QUIET = Facts(
    packages={"onnxruntime": "1.23.0", "numpy": "2.1.0", "torch": "2.9.0", "openvino": "2025.3.0"},
    requirements={"torchvision": ["torch==2.9.0", "gdown; extra == 'gdown'", "numpy"]},
    features=frozenset({"vnni"}),
    system="Linux",
    machine="x86_64",
    cpus=4,
    quota_cpus=None,
    memory_gib=16.0,
    free_gib={"temporary files": 50.0, "here": 50.0},
    is_glibc=True,
    has_nvidia_gpu=False,
    has_intel_device={"GPU": False, "NPU": False},
    ort_providers=("CPUExecutionProvider",),
    openvino_devices={"CPU": "a CPU"},
    governor="performance",
)


def changed(**changes) -> Facts:
    return dataclasses.replace(QUIET, **changes)


def packages(**versions: str) -> dict[str, str]:
    return {**QUIET.packages, **{name.replace("_", "-"): v for name, v in versions.items()}}


def test_nothing_is_found_where_nothing_is_wrong():
    assert findings_of(QUIET) == ()


@pytest.mark.parametrize(
    ("facts", "severity", "what", "mend"),
    [
        (
            changed(packages=packages(torch="2.8.0")),
            *("error", "torchvision needs torch==2.9.0, and torch 2.8.0", "pip install 'torch"),
        ),
        (
            changed(requirements={"timm": ["safetensors>=0.4"]}),
            *("error", "safetensors>=0.4, which is not installed", "pip install 'safetensors"),
        ),
        (
            changed(packages=packages(onnxruntime_gpu="1.23.0")),
            *("error", "onnxruntime and onnxruntime-gpu are both", "pip uninstall -y onnxruntime "),
        ),
        (
            changed(packages=packages(onnxruntime="1.18.1")),
            *("error", "compiled for NumPy 1", "onnxruntime>=1.20"),
        ),
        (changed(features=frozenset()), "warning", "no VNNI", "export on, or for"),
        (changed(features=frozenset({"vnni", "bf16"})), "warning", "in bf16", "PRECISION_HINT"),
        (changed(has_nvidia_gpu=True), "warning", "no CUDA provider", "onnxruntime-gpu"),
        (
            changed(has_intel_device={"GPU": True, "NPU": False}),
            *("warning", "Intel GPU", "group render"),
        ),
        (changed(quota_cpus=1.5), "warning", "may use 1.5 CPUs and sees 4", "--threads 1"),
        (changed(variables={"OMP_NUM_THREADS": "1"}), "warning", "OMP_NUM_THREADS=1", "unset"),
        (changed(variables={"MALLOC_ARENA_MAX": "1"}), "warning", "wait for each", "unset"),
        (changed(memory_gib=2.0), "warning", "2.0 GiB of memory", "larger machine"),
        (
            changed(free_gib={"temporary files": 1.0, "here": 9.0}),
            *("warning", "1.0 GiB of disk free for temporary files", "TMPDIR"),
        ),
        (changed(is_glibc=False), "error", "not glibc", "Debian"),
        (changed(governor="powersave"), "warning", "'powersave'", "performance"),
    ],
)
def test_each_trouble_is_found_with_its_mend(facts: Facts, severity: str, what: str, mend: str):
    found = [finding for finding in findings_of(facts) if what in finding.what]
    assert [finding.severity for finding in found] == [severity]
    assert mend in found[0].mend


def test_an_arm_cpu_needs_no_vnni_and_other_systems_no_glibc():
    assert findings_of(changed(machine="aarch64", features=frozenset())) == ()
    assert findings_of(changed(system="Darwin", is_glibc=False)) == ()


def test_errors_come_first():
    facts = changed(is_glibc=False, memory_gib=1.0)
    assert [finding.severity for finding in findings_of(facts)] == ["error", "warning"]


def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch):
    seen = dataclasses.replace(doctor.look(), packages=packages(onnxruntime_gpu="1.23.0"))
    monkeypatch.setattr(doctor, "look", lambda: seen)
    told = examine().to_dict()
    # the names of before, and those that came with the findings
    for name in ("cpu", "cpu_features", "allocator", "target onnx", "gpu", "openvino_devices"):
        assert isinstance(told[name], str)
        assert told[name]
    findings = told["findings"]
    assert isinstance(findings, list)
    assert any("both installed" in finding["what"] for finding in findings)
