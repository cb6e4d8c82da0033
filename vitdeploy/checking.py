"""`check`: is a bundle what was written, and does it compute here what it computed there."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitdeploy.bundle import Artifact, Bundle, load_bundle, verify
from vitdeploy.documents import report_of_bundle
from vitdeploy.errors import DataError, UsageError
from vitdeploy.evaluation import collect_outputs, fidelity_rows
from vitdeploy.gates import check_gates
from vitdeploy.golden import Golden, read_golden
from vitdeploy.metrics import METRICS, Comparison
from vitdeploy.models.spec import class_output
from vitdeploy.recipe import GateSection, recipe_from_yaml
from vitdeploy.report import FidelityRow, GateRow, Report
from vitdeploy.runner import Outputs
from vitdeploy.targets import load_target

GOLDEN_MARGIN_DB = 3.0
"""How much worse than at export the golden SQNR may be: 3 dB is twice the error's power.
Another CPU rounds otherwise (other kernels, f32 where bf16 is missing), but not by that."""


def check(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    max_drop_points: float | None = None,
) -> Report:
    """Return the comparison of a bundle with its golden outputs, on this machine's engines.

    Every file's hash is verified first. Two gates are always there: the drop the bundle's own
    recipe allows (where it has one), and the SQNR at export less 3 dB.

    Args:
        bundle: folder that `vitdeploy export` wrote.
        against: another bundle of the same model, whose outputs are then the reference.
        max_drop_points: replaces the recipe's gate.

    Raises:
        UsageError: no bundle there.
        DataError: a file is missing or its hash does not match; golden tensors are damaged.
        ExportError: an engine here cannot load the artefact.
    """
    if max_drop_points is not None and not max_drop_points >= 0:
        raise UsageError(f"max_drop_points is {max_drop_points}; it must be 0 or more.")
    loaded = load_bundle(Path(bundle))
    verify(loaded)
    if not loaded.artifacts() or not (loaded.path / "recipe.yaml").is_file():
        raise DataError(
            f"bundle '{loaded.path}' lacks its artefacts or its recipe.yaml; copy it again."
        )
    recipe = recipe_from_yaml(loaded.path / "recipe.yaml")
    rows: list[FidelityRow] = []
    gates: list[GateRow] = []
    for artifact in loaded.artifacts():
        golden = read_golden(loaded.path, artifact.part)
        reference = golden.outputs
        if against is not None:
            reference = _outputs_of(_counterpart(load_bundle(Path(against)), artifact), golden)
        outputs = _outputs_of(artifact, golden)
        ranks = ((tensor.name, len(tensor.shape)) for tensor in artifact.outputs)
        classes = class_output(loaded.manifest.model.task, ranks)
        place = (artifact.target, artifact.part)
        rows += fidelity_rows(place, reference, outputs, None, classes=classes)
        if against is None:
            recorded = read_golden(loaded.path, f"{artifact.part}.{artifact.target}").outputs
            gates.append(_golden_gate(artifact, reference, outputs, recorded))
    limit = recipe.gates.max_drop_points if max_drop_points is None else max_drop_points
    targets = list(dict.fromkeys(artifact.target for artifact in loaded.artifacts()))
    gates += check_gates(GateSection(max_drop_points=limit), targets, rows, {}, {})
    return report_of_bundle(loaded, fidelity=tuple(rows), gates=tuple(gates))


def _outputs_of(artifact: Artifact, golden: Golden) -> Outputs:
    """Return the artefact's outputs on the golden inputs."""
    fixed = artifact.inputs[0].shape[0]
    batch = fixed if isinstance(fixed, int) else "dynamic"
    count = len(next(iter(golden.inputs.values())))
    size = batch if isinstance(batch, int) else count
    feeds = (
        {name: value[start : start + size] for name, value in golden.inputs.items()}
        for start in range(0, count, size)
    )
    with load_target(artifact.target).open(artifact) as runner:
        return collect_outputs(runner, feeds, batch)


def _counterpart(other: Bundle, artifact: Artifact) -> Artifact:
    """Return the other bundle's artefact of the same part, of the same target if it has it."""
    same_part = other.artifacts(part=artifact.part)
    if not same_part:
        raise UsageError(
            f"'{other.path}' has no part '{artifact.part}', so it cannot be compared with."
        )
    same_target = [item for item in same_part if item.target == artifact.target]
    return same_target[0] if same_target else same_part[0]


def _golden_gate(
    artifact: Artifact,
    reference: Mapping[str, np.ndarray],
    here: Outputs,
    recorded: Mapping[str, np.ndarray],
) -> GateRow:
    now = min(_sqnr_db(reference[name], here[name]) for name in reference)
    then = min(_sqnr_db(reference[name], recorded[name]) for name in reference)
    # FP32 artefacts differ from torch by rounding alone; above 80 dB its size means nothing.
    limit = min(then, 80.0) - GOLDEN_MARGIN_DB
    return GateRow(
        name=f"golden_sqnr_db:{artifact.target}:{artifact.part}",
        limit=limit,
        value=now,
        passed=now >= limit,
    )


def _sqnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    score = METRICS["sqnr_db"](Comparison(reference, value))
    if score is None:
        raise DataError("golden outputs are empty; export the bundle again.")
    return score.value
