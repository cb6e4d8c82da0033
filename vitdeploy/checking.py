"""`check`: is a bundle what was written, and does it compute here what it computed there."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.bundle import Artifact, Bundle, load_bundle, verify
from vitdeploy.data import Preprocess
from vitdeploy.data.baked import PICTURES, picture_feeds, prepared_as_baked
from vitdeploy.documents import report_of_bundle
from vitdeploy.errors import DataError, UsageError
from vitdeploy.evaluation import collect_outputs, fidelity_rows
from vitdeploy.gates import check_gates
from vitdeploy.golden import Golden, read_golden
from vitdeploy.joined import (
    asked_from_golden,
    decoded,
    features_of,
    follows,
    golden_outputs,
)
from vitdeploy.mask_fidelity import golden_rows
from vitdeploy.metrics import METRICS, Comparison
from vitdeploy.models.spec import class_output
from vitdeploy.recipe import GateSection, recipe_from_yaml
from vitdeploy.report import FidelityRow, GateRow, Report
from vitdeploy.runner import Outputs, Runner
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
    targets = list(dict.fromkeys(artifact.target for artifact in loaded.artifacts()))
    for target in targets:
        artifacts = loaded.artifacts(target)
        if against is None:
            found, kept = compare_with_golden(loaded, artifacts)
            rows += found
            gates += kept
            continue
        here = _outputs_of_parts(loaded, artifacts, open_here)
        other = load_bundle(Path(against))
        counterparts = [_counterpart(other, a) for a in artifacts]
        rows += _rows(loaded, artifacts, _outputs_of_parts(loaded, counterparts, open_here), here)
    limit = recipe.gates.max_drop_points if max_drop_points is None else max_drop_points
    gates += check_gates(GateSection(max_drop_points=limit), targets, rows, {}, {})
    return report_of_bundle(loaded, fidelity=tuple(rows), gates=tuple(gates))


def open_here(artifact: Artifact) -> Runner:
    """Return an artefact's runner on this machine."""
    return load_target(artifact.target).open(artifact)


def compare_with_golden(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    open_artifact: Callable[[Artifact], Runner] = open_here,
) -> tuple[list[FidelityRow], list[GateRow]]:
    """Return the fidelity on the bundle's golden inputs, and a gate on the SQNR of each artefact.

    Args:
        bundle: with its golden tensors.
        artifacts: of one target, in the manifest's order.
        open_artifact: runs an artefact here, or elsewhere.

    Raises:
        DataError: golden tensors are damaged, or an output is not finite.
        ExportError: an engine cannot load an artefact.
    """
    here = _outputs_of_parts(bundle, artifacts, open_artifact)
    reference = {part: read_golden(bundle.path, part).outputs for part in here}
    gates = [_golden_gate(bundle, a, reference[a.part], here[a.part]) for a in artifacts]
    return _rows(bundle, artifacts, reference, here), gates


def _outputs_of_parts(
    bundle: Bundle, artifacts: Sequence[Artifact], open_artifact: Callable[[Artifact], Runner]
) -> dict[str, Outputs]:
    """Return by part what artefacts of one target give for the golden inputs of `bundle`.

    A part that reads an earlier part's outputs gets what that artefact gave.
    """
    outputs: dict[str, Outputs] = {}
    for artifact in artifacts:
        golden = read_golden(bundle.path, artifact.part)
        with open_artifact(artifact) as runner:
            if follows(artifact.inputs, outputs):
                features = features_of(artifact.inputs, outputs)
                asked = asked_from_golden(golden.inputs)
                outputs[artifact.part] = golden_outputs(list(decoded(runner, features, asked)))
            else:
                outputs[artifact.part] = _outputs_of(runner, artifact, golden, bundle)
    return outputs


def _outputs_of(runner: Runner, artifact: Artifact, golden: Golden, bundle: Bundle) -> Outputs:
    """Return the outputs on the golden inputs of a part that reads no prompts."""
    fixed = artifact.inputs[0].shape[0]
    batch = fixed if isinstance(fixed, int) else "dynamic"
    pictures = picture_feeds(golden.inputs)
    reads_pictures = artifact.inputs[0].name == PICTURES
    if pictures and reads_pictures:
        return collect_outputs(runner, pictures, batch)
    inputs = golden.inputs
    if pictures:
        preprocess = Preprocess.from_dict(bundle.manifest.preprocess)
        prepared = [prepared_as_baked(feeds[PICTURES][0], preprocess) for feeds in pictures]
        inputs = {artifact.inputs[0].name: np.stack(prepared)}
    elif reads_pictures:
        raise UsageError(
            f"'{artifact.part}' of the bundle compared with prepares pictures itself, and this "
            "bundle's golden inputs are prepared already; check that bundle --against this one."
        )
    if len(inputs) > 1:
        return runner(inputs)  # a part of a video's memory: its axes are not pictures
    count = len(next(iter(inputs.values())))
    size = batch if isinstance(batch, int) else count
    feeds = (
        {name: value[start : start + size] for name, value in inputs.items()}
        for start in range(0, count, size)
    )
    return collect_outputs(runner, feeds, batch)


def _rows(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    reference: Mapping[str, Outputs],
    here: Mapping[str, Outputs],
) -> list[FidelityRow]:
    """Return the fidelity of one target's artefacts: of each part, or of all parts' masks."""
    rows = []
    earlier: dict[str, Outputs] = {}
    for artifact in artifacts:
        part, target = artifact.part, artifact.target
        if follows(artifact.inputs, earlier):
            inputs = read_golden(bundle.path, part).inputs
            preprocess = Preprocess.from_dict(bundle.manifest.preprocess)
            rows += golden_rows(target, inputs, (reference[part], here[part]), preprocess)
            continue
        earlier[part] = here[part]
        ranks = ((tensor.name, len(tensor.shape)) for tensor in artifact.outputs)
        classes = class_output(bundle.manifest.model.task, ranks)
        rows += fidelity_rows((target, part), reference[part], here[part], None, classes=classes)
    return rows


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
    bundle: Bundle, artifact: Artifact, reference: Mapping[str, np.ndarray], here: Outputs
) -> GateRow:
    recorded = read_golden(bundle.path, f"{artifact.part}.{artifact.target}").outputs
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
