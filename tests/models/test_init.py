"""Names in, references out: `vitdeploy.models`."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitdeploy.errors import ModelError, UnsupportedError, UsageError
from vitdeploy.models import (
    FAMILIES,
    LoadOptions,
    aliases,
    describe,
    families,
    load,
    load_model,
    resolve,
)
from vitdeploy.recipe import ModelSection


def test_every_module_of_families_is_in_the_dictionary():
    found = {module.name for module in pkgutil.iter_modules(families.__path__)}
    assert set(FAMILIES) == found
    for name, family in FAMILIES.items():
        assert family.__name__ == f"vitdeploy.models.families.{name}"


def test_importing_and_resolving_an_alias_loads_no_torch():
    code = (
        "import sys, vitdeploy.models as m; m.aliases(); m.resolve('vit-tiny'); "
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_alias_is_a_timm_model_of_its_size_and_family():
    for row in aliases():
        kind, _, architecture = row.source.partition(":")
        if kind != "timm":  # SAM's have tests of their own
            continue
        config = timm.get_pretrained_cfg(architecture)
        assert config.input_size == (3, row.image_size, row.image_size), row
        assert resolve(row.source).family == row.family
        assert config.has_weights, row


def test_the_promised_aliases_exist():
    names = {row.name for row in aliases()}
    vits = {f"vit-{size}" for size in ("tiny", "small", "base", "large", "huge")}
    deits = {f"deit-{size}{d}" for size in ("tiny", "small", "base") for d in ("", "-distilled")}
    swins = {f"{v}-{s}" for v in ("swin", "swinv2") for s in ("tiny", "small", "base", "large")}
    dinos = {f"dinov2-{s}{r}" for s in ("small", "base", "large", "giant") for r in ("", "-reg")}
    fasts = {f"fastvit-{s}" for s in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")}
    assert vits | deits | swins | dinos | fasts | {"vit-digits"} <= names
    sams = {f"sam-{size}" for size in ("vitb", "vitl", "vith")} | {"sam-scenes", "mobile-sam"}
    sizes = ("tiny", "small", "base-plus", "large")
    assert sams | {f"{v}-{s}" for v in ("sam2", "sam2.1") for s in sizes} <= names


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("vit-tinny", "Did you mean 'vit-tiny'?"),
        ("swin_tiny_patch4_window7_224", "Did you mean 'timm:swin_tiny_patch4_window7_224'?"),
        ("timm:vit_tiny_patch16_225", "Did you mean 'timm:vit_tiny_patch16_224'?"),
        ("timm:vit_tiny_patch16_224.augreg_in22k", "vit_tiny_patch16_224.augreg_in21k"),
    ],
)
def test_unknown_names_are_refused_with_the_near_one(name, suggestion):
    with pytest.raises(ModelError) as refusal:
        resolve(name)
    assert suggestion in str(refusal.value)


def test_a_timm_name_keeps_its_tag_and_finds_its_family():
    reference = resolve("timm:deit_tiny_patch16_224.fb_in1k")
    assert (reference.family, reference.source) == ("deit", "timm:deit_tiny_patch16_224.fb_in1k")
    assert resolve("timm:resnet18").family == "timm"


@pytest.mark.parametrize("name", ["edge-sam", "EfficientSAM-s", "nanosam", "sam3"])
def test_variants_of_sam_that_cannot_be_loaded_say_so(name):
    with pytest.raises(UnsupportedError, match=r"cannot be loaded. Supported: sam-vitb, .*mobile-"):
        resolve(name)


@pytest.mark.parametrize("name", ["", "  ", "hf:"])
def test_empty_names_are_usage_errors(name):
    with pytest.raises(UsageError):
        resolve(name)


def test_a_folder_is_named_without_its_path(timm_folder):
    reference = resolve(str(timm_folder()))
    assert (reference.family, reference.source) == ("vit", "folder:tiny")


def test_without_network_the_ways_out_are_named(empty_hub):
    with pytest.raises(ModelError, match=r"--checkpoint FILE.*folder.*--random") as refusal:
        load(LoadOptions("vit-tiny"))
    assert refusal.value.exit_code == 3
    with pytest.raises(ModelError, match="hub cannot be reached"):
        load(LoadOptions("hf:nobody/nothing"))


def test_load_model_reads_a_recipe_section(timm_folder):
    section = ModelSection(source=str(timm_folder()), random_weights=True, image_size=64)
    loaded = load_model(section, 3)
    assert loaded.spec.weights == "random"
    assert loaded.spec.preprocess.size == (64, 64)
    assert describe(loaded).image_size == (64, 64)


def test_a_file_is_no_model(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.touch()
    with pytest.raises(UsageError, match="ONNX graph"):
        resolve(str(file))


def test_an_alias_takes_pretrained_weights_from_the_cache(cached_hub, tmp_path, pictures):
    model = timm.create_model("deit_tiny_patch16_224").eval()
    folder = tmp_path / "download"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cached_hub("timm/deit_tiny_patch16_224.fb_in1k", folder)
    loaded = load(LoadOptions("deit-tiny"))
    assert loaded.spec.weights == "pretrained"
    assert loaded.spec.source == "timm:deit_tiny_patch16_224.fb_in1k"
    with torch.no_grad():
        assert torch.equal(loaded.parts[0].module(pictures(224)), model(pictures(224)))


def test_hub_repositories_of_both_layouts(cached_hub, timm_folder, transformers_folder):
    from transformers import ViTConfig

    cached_hub("me/tiny", timm_folder())
    loaded = load(LoadOptions("hf:me/tiny"))
    assert (loaded.spec.family, loaded.spec.source) == ("vit", "hf:me/tiny")
    assert loaded.spec.weights == "pretrained"

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    cached_hub("me/other", transformers_folder(config, classifier=True))
    loaded = load(LoadOptions("hf:me/other"))
    assert (loaded.spec.family, loaded.spec.source) == ("transformers", "hf:me/other")
    assert loaded.spec.weights == "pretrained"
