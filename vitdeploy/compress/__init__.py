"""Steps that make a model smaller or faster: one module each, named in `STEPS`.

A new step is a new module with a `Result`, a line in `STEPS`, a section in `recipe` and a
test module.
"""

STEPS: dict[str, str] = {
    "prune": "vitdeploy.compress.prune",
    "distill": "vitdeploy.compress.distill",
    "merge_tokens": "vitdeploy.compress.merge_tokens",
    "int8": "vitdeploy.compress.int8",
    "int4": "vitdeploy.compress.int4",
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
    "sampling",
    "bias",
    "block_error",
    "attention_folds",
    "attention_int8",
    "attention_ranges",
    "budget",
)
"""Modules of this package that are no step themselves: they measure, choose and correct."""
