"""Publishers' files through --checkpoint, against transformers filled by another mapping."""

import re

import pytest
import timm
import torch
from torch import nn

from tests.model_folders import shake_
from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load

from . import publisher_files as files
from .conftest import TINY_FASTVIT, TINY_VIT
from .publisher_files import DEPTH, HEADS, PATCH, SIZE, WIDTH

FIELDS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": SIZE,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-6,
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def outputs(timm_folder, tmp_path, pictures):
    """Returns what an architecture gives for two pictures with the content of a file."""

    def run(content, architecture, args=None, *, classes=0, size=SIZE, wrapper="model"):
        path = tmp_path / "published.pth"
        torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
        folder = timm_folder(architecture, args, classes=classes, size=size)
        loaded = load(LoadOptions(str(folder), checkpoint=path))
        assert loaded.spec.weights == "checkpoint"
        with torch.no_grad():
            return loaded.parts[0].module(pictures(size))

    return run


def filled(model: nn.Module, weights: Tensors) -> nn.Module:
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("position_ids" in key or "relative_position" in key for key in missing), missing
    return model.eval()


def renamed(weights: Tensors, rules: list[tuple[str, str]], dropped: str = "$^") -> Tensors:
    """Apply every rule in order; split packed query, key and value into transformers' three."""
    found = {}
    for name, value in weights.items():
        if re.search(dropped, name):
            continue
        key = name
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if "QKV" in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[key.replace("QKV", part)] = rows.clone()
        else:
            found[key] = value
    return found


def as_transformers(model: nn.Module, weights: Tensors, prefix: str = "") -> Tensors:
    """Follow transformers 5, which gave many of these layers one set of names."""
    expected = set(model.state_dict())
    newer = [
        (r"attention\.(?:attention|self)\.(query|key|value)", r"attention.\1_proj"),
        (r"attention\.(?:attention|self)\.(relative_position_bias)", r"attention.\1"),
        (r"\b([qkv])[a-z]+_proj", r"\1_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
        (r"encoder\.layer\.", "layers."),
        (r"attention\.(relative_position_bias)", r"\1"),
    ]
    found = {}
    for name, value in weights.items():
        key = name if name in expected else prefix + name
        for old, new in newer:
            if key in expected:
                break
            key = re.sub(old, new, key)
        found[key] = value
    return found


def same(found, expected, least=0.05):
    # both compute in FP32, in another order: differences of rounding, outputs of about one
    assert torch.allclose(found, expected, atol=2e-5)
    assert float(expected.std()) > least


VIT_RULES = [
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^norm\.", "layernorm."),
]


@pytest.mark.parametrize(
    ("registers", "gated"), [(0, False), (4, False), (0, True)], ids=["plain", "registers", "giant"]
)
def test_dinov2(outputs, pictures, registers, gated):
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    content = files.drawn(files.dinov2(registers=registers, gated=gated))
    kind, config = (
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(num_register_tokens=4, **FIELDS))
        if registers
        else (Dinov2Model, Dinov2Config(use_swiglu_ffn=gated, **FIELDS))
    )
    model = kind(config)
    if gated:  # transformers rounds its hidden width as the real giant has it
        for layer in model.encoder.layer:
            layer.mlp.gate_proj = nn.Linear(WIDTH, 96)
            layer.mlp.up_proj = nn.Linear(WIDTH, 96)
            layer.mlp.down_proj = nn.Linear(96, WIDTH)
    layers = [
        *VIT_RULES,
        (r"^blocks\.", "encoder.layer."),
        (r"attn\.qkv", "attention.attention.QKV"),
        (r"attn\.proj", "attention.output.dense"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        (r"mlp\.w3", "mlp.down_proj"),
    ]
    weights = renamed(content, layers)
    for name in [name for name in weights if "w12" in name]:
        gate, up = weights.pop(name).chunk(2)
        weights |= {name.replace("w12", "gate_proj"): gate, name.replace("w12", "up_proj"): up}
    reference = filled(model, as_transformers(model, weights))
    args = {**TINY_VIT}
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    if gated:
        name, args = "vit_giant_patch14_dinov2", args | {"mlp_ratio": 192 / WIDTH}
    tokens, _ = outputs(content, name, args, wrapper=None)
    with torch.no_grad():
        same(tokens, reference(pictures(SIZE)).last_hidden_state)


@pytest.mark.parametrize("biased", [True, False])
def test_dinov3(outputs, pictures, biased):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    content = files.drawn(files.dinov3(biased=biased))
    config = DINOv3ViTConfig(
        num_register_tokens=4,
        intermediate_size=4 * WIDTH,
        query_bias=biased,
        value_bias=biased,
        key_bias=False,
        **FIELDS | {"layer_norm_eps": 1e-5},
    )
    rules = [
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^mask_token$", "embeddings.mask_token"),
        (r"^storage_tokens$", "embeddings.register_tokens"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
        (r"^blocks\.", "LAYERS."),
        (r"attn\.qkv", "attention.QKV"),
        (r"attn\.proj", "attention.o_proj"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        (r"mlp\.fc1", "mlp.up_proj"),
        (r"mlp\.fc2", "mlp.down_proj"),
    ]
    model = DINOv3ViTModel(config)
    weights = renamed(content, rules, dropped=r"periods|bias_mask")
    inside = next(k for k in model.state_dict() if ".0.norm1." in k).partition("0.norm1")[0]
    weights = {
        re.sub(r"\.(query|key|value)\.", lambda m: f".{m[1][0]}_proj.", key).replace(
            "LAYERS.", inside
        ): value.reshape(1, 1, -1) if key.endswith("mask_token") else value
        for key, value in weights.items()
        if not key.endswith("key.bias")  # masked in the publisher's model
    }
    reference = filled(model, weights)
    name = "vit_small_patch16_dinov3_qkvb" if biased else "vit_small_patch16_dinov3"
    tokens, _ = outputs(content, name, TINY_VIT, wrapper=None)
    with torch.no_grad():
        same(tokens, reference(pictures(SIZE)).last_hidden_state)


def test_biases_that_dinov3s_other_variant_lacks_are_not_lost(outputs):
    content = files.drawn(files.dinov3(biased=True))
    with pytest.raises(ModelError, match=r"biases of query and value .* end in _qkvb"):
        outputs(content, "vit_small_patch16_dinov3", TINY_VIT, wrapper=None)


def test_biases_of_dinov3_that_are_zero_may_go(outputs):
    content = files.drawn(files.dinov3(biased=True))
    for index in range(DEPTH):  # as those of the larger students are
        content[f"blocks.{index}.attn.qkv.bias"].zero_()
    assert len(outputs(content, "vit_small_patch16_dinov3", TINY_VIT, wrapper=None)) == 2


@pytest.mark.parametrize("second", [False, True], ids=["swin", "swinv2"])
def test_swin(outputs, pictures, second):
    from transformers import (
        SwinConfig,
        SwinForImageClassification,
        Swinv2Config,
        Swinv2ForImageClassification,
    )

    content = files.drawn(files.swin(3, second=second))
    fields = {
        "image_size": SIZE,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 3,
    }
    kind, config = (
        (Swinv2ForImageClassification, Swinv2Config(**fields))
        if second
        else (SwinForImageClassification, SwinConfig(**fields))
    )
    prefix = "swinv2" if second else "swin"
    rules = [
        (r"^patch_embed\.proj", f"{prefix}.embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", f"{prefix}.embeddings.norm"),
        (r"^norm\.", f"{prefix}.layernorm."),
        (r"^layers\.", f"{prefix}.encoder.layers."),
        (r"attn\.q_bias", "attention.self.query.bias"),
        (r"attn\.v_bias", "attention.self.value.bias"),
        (r"attn\.qkv", "attention.self.QKV"),
        (r"attn\.proj", "attention.output.dense"),
        (r"attn\.cpb_mlp", "attention.self.continuous_position_bias_mlp"),
        (r"attn\.(logit_scale)", r"attention.self.\1"),
        (r"attn\.rel", "attention.self.relative_position_bias.rel"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"^head\.", "classifier."),
    ]
    dropped = "relative_position_index|relative_coords_table|attn_mask"
    model = kind(config)
    reference = filled(model, as_transformers(model, renamed(content, rules, dropped)))
    args = {
        "img_size": SIZE,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
    }
    name = "swinv2_tiny_window8_256" if second else "swin_tiny_patch4_window7_224"
    logits = outputs(content, name, args, classes=3)
    with torch.no_grad():
        same(logits, reference(pictures(SIZE)).logits)


OLD_VIT = [
    *VIT_RULES,
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^blocks\.", "encoder.layer."),
    (r"attn\.qkv", "attention.attention.QKV"),
    (r"attn\.proj", "attention.output.dense"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]


def test_deit_with_its_distillation_token(outputs, pictures):
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    shapes = files.vit(tokens=2) | {"dist_token": (1, 1, WIDTH)}
    shapes |= files.linear("head", 3, WIDTH) | files.linear("head_dist", 3, WIDTH)
    content = files.drawn(shapes)
    model = DeiTForImageClassificationWithTeacher(
        DeiTConfig(intermediate_size=4 * WIDTH, num_labels=3, **FIELDS)
    )
    heads = [(r"^head\.", "cls_classifier."), (r"^head_dist\.", "distillation_classifier.")]
    weights = as_transformers(model, renamed(content, OLD_VIT + heads), "deit.")
    reference = filled(model, weights)
    logits = outputs(content, "deit_tiny_distilled_patch16_224", TINY_VIT, classes=3)
    with torch.no_grad():
        same(logits, reference(pictures(SIZE)).logits)


def test_deit_iii_has_its_layer_scales(outputs, pictures):
    shapes = files.vit(tokens=0) | files.linear("head", 3, WIDTH)
    for index in range(DEPTH):
        shapes |= {f"blocks.{index}.gamma_{i}": (WIDTH,) for i in (1, 2)}
    content = files.drawn(shapes)
    logits = outputs(content, "deit3_small_patch16_224", TINY_VIT, classes=3)
    with torch.no_grad():
        same(logits, _deit_iii(content, pictures(SIZE)))


def _deit_iii(w: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """DeiT III (arXiv 2204.07118) by hand: positions on patches alone, LayerScale, class token."""
    functional = nn.functional
    x = functional.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], PATCH)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    x = torch.cat((w["cls_token"].expand(len(x), -1, -1), x), dim=1)

    def normed(x, name):
        weights = w[f"{name}.weight"], w[f"{name}.bias"]
        return functional.layer_norm(x, (WIDTH,), *weights, eps=1e-6)

    def dense(x, name):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for index in range(DEPTH):
        name = f"blocks.{index}"
        packed = dense(normed(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = packed.reshape(len(x), -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5, -1) @ v
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = x + w[f"{name}.gamma_1"] * dense(mixed, f"{name}.attn.proj")
        hidden = functional.gelu(dense(normed(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + w[f"{name}.gamma_2"] * dense(hidden, f"{name}.mlp.fc2")
    return dense(normed(x, "norm")[:, 0], "head")


def test_mae_leaves_its_decoder_out(outputs, pictures):
    from transformers import ViTConfig, ViTModel

    content = files.drawn(files.mae())
    model = ViTModel(ViTConfig(intermediate_size=4 * WIDTH, **FIELDS), add_pooling_layer=False)
    weights = renamed(content, OLD_VIT, dropped="decoder|mask_token")
    reference = filled(model, as_transformers(model, weights))
    tokens, _ = outputs(content, "vit_tiny_patch16_224", TINY_VIT)
    with torch.no_grad():
        same(tokens, reference(pictures(SIZE)).last_hidden_state)


def test_beit(outputs, pictures):
    from transformers import BeitConfig, BeitForImageClassification

    content = files.drawn(files.beit(3))
    config = BeitConfig(
        intermediate_size=4 * WIDTH,
        num_labels=3,
        use_relative_position_bias=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
        use_mask_token=False,
        **FIELDS,
    )
    rules = [
        (r"^cls_token$", "beit.embeddings.cls_token"),
        (r"^patch_embed\.proj", "beit.embeddings.patch_embeddings.projection"),
        (r"^fc_norm\.", "beit.pooler.layernorm."),
        (r"^blocks\.", "beit.encoder.layer."),
        (r"gamma_([12])$", r"lambda_\1"),
        (r"attn\.q_bias", "attention.attention.query.bias"),
        (r"attn\.v_bias", "attention.attention.value.bias"),
        (r"attn\.qkv", "attention.attention.QKV"),
        (r"attn\.proj", "attention.output.dense"),
        (r"attn\.rel", "attention.attention.relative_position_bias.rel"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"^head\.", "classifier."),
    ]
    model = BeitForImageClassification(config)
    weights = renamed(content, rules, dropped="relative_position_index")
    reference = filled(model, as_transformers(model, weights))
    logits = outputs(content, "beit_base_patch16_224", TINY_VIT, classes=3, wrapper="module")
    with torch.no_grad():
        same(logits, reference(pictures(SIZE)).logits)


FASTVIT = TINY_FASTVIT | {"pos_embs": (None, None, None, "cpe")}


def apple_name(name: str, depths: tuple[int, ...]) -> str:
    """ml-fastvit's name for a parameter of timm's model: one flat list of blocks and strides."""
    stage = re.match(r"stages\.(\d+)\.", name)
    if stage:
        number = int(stage[1])
        # stages are divided by downsampling, the last begins with its positional encoding
        place = 2 * number
        rest = name[stage.end() :]
        if rest.startswith("downsample.proj."):
            name = f"network.{place - 1}.proj.{rest.removeprefix('downsample.proj.')}"
        elif rest.startswith("pos_emb."):
            name = f"network.{place}.{rest.removeprefix('pos_emb.').replace('pos_enc', 'pe')}"
        else:
            place += number == len(depths) - 1  # behind the encoding
            name = f"network.{place}.{rest.removeprefix('blocks.')}"
    rules = [
        (r"^stem\.", "patch_embed."),
        (r"^final_conv\.", "conv_exp."),
        (r"^head\.fc\.", "head."),
        (r"conv_kxk", "rbr_conv"),
        (r"conv_scale", "rbr_scale"),
        (r"\bidentity\b", "rbr_skip"),
        (r"large_conv", "lkb_origin"),
        (r"\bmlp\b", "convffn"),
        (r"se\.fc1", "se.reduce"),
        (r"se\.fc2", "se.expand"),
        (r"layer_scale(_[12])?\.gamma", r"layer_scale\1"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"(proj\.0)\.reparam_conv", r"\1.lkb_reparam", name)


@pytest.mark.parametrize("merged", [False, True], ids=["trained", "re-parameterised"])
def test_ml_fastvit(outputs, pictures, merged):
    from timm.models.fastvit import RepConditionalPosEnc
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    model = timm.create_model("fastvit_sa12", num_classes=3, **TINY_FASTVIT)
    shake_(model)
    model.train()(pictures(64))  # statistics of their own
    model.eval()
    assert isinstance(model.stages[3].pos_emb, RepConditionalPosEnc)
    with torch.no_grad():
        expected = model(pictures(64))
    published = reparameterize_model(model) if merged else model
    content = {apple_name(k, (1, 1, 1, 1)): v for k, v in published.state_dict().items()}
    if merged:
        assert {"network.6.reparam_conv.weight", "network.1.proj.0.lkb_reparam.bias"} <= set(
            content
        )
    else:
        assert {"network.6.pe.weight", "network.0.0.token_mixer.norm.rbr_skip.weight"} <= set(
            content
        )
    assert "network.7.0.layer_scale_1" in content
    logits = outputs(
        content, "fastvit_sa12", TINY_FASTVIT, classes=3, size=64, wrapper="state_dict"
    )
    same(logits, expected, least=0.02)


class Archived(nn.Module):
    """A module whose scripted archive holds given tensors under given names."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for step in path:
                if not hasattr(owner, step):
                    owner.add_module(step, nn.Module())
                owner = getattr(owner, step)
            owner.register_parameter(last, nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def archive(tmp_path):
    """OpenAI's file: a TorchScript archive in half precision."""
    path = tmp_path / "ViT-B-32.pt"
    content = files.drawn(files.clip(16))
    torch.jit.save(torch.jit.script(Archived(content).half()), path)
    return path, {name: value.half().float() for name, value in content.items()}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_openais_clip(archive, timm_folder, pictures):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path, content = archive
    config = CLIPVisionConfig(
        intermediate_size=4 * WIDTH,
        projection_dim=16,
        hidden_act="quick_gelu",
        **FIELDS | {"layer_norm_eps": 1e-5},
    )
    rules = [
        (r"^visual\.class_embedding", "vision_model.embeddings.class_embedding"),
        (r"^visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
        (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
        (r"^visual\.ln_post", "vision_model.post_layernorm"),
        (r"^visual\.proj$", "visual_projection.weight"),
        (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
        (r"attn\.in_proj_", "self_attn.QKV."),
        (r"attn\.out_proj", "self_attn.out_proj"),
        (r"ln_([12])", r"layer_norm\1"),
        (r"mlp\.c_fc", "mlp.fc1"),
        (r"mlp\.c_proj", "mlp.fc2"),
    ]
    weights = renamed(content, rules, dropped="^text|^logit|^token")
    weights = {
        re.sub(r"self_attn\.(query|key|value)", lambda m: f"self_attn.{m[1][0]}_proj", k): v
        for k, v in weights.items()
    }
    weights["visual_projection.weight"] = weights["visual_projection.weight"].T
    reference = filled(CLIPVisionModelWithProjection(config), weights)
    folder = timm_folder("vit_base_patch32_clip_quickgelu_224", TINY_VIT, classes=16)
    loaded = load(LoadOptions(str(folder), checkpoint=path))
    images = pictures(SIZE)
    with torch.no_grad():
        same(loaded.parts[0].module(images), reference(images).image_embeds)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_openais_clip_needs_its_activation(archive, timm_folder):
    path, _ = archive
    folder = timm_folder("vit_base_patch32_clip_224", TINY_VIT, classes=16)
    with pytest.raises(ModelError, match=r"trained with QuickGELU .* `clip_quickgelu`"):
        load(LoadOptions(str(folder), checkpoint=path))


def test_another_publishers_file_is_refused(outputs):
    with pytest.raises(ModelError, match="do not fit the architecture"):
        outputs(files.drawn(files.dinov2()), "swin_tiny_patch4_window7_224", {}, classes=3)
