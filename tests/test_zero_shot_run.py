"""A whole run of a model with two towers: parts, fidelity, golden tensors."""

import numpy as np
import pytest
import torch
from PIL import Image

import vitdeploy
from tests.model_folders import shake_


@pytest.fixture
def place(tmp_path):
    """A shaken CLIP and eight smooth pictures."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    fields = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = fields | {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98}
    vision = fields | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    shake_(model)
    model.save_pretrained(tmp_path / "clip")
    (tmp_path / "images").mkdir()
    for seed in range(8):
        values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(values).resize((48, 48)).save(tmp_path / f"images/{seed}.png")
    return tmp_path


@pytest.mark.slow
def test_both_towers_are_in_the_bundle_and_judged_together(place):
    images = {"path": str(place / "images")}
    report = vitdeploy.export(
        str(place / "clip"),
        output=place / "out",
        calibration=images,
        evaluation=images,
        measure={"seconds": 0},
    )
    found = {(row.part, row.metric): row for row in report.fidelity}
    # FP32 on another engine finds what torch finds
    assert found["image_encoder", "agreement"].value == 100.0
    assert found["image_encoder", "recall_at_1"].value == 100.0
    assert found["image_encoder", "recall_at_1"].n == 32
    assert found["text_encoder", "cosine_min"].value == pytest.approx(1.0, abs=1e-5)
    checked = vitdeploy.check(place / "out")
    assert {row.part for row in checked.fidelity} == {"image_encoder", "text_encoder"}
    assert all(gate.passed for gate in checked.gates)
    with vitdeploy.load(place / "out") as predictor:
        prediction = predictor.predict(place / "images/0.png")
    assert np.linalg.norm(prediction.outputs["image_embeds"]) == pytest.approx(1.0, abs=1e-5)
