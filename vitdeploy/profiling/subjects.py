"""What can be profiled: bundles, ONNX files, OpenVINO IRs and model names, as `Source`s.

Nothing is loaded into an engine here; a `Source` can be sent to another process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitdeploy.bundle import Artifact, Bundle, load_bundle
from vitdeploy.data.baked import picture_feeds
from vitdeploy.errors import DataError, ExportError, UnsupportedError, UsageError
from vitdeploy.golden import read_golden
from vitdeploy.joined import asked_from_golden, features_of, follows, one_prompt
from vitdeploy.manifest import MANIFEST_NAME
from vitdeploy.openvino_core import openvino_core
from vitdeploy.profiling.options import ProfileOptions
from vitdeploy.runner import Feeds
from vitdeploy.targets import Settings

if TYPE_CHECKING:
    from vitdeploy.models.spec import ExportPart, LoadOptions

Engine = Literal["onnxruntime", "openvino", "torch", "target"]
_REFERENCE_OPSET = 20
_ENGINES_BY_TARGET: Mapping[str, Engine] = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Source:
    """One part of one artefact: what an engine opens, and what it is fed."""

    name: str
    """Of the artefact, as results call it."""
    part: str
    precision: str
    engine: Engine
    feeds: Feeds
    """Of one call; the first axis is the batch where `is_batched`."""
    is_batched: bool = True
    """Whether its feeds can be repeated to other batch sizes."""
    fixed_batch: int | None = None
    path: Path | None = None
    settings: Settings = field(default_factory=dict)
    artifact: Artifact | None = None
    """Where a target's own module opens it."""
    model: "LoadOptions | None" = None
    """Where it is a torch module."""
    size_bytes: int | None = None

    def batches(self, asked: Sequence[int]) -> tuple[int, ...]:
        """Return the batch sizes it can be run at, of those asked for."""
        if not self.is_batched:
            return (1,)
        return tuple(asked) if self.fixed_batch is None else (self.fixed_batch,)

    def feeds_at(self, batch: int) -> dict[str, np.ndarray]:
        """Return the feeds of one call with `batch` images."""
        if not self.is_batched:
            return dict(self.feeds)
        return {n: np.resize(v, (batch, *np.shape(v)[1:])) for n, v in self.feeds.items()}


def sources_of(name: str, options: ProfileOptions, work: Path) -> list[Source]:
    """Return every part of one artefact that `options.device` can run.

    Args:
        name: a bundle's folder, an `.onnx` file, an OpenVINO `.xml`, or a model's name.
        options: the device and, for model names, the weights and image size.
        work: a folder for what a model name is exported to.

    Raises:
        UsageError: a path is none of these.
        ModelError: no such model.
        DataError: a bundle lists no artefact, or a file has an input whose size is unknown.
        UnsupportedError: nothing of it runs on the device.
    """
    path = Path(name)
    if path.suffix == ".onnx" and path.is_file():
        found = [_from_onnx(path, options)]
    elif path.suffix == ".xml" and path.is_file():
        found = [_from_ir(path)]
    elif _is_bundle(path):
        found = _from_bundle(load_bundle(path))
    else:
        found = _from_model(name, options, work)
    fitting = [source for source in found if _runs_on(source.engine, options.device)]
    if not fitting:
        engines = sorted({source.engine for source in found})
        raise UnsupportedError(
            f"nothing of '{name}' runs on --device {options.device}: it has artefacts for "
            f"{', '.join(engines)}. cuda and tensorrt run ONNX files, gpu and npu OpenVINO's IRs."
        )
    return [_for_device(source, options.device) for source in fitting]


def _is_bundle(path: Path) -> bool:
    """Return whether a path is to be read as a bundle: all but what may be a model."""
    if path.is_dir():
        return (path / MANIFEST_NAME).is_file() or not (path / "config.json").is_file()
    return path.exists() or (len(path.parts) > 1 and ":" not in path.parts[0])


def _runs_on(engine: Engine, device: str) -> bool:
    if device == "cpu":
        return True
    if device in ("cuda", "tensorrt"):
        return engine == "onnxruntime"
    return engine == "openvino"


def _for_device(source: Source, device: str) -> Source:
    """Return the source without settings that only a CPU knows."""
    if device == "cpu":
        return source
    return replace(source, settings={})


def _from_bundle(bundle: Bundle) -> list[Source]:
    artifacts = bundle.artifacts()
    if not artifacts:
        raise DataError(f"bundle '{bundle.path}' lists no artefact; export it again.")
    return [_from_artifact(bundle, artifact) for artifact in artifacts]


def _from_artifact(bundle: Bundle, artifact: Artifact) -> Source:
    fixed = artifact.inputs[0].shape[0]
    feeds, is_batched = _golden_feeds(bundle, artifact)
    engine = _ENGINES_BY_TARGET.get(artifact.target, "target")
    return Source(
        name=f"{bundle.path.name}:{artifact.target}",
        part=artifact.part,
        precision=artifact.precision,
        engine=engine,
        feeds=feeds,
        is_batched=is_batched,
        fixed_batch=fixed if isinstance(fixed, int) else None,
        path=artifact.path,
        settings=artifact.settings,
        artifact=artifact if engine == "target" else None,
        size_bytes=artifact.run_bytes,
    )


def _golden_feeds(bundle: Bundle, artifact: Artifact) -> tuple[Feeds, bool]:
    """Return golden inputs; of a part that reads prompts those of one prompt, and False."""
    golden = read_golden(bundle.path, artifact.part).inputs
    pictures = picture_feeds(golden)
    if pictures:
        return pictures[0], True
    others = [other for other in bundle.artifacts(artifact.target) if other.part != artifact.part]
    made = {other.part: read_golden(bundle.path, other.part).outputs for other in others}
    if not follows(artifact.inputs, made):
        return dict(golden), True
    features = {n: v[:1] for n, v in features_of(artifact.inputs, made).items()}
    return {**one_prompt(asked_from_golden(golden)[0]), **features}, False


def _from_onnx(path: Path, options: ProfileOptions) -> Source:
    """Return an ONNX file from anywhere, fed with seeded normal numbers of its input's shape."""
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:
        raise ExportError(f"cannot load '{path.name}', it is no ONNX file: {error}.") from error
    constants = {tensor.name for tensor in graph.initializer}
    shapes: dict[str, tuple[tuple[int | str, ...], Any]] = {}
    for value in graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            dims = tuple(d.dim_value or d.dim_param or "?" for d in tensor.shape.dim)
            shapes[value.name] = (dims, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    engine: Engine = "openvino" if options.device in ("gpu", "npu") else "onnxruntime"
    return _from_shapes(path, engine, shapes)


def _from_ir(path: Path) -> Source:
    """Return an OpenVINO IR from anywhere, fed as an ONNX file is."""
    try:
        model = openvino_core().read_model(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ExportError(f"OpenVINO cannot read '{path.name}': {reason}") from error
    shapes: dict[str, tuple[tuple[int | str, ...], Any]] = {}
    for port in model.inputs:
        dims = tuple(d.get_length() if d.is_static else "?" for d in port.get_partial_shape())
        shapes[port.get_any_name()] = (dims, port.get_element_type().to_dtype())
    return _from_shapes(path, "openvino", shapes)


def _from_shapes(
    path: Path, engine: Engine, shapes: Mapping[str, tuple[tuple[int | str, ...], Any]]
) -> Source:
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    fixed: int | None = None
    for name, (shape, dtype) in shapes.items():
        if not shape or not all(isinstance(size, int) for size in shape[1:]):
            raise DataError(
                f"input '{name}' of '{path.name}' has shape {shape}; only the batch may be "
                "dynamic. Fix the other dimensions first."
            )
        first = shape[0]
        fixed = first if isinstance(first, int) else fixed
        full = (fixed or 1, *(int(size) for size in shape[1:]))
        feeds[name] = rng.standard_normal(full).astype(dtype)
    weights = path.with_suffix(".bin") if path.suffix == ".xml" else Path(f"{path}.data")
    size = path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
    return Source(
        name=path.name,
        part="model",
        precision="unknown",
        engine=engine,
        feeds=feeds,
        fixed_batch=fixed,
        path=path.absolute(),
        size_bytes=size,
    )


def _from_model(name: str, options: ProfileOptions, work: Path) -> list[Source]:
    """Return the parts of a model as torch modules, and as the FP32 ONNX that artefacts are of."""
    from vitdeploy.graph.save import save_model
    from vitdeploy.models import load
    from vitdeploy.models.spec import LoadOptions
    from vitdeploy.onnx_export import example_feeds, onnx_from_part
    from vitdeploy.recipe.sections import is_onnx_source

    if is_onnx_source(name):
        raise UsageError(f"there is no ONNX file '{name}'.")
    wanted = LoadOptions(name, random_weights=options.random_weights, image_size=options.image_size)
    loaded = load(wanted)
    height, width = loaded.spec.preprocess.size
    pixels = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
    shown = Path(name).name
    modules, files = [], []
    for part in loaded.parts:
        feeds = example_feeds(part, pixels, 1)
        common: dict[str, Any] = {"part": part.name, "precision": "fp32", "feeds": feeds}
        common["is_batched"] = part.example is None
        size = 4 * _parameters(part)
        modules.append(
            Source(f"{shown}:torch", engine="torch", model=wanted, size_bytes=size, **common)
        )
        path = work / f"{shown.replace(':', '-')}-{part.name}.onnx"
        written = save_model(onnx_from_part(part, pixels, "dynamic", _REFERENCE_OPSET), path)
        size = sum(file.stat().st_size for file in written)
        files.append(
            Source(f"{shown}:onnx", engine="onnxruntime", path=path, size_bytes=size, **common)
        )
    return [*modules, *files]


def _parameters(part: "ExportPart") -> int:
    return sum(int(parameter.numel()) for parameter in part.module.parameters())
