"""A part's torch module or ONNX file -> one canonical FP32 ONNX graph, proved equal to it.

Torch's exporter does the work, where there is a module; `graph.canonical` tidies what comes out.
What is ours is the proof: the graph's outputs are compared with those of the module or file at
two batch sizes, on real images, and a difference is an error.
"""

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import ExportError
from vitdeploy.graph.canonical import canonicalise_
from vitdeploy.graph.naming import name_nodes_
from vitdeploy.graph.opset import opset_of, raised_opset
from vitdeploy.graph.save import PROTOBUF_LIMIT_BYTES, weights_bytes
from vitdeploy.models.onnx_file import bind_input_, figures_of, read_onnx
from vitdeploy.models.plain_attention import written_out_attention
from vitdeploy.models.plain_folds import written_out_folds
from vitdeploy.models.spec import ExportPart
from vitdeploy.runner import Runner, TorchRunner

PARITY_TOLERANCE = 1e-4
"""Largest |ONNX - reference| over the RMS of the reference's output. FP32 sums of different order
give 1e-6..3e-5 on the networks here; a wrong GELU variant or epsilon gives 1e-3 and more."""
ROUNDING_FACTOR = 4.0
"""Where torch itself is far from its function in float64, the graph may differ from torch by this
multiple of that: both round, each in its own way. The masks of SAM's decoder at a picture's size
differ by 1.2e-4, 2.6 times torch's own error, for resizing rounds where a pixel lies."""
_KEEP_PRODUCTS = (
    "fuse_matmul_add_bias_into_gemm",
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_transpose_into_gemm",
    "fuse_qkv",
)
"""onnxsim's passes that turn a Linear over tokens into Reshape, Gemm, Reshape: no runtime gains
from it, and ONNX Runtime has no INT8 Gemm with a float bias. And the one that joins the products
of query, key and value but leaves their biases behind a Split, which no quantiser recognises."""
MOST_ROUNDING = 1e-2
"""More is no rounding, whatever torch's own: with it no fault of a graph would be seen."""
BATCH = "batch"
"""The axis that `--batch` fixes; other named axes stay dynamic."""
ONE_IMAGE_ABOVE_BYTES = 1_000_000_000
"""Parts with larger weights are compared on one image only."""
ONE_IMAGE_ABOVE_PIXELS = 640 * 640
"""So are those that read larger images, whose attention takes gigabytes an image."""


@dataclass(frozen=True)
class Parity:
    """How far one output batch of the FP32 ONNX is from the model it comes from."""

    part: str
    batch: int
    max_abs_diff: float
    max_relative: float
    tolerance: float = PARITY_TOLERANCE

    @property
    def passed(self) -> bool:
        """Return whether the difference is rounding."""
        return self.max_relative <= self.tolerance


def onnx_from_part(part: ExportPart, images: np.ndarray, batch: int | str, opset: int) -> ir.Model:
    """Return the canonical FP32 graph of a part.

    Args:
        part: what to export.
        images: (N, 3, H, W) float32 example; N >= 2 unless `batch` is fixed.
        batch: a fixed batch size, or `dynamic`.
        opset: ONNX opset of the result.

    Raises:
        ExportError: the module cannot be traced, or not at this opset.
        ModelError: an ONNX file is not a plain FP32 graph, or cannot be had in this opset.
    """
    if part.file is not None:
        return _model_from_file(part, part.file, opset)
    import torch

    fixed = batch if isinstance(batch, int) else None
    # an axis of one would be taken for a constant
    example = example_feeds(part, images, fixed if fixed and part.example is None else 2)
    try:
        with _quiet(), written_out_attention(), written_out_folds():
            program = torch.onnx.export(
                part.module,
                tuple(torch.from_numpy(example[tensor.name]) for tensor in part.inputs),
                input_names=[tensor.name for tensor in part.inputs],
                output_names=[tensor.name for tensor in part.outputs],
                dynamic_shapes=_dynamic_shapes(part, fixed),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch {torch.__version__.split('+')[0]} cannot export part '{part.name}' with "
            f"{'batch ' + str(fixed) if fixed else 'a dynamic batch'} at opset {opset}: "
            f"{_last_line(error)}. Try --batch 1, or another --opset."
        ) from error
    model = program.model
    _require_opset(model, opset, part)
    _name_axes(model, part, fixed)
    canonicalise_(model)
    return simplified(model)


def simplified(model: ir.Model) -> ir.Model:
    """Return the graph as onnxsim simplifies it; above 2 GB the graph as it is.

    onnxsim folds the shape arithmetic the exporter leaves behind.
    """
    if weights_bytes(model) > PROTOBUF_LIMIT_BYTES:
        return model
    import onnxsim

    proto, is_same = onnxsim.simplify(ir.to_proto(model), skipped_optimizers=list(_KEEP_PRODUCTS))
    if not is_same:
        raise ExportError("onnxsim changed the graph's outputs; report this model.")
    forget_weights(model)
    result = ir.from_proto(proto)
    canonicalise_(result)
    return result


def forget_weights(model: ir.Model) -> None:
    """Let go of the weights of a graph that nobody uses any more.

    The graph itself stays: a rule of onnxscript's rewriter keeps the node that it matched last.
    """
    for value in model.graph.initializers.values():
        value.const_value = None


def free_module_(part: ExportPart) -> None:
    """Empty the parameters and buffers of a part's torch module, which is of no use afterwards.

    Dropping the module does not free them: what torch traced keeps them through the values that
    its graph once had as inputs (onnx_ir 1.1 counts them and never lets go of the last count).
    """
    if part.module is None:
        return
    import torch

    for tensor in (*part.module.parameters(), *part.module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def reference_runner(part: ExportPart) -> Runner:
    """Return what all else is compared with: the torch module, or the ONNX file as it came."""
    if part.file is None:
        return TorchRunner(part)
    from vitdeploy.targets.onnx import OrtRunner

    return OrtRunner(part.file)


def _model_from_file(part: ExportPart, file: Path, opset: int) -> ir.Model:
    """Return the canonical graph of an ONNX file, under the file's own tensor names."""
    proto = read_onnx(file)
    if opset_of(proto) < opset:
        named = ir.from_proto(proto)
        name_nodes_(named)  # from the exporter's metadata, which a conversion loses
        proto = raised_opset(ir.to_proto(named), opset, file.name)
    model = ir.from_proto(proto)
    bind_input_(model, part.inputs[0].shape)
    for value, tensor in zip(model.graph.outputs, part.outputs, strict=True):
        value.shape = ir.Shape(tensor.shape)
    canonicalise_(model)
    return simplified(model)


def example_feeds(part: ExportPart, images: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return feeds of a part: `count` of the images (repeated), or its own example of that size."""
    if part.example is not None:
        return dict(part.example(count))
    return {part.inputs[0].name: np.resize(images, (count, *images.shape[1:]))}


def check_parity(
    part: ExportPart, runner: Runner, images: np.ndarray, batches: Sequence[int]
) -> list[Parity]:
    """Return the comparison of `runner` with the part itself at each batch size.

    Args:
        part: the reference.
        runner: of the FP32 artefact that ships.
        images: (N, 3, H, W) float32; repeated where N is too small.
        batches: batch sizes.

    Raises:
        ExportError: the outputs differ by more than rounding, or are not finite.
    """
    rows = []
    with reference_runner(part) as reference:
        for batch in batches:
            feeds = example_feeds(part, images, batch)
            expected = reference(feeds)
            row = _compare(part.name, batch, expected, runner(feeds))
            if not row.passed and part.module is not None:
                _require_same(part, expected, reference(feeds))
                own = _compare(part.name, batch, _in_float64(part, feeds), expected)
                allowed = min(ROUNDING_FACTOR * own.max_relative, MOST_ROUNDING)
                row = replace(row, tolerance=max(row.tolerance, allowed))
            rows.append(row)
    origin = "torch" if part.file is None else f"'{part.file.name}' itself"
    for row in rows:
        if not row.passed:
            raise ExportError(
                f"the exported graph of '{row.part}' differs from {origin} at batch {row.batch}: "
                f"max |difference| {row.max_abs_diff:.3g}, {row.max_relative:.3g} of the "
                f"output's RMS, allowed {row.tolerance:g}. Nothing was written; "
                "try another --opset or --batch 1, and report the model."
            )
    return rows


def _require_same(
    part: ExportPart, first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> None:
    """Refuse a module that gives other outputs for the same inputs."""
    if all(np.array_equal(value, second[name]) for name, value in first.items()):
        return
    raise ExportError(
        f"part '{part.name}' gives other outputs each time it runs: it draws random numbers, as "
        "masked training does, and no graph can be compared with it. Export a model without that."
    )


def parity_batches(part: ExportPart, batch: int | str) -> list[int]:
    """Return the batch sizes to compare at: two where the batch is dynamic."""
    if isinstance(batch, int) and part.example is None:
        return [batch]
    if part.file is not None:
        size = 4 * figures_of(part).parameters
    else:
        size = 4 * sum(p.numel() for p in part.module.parameters())
    pixels = part.inputs[0].shape[2:]
    is_large = all(isinstance(side, int) for side in pixels) and (
        math.prod(int(side) for side in pixels) > ONE_IMAGE_ABOVE_PIXELS
    )
    return [1] if is_large or size > ONE_IMAGE_ABOVE_BYTES else [2, 3]


def _in_float64(part: ExportPart, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the module's outputs computed in float64."""
    import torch

    module = copy.deepcopy(part.module).double()
    tensors = [torch.from_numpy(feeds[tensor.name]).double() for tensor in part.inputs]
    try:
        with torch.inference_mode():
            result = module(*tensors)
    except RuntimeError as error:
        raise ExportError(
            f"the exported graph of '{part.name}' differs from torch by more than "
            f"{PARITY_TOLERANCE:g} of the output's RMS, and the module does not run in float64, "
            f"which would tell torch's own rounding: {_last_line(error)}."
        ) from error
    results = result if isinstance(result, (tuple, list)) else (result,)
    names = (tensor.name for tensor in part.outputs)
    return {name: value.numpy() for name, value in zip(names, results, strict=True)}


def _compare(
    part: str, batch: int, expected: dict[str, np.ndarray], seen: dict[str, np.ndarray]
) -> Parity:
    worst_abs, worst_relative = 0.0, 0.0
    for name, reference in expected.items():
        value = seen[name]
        if value.shape != reference.shape:
            raise ExportError(
                f"output '{name}' of the exported '{part}' has shape {value.shape} at batch "
                f"{batch}, the model's has {reference.shape}. Use --batch {batch} for a fixed one."
            )
        if not (np.isfinite(value).all() and np.isfinite(reference).all()):
            raise ExportError(
                f"output '{name}' of '{part}' holds NaN or infinity at batch {batch}; "
                "the model is damaged or overflows."
            )
        difference = float(np.abs(value - reference).max())
        rms = float(np.sqrt(np.square(reference.astype(np.float64)).mean()))
        worst_abs = max(worst_abs, difference)
        worst_relative = max(worst_relative, difference / max(rms, 1e-12))
    return Parity(part, batch, worst_abs, worst_relative)


def _require_opset(model: ir.Model, opset: int, part: ExportPart) -> None:
    seen = model.opset_imports.get("", 0)
    if seen != opset:
        raise ExportError(
            f"torch's exporter gives part '{part.name}' opset {seen}, not {opset}: the "
            f"model has an operator with no older form. Use --opset {seen}."
        )


def _name_axes(model: ir.Model, part: ExportPart, fixed: int | None) -> None:
    """Write the part's tensor names and its batch axis into the graph's interface."""
    for value, tensor in zip(model.graph.inputs, part.inputs, strict=True):
        value.name = tensor.name
    for value, tensor in zip(model.graph.outputs, part.outputs, strict=True):
        value.name = tensor.name
        value.shape = ir.Shape([fixed if fixed and d == BATCH else d for d in tensor.shape])


def _dynamic_shapes(part: ExportPart, fixed: int | None) -> tuple[Any, ...]:
    """Return what torch is told: every named axis is dynamic, but the batch where it is fixed."""
    from torch.export import Dim

    names = {d for tensor in part.inputs for d in tensor.shape if isinstance(d, str)}
    dims = {name: Dim(name, min=1, max=65536) for name in sorted(names - {BATCH if fixed else ""})}
    return tuple(
        {axis: dims[d] for axis, d in enumerate(tensor.shape) if d in dims} or None
        for tensor in part.inputs
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal; its failures come as exceptions."""
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _last_line(error: Exception) -> str:
    """Return the line that says what is wrong: the cause in the exporter's summary, or the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line.partition(">: ")[2] for line in lines if line.startswith("<class '")]
    shown = next(filter(None, [*causes, *reversed(lines)]), type(error).__name__)
    return shown.rstrip(".")[:300]
