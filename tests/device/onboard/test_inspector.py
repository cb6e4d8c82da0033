"""Engine inspector JSON of both shapes.

Written by hand after NVIDIA's documentation (10.x: `Bindings`, `Format/Datatype`; 11.x: `I/O
Tensors`, `DataType` and `Format` apart). No engine wrote it: see docs/tensorrt.md.
"""

import json
from typing import Any

import pytest

from vitdeploy.device.onboard.failure import Failure
from vitdeploy.device.onboard.inspector import count_rows, engine_info_from_json


def layer(name: str, kind: str, tensor: dict[str, Any], tactic: str = "") -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor],
        "Outputs": [],
        "TacticName": tactic,
    }


def old(types: str) -> dict[str, Any]:
    return {
        "Name": "t",
        "Location": "Device",
        "Dimensions": [1, 197, 192],
        "Format/Datatype": types,
    }


def new(types: str) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": [1, 197, 192], "DataType": types, "Format": "kLINEAR"}


def engine(make: Any, listed: dict[str, Any]) -> str:
    layers = [
        layer("blocks.0.attn.q", "gemm", make("Int8"), "sm80_xmma_gemm_i8i8_i8i32_f32_tn"),
        layer("_gemm_mha_v2_myl0_12", "kgen", make("Half")),
        layer("patch_embed", "CaskConvolution", make("Half")),
        layer("blocks.0.norm1", "kgen", make("Half")),
        layer("Reformatting CopyNode for conv", "Reformat", make("Int8")),
    ]
    return json.dumps({"Layers": layers, **listed})


@pytest.mark.parametrize(
    "text",
    [
        engine(old, {"Bindings": ["pixel_values", "logits"]}),
        engine(new, {"I/O Tensors": [{"Name": "pixel_values"}, {"Name": "logits"}]}),
    ],
    ids=["10.x", "11.x"],
)
def test_both_shapes_say_the_same(text: str):
    info = engine_info_from_json(text)
    assert info.io_names == ("pixel_values", "logits")
    rows = count_rows(info, [("blocks.0.attn.q", 0.1), ("not in the inspector", 0.2)])
    assert (rows["products"], rows["int8_products"]) == (2, 1)
    assert (rows["fused_attention"], rows["int8_attention"]) == (1, 0)
    first, second = rows["layers"]
    assert first == {
        "name": "blocks.0.attn.q", "mean_ms": 0.1, "kind": "gemm", "input_types": ["Int8"],
        "is_product": True,
    }  # fmt: skip
    assert second["kind"] is None


# Kinds, names, tactics and counts as NVIDIA's builder (TensorRT for RTX 1.7.1) logged them for an
# FP16 ViT-Ti/16: 12 blocks of 4 products, a patch convolution, and a head that it made no product.
RTX_LAYERS = [
    (23, "runtime_fusion", "__myl_FcAddAdd_myl0_9", "", 2),
    (23, "kgen", "__myl_CastMeanSubMulMeanAddSqrtDivMulMulAddCast_myl0_10", "__myl_Cast_0x16", 1),
    (12, "runtime_fusion", "__myl_FcAddDivCastErfCastAddMulMul_myl0_8", "", 1),
    (12, "runtime_fusion", "__myl_FcAdd_myl0_3", "", 1),
    (12, "kgen", "_gemm_mha_v2_myl0_5", "_gemm_mha_v2_0xe9a545b8", 3),
    (12, "kgen", "__myl_ReshTranSlicSlicReshTranReshMulSlicReshMul_myl0_4", "__myl_Resh", 1),
    (1, "kgen", "__myl_TranConcAddCastMeanSubMulMeanAddSqrtDivMulMulAddCast", "__myl_Tran", 1),
    (1, "gemm", "node_MatMul_732_myl0_95", "__myelin_CASK_STUB", 1),
    (1, "correlation", "node_conv2d_myl0_1", "__myelin_CASK_STUB", 1),
]


def test_a_vits_kernels_are_told_apart():
    layers = []
    for count, kind, name, tactic, inputs in RTX_LAYERS:
        made = layer(name, kind, {}, tactic)
        made["Inputs"] = [{"Datatype": "Half"}] * inputs
        layers += [made] * count
    rows = count_rows(engine_info_from_json(json.dumps({"Layers": layers})), [])
    assert rows["products"] == 12 * 4 + 1
    assert rows["fused_attention"] == 12
    assert rows["int8_products"] == rows["int8_attention"] == 0


def test_a_residual_in_int8_makes_no_int8_product():
    made = layer("fc", "gemm", old("Half"))
    made["Inputs"].append(old("Int8"))
    assert not engine_info_from_json(json.dumps({"Layers": [made]})).layers[0].is_int8


def test_a_type_with_its_layout_is_read():
    text = json.dumps({"Layers": [layer("fc", "gemm", old("Int8 NC/32HW32"))]})
    assert engine_info_from_json(text).layers[0].is_int8


def test_names_alone_are_read_too():
    info = engine_info_from_json(json.dumps({"Layers": ["fc1_gemm", "norm"], "Bindings": []}))
    assert [item.is_product for item in info.layers] == [True, False]
    assert count_rows(info, [])["int8_products"] == 0


def test_what_is_no_inspector_json_is_refused():
    for text in ("", "{}", '{"Layers": [1]}'):
        with pytest.raises(Failure, match="engine inspector") as caught:
            engine_info_from_json(text)
        assert caught.value.exit_code == 7
