"""Small checkpoints in the key layouts that publishers use, every tensor with values of its own.

Names and shapes follow the publishers' code; nothing of timm or of this project is used here.
"""

from collections.abc import Callable

import torch

WIDTH, HEADS, DEPTH, PATCH, SIZE = 32, 2, 2, 8, 32
GRID = SIZE // PATCH
Shapes = dict[str, tuple[int, ...]]


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded values: norms near one, LayerScale well away from zero, all else small."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_norm = "norm" in name or "bn" in name or ".ln_" in name or "visual.ln" in name
        if name.endswith("running_var"):
            tensors[name] = 1 + 0.2 * noise.abs()
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif is_norm and name.endswith("weight"):
            tensors[name] = 1 + 0.1 * noise
        elif "gamma" in name or "layer_scale" in name:
            tensors[name] = 0.5 + 0.1 * noise
        else:
            tensors[name] = 0.15 * noise
    return tensors


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def patches(name: str = "patch_embed.proj", width: int = WIDTH, patch: int = PATCH) -> Shapes:
    return {f"{name}.weight": (width, 3, patch, patch), f"{name}.bias": (width,)}


def plain_block(name: str, mlp: Callable[[str], Shapes] | None = None) -> Shapes:
    shapes = norm(f"{name}.norm1") | linear(f"{name}.attn.qkv", 3 * WIDTH, WIDTH)
    shapes |= linear(f"{name}.attn.proj", WIDTH, WIDTH) | norm(f"{name}.norm2")
    if mlp is not None:
        return shapes | mlp(name)
    return (
        shapes
        | linear(f"{name}.mlp.fc1", 4 * WIDTH, WIDTH)
        | linear(f"{name}.mlp.fc2", WIDTH, 4 * WIDTH)
    )


def vit(*, tokens: int = 1, mlp: Callable[[str], Shapes] | None = None) -> Shapes:
    """ViT of DeiT, MAE and DINO: class token, positions, blocks, norm."""
    shapes: Shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, GRID**2 + tokens, WIDTH)}
    shapes |= patches()
    for index in range(DEPTH):
        shapes |= plain_block(f"blocks.{index}", mlp)
    return shapes | norm("norm")


def dinov2(*, registers: int = 0, gated: bool = False) -> Shapes:
    """facebookresearch/dinov2's *_pretrain.pth; giants have the gated MLP."""

    def gates(name: str) -> Shapes:
        return linear(f"{name}.mlp.w12", 2 * 96, WIDTH) | linear(f"{name}.mlp.w3", WIDTH, 96)

    shapes = vit(mlp=gates if gated else None) | {"mask_token": (1, WIDTH)}
    if registers:
        shapes["register_tokens"] = (1, registers, WIDTH)
    for index in range(DEPTH):
        shapes |= {f"blocks.{index}.ls{i}.gamma": (WIDTH,) for i in (1, 2)}
    return shapes


def dinov3(*, biased: bool) -> Shapes:
    """facebookresearch/dinov3's ViTs: rotary positions, registers, masked key biases."""
    shapes = {name: shape for name, shape in vit().items() if name != "pos_embed"}
    shapes |= {"storage_tokens": (1, 4, WIDTH), "mask_token": (1, WIDTH)}
    shapes["rope_embed.periods"] = (WIDTH // HEADS // 4,)
    for index in range(DEPTH):
        shapes |= {f"blocks.{index}.ls{i}.gamma": (WIDTH,) for i in (1, 2)}
        if biased:
            shapes[f"blocks.{index}.attn.qkv.bias_mask"] = (3 * WIDTH,)
        else:
            del shapes[f"blocks.{index}.attn.qkv.bias"]
    return shapes


def mae() -> Shapes:
    """facebookresearch/mae with its decoder, as mae_visualize_*.pth has it."""
    shapes = vit() | {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 17, 16)}
    shapes |= linear("decoder_embed", 16, WIDTH) | linear("decoder_pred", 3 * PATCH**2, 16)
    return shapes | norm("decoder_norm", 16) | norm("decoder_blocks.0.norm1", 16)


def beit(classes: int) -> Shapes:
    """microsoft/unilm's fine-tuned BEiT: bias tables by block, no key bias, mean pooling."""
    shapes: Shapes = {"cls_token": (1, 1, WIDTH)} | patches() | norm("fc_norm")
    for index in range(DEPTH):
        name = f"blocks.{index}"
        shapes |= plain_block(name)
        del shapes[f"{name}.attn.qkv.bias"]
        shapes |= {f"{name}.gamma_{i}": (WIDTH,) for i in (1, 2)}
        shapes |= {f"{name}.attn.{part}_bias": (WIDTH,) for part in "qv"}
        shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * GRID - 1) ** 2 + 3, HEADS)
        shapes[f"{name}.attn.relative_position_index"] = (GRID**2 + 1, GRID**2 + 1)
    return shapes | linear("head", classes, WIDTH)


def swin(classes: int, *, second: bool) -> Shapes:
    """microsoft/Swin-Transformer, two stages of two blocks; `second` is Swin V2."""
    width, window = 16, 4
    shapes = patches(width=width, patch=2) | norm("patch_embed.norm", width)
    for stage in range(2):
        wide, heads = width * 2**stage, 2 * 2**stage
        for index in range(2):
            name = f"layers.{stage}.blocks.{index}"
            shapes |= norm(f"{name}.norm1", wide) | norm(f"{name}.norm2", wide)
            shapes |= linear(f"{name}.attn.proj", wide, wide)
            shapes |= linear(f"{name}.mlp.fc1", 4 * wide, wide)
            shapes |= linear(f"{name}.mlp.fc2", wide, 4 * wide)
            shapes[f"{name}.attn.qkv.weight"] = (3 * wide, wide)
            shapes[f"{name}.attn.relative_position_index"] = (window**2, window**2)
            if index % 2 and stage == 0:
                shapes[f"{name}.attn_mask"] = (16, window**2, window**2)
            if second:
                side = 2 * window - 1
                shapes |= {f"{name}.attn.{part}_bias": (wide,) for part in "qv"}
                shapes[f"{name}.attn.logit_scale"] = (heads, 1, 1)
                shapes[f"{name}.attn.relative_coords_table"] = (1, side, side, 2)
                shapes |= linear(f"{name}.attn.cpb_mlp.0", 512, 2)
                shapes[f"{name}.attn.cpb_mlp.2.weight"] = (heads, 512)
            else:
                shapes[f"{name}.attn.qkv.bias"] = (3 * wide,)
                shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
    shapes["layers.0.downsample.reduction.weight"] = (2 * width, 4 * width)
    shapes |= norm("layers.0.downsample.norm", (2 if second else 4) * width)
    return shapes | norm("norm", 2 * width) | linear("head", classes, 2 * width)


def clip(projected: int) -> Shapes:
    """The image tower of openai/CLIP beside a little of the text tower."""
    shapes: Shapes = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (GRID**2 + 1, WIDTH),
        "visual.proj": (WIDTH, projected),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "text_projection": (24, projected),
        "logit_scale": (),
        "token_embedding.weight": (50, 24),
    }
    for index in range(DEPTH):
        name = f"visual.transformer.resblocks.{index}"
        shapes |= {f"{name}.attn.in_proj_weight": (3 * WIDTH, WIDTH)}
        shapes |= {f"{name}.attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= linear(f"{name}.attn.out_proj", WIDTH, WIDTH)
        shapes |= norm(f"{name}.ln_1") | norm(f"{name}.ln_2")
        shapes |= linear(f"{name}.mlp.c_fc", 4 * WIDTH, WIDTH)
        shapes |= linear(f"{name}.mlp.c_proj", WIDTH, 4 * WIDTH)
    return shapes | norm("visual.ln_pre") | norm("visual.ln_post")
