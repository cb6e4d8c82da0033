"""What a run says of noisy blocks and outlier channels is what was measured of its graphs."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from tests.diagnosis.test_measuring import SCHEME, folded, values_of
from tests.diagnosis.test_pairing import OPTIONS
from vitdeploy.bundle import TensorInfo
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.outliers import block_noise, outlier_rows


def compressed(noise: dict[str, float] | None):
    artifact = SimpleNamespace(target="onnx", part="model")
    quantized = None if noise is None else SimpleNamespace(noise=noise)
    return SimpleNamespace(artifact=artifact, quantized=quantized)


def test_noise_is_summed_by_block_in_the_order_of_the_model():
    noise = {
        "patch_embed.proj/Conv": 0.5,
        "blocks.0.attn.qkv/MatMul": 0.1,
        "blocks.0.mlp.fc1/MatMul": 0.2,
        "blocks.10.attn.qkv/MatMul": 0.05,
        "head/Gemm": 0.25,
    }
    rows = block_noise([compressed(noise)])
    assert [(row.block, row.products) for row in rows] == [
        ("other", 2),
        ("blocks.0", 2),
        ("blocks.10", 1),
    ]
    assert [row.noise for row in rows] == pytest.approx([0.75, 0.3, 0.05])


def test_what_was_not_measured_has_no_rows():
    assert block_noise([compressed(None), compressed({})]) == ()


def job_of(graph: ir.Model, pixels: np.ndarray, **changes) -> SimpleNamespace:
    part = SimpleNamespace(name="model", inputs=(TensorInfo("pixel_values", ("batch", 3, 16, 16)),))
    facts = {"is_slow": False, "joined": None, "bytes": 1000, **changes}
    return SimpleNamespace(
        exported=[SimpleNamespace(part=part, model=graph, bytes=facts["bytes"])],
        images=SimpleNamespace(example=pixels),
        reference=SimpleNamespace(is_slow=facts["is_slow"], joined=facts["joined"]),
    )


def int8_of(graph: ir.Model, pixels: np.ndarray):
    found = quantize_int8(graph, SCHEME, lambda: [{"pixel_values": pixels}], OPTIONS)
    artifact = SimpleNamespace(target="onnx", part="model")
    return SimpleNamespace(artifact=artifact, quantized=found)


def test_outliers_are_those_of_the_graphs_before_and_after_folding(vit_graph, pixels):
    copy, _, _ = folded(vit_graph)
    item = int8_of(copy, pixels)
    (row,) = outlier_rows(job_of(vit_graph, pixels), [item])
    norm = next(n for n in vit_graph.graph if n.op_type == "LayerNormalization")
    name = str(norm.outputs[0].name)
    magnitudes = np.abs(values_of(vit_graph, [name], pixels)[name]).max(axis=(0, 1))
    # float32 sums in another order
    assert row.before == pytest.approx(magnitudes.max() / np.median(magnitudes), rel=1e-5)
    assert (row.target, row.part, row.norm) == ("onnx", "model", norm.name)
    assert row.after is not None
    assert abs(row.after - row.before) > 0.1  # the fold was a coarse one


@pytest.mark.parametrize("changes", [{"is_slow": True}, {"bytes": 10**9}])
def test_slow_and_large_models_are_left_to_diagnose(vit_graph, pixels, changes):
    item = SimpleNamespace(
        artifact=SimpleNamespace(target="onnx", part="model"), quantized=SimpleNamespace()
    )
    assert outlier_rows(job_of(vit_graph, pixels, **changes), [item]) == ()
