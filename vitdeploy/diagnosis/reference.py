"""The FP32 graph a bundle's artefact was made from: kept in the bundle, or made again."""

from typing import cast

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Artifact, Bundle, read_golden
from vitdeploy.compress.rotating import rotate_
from vitdeploy.errors import CompressionError, DataError, UnsupportedError, VitdeployError
from vitdeploy.findings import REFERENCE
from vitdeploy.models import load
from vitdeploy.onnx_export import PARITY_TOLERANCE, onnx_from_part
from vitdeploy.pipeline import load_options, with_fixed_batch
from vitdeploy.recipe import TargetName, recipe_from_yaml
from vitdeploy.runner import Outputs
from vitdeploy.targets import load_target
from vitdeploy.targets.onnx import runner_from_model

_ADVICE = "Export it again with --keep-reference, which puts the FP32 graph into the bundle."


def reference_graph(bundle: Bundle, artifact: Artifact) -> ir.Model:
    """Return the canonical FP32 graph of the artefact's part.

    It is read from `reference/` where the bundle has it, else made from the recipe's model; in
    both cases it must give the golden outputs.

    Raises:
        UnsupportedError: the model of the recipe is not here, or is another one by now.
        DataError: the bundle's own FP32 graph does not give the golden outputs.
    """
    kept = bundle.path / REFERENCE / f"{artifact.part}.onnx"
    if kept.is_file():
        model = ir.load(kept)
        difference = _difference(model, bundle, artifact)
        if difference > PARITY_TOLERANCE:
            raise DataError(
                f"'{REFERENCE}/{artifact.part}.onnx' differs from the golden outputs by "
                f"{difference:.2g} of their RMS; the bundle is damaged. Export it again."
            )
        return model
    try:
        model = _made_again(bundle, artifact)
    except VitdeployError as error:
        raise UnsupportedError(
            f"'{bundle.path.name}' has no FP32 graph, and it cannot be made again from its "
            f"recipe: {error} {_ADVICE}"
        ) from error
    difference = _difference(model, bundle, artifact)
    if difference > PARITY_TOLERANCE:
        raise UnsupportedError(
            f"'{bundle.path.name}' has no FP32 graph, and the model its recipe names is another "
            f"one by now (outputs differ by {difference:.2g} of their RMS). {_ADVICE}"
        )
    return model


def rotated_as(artifact: Artifact, bundle: Bundle, reference: ir.Model) -> ir.Model:
    """Return the FP32 graph in the coordinates of the artefact's residual streams.

    INT8 may rotate whole streams; the function stays, the activations between do not compare. The
    bundle's recipe tells which were rotated.

    Raises:
        DataError: the recipe names a stream that the graph does not have.
    """
    recipe = recipe_from_yaml(bundle.path / "recipe.yaml")
    choices = recipe.int8.choices.get(cast("TargetName", artifact.target))
    model = reference.clone()
    if choices is not None:
        try:
            rotate_(model, choices.rotations)
        except CompressionError as error:
            raise DataError(f"'{bundle.path.name}' is not of one run: {error}") from error
    return model


def _made_again(bundle: Bundle, artifact: Artifact) -> ir.Model:
    recipe = recipe_from_yaml(bundle.path / "recipe.yaml")
    loaded = load(load_options(recipe))
    recipe = with_fixed_batch(recipe, loaded)
    opset = recipe.export.opset or max(load_target(name).OPSET for name in recipe.targets)
    parts = [part for part in loaded.parts if part.name == artifact.part]
    if not parts:
        raise DataError(f"the model has no part '{artifact.part}'.")
    pixels = next(iter(read_golden(bundle.path, artifact.part).inputs.values()))
    return onnx_from_part(parts[0], pixels, recipe.export.batch, opset)


def _difference(model: ir.Model, bundle: Bundle, artifact: Artifact) -> float:
    """Return the largest difference to the golden outputs over their RMS."""
    golden = read_golden(bundle.path, artifact.part)
    fixed = artifact.inputs[0].shape[0]
    feeds = dict(golden.inputs)
    if isinstance(fixed, int):
        feeds = {name: np.resize(v, (fixed, *v.shape[1:])) for name, v in feeds.items()}
    with runner_from_model(model) as runner:
        outputs: Outputs = runner(feeds)
    worst = 0.0
    for name, expected in golden.outputs.items():
        count = min(len(expected), len(outputs[name]) if name in outputs else 0)
        if not count or outputs[name].shape[1:] != expected.shape[1:]:
            return float("inf")
        rms = float(np.sqrt(np.square(expected.astype(np.float64)).mean()))
        gap = float(np.abs(outputs[name][:count] - expected[:count]).max())
        worst = max(worst, gap / max(rms, 1e-12))
    return worst
