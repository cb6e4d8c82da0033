"""One check for all passes and folds: the function is unchanged, in float64 and as an artefact."""

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from tests.graph import double, tiny
from vitdeploy.graph.canonical import canonicalise_

Edit = Callable[[ir.Model], object]


@functools.cache
def canonical_bytes(family: str) -> bytes:
    """Return the serialised canonical float32 graph of a tiny family."""
    model = ir.from_proto(onnx.load_from_string(tiny.exported(family)))
    canonicalise_(model)
    return ir.to_proto(model).SerializeToString()


def canonical(family: str) -> ir.Model:
    """Return a fresh canonical float32 graph of a tiny family."""
    return ir.from_proto(onnx.load_from_string(canonical_bytes(family)))


@functools.cache
def _references(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    model = ir.from_proto(onnx.load_from_string(data))
    image = double.images(model)
    wide = double.double_from_bytes(data)
    return (
        double.run_reference(wide, image),
        double.run_ort(model, image.astype(np.float32)),
    )


def assert_exact(data: bytes, edit: Edit) -> ir.Model:
    """Apply `edit` to the float64 and the float32 graph of `data` and compare with the original.

    Returns:
        The edited float32 graph.
    """
    reference, artefact = _references(data)
    wide = double.double_from_bytes(data)
    edit(wide)
    image = double.images(wide)
    error = double.relative_error(double.run_reference(wide, image), reference)
    assert error <= double.FLOAT64_LIMIT
    narrow = ir.from_proto(onnx.load_from_string(data))
    edit(narrow)
    onnx.checker.check_model(ir.to_proto(narrow), full_check=True)
    names = [node.name for node in narrow.graph]
    assert len(set(names)) == len(names)
    result = double.run_ort(narrow, image.astype(np.float32))
    assert double.relative_error(result, artefact) <= double.FLOAT32_LIMIT
    return narrow
