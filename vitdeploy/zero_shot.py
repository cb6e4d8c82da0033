"""How close two towers in an artefact are to the reference's: on texts, and on texts with pictures.

Without labels the reference says which text fits a picture best, and which picture a text.
"""

import numpy as np
from numpy.typing import NDArray

from vitdeploy.metrics import METRICS, Comparison
from vitdeploy.models.families.two_tower import IMAGE_EMBEDS, PROMPTS, TEXT_EMBEDS
from vitdeploy.models.spec import ExportPart
from vitdeploy.report import FidelityRow
from vitdeploy.runner import Feeds, Outputs


def reads_texts(part: ExportPart) -> bool:
    """Return whether a part is a text tower."""
    return [tensor.name for tensor in part.outputs] == [TEXT_EMBEDS]


def text_feeds(part: ExportPart, count: int = len(PROMPTS)) -> Feeds:
    """Return the first `count` prompts as token ids."""
    assert part.example is not None
    return dict(part.example(count))


def zero_shot_rows(
    target: str, reference: dict[str, Outputs], made: dict[str, Outputs]
) -> list[FidelityRow]:
    """Return agreement of zero-shot classes and recall of retrieval; none without two towers.

    `agreement`: per cent of the pictures for which both models find the same text nearest.
    `recall_at_1`: per cent of the texts whose nearest picture by the reference is nearest by the
    artefact too.

    Args:
        target: the artefact's.
        reference: outputs of the FP32 model by part.
        made: outputs of the artefact by part, on the same pictures and texts.
    """
    expected, found = _similarities(reference), _similarities(made)
    if expected is None or found is None:
        return []
    agreement = METRICS["agreement"](Comparison(expected, found, are_logits=True))
    recall = METRICS["agreement"](Comparison(expected.T, found.T, are_logits=True))
    assert agreement is not None
    assert recall is not None
    return [
        FidelityRow(
            target=target,
            part="image_encoder",
            output=IMAGE_EMBEDS,
            metric=metric,
            reference=score.reference,
            value=score.value,
            delta=score.delta,
            unit=score.unit,
            n=count,
        )
        for metric, score, count in (
            ("agreement", agreement, expected.shape[0]),
            ("recall_at_1", recall, expected.shape[1]),
        )
    ]


def _similarities(outputs: dict[str, Outputs]) -> NDArray[np.float32] | None:
    """Return (pictures, texts) cosines of embeddings of length one."""
    named = {name: value for part in outputs.values() for name, value in part.items()}
    if IMAGE_EMBEDS not in named or TEXT_EMBEDS not in named:
        return None
    return np.asarray(named[IMAGE_EMBEDS] @ named[TEXT_EMBEDS].T, dtype=np.float32)
