"""Imports point one way, every module is in its dictionary, `--help` stays light."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy

PACKAGE = Path(vitdeploy.__file__).parent
LAYERS = [
    {"errors", "progress", "version", "cpu", "allocator", "energy"} | {"openvino_core"},
    {"recipe", "bundle", "manifest", "golden", "output", "data", "graph", "report", "runner"},
    {"models", "targets", "device", "lint", "metrics", "measure", "onnx_export", "environment"}
    | {"masks", "mask_resizing", "prompts"},
    {"compress", "activations", "predictor", "evaluation", "gates", "image_sets", "joined"}
    | {"zero_shot", "mask_fidelity", "worst_images"},
    {
        "advising",
        "baking",
        "remote",
        "outliers",
        "pipeline",
        "planning",
        "device_package",
        "pruning",
        "distilling",
        "stages",
        "golden_set",
        "job",
        "comparing",
        "own_graph",
        "restoration",
        "candidates",
        "ways",
        "selection",
        "checking",
        "profiling",
        "roofline",
        "doctor",
        "documents",
        "findings",
        "notes",
        "diagnosis",
    },
    {"cli", "console", "display", "display_profile", "__main__"},
]


def layer_of(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"module '{name}' is in no layer; add it to LAYERS")


def imported_modules(path: Path) -> set[str]:
    """First-level names under vitdeploy that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitdeploy"):
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("vitdeploy.")}
    return {name for name in names if name != "__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_one_way(path: Path):
    relative = path.relative_to(PACKAGE)
    if relative == Path("__init__.py"):
        pytest.skip("the package root imports everything, lazily")
    own = layer_of(relative.parts[0].removesuffix(".py"))
    for name in imported_modules(path):
        assert layer_of(name) <= own, f"{relative} imports {name}, a layer above it"


@pytest.mark.parametrize(
    ("package", "dictionary"),
    [("compress", "STEPS"), ("targets", "TARGETS"), ("report", "WRITERS"), ("models", "FAMILIES")],
)
def test_every_module_is_in_its_dictionary(package: str, dictionary: str):
    module = importlib.import_module(f"vitdeploy.{package}")
    registered = {
        value if isinstance(value, str) else value.__name__
        for value in getattr(module, dictionary).values()
    }
    shared = {f"vitdeploy.{package}.{name}" for name in getattr(module, "SHARED_MODULES", ())}
    found = {f"vitdeploy.{package}.{info.name}" for info in pkgutil.iter_modules(module.__path__)}
    if package == "models":
        families = importlib.import_module("vitdeploy.models.families")
        assert registered == {
            f"vitdeploy.models.families.{info.name}"
            for info in pkgutil.iter_modules(families.__path__)
        }
        return
    assert found == registered | shared


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from vitdeploy.cli import exit_code_from; exit_code_from(['--help']); "
        "heavy = {'torch', 'timm', 'onnxruntime', 'openvino', 'transformers', 'onnx', 'nncf'}; "
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in result.stdout


def test_reading_a_recipe_imports_no_torch(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {source: vit-digits}")
    code = (
        "import sys; from vitdeploy.recipe import recipe_from_yaml; "
        f"recipe_from_yaml({str(recipe)!r}); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
