"""Steps that make a model smaller or faster: one module each, named in `STEPS`.

A new step is a new module with a `Result`, a line in `STEPS`, a section in `recipe` and a
test module.
"""

STEPS: dict[str, str] = {
    "int8": "vitdeploy.compress.int8",
}
"""Name -> module."""

SHARED_MODULES = ("calibrate", "smoothing", "search", "placement", "bias")
"""Modules of this package that are no step themselves: they measure, choose and correct."""
