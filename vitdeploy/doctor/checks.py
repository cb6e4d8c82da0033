"""What is known to go wrong, each a function of the facts and of nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement

from vitdeploy.doctor.facts import Facts, normal_name

Severity = Literal["error", "warning"]

_SHARED_MODULES = {
    "onnxruntime": (
        *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
        *("onnxruntime-qnn", "onnxruntime-training"),
    ),
}
"""Packages that bring one module: the one installed last wins, and removing one breaks both."""
_LEAST_MEMORY_GIB = 4.0
_LEAST_DISK_GIB = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or will be."""

    severity: Severity
    """`error`: something fails; `warning`: something is slower or less exact than it could be."""
    what: str
    mend: str


def findings_of(facts: Facts) -> tuple[Finding, ...]:
    """Return what is wrong, errors first."""
    found = [finding for check in CHECKS for finding in check(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _requirements_hold(facts: Facts) -> list[Finding]:
    """Every package has what it asks for: torchvision its torch, vitdeploy its least versions."""
    found = []
    for name, lines in facts.requirements.items():
        for line in lines:
            try:
                wanted = Requirement(line)
            except InvalidRequirement:
                continue
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            seen = facts.packages.get(normal_name(wanted.name))
            bounds = f"{wanted.name}{wanted.specifier}"
            if seen is None:
                what = f"{name} needs {bounds}, which is not installed"
            elif not wanted.specifier.contains(seen, prereleases=True):
                what = f"{name} needs {bounds}, and {wanted.name} {seen} is installed"
            else:
                continue
            found.append(Finding("error", what, f"pip install '{bounds}'"))
    return found


def _one_package_a_module(facts: Facts) -> list[Finding]:
    found = []
    for module, names in _SHARED_MODULES.items():
        both = [name for name in names if name in facts.packages]
        if len(both) > 1:
            what = f"{' and '.join(both)} are both installed, and both bring '{module}'"
            mend = f"pip uninstall -y {' '.join(both)}, then install the one you want"
            found.append(Finding("error", what, mend))
    return found


def _numpy_fits(facts: Facts) -> list[Finding]:
    """ONNX Runtime before 1.19 was compiled for NumPy 1 and does not say so in its metadata."""
    numpy, runtime = facts.packages.get("numpy"), facts.packages.get("onnxruntime")
    if not numpy or not runtime:
        return []
    if int(numpy.split(".")[0]) < 2 or not Requirement("x<1.19").specifier.contains(runtime):
        return []
    what = f"onnxruntime {runtime} was compiled for NumPy 1 and numpy {numpy} is installed"
    return [Finding("error", what, "pip install 'onnxruntime>=1.20'")]


def _cpu_multiplies_int8(facts: Facts) -> list[Finding]:
    if "vnni" in facts.features or facts.machine not in ("x86_64", "amd64"):
        return []
    what = (
        "this CPU has no VNNI: its INT8 products saturate at 16 bits, so weights of artefacts that "
        "are made here have 7 bits, and INT8 gains little time"
    )
    mend = "export on, or for, a CPU with VNNI; an artefact with 8-bit weights is wrong here"
    return [Finding("warning", what, mend)]


def _openvino_computes_fp32(facts: Facts) -> list[Finding]:
    if "bf16" not in facts.features or "openvino" not in facts.packages:
        return []
    what = "OpenVINO computes FP32 models in bf16 on this CPU unless it is told otherwise"
    mend = (
        "nothing for bundles, which tell it; in your own code pass "
        "{'INFERENCE_PRECISION_HINT': 'f32'} to compile_model"
    )
    return [Finding("warning", what, mend)]


def _gpu_is_used(facts: Facts) -> list[Finding]:
    if not facts.has_nvidia_gpu:
        return []
    found = []
    if "CUDAExecutionProvider" not in facts.ort_providers:
        what = "there is an NVIDIA GPU, and this ONNX Runtime has no CUDA provider"
        mend = "for profile --device cuda: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        found.append(Finding("warning", what, mend))
    if not {"tensorrt", "tensorrt-rtx"} & set(facts.packages):
        what = "there is an NVIDIA GPU, and no TensorRT: trt artefacts run on ONNX Runtime here"
        mend = "pip install tensorrt, or tensorrt-rtx; a Jetson has it in JetPack"
        found.append(Finding("warning", what, mend))
    return found


def _intel_devices_are_used(facts: Facts) -> list[Finding]:
    found = []
    for name, driver in (("GPU", "intel-compute-runtime"), ("NPU", "intel-linux-npu-driver")):
        if facts.has_intel_device[name] and name not in facts.openvino_devices:
            what = f"there is an Intel {name}, and OpenVINO does not find it"
            group = "render, which may open /dev/dri" if name == "GPU" else "that owns /dev/accel"
            mend = f"install {driver}, and add your user to the group {group}"
            found.append(Finding("warning", what, mend))
    return found


def _threads_fit(facts: Facts) -> list[Finding]:
    found = []
    if facts.quota_cpus is not None and facts.quota_cpus < facts.cpus:
        what = (
            f"this container may use {facts.quota_cpus:g} CPUs and sees {facts.cpus}: engines "
            "start a thread for each it sees and are held back"
        )
        mend = f"give --threads {max(1, int(facts.quota_cpus))}, or pin the container to CPUs"
        found.append(Finding("warning", what, mend))
    threads = facts.variables.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) < facts.cpus:
        what = f"OMP_NUM_THREADS={threads} holds PyTorch, the reference, to {threads} thread(s)"
        found.append(Finding("warning", what, "unset it where latencies are compared"))
    return found


def _memory_and_disk_do(facts: Facts) -> list[Finding]:
    found = []
    if facts.memory_gib < _LEAST_MEMORY_GIB:
        what = f"{facts.memory_gib:.1f} GiB of memory; an export of ViT-B takes about 4"
        found.append(Finding("warning", what, "export on a larger machine and copy the bundle"))
    for name, free in facts.free_gib.items():
        if free < _LEAST_DISK_GIB:
            what = f"{free:.1f} GiB of disk free for {name}; large models need several"
            mend = "free some, or set TMPDIR" if name != "here" else "free some, or use --output"
            found.append(Finding("warning", what, mend))
    return found


def _allocator_does(facts: Facts) -> list[Finding]:
    found = []
    if facts.system == "Linux" and not facts.is_glibc:
        what = "the C library is not glibc, and torch and the engines have wheels for glibc only"
        found.append(Finding("error", what, "use an image on Debian, Ubuntu or Fedora"))
    arenas = facts.variables.get("MALLOC_ARENA_MAX")
    if arenas == "1":
        what = "MALLOC_ARENA_MAX=1: threads wait for each other whenever they allocate"
        found.append(Finding("warning", what, "unset it where latencies are measured"))
    return found


def _clock_is_steady(facts: Facts) -> list[Finding]:
    if facts.governor not in ("powersave", "ondemand", "conservative"):
        return []
    what = f"the CPU governor is '{facts.governor}': short runs are timed at a low clock"
    return [Finding("warning", what, "cpupower frequency-set -g performance, as root")]


CHECKS: tuple[Callable[[Facts], list[Finding]], ...] = (
    _requirements_hold,
    _one_package_a_module,
    _numpy_fits,
    _cpu_multiplies_int8,
    _openvino_computes_fp32,
    _gpu_is_used,
    _intel_devices_are_used,
    _threads_fit,
    _memory_and_disk_do,
    _allocator_does,
    _clock_is_steady,
)
