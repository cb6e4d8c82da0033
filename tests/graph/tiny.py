"""Tiny models of every family the graph passes must know, shaken and exported to ONNX.

No pass lives here. Weights are random but "shaken": every parameter and buffer moves off its
initial value, so that no zero bias, unit gamma or LayerScale of 1e-5 hides a mistake.
"""

import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

SIZE = 32
SHARED_FOLDER = "VITDEPLOY_TEST_EXPORTS"
"""Environment variable: where the processes of one test run share exported models."""


def _timm(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=7, **options)


def _vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    base = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return _timm(name, **(base | options))


def _swin(name: str, size: int = SIZE) -> Any:
    return _timm(
        name,
        img_size=size,
        patch_size=2,
        window_size=4,
        embed_dim=24,
        depths=(2, 1),
        num_heads=(2, 4),
    )


def _eva(name: str, **options: Any) -> Any:
    base = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return _timm(name, **(base | options))


def _fastvit() -> Any:
    from timm.utils.model import reparameterize_model

    model = _timm(
        "fastvit_sa12",
        layers=(1, 1, 1, 1),
        embed_dims=(64, 64, 64, 64),
    )
    return reparameterize_model(model)


def _cait() -> Any:
    return _timm("cait_xxs24_224", img_size=SIZE, patch_size=8, embed_dim=48, depth=1, num_heads=3)


def _sam() -> Any:
    """SAM's image encoder: a windowed and a global block, relative position from the query."""
    import torch
    import transformers as tf

    config = tf.SamVisionConfig(
        hidden_size=48,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=4,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=96,
        attn_implementation="eager",
    )

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tf.SamVisionModel(config)

        def forward(self, image: Any) -> Any:
            return self.model(pixel_values=image).last_hidden_state

    return Encoder()


def _post_norm() -> Any:
    from timm.models.vision_transformer import ResPostBlock

    return _vit(block_fn=ResPostBlock, init_values=None)


def _classic_post_norm() -> Any:
    """Norm after the residual sum, as in the original transformer (torch's default)."""
    import torch

    class PostNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = torch.nn.Conv2d(3, 32, 8, 8)
            self.layers = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(
                    32, 2, 64, dropout=0.0, activation="gelu", batch_first=True
                )
                for _ in range(2)
            )
            self.head = torch.nn.Linear(32, 7)

        def forward(self, image: Any) -> Any:
            x = self.patch(image).flatten(2).transpose(1, 2)
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    return PostNorm()


def _hf(kind: str) -> Any:
    import torch
    import transformers as tf

    shared = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "image_size": SIZE,
        "patch_size": 8,
    }

    class Features(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            return self.model(pixel_values=image).last_hidden_state

    if kind == "vit":
        return Features(tf.ViTModel(tf.ViTConfig(**shared), add_pooling_layer=False))
    if kind == "dinov2":
        shared.pop("intermediate_size")
        return Features(tf.Dinov2Model(tf.Dinov2Config(**shared, mlp_ratio=2)))
    return Features(tf.SiglipVisionModel(tf.SiglipVisionConfig(**shared)))


FAMILIES: dict[str, Callable[[], Any]] = {
    "vit": _vit,
    "vit_qk_norm": lambda: _vit(qk_norm=True),
    "deit_distilled": lambda: _vit("deit_tiny_distilled_patch16_224"),
    "dinov2_reg": lambda: _vit("vit_small_patch14_reg4_dinov2", init_values=1.0),
    "clip": lambda: _vit("vit_base_patch32_clip_224"),
    "res_post_norm": _post_norm,
    "classic_post_norm": _classic_post_norm,
    "swin": lambda: _swin("swin_tiny_patch4_window7_224"),
    "swin_padded": lambda: _swin("swin_tiny_patch4_window7_224", size=28),
    "swinv2": lambda: _swin("swinv2_tiny_window8_256"),
    "fastvit": _fastvit,
    "eva02": lambda: _eva("eva02_tiny_patch14_224"),
    "dinov3": lambda: _eva("vit_small_patch16_dinov3"),
    "eva_qk_norm": lambda: _eva("vit_small_patch16_dinov3", qk_norm=True),
    "sam": _sam,
    "cait": _cait,
    "hf_vit": lambda: _hf("vit"),
    "hf_dinov2": lambda: _hf("dinov2"),
    "hf_siglip": lambda: _hf("siglip"),
}


IMAGE_SIZES = {"fastvit": 64, "swin_padded": 28}
"""Image sizes other than `SIZE`: five strides of two, and windows that need padding."""


def shaken_(model: Any, seed: int = 0) -> Any:
    """Return `model` in eval mode with every parameter and buffer moved, LayerScale near one."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Any, scale: float) -> Any:
        return scale * torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in {"gamma", "lambda1"} or leaf.startswith("gamma_") or "layer_scale" in name:
                tensor.copy_(1.0 + noise(tensor, 0.2))
            elif tensor.dim() >= 2:
                tensor.add_(noise(tensor, 0.5 / max(1, tensor[0].numel()) ** 0.5))
            else:
                tensor.add_(noise(tensor, 0.2))
        for name, tensor in model.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(1.0 + noise(tensor, 0.2).abs())
            elif name.endswith("running_mean"):
                tensor.copy_(noise(tensor, 0.2))
    return model.eval()


@functools.cache
def exported_by_tracing(family: str, opset: int) -> bytes:
    """Return the tiny model of `family` as torch's older exporter writes it."""
    import torch

    torch.manual_seed(0)
    model = shaken_(FAMILIES[family]())
    size = IMAGE_SIZES.get(family, SIZE)
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (torch.randn(2, 3, size, size),),
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}},
    )
    return buffer.getvalue()


@functools.cache
def exported(family: str, seed: int = 0, opset: int = 20) -> bytes:
    """Return the serialised FP32 ONNX of the tiny shaken model of `family`."""

    def export() -> bytes:
        import torch

        torch.manual_seed(seed)
        model = shaken_(FAMILIES[family](), seed)
        return onnx_from_module(model, opset, IMAGE_SIZES.get(family, SIZE))

    return made_once(f"{family}-{seed}-{opset}.onnx", export)


def made_once(name: str, make: Callable[[], bytes]) -> bytes:
    """Return what `make` returns; the processes of one test run share it through a file."""
    folder = os.environ.get(SHARED_FOLDER)
    if folder is None:
        return make()
    path = Path(folder) / name
    if not path.is_file():
        own = path.with_suffix(f".{os.getpid()}")
        own.write_bytes(make())
        own.replace(path)
    return path.read_bytes()


def onnx_from_module(model: Any, opset: int = 20, size: int = SIZE) -> bytes:
    """Return `model` exported as the package exports it, with a dynamic batch."""
    import torch

    program = torch.onnx.export(
        model,
        (torch.randn(2, 3, size, size),),
        dynamo=True,
        opset_version=opset,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        external_data=False,
        verbose=False,
    )
    buffer = io.BytesIO()
    onnx.save_model(program.model_proto, buffer)
    return buffer.getvalue()
