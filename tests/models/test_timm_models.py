"""Loading through timm: folders, checkpoints, sizes, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vitdeploy.errors import ModelError, UnsupportedError, UsageError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.timm_models import check_multiple, size_notes

from .conftest import TINY_SWIN, TINY_VIT


def run(loaded, images):
    with torch.no_grad():
        return loaded.parts[0].module(images)


def test_a_folder_is_loaded_as_timm_itself_loads_it(timm_folder, pictures):
    folder = timm_folder()
    loaded = load(LoadOptions(str(folder)))
    spec = loaded.spec
    assert (spec.family, spec.source, spec.task) == ("vit", "folder:tiny", "classification")
    assert (spec.weights, spec.calibration_set, spec.notes) == ("checkpoint", "photos", ())
    assert spec.label_names == ("ant", "bee", "cat")
    assert spec.preprocess.size == (32, 32)
    assert spec.preprocess.mean == (0.1, 0.2, 0.3)
    assert spec.preprocess.std == (0.4, 0.5, 0.6)
    assert (spec.preprocess.interpolation, spec.preprocess.crop_pct) == ("bilinear", 0.8)
    (part,) = loaded.parts
    assert part.inputs[0].name == "pixel_values"
    assert part.inputs[0].shape == ("batch", 3, 32, 32)
    assert [(out.name, out.shape) for out in part.outputs] == [("logits", ("batch", 3))]
    assert not part.module.training
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        expected = reference(pictures(32))
    assert torch.equal(run(loaded, pictures(32)), expected)


def test_half_precision_weights_become_fp32(timm_folder):
    folder = timm_folder()
    halves = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    module = load(LoadOptions(str(folder))).parts[0].module
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_features_of_a_classifier(timm_folder, pictures):
    loaded = load(LoadOptions(str(timm_folder()), outputs="features"))
    assert loaded.spec.task == "features"
    assert [(out.name, out.shape) for out in loaded.parts[0].outputs] == [
        ("last_hidden_state", ("batch", 17, 32)),
        ("pooler_output", ("batch", 32)),
    ]
    module = loaded.parts[0].module
    for site in loaded.attention:
        assert isinstance(module.get_submodule(site.qkv[0]), torch.nn.Linear)
    assert run(loaded, pictures(32))[0].shape == (2, 17, 32)


def test_a_model_without_classifier_gives_features(timm_folder):
    folder = timm_folder(classes=0)
    assert load(LoadOptions(str(folder))).spec.task == "features"
    with pytest.raises(UsageError, match="no classifier"):
        load(LoadOptions(str(folder), outputs="logits"))


def test_a_checkpoint_wins_over_the_weights_of_the_folder(timm_folder, tmp_path, pictures):
    folder = timm_folder()
    torch.manual_seed(1)
    other = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY_VIT).eval()
    torch.save({"state_dict": other.state_dict(), "epoch": 1}, tmp_path / "other.pth")
    loaded = load(LoadOptions(str(folder), checkpoint=tmp_path / "other.pth"))
    with torch.no_grad():
        assert torch.equal(run(loaded, pictures(32)), other(pictures(32)))


def test_random_weights_need_no_file(timm_folder, pictures):
    folder = timm_folder()
    (folder / "model.safetensors").unlink()
    options = LoadOptions(str(folder), random_weights=True, seed=4)
    first, again = load(options), load(options)
    assert first.spec.weights == "random"
    assert torch.equal(run(first, pictures(32)), run(again, pictures(32)))
    other = load(dataclasses.replace(options, seed=5))
    assert not torch.equal(run(first, pictures(32)), run(other, pictures(32)))


def test_the_random_state_of_the_caller_is_left_alone(timm_folder):
    folder = timm_folder()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(LoadOptions(str(folder), random_weights=True, seed=7))
    assert torch.equal(torch.rand(1), expected)


def test_checkpoint_and_random_weights_exclude_each_other(timm_folder, tmp_path):
    options = LoadOptions(str(timm_folder()), checkpoint=tmp_path / "x", random_weights=True)
    with pytest.raises(UsageError, match="exclude"):
        load(options)


def test_a_checkpoint_of_another_architecture_is_refused(timm_folder):
    vit = timm_folder()
    swin = timm_folder("swin_tiny_patch4_window7_224", TINY_SWIN, name="swin")
    with pytest.raises(ModelError, match=r"missing.*cls_token.*unexpected.*layers\.0") as refusal:
        load(LoadOptions(str(vit), checkpoint=swin / "model.safetensors"))
    assert refusal.value.exit_code == 3
    with pytest.raises(ModelError, match=r"missing.*unexpected"):
        load(LoadOptions(str(swin), checkpoint=vit / "model.safetensors"))


def test_another_number_of_classes_is_refused(timm_folder):
    folder = timm_folder()
    other = timm_folder(classes=2, name="two")
    with pytest.raises(ModelError, match=r"head.weight: \(2, 32\).*\(3, 32\)"):
        load(LoadOptions(str(folder), checkpoint=other / "model.safetensors"))


@pytest.mark.parametrize("image_size", [None, 64])
def test_another_patch_size_is_refused_and_not_resampled(timm_folder, image_size):
    folder = timm_folder()
    other = timm_folder(model_args={**TINY_VIT, "patch_size": 4}, name="four")
    checkpoint = other / "model.safetensors"
    with pytest.raises(ModelError, match=r"patch_embed.proj.weight: \(32, 3, 4, 4\)"):
        load(LoadOptions(str(folder), checkpoint=checkpoint, image_size=image_size))


def test_positions_of_another_size_need_an_image_size(timm_folder):
    folder = timm_folder()
    larger = timm_folder(model_args={**TINY_VIT, "img_size": 64}, size=64, name="larger")
    checkpoint = larger / "model.safetensors"
    with pytest.raises(ModelError, match=r"pos_embed: \(1, 65, 32\).*--image-size"):
        load(LoadOptions(str(folder), checkpoint=checkpoint))
    loaded = load(LoadOptions(str(folder), checkpoint=checkpoint, image_size=64))
    stored = load_file(checkpoint)["pos_embed"]
    assert torch.equal(loaded.parts[0].module.pos_embed, stored)  # its own size: not resampled


def test_nan_weights_are_refused(timm_folder):
    folder = timm_folder()
    weights = load_file(folder / "model.safetensors")
    weights["blocks.1.attn.qkv.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"NaN.*blocks\.1\.attn\.qkv\.weight"):
        load(LoadOptions(str(folder)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_tinny_patch16_224"}, "Did you mean 'vit_tiny_patch16_224'"),
        ({"model_args": {"depht": 2}}, "Check model_args"),
        ({"pretrained_cfg": {"unknown": 1}}, "cannot build"),
    ],
)
def test_a_wrong_config_is_refused(timm_folder, change, message):
    folder = timm_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=message):
        load(LoadOptions(str(folder)))


def test_inputs_that_are_not_square_rgb_are_refused(timm_folder):
    folder = timm_folder(model_args={**TINY_VIT, "in_chans": 1})
    with pytest.raises(UnsupportedError, match="1x32x32"):
        load(LoadOptions(str(folder)))


def test_positions_are_never_resampled_at_inference(timm_folder):
    folder = timm_folder(model_args={**TINY_VIT, "dynamic_img_size": True})
    module = load(LoadOptions(str(folder), image_size=64)).parts[0].module
    program = torch.export.export(module, (torch.zeros(2, 3, 64, 64),))
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("upsample" in operator for operator in operators)


def test_sizes_are_multiples():
    check_multiple(64, 16)
    with pytest.raises(ModelError, match=r"multiples of 16 pixels\. Nearest: 32 or 48"):
        check_multiple(40, 16)
    with pytest.raises(ModelError, match="Nearest: 16"):
        check_multiple(7, 16)


def test_notes_on_sizes():
    assert size_notes(224, 224, "x") == ()
    assert len(size_notes(224, 448, "x")) == 1
    assert "more than twice the training size 224" in size_notes(224, 449, "x")[1]


def test_shared_models_reach_their_published_logits(shared):
    for name in ("vit", "swin", "fastvit"):
        loaded = load(LoadOptions(str(shared / "models" / f"{name}_cifar10")))
        assert loaded.spec.family == name
        assert loaded.spec.label_names[0] == "airplane"
        size = loaded.spec.preprocess.size[0]
        images = torch.from_numpy(np.random.default_rng(0).random((2, 3, size, size), "f4"))
        folder = f"local-dir:{shared / 'models' / f'{name}_cifar10'}"
        reference = timm.create_model(folder, pretrained=True).eval()
        with torch.no_grad():
            # FastViT is re-parameterised, which reorders sums: rounding only
            torch.testing.assert_close(run(loaded, images), reference(images), atol=1e-4, rtol=1e-4)
