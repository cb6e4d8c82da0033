"""Layers against ceilings, by hand."""

import numpy as np
import pytest

from vitdeploy.report.profile import Ceilings
from vitdeploy.roofline.layers import LayerCount
from vitdeploy.roofline.utilisation import Ran, beaten, work_of

CEILINGS = Ceilings(
    tops={"fp32": 0.1, "bf16": None, "int8": 1.0},
    tops_reason={"bf16": "no such products"},
    bandwidth_gbs=10.0,
    threads=1,
    measured_with="nothing",
)


def layer(name: str, kind: str, macs: int | None, milliseconds: float, **changes) -> LayerCount:
    facts = {"is_product": macs is not None, "bytes": 1000, "weight_bytes": 500, **changes}
    return LayerCount(name, "MatMul", kind, milliseconds, macs=macs, **facts)


def ran(p50_ms: float = 4.0) -> Ran:
    return Ran("a", "model", "int8", 1, {"x": np.zeros(250, np.float32)}, p50_ms)


def test_each_type_has_its_own_ceiling():
    layers = [
        layer("float", "fp32", 50_000_000, 2.0),  # 1e8 operations at 1e11 a second: 1 ms
        layer("integer", "int8", 500_000_000, 1.0),  # 1e9 at 1e12: 1 ms
        layer("norm", "fp32", None, 1.0),
    ]
    work = work_of(ran(), layers, CEILINGS)
    assert work.macs == {"fp32": 50_000_000, "int8": 500_000_000}
    assert work.limit_ms == pytest.approx(2.0)
    assert work.utilisation_percent == work.compute_percent == pytest.approx(50.0)
    assert work.products_percent == pytest.approx(75.0)
    shares = {item.name: item.utilisation_percent for item in work.layers}
    assert shares["float"] == pytest.approx(50.0)
    assert shares["integer"] == pytest.approx(100.0)
    assert shares["norm"] is None
    assert [item.name for item in work.layers] == ["float", "integer", "norm"]


def test_bytes_are_weights_and_inputs_and_may_be_the_limit():
    layers = [layer("head", "fp32", 1000, 3.0, weight_bytes=20_000_000)]
    work = work_of(ran(), layers, CEILINGS)
    assert work.bytes == 20_000_000 + 1000
    assert work.limit_ms == pytest.approx(2.0, rel=1e-3)  # 20 MB at 10 GB a second
    assert work.bandwidth_percent == pytest.approx(50.0, rel=1e-3)


def test_a_layer_whose_bytes_take_longer_is_memory_bound():
    layers = [
        layer("wide", "fp32", 1000, 1.0, bytes=10_000_000),
        layer("deep", "fp32", 50_000_000, 1.0, bytes=1000),
    ]
    wide, deep = work_of(ran(), layers, CEILINGS).layers
    assert wide.is_memory_bound
    assert not deep.is_memory_bound


def test_a_type_without_a_ceiling_counts_as_fp32():
    work = work_of(ran(), [layer("half", "bf16", 1000, 1.0)], CEILINGS)
    assert work.macs == {"fp32": 1000}


def test_what_beats_the_ceilings_is_named():
    quick = work_of(ran(0.5), [layer("x", "fp32", 50_000_000, 0.4)], CEILINGS)
    usual = work_of(ran(4.0), [layer("x", "fp32", 50_000_000, 4.0)], CEILINGS)
    assert beaten([usual, quick]) == ["a/model"]
    assert beaten([usual]) == []
