"""A missed gate sends the noisiest products back to float, and the report says so."""

from dataclasses import replace
from pathlib import Path

import pytest

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.report import FidelityRow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("restoration")
    write_vit_folder(root / "model")
    write_images(root / "images", per_class=6)
    return root


def export(place: Path, output: Path, monkeypatch: pytest.MonkeyPatch, needed: int, limit: float):
    """Export with a drop of one point per product of `needed` that is still in INT8."""
    import vitdeploy.restoration as module

    exact = module.compare
    noisy: list[str] = []

    def compare(job, target, compressed):
        judged = exact(job, target, compressed)
        (item,) = compressed
        if not noisy:
            noise = item.quantized.noise
            order = sorted(item.quantized.quantized, key=lambda name: -noise[name])
            noisy.extend(order[:needed])
        lost = sum(name in item.quantized.quantized for name in noisy)
        return replace(judged, rows=[drop_of(row, lost) for row in judged.rows])

    monkeypatch.setattr(module, "compare", compare)
    return vitdeploy.export(
        str(place / "model"),
        output=output,
        precision="int8",
        calibration={"path": str(place / "images")},
        evaluation={"path": str(place / "images")},
        measure={"seconds": 0},
        gates={"max_drop_points": limit},
    )


def drop_of(row: FidelityRow, points: float) -> FidelityRow:
    if row.metric != "top1":
        return row
    return row.model_copy(update={"reference": 90.0, "value": 90.0 - points, "delta": -points})


def test_products_are_restored_until_the_gate_holds(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = export(place, tmp_path / "out", monkeypatch, needed=3, limit=0.5)
    assert report.passed
    (artifact,) = report.artifacts
    # One, two, then four in float: the noisiest three among them.
    assert any("back in float to keep max_drop_points" in note for note in report.notes)
    assert artifact.precision == "mixed"
    assert artifact.int8_macs_percent is not None
    assert artifact.int8_macs_percent < 80
    assert vitdeploy.check(tmp_path / "out").passed


def test_what_was_restored_is_pinned(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export(place, tmp_path / "out", monkeypatch, needed=1, limit=0.5)
    monkeypatch.undo()
    from vitdeploy.recipe import recipe_from_yaml

    recipe = recipe_from_yaml(tmp_path / "out/recipe.yaml")
    assert len(recipe.int8.choices["onnx"].kept_float) >= 1
    vitdeploy.run(recipe, output=tmp_path / "again")
    first, again = (tmp_path / name / "onnx/model.onnx" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_gate_that_cannot_be_met_fails(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = export(place, tmp_path / "out", monkeypatch, needed=0, limit=0.5)
    assert report.passed
    assert not any("back in float" in note for note in report.notes)
    # One product always stays in INT8, so a drop it causes cannot be restored away.
    report = export(place, tmp_path / "two", monkeypatch, needed=99, limit=0.5)
    assert not report.passed
