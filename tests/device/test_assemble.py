"""build.py is one file for Python 3.8 with the standard library and tensorrt, nothing else."""

import ast
import sys
from pathlib import Path

import pytest

from vitdeploy.device import assemble
from vitdeploy.device.assemble import ONBOARD_MODULES, build_script

ONBOARD = Path(assemble.__file__).parent / "onboard"
# Subscripted outside an annotation these fail in Python 3.8.
GENERICS = {"list", "dict", "tuple", "set", "frozenset", "type"} | {
    "Callable", "Iterator", "Iterable", "Mapping", "Sequence",
}  # fmt: skip
# Added to the standard library after 3.8.
TOO_NEW = {"removeprefix", "removesuffix", "is_relative_to", "zip_longest_strict", "batched"}


@pytest.fixture(scope="module")
def tree() -> ast.Module:
    return ast.parse(build_script("0.0"), feature_version=(3, 8))


def annotations(tree: ast.AST) -> set[int]:
    """The nodes that Python 3.8 never evaluates, thanks to `from __future__ import annotations`."""
    found: set[int] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
            if part is not None:
                found |= {id(inner) for inner in ast.walk(part)}
    return found


def runtime_faults(tree: ast.Module) -> list[str]:
    """What parses as 3.8 and still fails there."""
    skipped = annotations(tree)
    faults = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            faults += [node.value.id] if node.value.id in GENERICS else []
        if isinstance(node, ast.Attribute) and node.attr in TOO_NEW:
            faults.append(node.attr)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            faults.append("zip(strict=)")
    return faults


def test_it_parses_as_3_8_and_uses_nothing_newer(tree: ast.Module):
    assert runtime_faults(tree) == []


@pytest.mark.parametrize(
    "text", ["x = list[int]", "'ab'.removeprefix('a')", "zip(a, b, strict=True)"]
)
def test_what_is_newer_would_be_found(text: str):
    assert runtime_faults(ast.parse(text))


def test_what_does_not_parse_as_3_8_would_be_found():
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n  case 1: pass", feature_version=(3, 8))


def test_it_imports_the_standard_library_and_tensorrt_alone(tree: ast.Module):
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"tensorrt"}


def test_every_module_is_in_it_once():
    text = build_script("0.0")
    found = {path.stem for path in ONBOARD.glob("*.py")} - {"__init__"}
    assert found == set(ONBOARD_MODULES)
    for name in ONBOARD_MODULES:
        assert text.count(f"-- {name}\n") == 1


def test_modules_import_only_what_stands_before_them():
    for number, name in enumerate(ONBOARD_MODULES):
        module = ast.parse((ONBOARD / f"{name}.py").read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in ONBOARD_MODULES[:number]
                # In one name space an alias would be lost.
                assert all(alias.asname is None for alias in node.names)


def test_one_name_in_two_modules_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "a.py").write_text('"""A."""\nimport os\n\nX = os\n')
    (tmp_path / "b.py").write_text('"""B."""\nimport os\n\ndef X(): return os\n')
    monkeypatch.setattr(assemble, "files", lambda package: tmp_path)
    monkeypatch.setattr(assemble, "ONBOARD_MODULES", ("a", "b"))
    with pytest.raises(ValueError, match="'X' is defined in a and in b"):
        build_script("0.0")


def test_it_is_the_same_every_time_and_says_who_wrote_it():
    assert build_script("1.2.3") == build_script("1.2.3")
    assert "vitdeploy 1.2.3" in build_script("1.2.3")
