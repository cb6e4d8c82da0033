"""The rows of the matrix: every encoder of the lineage, made small where its family allows.

A row keeps what distinguishes its architecture (patch, head size, window, position encoding, kind
of MLP, pooling) and gives up width and depth, so that it costs seconds. Nothing is run here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One encoder of the matrix."""

    name: str
    """What the publication calls it, with the patch or window that the row keeps."""
    architecture: str
    """A name of timm's, or a model_type of transformers."""
    size: int
    """Pixels of the first image size."""
    second_size: int | None
    """Pixels of the second one; None where the architecture has one size, see `fixed`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of `timm.create_model`, or of the transformers config."""
    rank: Literal["first", "second"] = "first"
    library: Literal["timm", "transformers"] = "timm"
    head: str = ""
    """Of transformers: the class in `architectures`; empty for an image encoder."""
    fixed: str = ""
    """Why there is no second size."""

    @property
    def key(self) -> str:
        """What names the row on the command line and in JSON; unique."""
        return f"{self.library}:{self.architecture}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "/features" if self.arguments.get("num_classes") == 0 else ""


def _vit(name: str, architecture: str, size: int, second: int, **more: Any) -> Row:
    """Return the row of a plain ViT of timm's, three blocks of heads with 64 channels."""
    return Row(name, architecture, size, second, {**_SMALL_VIT, **more})


def _timm(name: str, architecture: str, size: int, second: int | None, **more: Any) -> Row:
    return Row(name, architecture, size, second, more)


def _second(name: str, architecture: str, size: int, second: int | None, **more: Any) -> Row:
    return Row(name, architecture, size, second, more, rank="second")


def _hf(name: str, model_type: str, size: int, second: int | None, **more: Any) -> Row:
    return Row(name, model_type, size, second, more, library="transformers")


_SMALL_VIT = {"embed_dim": 192, "num_heads": 3, "depth": 3}
_SMALL_HF = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
_SMALL_SWIN = {"embed_dim": 48, "depths": (2, 2, 1, 1), "num_heads": (2, 4, 8, 16)}
_HF_SWIN = {"embed_dim": 48, "depths": (2, 2, 1, 1), "num_heads": (2, 4, 8, 16)}
_SMALL_CONVNEXT = {"depths": (2, 2, 2, 2), "dims": (32, 64, 128, 256)}
_HF_CONVNEXT = {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 128, 256]}

_VIT = (
    _vit("ViT-Ti/16", "vit_tiny_patch16_224", 224, 384),
    _vit("ViT-S/32", "vit_small_patch32_224", 224, 384),
    _vit("ViT-S/16", "vit_small_patch16_224", 224, 384),
    _vit("ViT-S/8", "vit_small_patch8_224", 112, 160),
    _vit("ViT-B/32", "vit_base_patch32_224", 224, 384),
    _vit("ViT-B/16", "vit_base_patch16_224", 224, 336),
    _vit("ViT-B/8", "vit_base_patch8_224", 112, 160),
    _vit("ViT-L/32", "vit_large_patch32_224", 224, 384),
    _vit("ViT-L/16", "vit_large_patch16_224", 224, 384),
    _vit("ViT-L/14", "vit_large_patch14_224", 224, 336),
    _vit("ViT-H/14", "vit_huge_patch14_224", 224, 336, embed_dim=320, num_heads=4),
    _vit("ViT with a ResNet stem, R+ViT-Ti/16", "vit_tiny_r_s16_p8_224", 224, 384),
    _timm("ViT with a convolutional stem, ViTamin-S", "vitamin_small_224", 224, 256, depth=2),
    _vit("DeiT-Ti", "deit_tiny_patch16_224", 224, 384),
    _vit("DeiT-Ti with distillation token", "deit_tiny_distilled_patch16_224", 224, 384),
    _vit("DeiT III-S", "deit3_small_patch16_224", 224, 384),
    _vit("MAE encoder, ViT-B/16", "vit_base_patch16_224", 224, 448, num_classes=0),
    _vit("DINO ViT-S/16", "vit_small_patch16_224", 224, 448, num_classes=0),
    _vit("DINO ViT-S/8", "vit_small_patch8_224", 112, 160, num_classes=0),
)
_WINDOWS = (
    _timm("Swin-T, window 7", "swin_tiny_patch4_window7_224", 224, 448, **_SMALL_SWIN),
    _timm("Swin-B, window 12", "swin_base_patch4_window12_384", 192, 384, **_SMALL_SWIN),
    _timm("Swin S3-T, windows 7 and 14", "swin_s3_tiny_224", 224, 448, **_SMALL_SWIN),
    _timm("Swin V2-T, window 8", "swinv2_tiny_window8_256", 256, 512, **_SMALL_SWIN),
    _timm("Swin V2-T, window 16", "swinv2_tiny_window16_256", 256, 512, **_SMALL_SWIN),
    _timm("Swin V2-L, window 12", "swinv2_large_window12_192", 192, 384, **_SMALL_SWIN),
    _timm(
        *("Swin V2-B, window 12 to 24", "swinv2_base_window12to24_192to384", 384, 192),
        **_SMALL_SWIN,
    ),
    _timm("Swin V2-CR-T", "swinv2_cr_tiny_224", 224, 384, **_SMALL_SWIN),
)
_SELF_SUPERVISED = (
    _vit("BEiT-B/16", "beit_base_patch16_224", 224, 384),
    _vit("BEiT v2-B/16", "beitv2_base_patch16_224", 224, 384),
    _vit("BEiT-3-B/16", "beit3_base_patch16_224", 224, 336),
    _vit("DINOv2 ViT-S/14", "vit_small_patch14_dinov2", 224, 518),
    _vit("DINOv2 ViT-S/14 with registers", "vit_small_patch14_reg4_dinov2", 224, 518),
    _vit("DINOv2 ViT-g/14 (SwiGLU)", "vit_giant_patch14_dinov2", 224, 518),
    _vit("DINOv3 ViT-S/16", "vit_small_patch16_dinov3", 224, 448),
    _vit("DINOv3 ViT-S+/16 (SwiGLU)", "vit_small_plus_patch16_dinov3", 224, 448),
    _timm("DINOv3 ConvNeXt-T", "convnext_tiny", 224, 448, num_classes=0, **_SMALL_CONVNEXT),
)
_LANGUAGE = (
    _vit("CLIP ViT-B/32", "vit_base_patch32_clip_quickgelu_224", 224, 448),
    _vit("CLIP ViT-B/16", "vit_base_patch16_clip_224", 224, 336),
    _vit("SigLIP ViT-B/16", "vit_base_patch16_siglip_224", 224, 384),
    _vit("SigLIP ViT-B/16, mean pool", "vit_base_patch16_siglip_gap_224", 224, 384),
    _vit("SigLIP 2 ViT-B/32", "vit_base_patch32_siglip_256", 256, 384),
    _vit(
        *("SigLIP 2 So400m/14", "vit_so400m_patch14_siglip_224", 224, 378),
        embed_dim=288,
        num_heads=4,
    ),
    _vit("SigLIP 2 NaFlex B/16", "naflexvit_base_patch16_siglip", 256, 384),
    _vit("EVA-02-Ti/14", "eva02_tiny_patch14_224", 224, 336),
    _vit("EVA-02-B/14 (norm in the SwiGLU)", "eva02_base_patch14_448", 224, 448),
    _vit("EVA-02-CLIP-B/16", "eva02_base_patch16_clip_224", 224, 336),
    _vit(
        *("EVA-CLIP-g/14", "eva_giant_patch14_clip_224", 224, 336),
        embed_dim=176,
        num_heads=2,
    ),
    _timm("MobileCLIP-S0 (MCi0)", "fastvit_mci0", 256, 384, layers=(1, 2, 2, 1)),
    _timm("MobileCLIP-B", "vit_base_mci_224", 224, 384, depth=2),
    _vit("InternViT-300M", "vit_intern300m_patch14_448", 224, 448),
    _vit("AM-RADIO v3-B/16", "vit_base_patch16_radio_v3", 224, 512),
    _vit("AM-RADIO v3-B/16, NaFlex", "naflexvit_base_patch16_radio_v3", 224, 512),
    _timm(
        *("FastViTHD shape (MCi3, five stages)", "fastvit_mci3", 256, 512),
        layers=(1, 1, 2, 1, 1),
        embed_dims=(32, 64, 128, 256, 512),
    ),
)
_HYBRIDS = (
    _timm("FastViT-T8", "fastvit_t8", 256, 384),
    _timm("FastViT-SA12", "fastvit_sa12", 256, 384, layers=(1, 1, 2, 1)),
    _timm("ConvNeXt-A", "convnext_atto", 224, 288),
    _timm("ConvNeXt V2-A", "convnextv2_atto", 224, 288),
    _timm("CoAtNet-0", "coatnet_0_224", 224, 256, depths=(1, 1, 2, 1)),
    _timm("CoAtNet-nano", "coatnet_nano_rw_224", 224, 256, depths=(1, 1, 2, 1)),
    _timm(
        *("CoAtNet-nano, MLP position bias", "coatnet_rmlp_nano_rw_224", 224, 256),
        depths=(1, 1, 2, 1),
    ),
    _timm("MaxViT-nano", "maxvit_nano_rw_256", 256, 320, depths=(1, 1, 1, 1)),
    _timm(
        *("MaxViT-nano, MLP position bias", "maxvit_rmlp_nano_rw_256", 256, 320),
        depths=(1, 1, 1, 1),
    ),
    _timm("MaxViT-T", "maxvit_tiny_tf_224", 224, 448, depths=(1, 1, 1, 1)),
    _timm("MobileViT-XXS", "mobilevit_xxs", 256, 320),
    _timm("MobileViT v2-0.5", "mobilevitv2_050", 256, 320),
    _timm("Hiera-T", "hiera_tiny_224", 224, 448, stages=(1, 2, 3, 2)),
    _timm(
        *("Hiera-S, absolute windows", "hiera_small_abswin_256", 256, 512),
        stages=(1, 2, 3, 2),
    ),
)
_TRANSFORMERS = (
    Row(
        *("ViT", "vit", 224, 384),
        {**_SMALL_HF},
        library="transformers",
        head="ViTForImageClassification",
    ),
    _hf("DeiT with distillation token", "deit", 224, 384, **_SMALL_HF),
    _hf("Swin, window 7", "swin", 224, 448, **_HF_SWIN),
    _hf("Swin V2, window 7", "swinv2", 224, 448, **_HF_SWIN),
    _hf("BEiT", "beit", 224, 384, **_SMALL_HF, use_relative_position_bias=True),
    _hf("MAE encoder", "vit_mae", 224, 448, **_SMALL_HF),
    _hf("DINOv2", "dinov2", 224, 518, **_SMALL_HF, patch_size=14),
    _hf(
        *("DINOv2 with registers", "dinov2_with_registers", 224, 518),
        **_SMALL_HF,
        patch_size=14,
    ),
    _hf("DINOv3", "dinov3_vit", 224, 448, **_SMALL_HF, num_register_tokens=4),
    _hf("DINOv3 ConvNeXt", "dinov3_convnext", 224, 448, **_HF_CONVNEXT),
    _hf("CLIP image tower", "clip_vision_model", 224, 384, **_SMALL_HF, projection_dim=64),
    _hf("SigLIP image tower", "siglip_vision_model", 224, 384, **_SMALL_HF),
    _hf(
        *("SigLIP 2 NaFlex image tower", "siglip2_vision_model", 256, 384),
        **_SMALL_HF,
        num_patches=256,
    ),
    _hf("InternViT", "internvl_vision", 224, 448, **_SMALL_HF, patch_size=[14, 14]),
    _hf("AM-RADIO", "radio", 224, 512, **_SMALL_HF),
    _hf("ConvNeXt", "convnext", 224, 288, **_HF_CONVNEXT),
    _hf("ConvNeXt V2", "convnextv2", 224, 288, **_HF_CONVNEXT),
    _hf("MobileViT", "mobilevit", 256, 320),
    _hf("MobileViT v2", "mobilevitv2", 256, 320, width_multiplier=0.5),
    _hf("Hiera", "hiera", 224, 448, embed_dim=64, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8]),
)
_SECOND = (
    _second(
        *("AIMv2-L/14", "aimv2_large_patch14_224", 224, 336),
        **{**_SMALL_VIT, "embed_dim": 256, "num_heads": 2},
    ),
    _second("Perception Encoder core-T/16", "vit_pe_core_tiny_patch16_384", 224, 384, **_SMALL_VIT),
    _second(
        *("Perception Encoder spatial-T/16", "vit_pe_spatial_tiny_patch16_512", 224, 512),
        **_SMALL_VIT,
    ),
    _second("EfficientViT-B0 (MIT)", "efficientvit_b0", 224, 256),
    _second("EfficientViT-M0 (MSRA)", "efficientvit_m0", 224, 256),
    Row(
        *("EfficientFormer-L1", "efficientformer_l1", 224, None),
        rank="second",
        fixed="its attention bias is a table for 7 by 7 positions, which timm does not resample",
    ),
    _second("EfficientFormer V2-S0", "efficientformerv2_s0", 224, 256),
    _second("TinyViT-5M", "tiny_vit_5m_224", 224, 384),
    _second("RepViT-M0.9", "repvit_m0_9", 224, 256),
    _second("LeViT-128S", "levit_128s", 224, 256),
    _second("PVT v2-B0", "pvt_v2_b0", 224, 448),
    _second("MViT v2-T", "mvitv2_tiny", 224, 320),
    _second("CrossViT-Ti", "crossvit_tiny_240", 240, 480),
    _second("XCiT-nano-12/16", "xcit_nano_12_p16_224", 224, 384, depth=4),
    _second("CaiT-XXS24", "cait_xxs24_224", 224, 384, depth=4),
    _second("CoaT-Lite-Ti", "coat_lite_tiny", 224, 256),
    _second("DaViT-T", "davit_tiny", 224, 448, depths=(1, 1, 2, 1)),
    _second("EdgeNeXt-XXS", "edgenext_xx_small", 256, 320),
    _second("FocalNet-T", "focalnet_tiny_srf", 224, 288),
    _second("GC ViT-XXT", "gcvit_xxtiny", 224, 256),
    _second("MaxxViT-nano", "maxxvit_rmlp_nano_rw_256", 256, 320),
    _second("NesT-T", "nest_tiny", 224, 448),
    _second("PoolFormer-S12", "poolformer_s12", 224, 288),
    _second("ViT with relative positions", "vit_relpos_small_patch16_224", 224, 384, **_SMALL_VIT),
    _second("ViT with RoPE", "vit_small_patch16_rope_224", 224, 384, **_SMALL_VIT),
    _second("Twins-PCPVT-S", "twins_pcpvt_small", 224, 256, depths=(1, 1, 2, 1)),
    _second("Twins-SVT-S", "twins_svt_small", 224, 448, depths=(1, 1, 2, 1)),
    _second("VOLO-D1", "volo_d1_224", 224, 384),
)

ROWS: tuple[Row, ...] = (
    *(*_VIT, *_WINDOWS, *_SELF_SUPERVISED, *_LANGUAGE, *_HYBRIDS),
    *_TRANSFORMERS,
    *_SECOND,
)
