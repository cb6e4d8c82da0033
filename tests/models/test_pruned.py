"""Folders of pruned models: written, loaded by name and by the plain loader, refused."""

import dataclasses
import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.model_folders import shake_
from tests.models.conftest import TINY_FASTVIT, TINY_SWIN
from tests.prunable_models import noise, outputs_of, prunable
from vitdeploy.compress.prune import PruneInputs, prune_model
from vitdeploy.errors import ModelError, UnsupportedError
from vitdeploy.models import LoadOptions, describe, load
from vitdeploy.models.pruned import load_pruned, save_model_folder
from vitdeploy.models.pruning_record import (
    PruningRecord,
    path_in_architecture,
    record_from_config,
)
from vitdeploy.models.transformers_input import config_from_preprocess, preprocess_from_config
from vitdeploy.recipe import PruneSection

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
FASTVIT = {**TINY_FASTVIT, "embed_dims": (16, 16, 32, 64), "layers": (1, 1, 1, 2)}
FOLDERS = {
    "vit": ("vit_tiny_patch16_224", VIT, 32),
    "dinov3": ("vit_small_patch16_dinov3", VIT, 32),
    "swin": ("swin_tiny_patch4_window7_224", TINY_SWIN, 32),
    "swinv2": ("swinv2_tiny_window8_256", TINY_SWIN, 32),
    "fastvit": ("fastvit_sa12", FASTVIT, 64),
}


def pruned(loaded, **options):
    section = PruneSection(criterion="random", **options)
    return prune_model(loaded, section, PruneInputs(None)).loaded


def saved(loaded, folder):
    folder.mkdir()
    save_model_folder(loaded, folder)
    return folder


@pytest.fixture
def vit_folder(timm_folder, tmp_path):
    """A pruned ViT of three blocks, one of them removed."""
    loaded = load(LoadOptions(str(timm_folder(model_args=VIT))))
    return saved(pruned(loaded, heads=0.4, mlp=0.4, blocks=0.3), tmp_path / "pruned")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_pruned_folder_gives_the_same_model_again(timm_folder, tmp_path, name):
    architecture, arguments, size = FOLDERS[name]
    loaded = load(LoadOptions(str(timm_folder(architecture, arguments, size=size))))
    shake_(loaded.parts[0].module)
    small = pruned(loaded, heads=0.4, mlp=0.4, blocks=0.3)
    folder = saved(small, tmp_path / "pruned")
    again = load(LoadOptions(str(folder)))
    images = noise(small)
    expected = outputs_of(small.parts[0].module, images)
    assert torch.equal(outputs_of(again.parts[0].module, images)[0], expected[0])
    assert again.spec.preprocess == small.spec.preprocess
    assert again.spec.label_names == ("ant", "bee", "cat")
    assert again.attention == small.attention
    assert describe(again).parameters == describe(small).parameters
    plain = load_pruned(folder)
    assert torch.equal(outputs_of(plain, images)[0], expected[0])
    assert type(plain).__module__.startswith("timm.")
    assert not plain.training


def test_a_pruned_model_is_pruned_again(vit_folder, tmp_path):
    once = load(LoadOptions(str(vit_folder)))
    twice = pruned(once, heads=0.3, mlp=0.3, blocks=0.5)
    again = load(LoadOptions(str(saved(twice, tmp_path / "twice"))))
    images = noise(once)
    expected = outputs_of(twice.parts[0].module, images)[0]
    assert torch.equal(outputs_of(again.parts[0].module, images)[0], expected)
    record = again.rebuild.pruning
    assert len(record.blocks) == 2
    assert len(record.history) == 2
    assert len(again.attention) == 1


def test_a_pruned_model_takes_another_image_size(vit_folder):
    native = load(LoadOptions(str(vit_folder)))
    larger = load(LoadOptions(str(vit_folder), image_size=64))
    assert larger.attention[0].tokens == 65
    assert [site.num_heads for site in larger.attention] == [
        site.num_heads for site in native.attention
    ]


def test_an_image_size_that_was_asked_for_is_kept_in_the_folder(timm_folder, tmp_path):
    loaded = load(LoadOptions(str(timm_folder(model_args=VIT)), image_size=64))
    small = pruned(loaded, heads=0.4)
    again = load(LoadOptions(str(saved(small, tmp_path / "pruned"))))
    assert again.spec.preprocess.size == (64, 64)
    images = noise(small)
    expected = outputs_of(small.parts[0].module, images)[0]
    assert torch.equal(outputs_of(again.parts[0].module, images)[0], expected)


def test_features_of_a_classifier_are_saved_with_its_head(timm_folder, tmp_path):
    folder = str(timm_folder(model_args=VIT))
    small = pruned(load(LoadOptions(folder, outputs="features")), heads=0.4)
    assert all(not path.startswith("model.") for path in small.rebuild.pruning.heads)
    again = load(LoadOptions(str(saved(small, tmp_path / "pruned"))))
    assert [output.name for output in again.parts[0].outputs] == ["logits"]


@pytest.mark.parametrize("kind", ["vit", "beit", "dinov2", "internvl", "swin", "swinv2"])
def test_folders_of_transformers(transformers_folder, tmp_path, kind):
    import transformers

    small = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3}
    windows = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    windows |= {"depths": [2, 2], "num_heads": [2, 4]}
    config = {
        "vit": lambda: transformers.ViTConfig(num_attention_heads=4, intermediate_size=64, **small),
        "beit": lambda: transformers.BeitConfig(
            num_attention_heads=4, use_relative_position_bias=True, **small
        ),
        "internvl": lambda: transformers.InternVLVisionConfig(
            num_attention_heads=4, **{**small, "image_size": [32, 32], "patch_size": [8, 8]}
        ),
        "dinov2": lambda: transformers.Dinov2Config(
            num_attention_heads=4, use_swiglu_ffn=True, **small
        ),
        "swin": lambda: transformers.SwinConfig(num_labels=3, **windows),
        "swinv2": lambda: transformers.Swinv2Config(num_labels=3, **windows),
    }[kind]()
    processor = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32}
    whole = transformers_folder(
        config, classifier=kind not in ("dinov2", "internvl"), processor=processor
    )
    loaded = load(LoadOptions(str(whole)))
    shake_(loaded.parts[0].module)
    result = pruned(loaded, heads=0.4, mlp=0.4, blocks=0.3)
    folder = saved(result, tmp_path / "pruned")
    again = load(LoadOptions(str(folder)))
    images = noise(result)
    expected = outputs_of(result.parts[0].module, images)
    for wanted, seen in zip(expected, outputs_of(again.parts[0].module, images), strict=True):
        assert torch.equal(wanted, seen)
    assert again.spec.preprocess == loaded.spec.preprocess
    assert load_pruned(folder).num_parameters() == describe(again).parameters


def test_the_encoder_of_a_pruned_classifier_is_pruned_again(transformers_folder, tmp_path):
    from transformers import ViTConfig

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=4
    )
    whole = load(LoadOptions(str(transformers_folder(config, classifier=True))))
    folder = saved(pruned(whole, heads=0.3, mlp=0.3, blocks=0.3), tmp_path / "once")
    encoder = pruned(load(LoadOptions(str(folder), outputs="features")), heads=0.3)
    again = load(LoadOptions(str(saved(encoder, tmp_path / "twice"))))
    images = noise(encoder)
    expected = outputs_of(encoder.parts[0].module, images)
    for wanted, seen in zip(expected, outputs_of(again.parts[0].module, images), strict=True):
        assert torch.equal(wanted, seen)


@pytest.mark.parametrize(
    ("crop_pct", "mode"), [(1.0, "center"), (0.875, "center"), (0.9, "squash")]
)
def test_preprocessing_survives_the_format_of_transformers(crop_pct, mode):
    preprocess = prunable("vit").spec.preprocess
    wanted = dataclasses.replace(
        preprocess, size=(224, 224), crop_pct=crop_pct, crop_mode=mode, interpolation="lanczos"
    )
    seen, notes = preprocess_from_config(None, config_from_preprocess(wanted), None)
    assert notes == ()
    assert (seen.size, seen.mean, seen.std) == (wanted.size, wanted.mean, wanted.std)
    assert (seen.interpolation, seen.crop_mode) == (wanted.interpolation, mode)
    assert int(224 / seen.crop_pct) == int(224 / crop_pct)  # pixels resized to before the crop


def test_a_folder_that_was_not_pruned_is_left_to_its_library(timm_folder):
    with pytest.raises(ModelError, match=r"holds no pruned model.*timm itself loads it"):
        load_pruned(timm_folder(model_args=VIT))


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["vitdeploy_pruning"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(heads={"blocks.9.attn": [0]}), r"blocks\.9\.attn was pruned, which"),
        (lambda r: r.update(heads={"blocks.0.attn": [7]}), "does not fit the architecture"),
        (lambda r: r.update(mlp={"blocks.0.mlp": 0}), "does not fit the architecture"),
        (lambda r: r.update(blocks=["blocks.7"]), "does not fit the architecture"),
        (lambda r: r.update(rotation=True), "cannot be read"),
        (lambda r: r.pop("heads"), "cannot be read"),
        (lambda r: r.update(mlp={"blocks.0.mlp": 16}), "do not fit the architecture"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(vit_folder, change, message):
    edit(vit_folder, change)
    for loads in (load_pruned, lambda folder: load(LoadOptions(str(folder)))):
        with pytest.raises(ModelError, match=message):
            loads(vit_folder)


def test_weights_of_the_whole_model_are_refused(vit_folder, tmp_path):
    shutil.copy(tmp_path / "tiny" / "model.safetensors", vit_folder / "model.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_pruned(vit_folder)


def test_a_pooler_without_weights_is_dropped(transformers_folder, tmp_path):
    from transformers import ViTConfig

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    folder = transformers_folder(config, classifier=False)
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    small = pruned(load(LoadOptions(str(folder))), heads=0.4)
    again = load(LoadOptions(str(saved(small, tmp_path / "pruned"))))
    assert [output.name for output in again.parts[0].outputs] == ["last_hidden_state"]


def test_a_model_without_a_layout_cannot_be_saved(tmp_path):
    loaded = dataclasses.replace(prunable("vit"), rebuild=None)
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        save_model_folder(loaded, tmp_path)


def test_a_reparameterised_model_that_lost_nothing_is_saved_too(timm_folder, tmp_path):
    architecture, arguments, size = FOLDERS["fastvit"]
    loaded = load(LoadOptions(str(timm_folder(architecture, arguments, size=size))))
    folder = saved(loaded, tmp_path / "copy")
    images = noise(loaded)
    expected = outputs_of(loaded.parts[0].module, images)[0]
    assert torch.equal(outputs_of(load_pruned(folder), images)[0], expected)
    again = load(LoadOptions(str(folder)))
    assert torch.equal(outputs_of(again.parts[0].module, images)[0], expected)


def test_timm_itself_loads_what_lost_nothing(timm_folder, tmp_path):
    loaded = load(LoadOptions(str(timm_folder(model_args=VIT))))
    folder = saved(loaded, tmp_path / "copy")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = noise(loaded)
    expected = outputs_of(loaded.parts[0].module, images)[0]
    assert torch.equal(outputs_of(model, images)[0], expected)


def test_the_record_survives_its_form_in_the_folder():
    record = PruningRecord({"a.0": (0, 2)}, {"a.0.mlp": 64}, ("a.1",), True, ({"seed": 1},))
    assert record_from_config({"vitdeploy_pruning": record.to_dict()}) == record
    assert record_from_config({}) is None


@pytest.mark.parametrize(
    ("path", "removed", "whole"),
    [
        ("blocks.1.attn", (), "blocks.1.attn"),
        ("blocks.1.attn", ("blocks.0",), "blocks.2.attn"),
        ("blocks.1.attn", ("blocks.2", "blocks.1"), "blocks.3.attn"),
        ("layers.1.blocks.0.mlp", ("layers.0.blocks.0",), "layers.1.blocks.0.mlp"),
        ("layers.0.blocks.0.mlp", ("layers.0.blocks.0",), "layers.0.blocks.1.mlp"),
    ],
)
def test_paths_behind_removed_blocks(path, removed, whole):
    assert path_in_architecture(path, removed) == whole
