"""What products with INT4 weights really compute on, and what that costs.

W4A16 and W4A8 are the same graph: session settings decide whether an engine quantises activations
to INT8 as it goes, and engines have defaults of their own. So it is not believed but measured, by
running the artefact beside the same weights on float32 activations.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Artifact
from vitdeploy.errors import UnsupportedError
from vitdeploy.runner import Feeds, Outputs, Runner
from vitdeploy.targets import Target
from vitdeploy.targets.onnx import runner_from_model

FLOAT_SETTINGS = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""ONNX Runtime computes the products of the reference in float32."""
LEAST_FLOAT_DB = 75.0
"""Float32 sums in another order differ by 100 dB and more, activations in INT8 by 30 to 60."""
_IMAGES = 16


@dataclass(frozen=True)
class ActivationRecord:
    """What one artefact computes on."""

    type: str
    """`float32`, `bfloat16`, `float16` or `int8`."""
    sqnr_db: float | None
    """Against the same weights on float32 activations; None where nothing differs."""
    images: int
    """How many that was measured on."""

    @property
    def text(self) -> str:
        """The type and its cost, for people."""
        if self.sqnr_db is None:
            return f"{self.type} (equal outputs on {self.images} images)"
        return f"{self.type} ({self.sqnr_db:.1f} dB SQNR to float32 ones on {self.images} images)"


def record_activations(
    target: Target, artifact: Artifact, model: ir.Model, images: Iterable[Feeds]
) -> ActivationRecord:
    """Return what an artefact with INT4 weights computes on, once that has been seen to be so.

    Args:
        target: of the artefact.
        artifact: of precision `w4a16`, `w4a8` or `mixed` of INT4 and INT8 weights.
        model: the graph it was built from.
        images: feeds; at most 16 images are read.

    Raises:
        UnsupportedError: the engine quantises activations where it was told not to, or does not
            where it was.
    """
    feeds = _first(images)
    with runner_from_model(model, settings=FLOAT_SETTINGS) as runner:
        reference = _outputs(runner, feeds)
    with target.open(artifact) as runner:
        own = _outputs(runner, feeds)
    sqnr = _sqnr_db(reference, own)
    stated = target.activation_type(artifact)
    if target.untimed_reason() is None:  # else another engine stands in, which proves nothing
        settings = target.float_settings(artifact)
        plain = sqnr
        if settings != artifact.settings:
            with target.open(replace(artifact, settings=settings)) as runner:
                plain = _sqnr_db(reference, _outputs(runner, feeds))
        _require_stated(target.NAME, stated, plain)
    count = sum(len(next(iter(item.values()))) for item in feeds)
    return ActivationRecord(stated, None if np.isinf(sqnr) else sqnr, count)


def _require_stated(name: str, stated: str, sqnr_db: float) -> None:
    is_quantised = sqnr_db < LEAST_FLOAT_DB
    if is_quantised and stated != "int8":
        raise UnsupportedError(
            f"{name}: asked for INT4 weights on {stated} activations (w4a16), but the engine "
            f"differs from that by {sqnr_db:.0f} dB SQNR, as it does where it quantises "
            "activations. Use --precision w4a8, or another target."
        )
    if not is_quantised and stated == "int8":
        raise UnsupportedError(
            f"{name}: asked for INT4 weights on INT8 activations (w4a8), but on this machine the "
            f"engine computes on float ({sqnr_db:.0f} dB SQNR). Use --int4 (w4a16)."
        )


def _first(images: Iterable[Feeds]) -> list[Feeds]:
    feeds: list[Feeds] = []
    count = 0
    for item in images:
        feeds.append(item)
        count += len(next(iter(item.values())))
        if count >= _IMAGES:
            break
    return feeds


def _outputs(runner: Runner, feeds: Iterable[Feeds]) -> dict[str, np.ndarray]:
    found: list[Outputs] = [runner(item) for item in feeds]
    return {name: np.concatenate([item[name] for item in found]) for name in found[0]}


def _sqnr_db(reference: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]) -> float:
    """Return the worst of all outputs, in decibels; infinite where they are equal."""
    worst = np.inf
    for name, value in own.items():
        wanted = reference[name].astype(np.float64)
        noise = float(np.square(value - wanted).sum())
        if noise > 0:
            worst = min(worst, 10.0 * np.log10(float(np.square(wanted).sum()) / noise))
    return float(worst)
