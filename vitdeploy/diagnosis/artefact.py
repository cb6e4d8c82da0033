"""Which artefacts of a bundle are diagnosed, and their graphs in a form that can be compared.

A graph with FP16 layers is compared in FP32, so that what is seen is INT8's; what FP16 adds is
measured at the outputs alone, on the artefact as it is.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.diagnosis.measuring import Batches, decibels
from vitdeploy.errors import UnsupportedError, UsageError, suggest
from vitdeploy.graph.opset import raised_opset
from vitdeploy.graph.single import has_half, single_from_half
from vitdeploy.recipe.names import TARGET_SYNONYMS
from vitdeploy.targets import load_target
from vitdeploy.targets.onnx import runner_from_model

_QUANTIZED = ("int8", "mixed")


def choose_artifacts(bundle: Bundle, target: str | None) -> tuple[Artifact, ...]:
    """Return the INT8 artefacts of one target that can be taken apart.

    Args:
        bundle: any.
        target: which; the first of the bundle's where None.

    Raises:
        UsageError: the bundle has no such target.
        UnsupportedError: no INT8 artefact whose graph can be taken apart.
    """
    names = list(dict.fromkeys(artifact.target for artifact in bundle.artifacts()))
    if target is not None:
        target = TARGET_SYNONYMS.get(target.lower(), target.lower())
    if target is not None and target not in names:
        raise UsageError(
            f"'{bundle.path.name}' has no target '{target}'; it has "
            f"{', '.join(names)}.{suggest(target, names)}"
        )
    asked = [target] if target is not None else names
    readable = [name for name in asked if _is_readable(bundle.artifacts(name))]
    if not readable:
        raise UnsupportedError(
            f"'{bundle.path.name}' has artefacts for {', '.join(asked)} only, whose graphs cannot "
            "be taken apart. Export it with --target onnx too: the same products are quantised "
            "there."
        )
    found = bundle.artifacts(readable[0])
    quantized = tuple(artifact for artifact in found if artifact.precision in _QUANTIZED)
    if not quantized:
        raise UnsupportedError(
            f"'{bundle.path.name}' has precision {found[0].precision}; diagnose looks for what "
            "INT8 loses. Export with --int8."
        )
    return quantized


def graph_of(artifact: Artifact, reference: ir.Model) -> ir.Model:
    """Return an artefact's graph in FP32 with its Q/DQ, in the opset of the FP32 graph.

    Raises:
        ModelError: ONNX cannot bring an old graph to that opset.
    """
    path = _graph_path(artifact)
    model = ir.load(path)
    opset = int(reference.opset_imports[""])
    if int(model.opset_imports[""]) < opset:  # made for TensorRT 8.6
        model = ir.from_proto(raised_opset(onnx.load(path), opset, path.name))
    return single_from_half(model)


def is_half(artifact: Artifact) -> bool:
    """Return whether the artefact's float layers are FP16."""
    return has_half(ir.load(_graph_path(artifact)))


def shipped_db(artifact: Artifact, reference: ir.Model, batches: Batches) -> float:
    """Return the SQNR of all outputs of the artefact as it is, on the engine that runs it here.

    Args:
        artifact: as in the bundle.
        reference: its FP32 graph.
        batches: a pass over the images.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    with (
        runner_from_model(reference) as exact,
        load_target(artifact.target).open(artifact) as runner,
    ):
        for feeds in batches():
            expected, seen = exact(feeds), runner(feeds)
            for name, value in expected.items():
                wide = value.astype(np.float64)
                signal[name] = signal.get(name, 0.0) + float(np.square(wide).sum())
                gap = float(np.square(wide - seen[name]).sum())
                noise[name] = noise.get(name, 0.0) + gap
    shares = [noise[name] / max(signal[name], 1e-300) for name in signal]
    return decibels(1.0, float(np.mean(shares)))


def _graph_path(artifact: Artifact) -> Path:
    path = load_target(artifact.target).onnx_graph(artifact)
    assert path is not None
    return path


def _is_readable(artifacts: tuple[Artifact, ...]) -> bool:
    return all(load_target(item.target).onnx_graph(item) is not None for item in artifacts)
