"""The wheel holds everything a run needs, works where no checkout is, and holds nothing else."""

import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from vitdeploy.version import __version__

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {
    "vitdeploy/py.typed",
    "vitdeploy/report/report.html.j2",
    "vitdeploy/report/report.schema.json",
    "vitdeploy/recipes/recipe.schema.json",
    "vitdeploy/recipes/train_vit_digits.py",
    "vitdeploy/models/vit_digits/config.json",
    "vitdeploy/models/vit_digits/model.safetensors",
    "vitdeploy/models/vit_digits/README.md",
    "vitdeploy/calib_data/digits/README.md",
    "vitdeploy/calib_data/digits/SHA256SUMS",
    "vitdeploy/calib_data/photos/README.md",
    "vitdeploy/calib_data/photos/SHA256SUMS",
    "vitdeploy/recipes/train_sam_scenes.py",
    "vitdeploy/models/sam_scenes/config.json",
    "vitdeploy/models/sam_scenes/model.safetensors",
    "vitdeploy/models/sam_scenes/README.md",
    "vitdeploy/calib_data/scenes/README.md",
    "vitdeploy/calib_data/scenes/SHA256SUMS",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="the build backend: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def unpacked(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def run_unpacked(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python elsewhere than in the checkout, with the wheel first on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=unpacked.parent,
        env={**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_it_holds_what_a_run_needs(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    assert names >= NEEDED
    assert names >= {f"vitdeploy/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    for listed in (ROOT / "calib_data").glob("*/SHA256SUMS"):
        images = [line.split("  ")[1] for line in listed.read_text().splitlines()]
        assert images
        assert names >= {f"vitdeploy/calib_data/{listed.parent.name}/{image}" for image in images}
    modules = (path.relative_to(ROOT).as_posix() for path in (ROOT / "vitdeploy").rglob("*.py"))
    assert names >= set(modules)


def test_it_holds_nothing_else(wheel: zipfile.ZipFile):
    for name in wheel.namelist():
        assert name.startswith(("vitdeploy/", f"vitdeploy-{__version__}.dist-info/")), name
        parts = Path(name).parts
        assert not {"tests", "benchmarks", "__pycache__", "demo"} & set(parts), name
        assert not name.endswith((".pyc", ".onnx", ".pth", ".npz")), name


def test_sizes(wheel: zipfile.ZipFile):
    checkpoint = wheel.getinfo("vitdeploy/models/vit_digits/model.safetensors")
    assert checkpoint.file_size < 2_000_000
    assert wheel.getinfo("vitdeploy/models/sam_scenes/model.safetensors").file_size < 4_000_000
    # 1.8 and 2.7 MB of checkpoints, 2 MB of photographs, 0.4 MB of scenes, 0.5 MB of digits and
    # code; anything past this came in by mistake
    assert sum(info.compress_size for info in wheel.infolist()) < 8_500_000


def test_licence_and_metadata(wheel: zipfile.ZipFile):
    home = f"vitdeploy-{__version__}.dist-info"
    assert "Apache License" in wheel.read(f"{home}/licenses/LICENSE").decode()
    metadata = HeaderParser().parsestr(wheel.read(f"{home}/METADATA").decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "dev" in metadata.get_all("Provides-Extra", [])
    assert "vitdeploy = vitdeploy.cli:main" in wheel.read(f"{home}/entry_points.txt").decode()
    for name in ("digits", "photos"):
        text = wheel.read(f"vitdeploy/calib_data/{name}/README.md").decode()
        assert "CC" in text


def test_packaged_images_are_found_where_no_checkout_is(unpacked: Path):
    code = (
        "import vitdeploy; from vitdeploy.data import packaged_set; "
        "print(vitdeploy.__file__); "
        "print(len(packaged_set('digits', 'calib')), len(packaged_set('photos', 'eval'))); "
        "print(packaged_set('digits', 'calib').open(0).size)"
    )
    home, counts, size = run_unpacked(unpacked, "-c", code).stdout.splitlines()
    assert Path(home).is_relative_to(unpacked)
    assert counts == "300 12"
    assert size == "(8, 8)"


def test_commands_work_where_no_checkout_is(unpacked: Path):
    main = "from vitdeploy.cli import main; main()"
    assert "vit-digits" in run_unpacked(unpacked, "-c", main, "models").stderr
    described = run_unpacked(unpacked, "-c", main, "inspect", "vit-digits", "--json").stdout
    assert '"weights": "packaged"' in described
