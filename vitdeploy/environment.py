"""What a figure was measured on and with: processor, system, versions."""

import os
import platform
from importlib import metadata

import psutil

from vitdeploy.cpu import cpu_has, cpu_name
from vitdeploy.version import __version__

PACKAGES = (
    "torch",
    "timm",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxsim",
    "openvino",
    "nncf",
    "numpy",
)


def describe_environment() -> dict[str, str]:
    """Return processor, memory, system and versions; nothing that names the machine."""
    features = [name for name in ("vnni", "amx", "bf16") if cpu_has(name)]
    return {
        "cpu": cpu_name(),
        "cpu_features": " ".join(features) or "none of vnni, amx, bf16",
        "cores": str(psutil.cpu_count(logical=False) or os.cpu_count() or 1),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of vitdeploy and of the packages that shape its results."""
    versions = {"vitdeploy": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
