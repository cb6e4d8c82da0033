"""Steps that make a model smaller or faster: one module each, named in `STEPS`.

A new step is a new module with a `Result`, a line in `STEPS`, a section in `recipe` and a
test module.
"""

STEPS: dict[str, str] = {
    "int8": "vitdeploy.compress.int8",
}
"""Name -> module; `calibrate` is no step but what steps measure activations with."""

SHARED_MODULES = ("calibrate",)
"""Modules of this package that are no step themselves."""
