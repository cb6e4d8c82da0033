"""One row of the matrix, run: loaded, exported at two sizes, quantised for each target, pruned.

What fails is kept with its message, and the other stages go on. How a row's model is written is in
`folders`, how results look in `page`.
"""

import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.families.folders import write_folder
from benchmarks.families.page import FIRST_SEARCH_SECONDS, LEAST_COSINE, LONGER_SEARCH_SECONDS
from benchmarks.families.rows import Row
from vitdeploy.compress.folding import Memory
from vitdeploy.compress.int4 import quantize_int4
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.compress.prune.units import find_sites
from vitdeploy.data import ImageLoader
from vitdeploy.data.packaged import packaged_set
from vitdeploy.device_package import graphs_of
from vitdeploy.evaluation import collect_outputs, fidelity_rows, find_value
from vitdeploy.findings import Compressed
from vitdeploy.graph.canonical import canonicalise_
from vitdeploy.graph.opset import raised_opset
from vitdeploy.graph.save import weights_bytes
from vitdeploy.lint import Known, lint_file
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.spec import ExportPart, LoadedModel
from vitdeploy.onnx_export import check_parity, onnx_from_part, reference_runner
from vitdeploy.own_graph import IMAGES, Seen, require_own_graph
from vitdeploy.progress import SilentProgress
from vitdeploy.pruning import prune_loaded
from vitdeploy.recipe import INT4_OPSET, Int4Section, Int8Section, PruneSection
from vitdeploy.runner import Feeds, Outputs
from vitdeploy.targets import BuildRequest, load_target
from vitdeploy.targets.onnx import runner_from_model

TARGETS = ("onnx", "openvino", "trt-rtx")
BATCHES = (2, 3)
PRUNED_SHARE = 0.34
"""Of heads and of hidden channels: at least one of the two or three heads of a small layer."""
NOISIEST = 3
STAGES = ("export", "second size", "int8", "int4", "prune")


@dataclass(frozen=True)
class Effort:
    """How much is spent on a row."""

    stages: tuple[str, ...] = STAGES
    calibration_images: int = 16
    evaluation_images: int = 16
    search_seconds: float = FIRST_SEARCH_SECONDS
    """Of INT8's and INT4's searches, each."""
    longer_search_seconds: float = LONGER_SEARCH_SECONDS
    """Of the search that follows where that one ends below LEAST_COSINE."""


@dataclass(frozen=True)
class Exported:
    """The FP32 graph at one image size."""

    pixels: int
    parity: float
    """Largest |ONNX - torch| over the RMS of torch's output, at both batch sizes."""
    tolerance: float
    """What was allowed; more than the usual where torch itself rounds as much."""
    nodes: int
    bytes: int
    graph_attention: int
    """Attention that the quantiser and the folds see."""
    torch_attention: int
    """Attention that the pruner sees."""
    unrecognised: tuple[tuple[str, str], ...]
    """(node, reason): what looks like a known structure and is not one."""


@dataclass(frozen=True)
class Quantised:
    """The row on one target."""

    target: str
    cosine: float
    """Of outputs centred over the images, mean over images, of the worst output."""
    sqnr_db: float
    bytes: int
    search_seconds: float
    """What the search was allowed."""
    int8_macs_percent: float | None = None
    lint_errors: int | None = None
    lint_warnings: int | None = None
    findings: tuple[str, ...] = ()
    """Identifiers of the lint's rules that found something."""
    noisiest: tuple[tuple[str, float], ...] = ()
    """(layer, squared output error over squared output with it alone in INT8), the worst first."""


@dataclass(frozen=True)
class Prunable:
    """What can be removed, and that the rest still exports."""

    heads: int
    mlps: int
    notes: tuple[str, ...]
    removed_percent: float
    """Of the parameters, for the pruned copy that was exported."""
    parity: float


@dataclass(frozen=True)
class Result:
    """All that is known of a row."""

    key: str
    sizes: tuple[Exported, ...] = ()
    quantised: tuple[Quantised, ...] = ()
    prunable: Prunable | None = None
    failures: dict[str, str] = field(default_factory=dict)
    """By stage or target."""
    seconds: float = 0.0
    peak_bytes: int = 0
    parameters: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        return asdict(self)


def measure(row: Row, effort: Effort) -> Result:
    """Return what the row comes to; an exception of any kind is a result."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(row, effort, Path(folder))
        trial.run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = round(time.perf_counter() - start, 1)
    return replace(trial.result(), seconds=seconds, peak_bytes=peak)


class _Trial:
    """A row under way: what was found, and what failed."""

    def __init__(self, row: Row, effort: Effort, folder: Path) -> None:
        self.row, self.effort, self.folder = row, effort, folder
        self.sizes: list[Exported] = []
        self.quantised: list[Quantised] = []
        self.prunable: Prunable | None = None
        self.failures: dict[str, str] = {}
        self.parameters = 0
        self.memories: dict[float, Memory] = {}
        """By the seconds of a search: what the targets' searches share."""

    def result(self) -> Result:
        return Result(
            self.row.key,
            tuple(self.sizes),
            tuple(self.quantised),
            self.prunable,
            self.failures,
            parameters=self.parameters,
        )

    def run(self) -> None:
        stages = self.effort.stages
        source = write_folder(self.row, self.folder / "model")
        loaded = self.tried("load", partial(_loaded, source, self.row.size))
        if loaded is None:
            return
        self.parameters = sum(p.numel() for p in loaded.parts[0].module.parameters())
        images = _Images(loaded, self.effort)
        model = self.tried("export", partial(self.export, loaded, images))
        if "second size" in stages and self.row.second_size is not None:
            self.tried("second size", partial(self.export_at, source, self.row.second_size))
        if model is not None and {"int8", "int4"} & set(stages):
            judged = images, images.reference(loaded.parts[0])
            for name in TARGETS if "int8" in stages else ():
                self.tried(name, partial(self.quantise, name, model, judged))
            if "int4" in stages:
                self.tried("int4", partial(self.weights_only, model, judged))
        if model is not None and "prune" in stages:
            self.tried("prune", partial(self.prune, loaded, images))

    def tried(self, stage: str, todo: Callable[[], Any]) -> Any:
        """Return what `todo` does; None, and its message kept, where it fails."""
        try:
            return todo()
        except Exception as error:  # noqa: BLE001 - a failure, even a bug, is a result of the row
            self.failures[stage] = f"{type(error).__name__}: {str(error)[:600]}"
            return None

    def export(self, loaded: LoadedModel, images: "_Images") -> ir.Model:
        """Return the graph; what is true of it goes into `sizes`."""
        part = loaded.parts[0]
        model = onnx_from_part(part, images.example, "dynamic", 20)
        worst, tolerance = _parity(part, model, images.example)
        found = canonicalise_(model.clone())
        self.sizes.append(
            Exported(
                pixels=loaded.spec.preprocess.size[0],
                parity=worst,
                tolerance=tolerance,
                nodes=found.nodes_after,
                bytes=weights_bytes(model),
                graph_attention=len(found.attention),
                torch_attention=len(loaded.attention),
                unrecognised=found.unrecognised,
            )
        )
        return model

    def export_at(self, source: Path, size: int) -> None:
        loaded = _loaded(source, size)
        self.export(loaded, _Images(loaded, self.effort))

    def quantise(self, name: str, model: ir.Model, judged: tuple["_Images", Outputs]) -> None:
        """Quantise for a target; search for longer where that keeps too little."""
        target, (images, expected) = load_target(name), judged
        for seconds in (self.effort.search_seconds, self.effort.longer_search_seconds):
            section = Int8Section(search_seconds=seconds)
            memory = self.memories.setdefault(seconds, Memory())
            found = quantize_int8(model, target.quant_scheme(), images.calibration, section, memory)
            folder = self.folder / f"{name}-{seconds:g}"
            folder.mkdir()
            request = BuildRequest(
                "model", found.model, "int8", folder, None, images=images.calibration
            )
            artifact = target.build(request)
            with target.open(artifact, 1) as runner:
                seen, engine = collect_outputs(runner, images.evaluation()), runner.engine
            cosine, sqnr_db = _fidelity(name, expected, seen)
            if cosine >= LEAST_COSINE:
                break
        require_own_graph(
            target, Compressed(artifact, found), images.first_seen(expected, seen), engine
        )
        share = found.int8_macs_percent
        row = Quantised(name, cosine, sqnr_db, artifact.bytes, seconds, share)
        worst = sorted(found.noise.items(), key=lambda item: -item[1])[:NOISIEST]
        row = replace(row, noisiest=tuple(worst))
        graphs = graphs_of(artifact)
        self.quantised.append(replace(row, **_linted(graphs)) if graphs else row)

    def weights_only(self, model: ir.Model, judged: tuple["_Images", Outputs]) -> None:
        """Store the weights in INT4; search for longer where that keeps too little."""
        raised = ir.from_proto(raised_opset(ir.to_proto(model), INT4_OPSET, self.row.key))
        images, expected = judged
        for seconds in (self.effort.search_seconds, self.effort.longer_search_seconds):
            section = Int4Section(search_seconds=seconds)
            found = quantize_int4(raised, images.calibration, section)
            with runner_from_model(found.model) as runner:
                outputs = collect_outputs(runner, images.evaluation())
            cosine, sqnr_db = _fidelity("int4", expected, outputs)
            if cosine >= LEAST_COSINE:
                break
        self.quantised.append(
            Quantised("int4", cosine, sqnr_db, weights_bytes(found.model), seconds)
        )

    def prune(self, loaded: LoadedModel, images: "_Images") -> None:
        sites = find_sites(loaded)
        self.prunable = Prunable(len(sites.attention), len(sites.mlp), sites.notes, 0.0, 0.0)
        if not sites.attention and not sites.mlp:
            return
        section = PruneSection(
            heads=PRUNED_SHARE if sites.attention else 0.0,
            mlp=PRUNED_SHARE if sites.mlp else 0.0,
            criterion="magnitude",
        )
        smaller = prune_loaded(loaded, section, None, 0, SilentProgress()).loaded.parts[0]
        model = onnx_from_part(smaller, images.example, "dynamic", 20)
        left = sum(p.numel() for p in smaller.module.parameters())
        self.prunable = replace(
            self.prunable,
            removed_percent=100.0 * (1.0 - left / self.parameters),
            parity=_parity(smaller, model, images.example)[0],
        )


class _Images:
    """Photographs of the package, as the row's model reads them."""

    def __init__(self, loaded: LoadedModel, effort: Effort) -> None:
        preprocess = loaded.spec.preprocess
        self.name = loaded.parts[0].inputs[0].name

        def read(split: Any, count: int) -> np.ndarray:
            images = packaged_set("photos", split).sample(count, 0)
            return np.concatenate([p for p, _ in ImageLoader(images, preprocess).batches(8)])

        is_light = "int8" not in effort.stages and "int4" not in effort.stages
        self._calibration = read("calib", 3 if is_light else effort.calibration_images)
        self._evaluation = read("eval", 3 if is_light else effort.evaluation_images)

    @property
    def example(self) -> np.ndarray:
        """(3, 3, H, W) float32."""
        return self._calibration[:3]

    def calibration(self) -> Iterable[Feeds]:
        return self._feeds(self._calibration)

    def evaluation(self) -> Iterable[Feeds]:
        return self._feeds(self._evaluation)

    def reference(self, part: ExportPart) -> Outputs:
        """Return what torch gives for the evaluation images."""
        with reference_runner(part) as runner:
            return collect_outputs(runner, self.evaluation())

    def first_seen(self, expected: Outputs, found: Outputs) -> Seen:
        """Return the first evaluation images with the outputs of torch and of an artefact."""
        count = min(IMAGES, len(self._evaluation))
        first = [{name: v[:count] for name, v in made.items()} for made in (expected, found)]
        feeds = {self.name: self._evaluation[:count]}
        return Seen(feeds, *first, "dynamic", threads=1, centred=True)

    def _feeds(self, pixels: np.ndarray) -> Iterable[Feeds]:
        return ({self.name: pixels[start : start + 8]} for start in range(0, len(pixels), 8))


def _loaded(source: Path, size: int) -> LoadedModel:
    return load(LoadOptions(str(source), random_weights=True, image_size=size))


def _parity(part: ExportPart, model: ir.Model, images: np.ndarray) -> tuple[float, float]:
    """Return the worst parity at both batch sizes, and what was allowed."""
    with runner_from_model(model) as runner:
        rows = check_parity(part, runner, images, BATCHES)
    return max(row.max_relative for row in rows), max(row.tolerance for row in rows)


def _fidelity(name: str, expected: Outputs, seen: Outputs) -> tuple[float, float]:
    """Return (cosine, SQNR in dB) of the worst output, centred over the images."""
    rows = fidelity_rows((name, "model"), expected, seen, None, centred=True)
    found = (find_value(rows, name, metric) for metric in ("cosine_mean", "sqnr_db"))
    cosine, sqnr = (math.nan if row is None or row.value is None else row.value for row in found)
    return cosine, sqnr


def _linted(graphs: Sequence[Path]) -> dict[str, Any]:
    """Return what the lint finds for TensorRT 10.3 and TensorRT for RTX, whichever is more."""
    known = Known(profiled=frozenset({"pixel_values"}))
    reports = [lint_file(path, v, known) for path in graphs for v in ("10.3", "trt-rtx")]
    rules = {rule.id for report in reports for rule in report.results if rule.findings}
    return {
        "lint_errors": max(report.errors for report in reports),
        "lint_warnings": max(report.warnings for report in reports),
        "findings": tuple(sorted(rules)),
    }
