"""What an export is said to need, and that too much is refused before any work."""

import json

import pytest

from vitdeploy import planning
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import UnsupportedError, UsageError
from vitdeploy.models.spec import LoadOptions


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    """A machine of 10 GMACs a second; the probe itself has its own test."""
    monkeypatch.setattr(planning, "_gmacs_per_second", lambda: 10.0)


def test_a_giant_is_planned_from_its_shapes_and_refused():
    found = planning.estimate(LoadOptions("timm:vit_7b_patch16_dinov3"), 100, memory_gb=64)
    # DINOv3 (arXiv 2508.10104) gives 6.716 B parameters
    assert found.parameters == pytest.approx(6.716e9, rel=1e-3)
    assert {need.precision: need.shards for need in found.files} == {
        "fp32": 13,  # 26.9 GB
        "fp16": 7,
        "int8": 4,
        "w4a16": 2,
    }
    assert all(need.is_external for need in found.files)
    assert found.image_seconds == pytest.approx(found.gmacs / 10.0)
    assert found.run_seconds == pytest.approx(2 * 100 * found.image_seconds)
    with pytest.raises(UnsupportedError, match=r"needs about 81\.\d GB .* and 64\.0 GB are free"):
        planning.require_memory(found)
    assert found.image_size == 256
    planning.require_memory(planning.estimate(LoadOptions("vit-tiny"), 1, memory_gb=2))


@pytest.mark.parametrize(
    ("weight_bytes", "external"),
    [(1_990_000_000, [False] * 4), (2_010_000_000, [True, False, False, False])],
)
def test_weights_lie_beside_the_graph_past_protobufs_limit(weight_bytes, external):
    needs = planning.file_needs(weight_bytes)
    assert [need.is_external for need in needs] == external
    assert [need.weight_bytes / weight_bytes for need in needs] == pytest.approx(
        [1, 0.5, 0.25, 4.25 / 32]
    )
    assert [need.shards for need in planning.file_needs(2**31 + 1)] == [2, 1, 1, 1]


def test_memory_is_that_of_exports_that_ran():
    # peaks of `vitdeploy export vit-small` and `vit-base --random-weights`, from their reports
    for weights, activations, peak in (
        (88.2e6, 4.5e6, 1370 * 2**20),
        (346.3e6, 8.6e6, 2668 * 2**20),
    ):
        assert planning.export_bytes(int(weights), int(activations)) == pytest.approx(peak, rel=0.1)


def test_a_file_has_no_structure_to_plan():
    with pytest.raises(UsageError, match="Name the model it was exported from"):
        planning.estimate(LoadOptions("model.onnx"), 1)


def test_the_command_prints_the_plan_and_leaves_with_6(capsys):
    arguments = ["plan", "vit-tiny", "--json", "--memory"]
    assert exit_code_from([*arguments, "8"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    assert exit_code_from([*arguments, "0.5"]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert "an export of vit-tiny at 224 pixels needs about 1." in captured.err
    assert exit_code_from(["plan", "vit-tiny", "--memory", "nan"]) == 2
    assert exit_code_from(["plan", "no-such-model"]) == 3


def test_the_rate_is_measured(monkeypatch):
    monkeypatch.undo()
    assert planning._gmacs_per_second() > 0.1
