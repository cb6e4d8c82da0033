"""Puts resizing, cropping, normalising and layout in front of an OpenVINO model.

By its own `Interpolate` in Pillow's modes, on uint8: a precision hint of bf16 or f16, which rounds
the products of a resize written in float by up to 3 levels of 255, leaves that alone.
"""

import tempfile
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import ArrayLike
from openvino import opset13 as op

from vitdeploy.bundle import Artifact
from vitdeploy.data import Preprocess
from vitdeploy.data.baked import PICTURES, frame_size
from vitdeploy.openvino_core import openvino_core
from vitdeploy.targets.openvino import OpenVinoRunner, make_reproducible


def bake(artifact: Artifact, preprocess: Preprocess) -> tuple[Path, ...]:
    """Put `preprocess` in front of the artefact's model, in its own files; return those."""
    folder = artifact.path.parent
    with tempfile.TemporaryDirectory(prefix=".baking-", dir=folder) as place:
        # beside the old files, for the weights are read from those while the new ones are written
        model = with_preprocessing(openvino_core().read_model(artifact.path), preprocess)
        path = Path(place) / artifact.path.name
        ov.save_model(model, path, compress_to_fp16=False)
        make_reproducible(path)
        written = (path, path.with_suffix(".bin"))
        return tuple(file.replace(folder / file.name) for file in written)


def preprocessing_alone(preprocess: Preprocess, artifact: Artifact) -> OpenVinoRunner:
    """Return a runner of the preprocessing alone, with the artefact's settings."""
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as place:
        path = Path(place) / "preprocessing.xml"
        ov.save_model(preprocessing_model(preprocess), path, compress_to_fp16=False)
        return OpenVinoRunner(path, settings=artifact.settings)


def with_preprocessing(model: ov.Model, preprocess: Preprocess) -> ov.Model:
    """Return `model` reading `PICTURES` instead of pixels, its first input; changes `model`.

    Args:
        model: its first input is pixels (batch, 3, height, width) float32, normalised.
        preprocess: one without an `unbakeable_reason`.
    """
    pixels, *others = model.get_parameters()
    pictures, made = _steps(pixels.get_partial_shape()[0], preprocess)
    for reader in pixels.output(0).get_target_inputs():
        reader.replace_source_output(made.output(0))
    return ov.Model(model.get_results(), [pictures, *others], model.get_friendly_name())


def preprocessing_model(preprocess: Preprocess) -> ov.Model:
    """Return the preprocessing alone: `PICTURES` -> `pixel_values` (batch, 3, height, width)."""
    pictures, made = _steps(ov.Dimension(-1), preprocess)
    made.output(0).get_tensor().set_names({"pixel_values"})
    return ov.Model([made], [pictures], "preprocessing")


def _steps(batch: ov.Dimension, preprocess: Preprocess) -> tuple[ov.Node, ov.Node]:
    """Return the parameter `PICTURES` and the pixels made of it."""
    free = ov.Dimension(-1)
    shape = ov.PartialShape([batch, free, free, ov.Dimension(3)])
    pictures = op.parameter(shape, ov.Type.u8, name=PICTURES)
    pictures.output(0).get_tensor().set_names({PICTURES})
    planes = op.transpose(pictures, _integers([0, 3, 1, 2]))
    target = _integers(frame_size(preprocess))
    if preprocess.crop_mode == "center":
        sides = op.gather(op.shape_of(planes), _integers([2, 3]), _integers(0))
        short = op.reduce_min(sides, _integers([0]), keep_dims=True)
        target = op.divide(op.multiply(target, sides), short)
    mode = f"{preprocess.interpolation}_pillow"
    axes = _integers([2, 3])
    resized = op.interpolate(planes, target, mode, "sizes", axes=axes, cube_coeff=-0.5)
    kept, two = _integers(preprocess.size), _integers([2, 2])
    spare = op.subtract(target, kept)
    half = op.divide(spare, two)
    # half of it rounded to the even number, as Python does
    first = op.add(half, op.multiply(op.mod(spare, two), op.mod(half, two)))
    cropped = op.slice(resized, first, op.add(first, kept), _integers([1, 1]), axes)
    levels = op.convert(cropped, "f32")
    mean, std = (
        op.constant(np.reshape(255 * np.array(value), (1, 3, 1, 1)).astype(np.float32))
        for value in (preprocess.mean, preprocess.std)
    )
    return pictures, op.divide(op.subtract(levels, mean), std)


def _integers(values: ArrayLike) -> ov.Node:
    return op.constant(np.asarray(values, np.int64))
