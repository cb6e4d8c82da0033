"""Students that do not come with weights: built from scratch, or cut out of a teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vitdeploy.data import Preprocess
from vitdeploy.errors import CompressionError, ModelError, UnsupportedError
from vitdeploy.models import owner, resolve
from vitdeploy.models.outputs import FEATURE_NAMES, TimmFeatures, library_model, loaded_model
from vitdeploy.models.reference import Reference, read_json
from vitdeploy.models.spec import LoadedModel, ModelSpec, Rebuild
from vitdeploy.recipe import StudentSection

LEAST_SELECTED = 0.5
"""Below this share of a student's parameters found in the teacher, they are no relatives."""
_BUILD_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, KeyError, AttributeError)


@dataclass(frozen=True)
class Surroundings:
    """What a new student has in common with its teacher and its data."""

    classes: int
    """0 for an image encoder."""
    label_names: tuple[str, ...]
    preprocess: Preprocess
    """Its size is replaced by the section's, where that has one."""


def new_student(section: StudentSection, surroundings: Surroundings, seed: int) -> LoadedModel:
    """Return a model of timm's with its library's seeded initialisation, in eval mode.

    Raises:
        ModelError: no such model, or the arguments do not fit it.
        UnsupportedError: a model that timm does not build.
    """
    import timm

    architecture, arguments = _architecture(resolve(section.source))
    arguments |= section.arguments
    size = arguments.get("img_size", section.image_size)
    if size is not None and section.image_size is not None and "img_size" not in arguments:
        arguments["img_size"] = size
    side = int(size[0] if isinstance(size, list) else size or surroundings.preprocess.size[0])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(
                architecture, pretrained=False, num_classes=surroundings.classes, **arguments
            )
    except _BUILD_ERRORS as e:
        given = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "none"
        raise ModelError(
            f"timm cannot build the student '{architecture}' with arguments {given}: "
            f"{str(e).rstrip('.')}. Arguments are those of its class in timm (--model-arg)."
        ) from e
    spec = ModelSpec(
        name=section.source.rpartition(":")[2],
        family=owner(architecture),
        source=f"timm:{architecture}",
        task="classification",
        preprocess=replace(surroundings.preprocess, size=(side, side)),
        label_names=surroundings.label_names,
        weights="checkpoint",
    )
    rebuild = Rebuild("timm", arguments)
    if not surroundings.classes:
        return loaded_model(spec, TimmFeatures(model), FEATURE_NAMES, rebuild)
    return loaded_model(spec, model, ("logits",), rebuild)


def select_from_teacher_(student: LoadedModel, teacher: LoadedModel) -> float:
    """Give a student the teacher's first layers, thinned out evenly; return the share it got.

    Weight selection (Xu et al., arXiv 2311.18823): of every tensor of the same name, indices
    spread evenly along each axis. A student's layer n takes the teacher's layer n.

    Raises:
        CompressionError: less than half of the parameters have a counterpart.
    """
    if teacher.parts[0].file is not None:
        raise CompressionError(
            f"teacher '{teacher.spec.name}' is an ONNX file, of which no layers can be selected. "
            "Leave --student-from-teacher away, or give the torch model."
        )
    own: nn.Module = library_model(student.parts[0].module)[0]
    given: Mapping[str, torch.Tensor] = library_model(teacher.parts[0].module)[0].state_dict()
    taken = 0
    parameters = dict(own.named_parameters())
    with torch.no_grad():
        for name, value in own.state_dict().items():
            source = given.get(name)
            if source is None or not _covers(source.shape, value.shape):
                continue
            value.copy_(evenly_selected(source, value.shape))
            taken += value.numel() if name in parameters else 0
    share = float(taken / sum(parameter.numel() for parameter in parameters.values()))
    if share < LEAST_SELECTED:
        raise CompressionError(
            f"only {100 * share:.0f} % of the student's parameters have a counterpart in teacher "
            f"'{teacher.spec.name}'; --student-from-teacher needs one architecture in two sizes "
            "(the same names, no layer wider or deeper than the teacher's)."
        )
    return share


def evenly_selected(source: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return `source` with indices spread evenly along each axis, so that it has `shape`.

    Axes of q, k and v in one (3 C) keep them apart, as index i * 3C // 3c falls into the same
    third.
    """
    for axis, length in enumerate(shape):
        whole = source.shape[axis]
        indices = torch.arange(length) * whole // length
        source = source.index_select(axis, indices)
    return source


def _covers(large: torch.Size, small: torch.Size) -> bool:
    return len(large) == len(small) and all(a >= b for a, b in zip(large, small, strict=True))


def _architecture(reference: Reference) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a model by name or in a folder."""
    if reference.kind == "timm":
        return reference.value.partition(".")[0], {}
    if reference.kind in ("timm-folder", "packaged") and reference.folder is not None:
        config = read_json(reference.folder / "config.json")
        if "architecture" in config:
            return str(config["architecture"]), dict(config.get("model_args", {}))
    raise UnsupportedError(
        f"'{reference.name}' is not built by timm, so no student is made from scratch of it. Use "
        "an alias of timm's models, timm:NAME, or a folder in timm's layout."
    )
