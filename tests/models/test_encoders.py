"""`--outputs`: each kind against what the library itself gives."""

import dataclasses
import re

import numpy as np
import pytest
import timm
import torch

from tests.model_folders import shake_
from tests.small_models import PREPROCESS
from vitdeploy.errors import UsageError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.encoders import select_outputs

from .conftest import TINY_FASTVIT, TINY_SWIN, TINY_VIT

TINY_HIERA = {
    "img_size": 64,
    "embed_dim": 16,
    "num_heads": 1,
    "stages": (1, 1, 2, 1),
    "global_pool": "avg",
}
TINY_DINOV2 = TINY_VIT | {"reg_tokens": 4, "num_classes": 0}
TINY_EVA = TINY_VIT | {"num_classes": 5}


def shaken(architecture, **args):
    torch.manual_seed(0)
    model = timm.create_model(architecture, **args).eval()
    shake_(model)
    return model


def selected(model, outputs, size=32):
    has_classifier = getattr(model, "num_classes", 0) > 0
    kinds = tuple(outputs.split(","))
    return select_outputs(model, kinds, size, "x", has_classifier=has_classifier)


def run(model, outputs, images):
    module, names = selected(model, outputs, images.shape[-1])
    with torch.no_grad():
        return dict(zip(names, module(images), strict=True))


def test_class_token_patches_and_their_mean_leave_the_registers_out(pictures):
    model = shaken("vit_small_patch14_reg4_dinov2", **TINY_DINOV2)
    images = pictures(32)
    with torch.no_grad():
        tokens = model.forward_features(images)
        # timm's own reading of the grid, after its last norm
        grid = model.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True, output_fmt="NCHW"
        )[0]
    assert tokens.shape == (2, 1 + 4 + 16, 32)
    found = run(model, "cls,patch,mean", images)
    assert list(found) == ["cls_token", "feature_map", "mean_pooled"]
    assert torch.equal(found["cls_token"], tokens[:, 0])
    assert torch.equal(found["feature_map"], grid)
    assert torch.allclose(found["mean_pooled"], tokens[:, 5:].mean(1), atol=1e-6)


def test_logits_and_pooled_are_the_models_own(pictures):
    model = shaken("deit_tiny_distilled_patch16_224", **TINY_VIT, num_classes=5)
    images = pictures(32)
    found = run(model, "logits,pooled,patch", images)
    with torch.no_grad():
        assert torch.equal(found["logits"], model(images))
        tokens = model.forward_features(images)
        pooled = model.forward_head(tokens, pre_logits=True)
    assert torch.equal(found["pooler_output"], pooled)
    # class and distillation token are before the patches
    assert torch.equal(found["feature_map"][:, :, 0, 1], tokens[:, 2 + 1])


@pytest.mark.parametrize(
    ("architecture", "args", "size", "strides"),
    [
        ("swin_tiny_patch4_window7_224", TINY_SWIN, 32, (2, 4)),
        ("hiera_tiny_224", TINY_HIERA, 64, (4, 8, 16, 32)),
        ("fastvit_t8", TINY_FASTVIT, 64, (4, 8, 16, 32)),
        ("resnet18", {}, 64, (4, 8, 16, 32)),  # has a map at 1/2 too
    ],
)
def test_a_pyramid_is_timms_features_only(architecture, args, size, strides, pictures):
    model = shaken(architecture, num_classes=5, **args)
    images = pictures(size)
    found = run(model, "pyramid", images)
    assert list(found) == [f"feature_map_{i + 1}" for i in range(len(strides))]
    assert [size // value.shape[-1] for value in found.values()] == list(strides)
    reference = timm.create_model(architecture, features_only=True, **args).eval()
    inner = getattr(reference, "model", reference)
    weights = model.state_dict()  # timm flattens `layers.0` to `layers_0` there
    inner.load_state_dict(
        {key: weights[re.sub(r"^([a-z]+)_(\d)", r"\1.\2", key)] for key in inner.state_dict()}
    )
    with torch.no_grad():
        expected = reference(images)[-len(strides) :]
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    for value, other in zip(found.values(), expected, strict=True):
        same = other.permute(0, 3, 1, 2) if channels_last else other
        assert torch.allclose(value, same, atol=1e-5)


def test_patches_of_swin_are_its_normed_map(pictures):
    model = shaken("swin_tiny_patch4_window7_224", num_classes=5, **TINY_SWIN)
    images = pictures(32)
    found = run(model, "patch,mean,pooled", images)
    with torch.no_grad():
        expected = model.forward_features(images)  # (N, H, W, C)
    assert torch.equal(found["feature_map"].permute(0, 2, 3, 1), expected)
    # what its classifier pools is the mean of the same map
    assert torch.allclose(found["mean_pooled"], found["pooler_output"], atol=1e-6)


def test_patches_of_hiera_are_in_spatial_order(pictures):
    # two of three unrollings are used up, so its tokens leave in another order
    args = TINY_HIERA | {"q_pool": 2}
    model = shaken("hiera_tiny_224", num_classes=5, **args)
    images = pictures(64)
    found = run(model, "patch", images)["feature_map"]
    with torch.no_grad():
        rows = model.forward_features(images)
        last = model.forward_intermediates(images, intermediates_only=True)[-1]
    assert torch.allclose(found, last, atol=1e-6)
    assert not torch.allclose(found.flatten(2).transpose(1, 2), rows, atol=1e-2)


@pytest.mark.parametrize(
    ("architecture", "args", "prefix"),
    [
        ("vit_small_patch14_reg4_dinov2", TINY_DINOV2, 5),
        ("eva02_tiny_patch14_224", TINY_EVA, 1),
        ("beit_base_patch16_224", TINY_EVA, 1),
    ],
)
def test_attention_is_that_of_the_last_class_token(architecture, args, prefix, pictures):
    model = shaken(architecture, **args)
    images = pictures(32)
    found = run(model, "cls,attention", images)["attentions"]
    assert found.shape == (2, 2, 4, 4)
    assert bool((found > 0).all())
    # a softmax row, less what goes to the tokens before the patches
    assert bool((found.sum((2, 3)) < 1).all())
    # and the last layer's: its values, weighted by the row, are what it makes of the class token
    layer, seen = model.blocks[-1].attn, {}
    layer.proj.register_forward_pre_hook(lambda _, inputs: seen.update(mixed=inputs[0][:, 0]))
    layer.attn_drop.register_forward_hook(lambda _, inputs, out: seen.update(weights=out))
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        model.forward_features(images)
        values = torch.nn.functional.linear(seen["x"], layer.qkv.weight[64:])
        bias = layer.qkv.bias[64:] if layer.qkv.bias is not None else layer.v_bias
    values = (values + bias).reshape(2, -1, 2, 16).transpose(1, 2)
    row = torch.cat((seen["weights"][:, :, 0, :prefix], found.flatten(2)), dim=2)
    mixed = (row.unsqueeze(2) @ values).reshape(2, 32)
    assert torch.allclose(mixed, seen["mixed"], atol=1e-5)


@pytest.mark.parametrize(
    "connector", [pytest.param("internvl", marks=pytest.mark.slow), "idefics3"]
)
def test_pixels_are_shuffled_as_connectors_do(connector, pictures):
    model = shaken("vit_small_patch14_reg4_dinov2", **TINY_DINOV2)
    images = pictures(32)
    found = run(model, "pixel-shuffle-2", images)["image_features"]
    with torch.no_grad():
        patches = model.forward_features(images)[:, 5:]
    if connector == "internvl":
        from transformers.models.internvl.modeling_internvl import InternVLModel

        grid = patches.reshape(2, 4, 4, 32)
        expected = InternVLModel.pixel_shuffle(None, grid, scale_factor=0.5).reshape(2, 4, 128)
    else:
        from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

        expected = Idefics3Connector.pixel_shuffle(None, patches, 2)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("architecture", "args", "outputs", "lacking", "has"),
    [
        ("vit_base_patch16_siglip_224", TINY_VIT, "cls", "no class token", "patch, pooled"),
        ("vit_base_patch16_siglip_224", TINY_VIT, "attention", "attends to patches", "patch"),
        (
            "vit_tiny_patch16_224",
            TINY_VIT,
            "pyramid",
            "several resolutions",
            "logits, features, cls",
        ),
        ("swin_tiny_patch4_window7_224", TINY_SWIN, "cls,patch", "cls", "pyramid"),
        ("crossvit_9_240", {}, "patch", "patch", "logits, pooled"),
    ],
)
def test_an_output_that_a_model_lacks_is_refused(architecture, args, outputs, lacking, has):
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(architecture, **args).eval()
    size = 240 if architecture == "crossvit_9_240" else 32
    with pytest.raises(UsageError, match=f"x has no .*{lacking}.*It has: .*{has}") as refusal:
        selected(model, outputs, size)
    assert refusal.value.exit_code == 2


def test_a_factor_that_does_not_divide_is_refused():
    model = shaken("vit_tiny_patch16_224", **TINY_VIT)
    with pytest.raises(UsageError, match=r"4 x 4 patches, which do not divide by 3.*: 2, 4;"):
        selected(model, "pixel-shuffle-3")


def test_attention_over_channels_is_refused():
    model = shaken("xcit_nano_12_p16_224", img_size=32, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(UsageError, match="not 5 x 5 tokens"):
        selected(model, "attention")


def test_transformers_models_give_the_same_kinds(transformers_folder, pictures):
    from transformers import AutoModel, Dinov2WithRegistersConfig

    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    folder = transformers_folder(config, classifier=False)
    loaded = load(LoadOptions(str(folder), outputs="cls,patch,mean,attention", image_size=28))
    names = [tensor.name for tensor in loaded.parts[0].outputs]
    assert names == ["cls_token", "feature_map", "mean_pooled", "attentions"]
    reference = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    images = pictures(28)
    with torch.no_grad():
        cls, patches, mean, attention = loaded.parts[0].module(images)
        result = reference(images, output_attentions=True)
    tokens = result.last_hidden_state
    assert torch.equal(cls, tokens[:, 0])
    assert torch.equal(patches[:, :, 1, 2], tokens[:, 5 + 4 + 2])
    assert torch.allclose(mean, tokens[:, 5:].mean(1), atol=1e-6)
    expected = result.attentions[-1][:, :, 0, 5:].reshape(2, 2, 4, 4)
    assert torch.allclose(attention, expected, atol=1e-6)


def test_a_swin_of_transformers_has_a_pyramid(transformers_folder, pictures):
    from transformers import SwinBackbone, SwinConfig

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4
    )
    folder = transformers_folder(config, classifier=False)
    options = LoadOptions(str(folder), outputs="pyramid", image_size=32)
    loaded = load(options)
    images = pictures(32)
    with torch.no_grad():
        maps = loaded.parts[0].module(images)
        config.out_features = ["stage1", "stage2"]
        backbone = SwinBackbone(config).eval()
        backbone.swin.load_state_dict(loaded.parts[0].module.model.state_dict())
        stages = backbone(images, output_hidden_states=True).hidden_states
    assert [tensor.name for tensor in loaded.parts[0].outputs] == ["feature_map_1", "feature_map_2"]
    for value, expected in zip(maps, stages[-2:], strict=True):
        assert torch.allclose(value, expected, atol=1e-6)
    with pytest.raises(UsageError, match=r"no cls .*It has: features, patch"):
        load(dataclasses.replace(options, outputs="cls"))


def test_a_model_that_segments_has_its_own_outputs():
    with pytest.raises(UsageError, match="always return image_embeddings"):
        load(LoadOptions("sam-vitb", outputs="cls", random_weights=True))


def test_every_kind_exports_at_two_batches(tmp_path):
    from vitdeploy.graph.save import save_model
    from vitdeploy.models.outputs import loaded_model
    from vitdeploy.models.spec import ModelSpec
    from vitdeploy.onnx_export import check_parity, onnx_from_part
    from vitdeploy.targets.onnx import OrtRunner

    model = shaken("vit_small_patch14_reg4_dinov2", **TINY_VIT, reg_tokens=4, num_classes=5)
    module, names = selected(model, "logits,cls,patch,pooled,mean,attention,pixel-shuffle-2")
    spec = ModelSpec("x", "vit", "folder:x", "features", PREPROCESS)
    part = loaded_model(spec, module, names).parts[0]
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    path = tmp_path / "model.onnx"
    save_model(onnx_from_part(part, images, "dynamic", 18), path)
    with OrtRunner(path) as runner:
        rows = check_parity(part, runner, images, [2, 3])
    assert all(row.passed for row in rows)
