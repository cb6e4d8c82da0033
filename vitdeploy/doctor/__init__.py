"""`doctor`: what this machine offers, and what is known to go wrong on it, each with its mend.

`facts` looks at the machine, `checks` holds what goes wrong; a new trouble is a function there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vitdeploy.allocator import describe_allocator
from vitdeploy.doctor.checks import Finding, findings_of
from vitdeploy.doctor.facts import BESIDE, Facts, look
from vitdeploy.energy import find_energy_source
from vitdeploy.environment import describe_environment
from vitdeploy.targets import describe_targets

__all__ = ["Examination", "Facts", "Finding", "examine", "findings_of", "look"]


@dataclass(frozen=True)
class Examination:
    """Everything `doctor` says."""

    entries: Mapping[str, str]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the entries by name, and `findings`, a list."""
        return {**self.entries, "findings": [asdict(finding) for finding in self.findings]}


def examine() -> Examination:
    """Return what this machine offers and what is wrong with it."""
    facts = look()
    disks = [f"{name} {free:.1f}" for name, free in facts.free_gib.items()]
    devices = ", ".join(f"{name} ({full})" for name, full in facts.openvino_devices.items())
    settings = ", ".join(f"{k}={v}" for k, v in facts.variables.items())
    _, no_energy = find_energy_source()
    entries = {
        **describe_environment(),
        **{name: facts.packages.get(name, "not installed") for name in BESIDE},
        "gpu": "an NVIDIA GPU" if facts.has_nvidia_gpu else "no NVIDIA GPU",
        "onnxruntime_providers": ", ".join(facts.ort_providers) or "none",
        "openvino_devices": devices or "none",
        "quota_cpus": "none" if facts.quota_cpus is None else f"{facts.quota_cpus:g}",
        "governor": facts.governor or "not told",
        "free_disk_gib": ", ".join(disks),
        "energy": "told by RAPL or tegrastats" if no_energy is None else no_energy,
        "allocator": describe_allocator(),
        "variables": settings or "none that matter",
        **describe_targets(),
    }
    return Examination(entries, findings_of(facts))
