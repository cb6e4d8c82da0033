"""TensorRT on the device: the package `trt/`, building it, and showing what was found there.

`package` writes the folder, `onboard` is what runs on the device (standard library and tensorrt
only), `building` runs the same code for `vitdeploy build`, `section` shows its report. Making the
graphs is `targets`'.
"""

from vitdeploy.device.building import build_bundle, read_device_report
from vitdeploy.device.onboard.candidates import BuildOptions
from vitdeploy.device.onboard.contents import InputSpec
from vitdeploy.device.package import cases_from_arrays, write_package
from vitdeploy.device.parts import (
    PackageCase,
    PackageGraph,
    PackageOptions,
    PackagePart,
    graph_from_file,
)
from vitdeploy.device.section import device_section

__all__ = [
    "BuildOptions",
    "InputSpec",
    "PackageCase",
    "PackageGraph",
    "PackageOptions",
    "PackagePart",
    "build_bundle",
    "cases_from_arrays",
    "device_section",
    "graph_from_file",
    "read_device_report",
    "write_package",
]
