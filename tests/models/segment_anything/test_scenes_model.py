"""`sam-scenes`, the trained model that ships with the package, is what its README says."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.models.segment_anything.tiny import write_onnx
from vitdeploy.data import packaged_set, prepare
from vitdeploy.data.packaged import scene_masks
from vitdeploy.masks import mask_iou
from vitdeploy.models import LoadOptions, load
from vitdeploy.prompts import best_masks, object_prompts, prompt_feeds
from vitdeploy.targets.onnx import OrtRunner

MODEL = Path(vitdeploy.__file__).parent / "models" / "sam_scenes"
POINT_IOU, BOX_IOU = 0.62, 0.72
RECIPE = Path(vitdeploy.__file__).parents[1] / "recipes" / "train_sam_scenes.py"


def test_the_folder_holds_what_it_should():
    config = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "sam"
    assert config["vision_config"]["image_size"] == 128
    assert (MODEL / "model.safetensors").stat().st_size < 4_000_000
    card = (MODEL / "README.md").read_text()
    for needed in ("Apache-2.0", "train_sam_scenes.py", "mask IoU", "rendered"):
        assert needed in card


def test_its_exported_parts_find_the_held_out_objects(tmp_path):
    loaded = load(LoadOptions("sam-scenes"))
    assert (loaded.spec.weights, loaded.spec.calibration_set) == ("packaged", "scenes")
    preprocess = loaded.spec.preprocess
    scenes = packaged_set("scenes", "eval")
    found: dict[str, list[float]] = {"point": [], "box": []}
    mask_size = loaded.parts[1].module.mask_size
    encoder, decoder = (write_onnx(part, tmp_path, 128) for part in loaded.parts)
    with OrtRunner(encoder) as encode, OrtRunner(decoder) as decode:
        for index, path in enumerate(scenes.paths):
            known = scene_masks(path)
            prompts = [prompt for mask in known for prompt in object_prompts(mask)]
            feeds = prompt_feeds(prompts, known.shape[1:], preprocess, mask_size)
            pixels = prepare(scenes.open(index), preprocess)[None]
            result = decode({**feeds, **encode({"pixel_values": pixels})})
            assert result["masks"].shape == (len(prompts), 4, *known.shape[1:])
            best = best_masks(result["iou_predictions"], feeds["point_labels"])
            for row, choice in enumerate(best):
                iou = mask_iou(known[row // 2], result["masks"][row, choice] > 0)
                found["box" if row % 2 else "point"].append(iou)
    # the promise to users; the model card has the figures themselves
    assert np.mean(found["point"]) >= POINT_IOU
    assert np.mean(found["box"]) >= BOX_IOU


@pytest.mark.parametrize("height", [96, 128])
def test_training_targets_lie_where_the_picture_does(height):
    recipe = runpy.run_path(str(RECIPE))
    mask = np.zeros((height, 128), bool)
    mask[: height // 2, :64] = True
    low = recipe["_low_resolution"](mask)
    side = 4 * 128 // recipe["PATCH"]
    expected = np.zeros((side, side), np.float32)
    expected[: height * side // 256, : side // 2] = 1
    np.testing.assert_array_equal(low, expected)


def test_the_recipe_learns_from_its_scenes():
    import torch

    recipe = runpy.run_path(str(RECIPE))
    rng = np.random.default_rng(0)
    scenes = recipe["drawn_scenes"](4, 0)
    batch = recipe["drawn_batch"](scenes, rng)
    torch.manual_seed(0)
    model = recipe["new_model"]().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(12):
        loss = recipe["loss_of"](model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # one batch over and over: a gradient that is cut anywhere shows
    assert losses[-1] < 0.7 * losses[0]
