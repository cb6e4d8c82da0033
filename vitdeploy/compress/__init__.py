"""Steps that make a model smaller or faster: one module each, named in `STEPS`.

A new step is a new module with a `Result`, a line in `STEPS`, a section in `recipe` and a
test module.
"""

STEPS: dict[str, str] = {
    "prune": "vitdeploy.compress.prune",
    "int8": "vitdeploy.compress.int8",
}
"""Name -> module."""

SHARED_MODULES = (
    "calibrate",
    "smoothing",
    "search",
    "folding",
    "rotating",
    "placement",
    "rounding",
    "bias",
    "attention_int8",
    "budget",
)
"""Modules of this package that are no step themselves: they measure, choose and correct."""
