"""`vitdeploy build`: the device's own code, run on a bundle that lies on the device.

What is built and how is in `onboard`; here its failures become the project's errors.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitdeploy.bundle import load_bundle, verify
from vitdeploy.device.onboard.candidates import BuildOptions
from vitdeploy.device.onboard.contents import PACKAGE_NAME
from vitdeploy.device.onboard.failure import (
    BUILD,
    MEASUREMENT,
    MISMATCH,
    MISSING,
    USAGE,
    Failure,
)
from vitdeploy.device.onboard.main import (
    REPORT_FORMAT,
    REPORT_NAME,
    REPORT_SCHEMA_VERSION,
    DeviceOutcome,
    build_package,
    sizes_from_texts,
)
from vitdeploy.errors import (
    DataError,
    ExportError,
    GateError,
    UnsupportedError,
    UsageError,
    VitdeployError,
)

TRT_FOLDER = "trt"
_ERRORS: dict[int, type[VitdeployError]] = {
    USAGE: UsageError,
    BUILD: ExportError,
    MISSING: UnsupportedError,
    MEASUREMENT: DataError,
    MISMATCH: GateError,
}


def build_bundle(path: Path, options: BuildOptions) -> DeviceOutcome:
    """Build the engines of a bundle's TensorRT package on this machine, beside the package.

    Engines and `trt/device_report.json` are no files of the manifest, so the bundle's hashes
    still hold. Where the outcome has a failure, `raise_failure` makes it an error.

    Raises:
        UsageError: there is no bundle, it has no TensorRT package, or an option does not fit it.
        DataError: a file is damaged, or the folder cannot be written.
        UnsupportedError: this machine has no tensorrt or no GPU.
    """
    bundle = load_bundle(path)
    verify(bundle)
    folder = bundle.path / TRT_FOLDER
    if not (folder / PACKAGE_NAME).is_file():
        targets = sorted({entry.target for entry in bundle.manifest.parts})
        raise UsageError(
            f"The bundle '{path}' has nothing to build: it was made for {', '.join(targets)}. "
            "Export with --target trt."
        )
    try:
        return build_package(folder, options)
    except Failure as failure:
        raise error_from_failure(failure) from failure


def raise_failure(outcome: DeviceOutcome) -> None:
    """Raise the error of an outcome that is no success; its report was written all the same.

    Raises:
        GateError: an engine does not do what the model does.
        ExportError: TensorRT built none.
        UnsupportedError: trtexec built alone, and nothing was compared.
        DataError: a measurement failed.
    """
    if outcome.failure:
        raise error_from_failure(outcome.failure) from outcome.failure


def sizes_of(texts: Sequence[str]) -> dict[str, int]:
    """Return `{"batch": 4}` of `["batch=4"]`.

    Raises:
        UsageError: a text is something else.
    """
    try:
        return sizes_from_texts(texts)
    except Failure as failure:
        raise error_from_failure(failure) from failure


def error_from_failure(failure: Failure) -> VitdeployError:
    """Return the project's error with the same exit code and words."""
    return _ERRORS[failure.exit_code](str(failure))


def read_device_report(bundle: Path) -> dict[str, Any] | None:
    """Return what a build on the device reported in the bundle folder, None where none was made.

    Raises:
        DataError: the file is damaged.
        UnsupportedError: a newer vitdeploy wrote it.
    """
    path = bundle / TRT_FOLDER / REPORT_NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read '{path}': {error}. Build again on the device.") from error
    if not isinstance(data, dict) or data.get("format") != REPORT_FORMAT:
        raise DataError(f"'{path}' is no {REPORT_FORMAT}. Build again on the device.")
    if data.get("schema_version") != REPORT_SCHEMA_VERSION:
        raise UnsupportedError(
            f"'{path}' has schema_version {data.get('schema_version')}; this vitdeploy reads "
            f"{REPORT_SCHEMA_VERSION}. Upgrade vitdeploy."
        )
    return data
