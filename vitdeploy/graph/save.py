"""Writing an ONNX file: one protobuf below 2 GB, external data beside it above."""

import contextlib
import errno
import mmap
from pathlib import Path

import onnx_ir as ir

from vitdeploy.errors import DataError

PROTOBUF_LIMIT_BYTES = 2_000_000_000
"""Protobuf's limit is 2 GiB for everything; the rest is room for the graph itself."""


def save_model(
    model: ir.Model, path: Path, most_inline_bytes: int | None = None
) -> tuple[Path, ...]:
    """Write `model` to `path` and return the files it consists of, `path` first.

    Weights go to `<stem>.onnx.data` once they exceed `most_inline_bytes`, by default what a
    protobuf holds; its location is stored relative, so that the pair can be moved together. A
    failure leaves neither.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    external = path.with_name(path.name + ".data")
    limit = PROTOBUF_LIMIT_BYTES if most_inline_bytes is None else most_inline_bytes
    use_external = weights_bytes(model) > limit
    try:
        if use_external:
            ir.save(model, path, external_data=external.name)
        else:
            ir.save(with_own_weights(model), path)
    except OSError as error:
        for written in (path, external):
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise DataError(
                f"disk full while writing '{path.name}'; free some space and run again."
            ) from error
        raise DataError(f"'{path.name}' cannot be written: {error.strerror}.") from error
    return (path, external) if use_external else (path,)


def with_own_weights(model: ir.Model) -> ir.Model:
    """Return the graph without weights that lie in another file; itself where there are none.

    What is left in float of a large quantised graph is still mapped from its FP32 parent's file.
    """
    values = model.graph.initializers.values()
    if not any(isinstance(value.const_value, ir.ExternalTensor) for value in values):
        return model
    copy = model.clone()
    ir.external_data.load_to_model(copy)
    return copy


def drop_mapped_pages(model: ir.Model) -> None:
    """Give back the memory that weights mapped from a file have come to take.

    They are read from it again when they are asked for. Where the system cannot be told (outside
    Linux and macOS), it takes them back by itself once it lacks memory.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    for value in model.graph.initializers.values():
        mapped = getattr(value.const_value, "raw", None)
        if advice is not None and isinstance(mapped, mmap.mmap):
            mapped.madvise(advice)


def weights_bytes(model: ir.Model) -> int:
    """Return the size of all constants in bytes."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
