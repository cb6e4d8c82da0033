"""A model that comes as an FP32 ONNX file: checked and described, without torch.

The file itself, run by ONNX Runtime, is the reference. It is not rewritten here: its graph
becomes canonical in `onnx_export`, which proves it equal to the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.data import Preprocess
from vitdeploy.errors import ModelError, UnsupportedError, UsageError, VitdeployError
from vitdeploy.graph.opset import require_plain
from vitdeploy.graph.work import macs_by_node
from vitdeploy.models.spec import (
    ExportPart,
    LoadedModel,
    LoadOptions,
    ModelSpec,
    TensorSpec,
    class_output,
)
from vitdeploy.recipe import PreprocessSection

BATCH = "batch"
PART = "model"
_DEFAULT_PREPROCESS = (
    "an ONNX file does not say how pictures are prepared; ImageNet's mean and std were assumed. "
    "Give the model's own with --mean and --std, or the accuracy is not what it could be."
)


@dataclass(frozen=True)
class Figures:
    """Size and work of a file."""

    parameters: int
    """Elements of all floating-point constants."""
    gmacs: float | None
    """10^9 multiply-accumulates of one image; None where shapes are unknown."""


def load_onnx(options: LoadOptions) -> LoadedModel:
    """Return the model in the ONNX file that `options` name.

    Raises:
        ModelError: no such file, damaged, without its external data, or not an FP32 graph from
            one image to float outputs that ONNX Runtime can run.
        UsageError: an image size, a batch or an output that the file does not have.
        UnsupportedError: the graph has more inputs than the image.
    """
    path = Path(options.source).expanduser()
    proto = read_onnx(path, weights=False)
    image = _image_input(proto, path.name)
    bound = _bound_shape(image, options, path.name)
    outputs = _outputs(path, image.name, bound)
    task = _task(options, outputs, path.name)
    section = options.preprocess or PreprocessSection()
    spec = ModelSpec(
        name=path.stem,
        family="onnx",
        source=f"onnx:{path.name}",
        task=task,
        preprocess=Preprocess(size=(int(bound[2]), int(bound[3])), **section.model_dump()),
        weights="unknown",
        notes=() if options.preprocess else (_DEFAULT_PREPROCESS,),
    )
    part = ExportPart(PART, None, (TensorSpec(image.name, bound),), outputs, file=path)
    return LoadedModel(spec, (part,))


def read_onnx(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Return the checked graph in an ONNX file, its local functions inlined.

    Args:
        path: the file.
        weights: whether external data is read too; that it is there is checked in any case.

    Raises:
        ModelError: missing, no ONNX, damaged, without its external data, or not plain FP32.
    """
    shown = path.name
    if not path.is_file():
        raise ModelError(f"there is no ONNX file '{path}'. Give the path of an FP32 .onnx file.")
    try:
        proto = onnx.load(str(path), load_external_data=False)
        _require_external_data(proto, path)
        onnx.checker.check_model(str(path))
        if weights:
            onnx.load_external_data_for_model(proto, str(path.parent))
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelError(
            f"'{shown}' is not a valid ONNX file: {reason}. Export it again."
        ) from error
    if not proto.graph.node:
        raise ModelError(f"'{shown}' is not a valid ONNX file: it has no nodes. Export it again.")
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    require_plain(proto, shown)
    return proto


def figures_of(part: ExportPart) -> Figures:
    """Return the size and work of a part that comes as a file."""
    assert part.file is not None
    proto = read_onnx(part.file, weights=False)
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    constants = [*proto.graph.initializer, *_constants(proto)]
    parameters = sum(int(np.prod(t.dims)) for t in constants if t.data_type in floats)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{number}"
    model = ir.from_proto(proto)
    bind_input_(model, part.inputs[0].shape)
    batch = part.inputs[0].shape[0]
    macs = macs_by_node(model, batch if isinstance(batch, int) else 1).values()
    known = [count for count in macs if count is not None]
    return Figures(parameters, sum(known) / 1e9 if len(known) == len(macs) else None)


def bind_input_(model: ir.Model, shape: Sequence[int | str]) -> None:
    """Give the graph's one input `shape`, and forget what was inferred from another."""
    image = next(v for v in model.graph.inputs if v.name not in model.graph.initializers)
    if list(image.shape or ()) == list(shape):
        return
    image.shape = ir.Shape(shape)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _require_external_data(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        place = path.parent / location
        if not place.resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(
                f"'{path.name}' keeps its weights in '{location}', outside its own folder. "
                "Put the file and its data in one folder, with onnx.save."
            )
        if not location or not place.is_file():
            raise ModelError(
                f"'{path.name}' keeps its weights in '{location}', which is not beside it. "
                "Copy that file too."
            )


def _image_input(proto: onnx.ModelProto, shown: str) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if not inputs:
        raise ModelError(f"'{shown}' has no input; one image (N, 3, H, W) is needed.")
    if len(inputs) > 1:
        names = ", ".join(value.name for value in inputs)
        raise UnsupportedError(
            f"'{shown}' has {len(inputs)} inputs ({names}); one image (N, 3, H, W) is supported. "
            "Give the image encoder alone; a prompt decoder is quantised together with its "
            "encoder: vitdeploy export MODEL --int8."
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ModelError(
            f"input '{inputs[0].name}' of '{shown}' is {kind}; a float32 image (N, 3, H, W) is "
            "needed. Export the model without the preprocessing, in FP32."
        )
    dims = [_dim(d) for d in tensor.shape.dim]
    if len(dims) != 4 or dims[1] not in (3, None):
        raise ModelError(
            f"input '{inputs[0].name}' of '{shown}' has shape {_shown(dims)}; an RGB image "
            "(N, 3, H, W) is needed: channels first."
        )
    return inputs[0]


def _bound_shape(
    image: onnx.ValueInfoProto, options: LoadOptions, shown: str
) -> tuple[int | str, ...]:
    """Return (batch, 3, H, W) with the sizes the options add to those of the file."""
    batch, _, height, width = (_dim(d) for d in image.type.tensor_type.shape.dim)
    size = options.image_size
    for own in (height, width):
        if own is None and size is None:
            raise ModelError(
                f"input '{image.name}' of '{shown}' leaves height or width open; say which size "
                "the artefact is for with --image-size N."
            )
        if own is not None and size is not None and own != size:
            raise UsageError(
                f"'{shown}' is made for {height} x {width} pixels and cannot be given "
                f"--image-size {size}; export it from its own framework for that size."
            )
    if batch is not None and options.batch not in (None, batch):
        raise UsageError(
            f"'{shown}' has a fixed batch of {batch}, so --batch {options.batch} cannot be had; "
            "leave --batch away, or export the file with another batch."
        )
    return (batch or options.batch or BATCH, 3, height or size or 0, width or size or 0)


def _outputs(path: Path, name: str, shape: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs as ONNX Runtime gives them for black images."""
    from vitdeploy.targets.onnx import OrtRunner

    batch = shape[0] if isinstance(shape[0], int) else 2
    pixels = np.zeros((batch, *(int(size) for size in shape[1:])), np.float32)
    try:
        with OrtRunner(path) as runner:
            results = runner({name: pixels})
    except VitdeployError as error:
        advice = "" if isinstance(shape[0], int) else " If it takes one image only, add --batch 1."
        raise ModelError(f"'{path.name}' does not run: {error}{advice}") from error
    for output, value in results.items():
        if value.dtype != np.float32 or value.ndim < 2 or value.shape[0] != batch:
            raise ModelError(
                f"output '{output}' of '{path.name}' is {value.dtype} {tuple(value.shape)} for "
                f"{batch} images; float32 with the images along the first axis is needed. Cut "
                "off what follows the model (argmax, box decoding) with onnx.utils.extract_model."
            )
    return tuple(TensorSpec(o, (shape[0], *v.shape[1:])) for o, v in results.items())


def _task(options: LoadOptions, outputs: tuple[TensorSpec, ...], shown: str) -> Any:
    """Return `classification` where an output is one value per class, else `features`."""
    ranks = {tensor.name: len(tensor.shape) for tensor in outputs}
    classes = class_output("classification", ranks.items())
    if options.outputs == "logits" and classes is None:
        names = ", ".join(f"{t.name} {_shown(t.shape)}" for t in outputs)
        raise UsageError(
            f"'{shown}' has no output that could be logits: {names}. An output named 'logits' or "
            "a single one of two axes is; leave --outputs away."
        )
    if options.outputs not in (None, "logits", "features"):
        raise UsageError(
            f"--outputs {options.outputs}: '{shown}' is an ONNX file, which returns what it was "
            f"exported with: {', '.join(ranks)}. Leave --outputs away, or export the model again."
        )
    if options.outputs == "features" and "logits" in ranks:
        raise UsageError(
            f"'{shown}' has an output named 'logits', so it is a classifier; leave --outputs away."
        )
    # Beside other outputs, one of two axes may as well be a pooled feature.
    is_classifier = "logits" in ranks or list(ranks.values()) == [2]
    wanted = options.outputs or ("logits" if is_classifier else "features")
    return "classification" if wanted == "logits" else "features"


def _constants(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    nodes = [node for node in proto.graph.node if node.op_type == "Constant"]
    return [a.t for node in nodes for a in node.attribute if a.name == "value"]


def _dim(dim: Any) -> int | None:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None


def _shown(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
