"""Small packages for the stand-ins: their "ONNX" files are JSON with a matrix (see `standin`)."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitdeploy.device import (
    InputSpec,
    PackageGraph,
    PackageOptions,
    PackagePart,
    cases_from_arrays,
    write_package,
)

STANDIN = Path(__file__).parent / "standin"
WIDTH, CLASSES, IMAGES, MOST_IMAGES = 12, 5, 4, 8
# INT8 is the faster one, as it should be; the times are made up.
MILLISECONDS = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
GRAPHS = (("fp16", "strong"), ("fp16", "weak"), ("int8", "strong"), ("int8", "weak"))


def matrix(precision: str, seed: int = 3) -> np.ndarray:
    """The model's weights; 1 % off in INT8 (40 dB), 0.01 % off in FP16."""
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    noise = {"fp32": 0.0, "fp16": 1e-4, "int8": 1e-2}[precision]
    return exact + np.float32(noise) * rng.standard_normal(exact.shape).astype(np.float32)


def package_part(
    folder: Path,
    graphs: Sequence[tuple[str, str]] = GRAPHS,
    *,
    name: str = "model",
    batch: int = 2,
    milliseconds: dict[str, float] | None = None,
) -> PackagePart:
    """A part whose graphs lie in `folder`: x (batch, 12) -> logits (batch, 5)."""
    images = np.random.default_rng(5).standard_normal((IMAGES, WIDTH)).astype(np.float32)
    cases = cases_from_arrays({"x": images}, {"logits": images @ matrix("fp32")}, batch)
    made = []
    for precision, typing in graphs:
        path = folder / f"{name}.{precision}.{typing}.onnx"
        description = {
            "matrix": matrix(precision).tolist(),
            "ms": (milliseconds or MILLISECONDS)[precision],
            "most_images": MOST_IMAGES,
        }
        path.write_text(json.dumps(description))
        outputs = tuple({"logits": case.inputs["x"] @ matrix(precision)} for case in cases)
        oldest = "10.0" if typing == "strong" else "8.6"
        made.append(PackageGraph(precision, typing, path, outputs, oldest))
    spec = InputSpec(
        "x", "float32", ("batch", WIDTH), (1, WIDTH), (batch, WIDTH), (MOST_IMAGES, WIDTH)
    )
    return PackagePart(name, (spec,), ("logits",), tuple(made), cases)


def make_package(folder: Path, graphs: Sequence[tuple[str, str]] = GRAPHS, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_package(folder, (package_part(folder, graphs, **more),), PackageOptions("vit-test"))
    return folder


def run_build(
    folder: Path,
    *options: str,
    version: str = "10.3.0",
    faults: Sequence[str] = (),
    python: str = sys.executable,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the package's build.py as on the device, with the stand-ins of `version`."""
    log = folder.parent / "standin.log"
    log.unlink(missing_ok=True)
    result = subprocess.run(
        [python, str(STANDIN / "run.py"), str(folder / "build.py"), *options],
        env={
            **os.environ,
            "PYTHONPATH": str(STANDIN),
            "STANDIN_TENSORRT": version,
            "STANDIN_LOG": str(log),
            "STANDIN_FAULTS": ",".join(faults),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "LEAK" not in result.stderr, result.stderr
    return result


def builds(folder: Path) -> list[dict]:
    """What the stand-in was asked to build, in order."""
    log = folder.parent / "standin.log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines]


def device_report(folder: Path) -> dict:
    return json.loads((folder / "device_report.json").read_text())
