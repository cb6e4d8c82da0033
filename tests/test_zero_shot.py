"""Two towers against the reference: agreement of classes and recall of retrieval."""

import numpy as np
import pytest

from tests.small_models import part_from_module
from vitdeploy.models.spec import ExportPart, TensorSpec
from vitdeploy.zero_shot import reads_texts, text_feeds, zero_shot_rows


def towers(images: np.ndarray, texts: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    return {"image_encoder": {"image_embeds": images}, "text_encoder": {"text_embeds": texts}}


def test_both_figures_are_those_of_a_count_by_hand():
    texts = np.eye(3, dtype=np.float32)
    images = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 2], [1, 0, 4]], np.float32)
    changed = np.array([[1, 3, 0], [0, 2, 1], [0, 1, 2], [1, 0, 1.5]], np.float32)
    rows = zero_shot_rows("onnx", towers(images, texts), towers(changed, texts))
    found = {row.metric: row for row in rows}
    # of four pictures the first has another nearest text now, the last the same
    assert found["agreement"].value == 75.0
    # the nearest picture of text 0 was 0 and is 0 or 3 alike, of 1 it was 1 and is 0, of 2 it was
    # 3 and is 2: one of three is left
    assert found["recall_at_1"].value == pytest.approx(100 / 3)
    assert (found["agreement"].n, found["recall_at_1"].n) == (4, 3)
    same = zero_shot_rows("onnx", towers(images, texts), towers(images, texts))
    assert [row.value for row in same] == [100.0, 100.0]


def test_a_model_of_one_tower_has_neither():
    outputs = {"model": {"logits": np.eye(3, dtype=np.float32)}}
    assert zero_shot_rows("onnx", outputs, outputs) == []


def test_a_text_tower_is_known_by_what_it_returns():
    import torch

    assert not reads_texts(part_from_module(torch.nn.Identity()))
    ids = np.arange(6, dtype=np.int64).reshape(3, 2)
    tower = ExportPart(
        "text_encoder",
        None,
        (TensorSpec("input_ids", ("texts", 2), "int64"),),
        (TensorSpec("text_embeds", ("texts", 4)),),
        example=lambda count: {"input_ids": ids[:count]},
    )
    assert reads_texts(tower)
    assert text_feeds(tower, 2)["input_ids"].tolist() == [[0, 1], [2, 3]]
