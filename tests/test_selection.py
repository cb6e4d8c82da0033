"""`--precision auto`: the fastest faithful variant is kept, said, pinned, and timed no more."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import vitdeploy
import vitdeploy.candidates
import vitdeploy.restoration
import vitdeploy.selection
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.bundle import load_bundle
from vitdeploy.cpu import cpu_has
from vitdeploy.errors import DataError, UnsupportedError, UsageError
from vitdeploy.gates import unfaithful_reason
from vitdeploy.measure import Subject, Timing
from vitdeploy.recipe import GateSection, recipe_from_dict, recipe_from_yaml
from vitdeploy.report import FidelityRow, Report
from vitdeploy.targets import Variant, Way, openvino

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
ONE_THREAD = {**F32, "INFERENCE_NUM_THREADS": 1}
# The same on every CPU: bf16 is not everywhere.
VARIANTS = (Variant("fp32", F32), Variant("int8", F32), Variant("int8", ONE_THREAD))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("selection")
    write_vit_folder(root / "model")
    write_images(root / "images", per_class=6)
    return root


class Clock:
    """Stands for the measurement: says how long each candidate took, and counts its calls."""

    def __init__(self, *rounds: Sequence[float]) -> None:
        self.rounds = list(rounds)
        self.calls = 0

    def __call__(self, subjects: Sequence[Subject], seconds: float, progress=None):
        assert seconds > 0
        self.calls += 1
        times = self.rounds[min(self.calls, len(self.rounds)) - 1]
        assert len(times) == len(subjects)
        return {
            s.name: Timing(np.full(3, ms), s.batch) for s, ms in zip(subjects, times, strict=True)
        }


def export(
    place: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    *,
    has_others: bool = False,
    scheduling: tuple[dict[str, str], ...] = (),
    attention: tuple[Way, ...] = (),
    **changes,
):
    monkeypatch.setattr(openvino, "variants", lambda: VARIANTS)
    monkeypatch.setattr(openvino, "scheduling", lambda: scheduling)
    monkeypatch.setattr(openvino, "ways", lambda precision: attention)
    # with VNNI; elsewhere attention stays in float
    scheme = replace(openvino.quant_scheme(), most_int8_attention_tokens=4096, weight_bits=8)
    monkeypatch.setattr(openvino, "quant_scheme", lambda: scheme)
    if not has_others:
        monkeypatch.setattr(vitdeploy.candidates, "_other_placements", lambda *_: [])
    monkeypatch.setattr(vitdeploy.candidates, "measure_latency", clock)
    sections = {
        "precision": "auto",
        "targets": ["openvino"],
        "calibration": {"path": str(place / "images")},
        "evaluation": {"path": str(place / "images")},
        "measure": {"seconds": 0, "search_seconds": 1},
        **changes,
    }
    return vitdeploy.export(str(place / "model"), output=output, **sections)


def lose(monkeypatch: pytest.MonkeyPatch, points: dict[str, float]) -> None:
    """Let artefacts lose top-1 by precision, as they are kept."""
    exact = vitdeploy.candidates.compare

    def compare(job, target, compressed):
        judged = exact(job, target, compressed)
        lost = points.get(compressed[0].artifact.precision, 0.0)
        rows = [row if row.metric != "top1" else with_top1(row, 90 - lost) for row in judged.rows]
        return replace(judged, rows=rows)

    monkeypatch.setattr(vitdeploy.candidates, "compare", compare)
    monkeypatch.setattr(vitdeploy.restoration, "compare", compare)


def with_top1(row: FidelityRow, value: float) -> FidelityRow:
    return row.model_copy(update={"reference": 90.0, "value": value, "delta": value - 90.0})


def kept(report: Report) -> str:
    (artifact,) = report.artifacts
    return artifact.precision


def test_the_fastest_is_kept_and_its_settings_are_in_the_bundle(place, tmp_path, monkeypatch):
    clock = Clock([30.0, 20.0, 10.0])
    report = export(place, tmp_path / "out", monkeypatch, clock)
    assert kept(report) == "int8"
    assert report.precision.requested == "auto"
    (artifact,) = load_bundle(tmp_path / "out").artifacts()
    assert artifact.settings == ONE_THREAD
    with vitdeploy.load(tmp_path / "out") as predictor:
        assert predictor._engine._runner.threads == 1
    notes = " ".join(report.notes)
    assert "kept INT8 (INFERENCE_PRECISION_HINT=f32, INFERENCE_NUM_THREADS=1)" in notes
    assert "FP32 (INFERENCE_PRECISION_HINT=f32) is 3.00x slower here." in notes
    assert any(stage.name == "select openvino" for stage in report.stages)
    # Nothing of the candidates that lost is left.
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [
        "golden",
        "openvino",
    ]
    assert vitdeploy.check(tmp_path / "out").passed


def test_a_precision_that_is_slower_is_not_kept(place, tmp_path, monkeypatch):
    report = export(place, tmp_path / "out", monkeypatch, Clock([10.0, 17.0, 20.0]))
    assert kept(report) == "fp32"
    assert any("INT8 (INFERENCE_PRECISION_HINT=f32) is 1.70x slower" in n for n in report.notes)
    assert vitdeploy.check(tmp_path / "out").passed


def test_what_is_as_fast_gives_way_to_the_more_exact(place, tmp_path, monkeypatch):
    # 1 % is noise, whichever of the two it favours.
    report = export(place, tmp_path / "out", monkeypatch, Clock([10.1, 10.0, 10.05]))
    assert kept(report) == "fp32"


def test_a_rerun_times_nothing_and_writes_the_same_bytes(place, tmp_path, monkeypatch):
    export(place, tmp_path / "out", monkeypatch, Clock([30.0, 20.0, 10.0]))
    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert recipe.precision == "auto"
    assert recipe.choices["openvino"].precision == "int8"
    clock = Clock([])
    monkeypatch.setattr(vitdeploy.candidates, "measure_latency", clock)
    report = vitdeploy.run(recipe, output=tmp_path / "again")
    assert clock.calls == 0
    assert kept(report) == "int8"
    assert load_bundle(tmp_path / "again").artifacts()[0].settings == ONE_THREAD
    for name in ("openvino/model.xml", "openvino/model.bin", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


SIBLINGS = {"ENABLE_HYPER_THREADING": "YES"}


def test_kinds_of_threads_are_timed_for_what_is_kept_and_pinned(place, tmp_path, monkeypatch):
    clock = Clock([30.0, 10.0, 20.0], [10.0, 8.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, scheduling=(SIBLINGS,))
    (artifact,) = load_bundle(tmp_path / "out").artifacts()
    assert artifact.settings == {**F32, **SIBLINGS}
    assert any("1.25x faster than on the engine's own choice" in note for note in report.notes)
    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert recipe.choices["openvino"].settings == artifact.settings
    vitdeploy.run(recipe, output=tmp_path / "again")
    assert clock.calls == 2
    assert load_bundle(tmp_path / "again").artifacts()[0].settings == artifact.settings


def test_kinds_of_threads_that_are_no_faster_are_left(place, tmp_path, monkeypatch):
    clock = Clock([30.0, 10.0, 20.0], [10.0, 9.9])
    report = export(place, tmp_path / "out", monkeypatch, clock, scheduling=(SIBLINGS,))
    assert load_bundle(tmp_path / "out").artifacts()[0].settings == F32
    assert any("no other kind of cores or threads is faster" in note for note in report.notes)


def test_kinds_of_threads_are_not_tried_where_their_number_is_asked_for(
    place, tmp_path, monkeypatch
):
    clock, measure = Clock([30.0, 10.0, 20.0]), {"seconds": 0, "search_seconds": 1, "threads": 1}
    export(place, tmp_path / "o", monkeypatch, clock, scheduling=(SIBLINGS,), measure=measure)
    assert clock.calls == 1


SPLIT = Way("q, k and v apart", form="split")
UNFUSED = Way("unfused", settings={"SNIPPETS_MODE": "DISABLE"})
IN_INT8 = [30.0, 10.0, 20.0]


def test_ways_of_attention_are_timed_for_what_is_kept_and_pinned(place, tmp_path, monkeypatch):
    clock = Clock(IN_INT8, [10.0, 8.0, 9.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, attention=(SPLIT, UNFUSED))
    assert any("q, k and v apart: 1.25x as fast, and kept." in note for note in report.notes)
    assert kept(report) == "int8"
    products = (tmp_path / "out/openvino/model.xml").read_text()
    assert "attn.qkv.query" in products
    assert "attn.qkv/MatMul" not in products
    assert [p.name for p in (tmp_path / "out").glob("openvino*")] == ["openvino"]
    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert recipe.choices["openvino"].attention == "split"
    assert vitdeploy.check(tmp_path / "out").passed
    vitdeploy.run(recipe, output=tmp_path / "again")
    assert clock.calls == 2
    first, again = (tmp_path / name / "openvino/model.bin" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_settings_of_attention_are_stored_and_pinned(place, tmp_path, monkeypatch):
    clock = Clock(IN_INT8, [10.0, 11.0, 9.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, attention=(SPLIT, UNFUSED))
    assert any("unfused: 1.11x as fast, and kept." in note for note in report.notes)
    (artifact,) = load_bundle(tmp_path / "out").artifacts()
    assert artifact.settings == {**F32, **UNFUSED.settings}
    choice = recipe_from_yaml(tmp_path / "out/recipe.yaml").choices["openvino"]
    assert choice.attention == "as-exported"
    assert choice.settings == artifact.settings


def test_ways_of_attention_that_are_no_faster_are_left(place, tmp_path, monkeypatch):
    clock = Clock(IN_INT8, [10.0, 9.9, 20.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, attention=(SPLIT, UNFUSED))
    notes = " ".join(report.notes)
    assert "q, k and v apart: 1.01x as fast." in notes
    assert "unfused: 0.50x as fast." in notes
    assert "attn.qkv.query" not in (tmp_path / "out/openvino/model.xml").read_text()
    assert [p.name for p in (tmp_path / "out").glob("openvino*")] == ["openvino"]


def test_a_faster_way_that_computes_nonsense_is_not_kept(place, tmp_path, monkeypatch):
    exact = vitdeploy.candidates.compare

    def compare(job, target, compressed):
        if UNFUSED.settings.items() <= compressed[0].artifact.settings.items():
            raise DataError("output 'logits' holds NaN")
        return exact(job, target, compressed)

    monkeypatch.setattr(vitdeploy.candidates, "compare", compare)
    clock = Clock(IN_INT8, [10.0, 5.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, attention=(UNFUSED,))
    assert load_bundle(tmp_path / "out").artifacts()[0].settings == F32
    assert any("2.00x as fast, but: output 'logits' holds NaN." in n for n in report.notes)


def test_a_faster_way_that_loses_accuracy_is_not_kept(place, tmp_path, monkeypatch):
    exact = vitdeploy.candidates.compare

    def compare(job, target, compressed):
        judged = exact(job, target, compressed)
        if "SNIPPETS_MODE" not in compressed[0].artifact.settings:
            return judged
        changed = {"top1": {"delta": -3.0}, "sqnr_db": {"value": 9.0}}
        rows = [row.model_copy(update=changed.get(row.metric, {})) for row in judged.rows]
        return replace(judged, rows=rows)

    monkeypatch.setattr(vitdeploy.candidates, "compare", compare)
    clock = Clock(IN_INT8, [10.0, 5.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, attention=(UNFUSED,))
    assert load_bundle(tmp_path / "out").artifacts()[0].settings == F32
    assert any("but: 3.00 points of top-1 lost" in note for note in report.notes)


def test_a_form_that_the_graph_cannot_have_is_not_timed(place, tmp_path, monkeypatch):
    clock = Clock(IN_INT8)
    monkeypatch.setattr("vitdeploy.graph.attention_form.find_attention", lambda model: [])
    export(place, tmp_path / "out", monkeypatch, clock, attention=(SPLIT,))
    assert clock.calls == 1


def test_int8_that_is_not_faithful_is_restored_and_timed_again(place, tmp_path, monkeypatch):
    lose(monkeypatch, {"int8": 3.0})
    clock = Clock([30.0, 20.0, 10.0], [15.0, 30.0])
    report = export(place, tmp_path / "out", monkeypatch, clock)
    assert clock.calls == 2
    assert kept(report) == "mixed"
    assert any("back in float" in note for note in report.notes)
    assert vitdeploy.check(tmp_path / "out").passed
    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert recipe.int8.choices["openvino"].kept_float
    vitdeploy.run(recipe, output=tmp_path / "again")
    first, again = (tmp_path / name / "openvino/model.bin" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_what_restoring_makes_slower_is_not_kept(place, tmp_path, monkeypatch):
    lose(monkeypatch, {"int8": 3.0})
    clock = Clock([30.0, 20.0, 10.0], [31.0, 30.0])
    report = export(place, tmp_path / "out", monkeypatch, clock)
    assert kept(report) == "fp32"
    assert any("3.00x faster here, but: 3.00 points of top-1 lost" in n for n in report.notes)
    assert [p.name for p in (tmp_path / "out").glob("openvino*")] == ["openvino"]


def test_restoring_is_given_up_before_nothing_is_left_in_int8(place, tmp_path, monkeypatch):
    lose(monkeypatch, {"int8": 3.0, "mixed": 3.0})
    clock = Clock([30.0, 20.0, 10.0])
    report = export(place, tmp_path / "out", monkeypatch, clock)
    assert kept(report) == "fp32"
    assert clock.calls == 1
    monkeypatch.setattr(vitdeploy.selection, "WORTH_INT8_PERCENT", 100.0)
    builds = sum(stage.name == "quantize openvino" for stage in report.stages)
    again = export(place, tmp_path / "again", monkeypatch, Clock([30.0, 20.0, 10.0]))
    assert sum(stage.name == "quantize openvino" for stage in again.stages) == 2 < builds


def test_an_engine_that_computes_nonsense_is_not_kept(place, tmp_path, monkeypatch):
    """Such as OpenVINO in bf16 with a mask by key: NaN, or finite and wrong."""
    exact = vitdeploy.candidates.compare

    def compare(job, target, compressed):
        if compressed[0].artifact.settings == ONE_THREAD:
            raise DataError("output 'logits' holds NaN")
        return exact(job, target, compressed)

    monkeypatch.setattr(vitdeploy.candidates, "compare", compare)
    clock = Clock([20.0, 10.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, precision="int8")
    assert load_bundle(tmp_path / "out").artifacts()[0].settings == F32
    assert any("2.00x faster here, but: output 'logits' holds NaN" in n for n in report.notes)


def test_int8_keeps_its_meaning_and_says_where_it_is_slower(place, tmp_path, monkeypatch):
    variants = (Variant("fp32", F32), Variant("fp16", F32), Variant("int8", F32))
    monkeypatch.setattr(openvino, "check_precision", lambda name: None)
    clock = Clock([10.0, 17.0])
    monkeypatch.setitem(globals(), "VARIANTS", variants)
    report = export(place, tmp_path / "out", monkeypatch, clock, precision="int8")
    assert kept(report) == "int8"
    assert any(
        "FP16 (INFERENCE_PRECISION_HINT=f32) is 1.70x faster here." in n for n in report.notes
    )


def test_attention_in_float_is_timed_beside_int8_and_kept_where_it_is_faster(
    place, tmp_path, monkeypatch
):
    clock = Clock([30.0, 20.0, 10.0, 21.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, has_others=True)
    notes = " ".join(report.notes)
    assert "kept INT8 with attention in float (INFERENCE_PRECISION_HINT=f32): 10 ms" in notes
    assert "INT8 (INFERENCE_PRECISION_HINT=f32) is 2.00x slower here." in notes
    resolved = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert resolved.int8.choices["openvino"].attention_int8 == {}
    assert [p.name for p in (tmp_path / "out").glob("openvino*")] == ["openvino"]
    # a rerun builds the same, and times nothing
    vitdeploy.run(resolved, output=tmp_path / "again")
    assert clock.calls == 1
    for name in ("model.xml", "model.bin"):
        first, second = (tmp_path / run / "openvino" / name for run in ("out", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_attention_stays_in_int8_where_that_is_as_fast(place, tmp_path, monkeypatch):
    clock = Clock([30.0, 20.0, 19.9, 21.0])
    report = export(place, tmp_path / "out", monkeypatch, clock, has_others=True)
    assert "kept INT8 (INFERENCE_PRECISION_HINT=f32): 20 ms" in " ".join(report.notes)
    resolved = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert resolved.int8.choices["openvino"].attention_int8


def test_auto_without_time_or_without_an_engine_is_refused(place, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"measure.search_seconds is 0"):
        export(place, tmp_path / "a", monkeypatch, Clock(), measure={"seconds": 0})
    monkeypatch.setattr(openvino, "untimed_reason", lambda: "no such device")
    with pytest.raises(UnsupportedError, match="cannot be timed here: no such device"):
        export(place, tmp_path / "b", monkeypatch, Clock())
    assert not list(tmp_path.iterdir())


def test_a_choice_of_another_precision_is_a_mistake():
    with pytest.raises(UsageError, match=r"choices.onnx.precision is 'fp32'"):
        recipe_from_dict(
            {
                "model": {"source": "vit-digits"},
                "precision": "int8",
                "choices": {"onnx": {"precision": "fp32"}},
            }
        )


def row(metric: str, value: float, delta: float | None) -> FidelityRow:
    return FidelityRow(
        target="onnx",
        part="model",
        metric=metric,
        reference=value if delta is None else value - delta,
        value=value,
        delta=0.0 if delta is None else delta,
        unit="percent" if metric == "top1" else "cosine",
        n=10,
    )


@pytest.mark.parametrize(
    ("rows", "limit", "reason"),
    [
        ([row("top1", 80.0, -0.5), row("cosine_mean", 0.9, -0.1)], None, None),
        ([row("top1", 80.0, -0.6)], None, "0.60 points of top-1 lost"),
        ([row("cosine_mean", 0.9990, -0.001)], None, None),
        ([row("cosine_mean", 0.9989, -0.0011)], None, "centred cosine 0.9989, 0.999 needed"),
        ([row("top1", 80.0, -0.6)], 1.0, None),
        ([row("top1", 80.0, -0.3)], 0.1, "0.30 points of top1 lost, 0.1 allowed"),
        ([], None, "one image does not show its fidelity"),
        ([], 1.0, "one image does not show its fidelity"),
    ],
)
def test_faithful_is_the_gate_or_the_default(rows, limit, reason):
    assert unfaithful_reason(GateSection(max_drop_points=limit), rows, "onnx") == reason


@pytest.mark.parametrize(
    ("slow_above_s", "candidates", "together"), [(1000.0, 3, [2]), (0.0, 2, [1, 1])]
)
def test_of_a_slow_model_only_int8_is_timed_and_engines_one_by_one(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slow_above_s: float,
    candidates: int,
    together: list[int],
):
    monkeypatch.setattr("vitdeploy.job.SLOW_IMAGE_SECONDS", slow_above_s)
    groups = []

    def measured(subjects: Sequence[Subject], seconds: float, progress=None):
        groups.append(len(subjects))
        return {s.name: Timing(np.ones(3), s.batch) for s in subjects}

    monkeypatch.setattr("vitdeploy.stages.measure_latency", measured)
    clock = Clock([1.0] * candidates)
    short = (VARIANTS[0], Variant("fp16"), *VARIANTS[1:])
    monkeypatch.setattr("tests.test_selection.VARIANTS", short)
    sections = {
        "precision": "int8",
        "int8": {"search_seconds": 0},
        "measure": {"seconds": 1, "search_seconds": 1},
    }
    report = export(place, tmp_path / "out", monkeypatch, clock, **sections)
    assert clock.calls == 1
    assert groups == together
    assert {row.target for row in report.latency} == {"reference", "openvino"}


def test_int8_that_runs_in_one_way_has_its_attention_timed(place, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "VARIANTS", (VARIANTS[0], Variant("int8", F32)))
    clock = Clock([10.0, 8.0])
    report = export(
        place, tmp_path / "out", monkeypatch, clock, attention=(SPLIT,), precision="int8"
    )
    assert clock.calls == 1
    assert any("q, k and v apart: 1.25x as fast, and kept." in note for note in report.notes)
    assert not any("median of the candidates" in note for note in report.notes)


def test_int8_on_onnx_runtime_is_fused_where_that_is_faster(place, tmp_path, monkeypatch):
    """Its own operator, through the bundle: checked, diagnosed, pinned."""
    clock = Clock([10.0, 9.0, 8.0])
    report = export(
        place,
        tmp_path / "out",
        monkeypatch,
        clock,
        precision="int8",
        targets=["onnx"],
        keep_reference=True,
    )
    assert any("attention as one operator: 1.25x as fast, and kept." in n for n in report.notes)
    graph = onnx.load(tmp_path / "out/onnx/model.onnx").graph
    assert "MultiHeadAttention" in {node.op_type for node in graph.node}
    assert vitdeploy.check(tmp_path / "out").passed
    found = vitdeploy.diagnose(tmp_path / "out", calib=str(place / "images"))
    assert any("qkv.query" in site.name for part in found.parts for site in part.sites)
    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert recipe.choices["onnx"].attention == "fused"
    vitdeploy.run(recipe, output=tmp_path / "again")
    first, again = (tmp_path / name / "onnx/model.onnx" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


IN_F32 = Way("f32 where it is not INT8", settings=F32)


def test_int4_is_run_in_the_type_that_is_faster(place, tmp_path, monkeypatch):
    clock = Clock([10.0, 8.0])
    report = export(
        place, tmp_path / "out", monkeypatch, clock, attention=(IN_F32,), precision="w4a16"
    )
    assert any("f32 where it is not INT8: 1.25x as fast, and kept." in n for n in report.notes)
    (artifact,) = load_bundle(tmp_path / "out").artifacts()
    assert artifact.settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert report.artifacts[0].activations == "float32"
    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert recipe.choices["openvino"].precision == "w4a16"
    assert recipe.choices["openvino"].settings == F32
    vitdeploy.run(recipe, output=tmp_path / "again")
    assert clock.calls == 1
    assert load_bundle(tmp_path / "again").artifacts()[0].settings == artifact.settings


@pytest.mark.skipif(not cpu_has("vnni"), reason="OpenVINO has W4A8 with VNNI alone")
def test_int4_stays_in_the_usual_type_where_that_is_as_fast(place, tmp_path, monkeypatch):
    clock = Clock([10.0, 9.9])
    report = export(
        place, tmp_path / "out", monkeypatch, clock, attention=(IN_F32,), precision="w4a8"
    )
    assert any("f32 where it is not INT8: 1.01x as fast." in note for note in report.notes)
    assert report.artifacts[0].activations == "int8"
    (artifact,) = load_bundle(tmp_path / "out").artifacts()
    assert artifact.settings["INFERENCE_PRECISION_HINT"] == openvino.float_hint("w4a8")


@pytest.mark.parametrize(("precision", "count"), [("int8", 4), ("w4a16", 1)])
def test_openvino_knows_other_ways_of_each_precision(precision, count, monkeypatch):
    monkeypatch.setattr(openvino, "cpu_has", lambda feature: True)
    assert len(openvino.ways(precision)) == count
    monkeypatch.setattr(openvino, "cpu_has", lambda feature: False)
    assert len(openvino.ways("w4a16")) == 0
    assert not any(way.form == "padded-32" for way in openvino.ways("int8"))
