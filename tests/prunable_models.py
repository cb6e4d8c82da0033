"""A small shaken model of every structure the pruner knows, made here without a folder."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import timm
import torch

from tests.model_folders import shake_
from tests.small_models import PREPROCESS
from vitdeploy.data import Preprocess
from vitdeploy.models.outputs import FEATURE_NAMES, TimmFeatures, loaded_model
from vitdeploy.models.pruning_record import PruningRecord
from vitdeploy.models.spec import LoadedModel, ModelSpec, Rebuild

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
FASTVIT = {
    "layers": (1, 1, 1, 2),
    "embed_dims": (16, 16, 32, 64),
    "mlp_ratios": (2, 2, 2, 2),
    "token_mixers": ("repmixer", "repmixer", "repmixer", "attention"),
}
MAXVIT = {"img_size": 64, "stem_width": 8, "embed_dim": (64, 64), "depths": (2, 2)}
HIERA = {"img_size": (64, 64), "embed_dim": 16, "num_heads": 2, "stages": (1, 2), "q_pool": 1}
SAM = {**VIT, "window_size": 2, "global_attn_indexes": (1,)}


@dataclass(frozen=True)
class Case:
    """One architecture of timm at a size a test can afford."""

    architecture: str
    arguments: dict[str, Any] = field(default_factory=lambda: dict(VIT))
    size: int = 32
    classes: int = 5
    """0 for an image encoder."""


CASES = {
    "vit": Case("vit_tiny_patch16_224"),
    "qk-norm-layerscale": Case(
        "vit_tiny_patch16_224", {**VIT, "qk_norm": True, "init_values": 0.5}
    ),
    "deit-distilled": Case("deit_tiny_distilled_patch16_224"),
    "dinov2-registers": Case("vit_small_patch14_reg4_dinov2", classes=0),
    "dinov2-swiglu": Case("vit_giant_patch14_dinov2", {**VIT, "mlp_ratio": 4.0}, classes=0),
    "dinov3": Case("vit_small_patch16_dinov3", classes=0),
    "dinov3-plus": Case("vit_small_plus_patch16_dinov3", classes=0),
    "eva02": Case("eva02_tiny_patch14_224"),
    "beit": Case("beit_base_patch16_224"),
    "swin": Case("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": Case("swinv2_tiny_window8_256", SWIN),
    "swinv2-cr": Case("swinv2_cr_tiny_224", SWIN),
    "maxvit": Case("maxvit_tiny_tf_224", MAXVIT, size=64),
    "sam": Case("samvit_base_patch16", SAM),
    "fastvit": Case("fastvit_sa12", FASTVIT, size=64),
    "hiera": Case("hiera_tiny_224", HIERA, size=64),
}


def prunable(name: str, seed: int = 0) -> LoadedModel:
    """The model of a case, shaken, re-parameterised where it can be."""
    case = CASES[name]
    torch.manual_seed(seed)
    more = {"num_classes": case.classes} if case.classes else {}
    model = timm.create_model(case.architecture, **case.arguments, **more)
    shake_(model, seed)
    keys = set(model.state_dict())
    model = timm.utils.reparameterize_model(model.eval())
    record = PruningRecord(reparameterised=set(model.state_dict()) != keys)
    size = (case.size, case.size)
    preprocess = Preprocess(size, PREPROCESS.mean, PREPROCESS.std)
    spec = ModelSpec(
        name, "timm", f"timm:{case.architecture}", "classification", preprocess, weights="random"
    )
    rebuild = Rebuild("timm", {**case.arguments, **more}, record)
    if case.classes:
        return loaded_model(spec, model, ("logits",), rebuild)
    return loaded_model(spec, TimmFeatures(model), FEATURE_NAMES, rebuild)


def noise(loaded: LoadedModel, count: int = 4, seed: int = 1) -> np.ndarray:
    """(count, 3, H, W) float32 inputs."""
    shape = (count, 3, *loaded.spec.preprocess.size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs_of(module: torch.nn.Module, images: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
    """All outputs of a module, without gradients."""
    with torch.no_grad():
        result = module(torch.as_tensor(images))
    return list(result) if isinstance(result, tuple) else [result]
