"""`build.py` as one file: the modules of `onboard`, joined in the order they import each other.

What the modules do is in them; here is only how their text becomes one script.
"""

import ast
from importlib.resources import files

ONBOARD_MODULES = (
    "failure",
    "tensors",
    "fidelity",
    "contents",
    "versions",
    "cuda",
    "engine",
    "execution",
    "inspector",
    "trtexec",
    "board",
    "candidates",
    "choice",
    "main",
)
"""Each imports only what stands before it."""

_HEAD = '''#!/usr/bin/env python3
"""Build this package's TensorRT engines on this machine, check them and time them.

Written by vitdeploy {version}. Needs Python 3.8 or newer, its standard library and the module
tensorrt. Run it with --help for its options; README.md beside it says more.
"""

from __future__ import annotations

'''
_FOOT = '\n\n\nif __name__ == "__main__":\n    sys.exit(main())\n'


def build_script(version: str) -> str:
    """Return the text of `build.py`, stamped with vitdeploy's version.

    Raises:
        ValueError: two modules define one name: the joined file has one name space.
    """
    modules: set[str] = set()
    names: dict[str, set[str]] = {}
    bodies = []
    owners: dict[str, str] = {}
    for module in ONBOARD_MODULES:
        text = files("vitdeploy.device.onboard").joinpath(f"{module}.py").read_text("utf-8")
        tree = ast.parse(text)
        for name in _defined_names(tree):
            if owners.setdefault(name, module) != module:
                raise ValueError(f"'{name}' is defined in {owners[name]} and in {module}")
        for node in tree.body:
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.setdefault(str(node.module), set()).update(a.name for a in node.names)
        bodies.append(f"# {'-' * 30} {module}\n{_comment(tree)}\n\n\n{_body(text, tree)}")
    del names["__future__"]  # it stands above all others, in the head
    lines = [f"import {name}" for name in sorted(modules)]
    lines += [f"from {name} import {', '.join(sorted(names[name]))}" for name in sorted(names)]
    script = _HEAD.format(version=version) + "\n".join(lines) + "\n\n"
    return script + "\n\n\n".join(bodies) + _FOOT


def _comment(tree: ast.Module) -> str:
    lines = (ast.get_docstring(tree) or "").splitlines()
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _body(text: str, tree: ast.Module) -> str:
    """Return the text below the last import; comments and spacing are kept."""
    last = max(
        node.end_lineno or 0 for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    return "\n".join(text.splitlines()[last:]).strip("\n")


def _defined_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                elements = target.elts if isinstance(target, ast.Tuple) else [target]
                names |= {item.id for item in elements if isinstance(item, ast.Name)}
    return names
