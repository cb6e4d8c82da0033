"""F3 and F4 before INT8 attention: exact, undone outliers, and nothing where nothing is gained."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from tests.graph.exactness import canonical
from vitdeploy.compress.attention_folds import fold_attention_
from vitdeploy.compress.calibrate import Probe, collect_statistics
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.graph.folds import key_shift, query_key_scale
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model

SCHEME = QuantScheme(
    activation=ir.DataType.INT8, symmetric_activations=True, most_int8_attention_tokens=512
)
PIXELS = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)


def batches() -> list[dict[str, np.ndarray]]:
    return [{"pixel_values": PIXELS[:2]}, {"pixel_values": PIXELS[2:]}]


def outputs(model: ir.Model) -> np.ndarray:
    with runner_from_model(model) as run:
        return next(iter(run({"pixel_values": PIXELS}).values())).astype(np.float64)


def largest_key(model: ir.Model) -> float:
    key = key_shift.find(model)[0].attention.key
    name = str(key.linear.output.name)
    own = collect_statistics(model, [Probe(name, -1, 3)], batches)[name]
    return float(np.maximum(np.abs(own.low), np.abs(own.high))[key.flat].max())


def hurt(family: str = "vit") -> ir.Model:
    """Keys shifted by up to 64, and one key channel of each head 100 times as large."""
    model = canonical(family)
    generator = np.random.default_rng(1)
    for site in query_key_scale.find(model):
        factor = np.ones(site.groups.shape)
        factor[:, 3] = 100.0
        query_key_scale.apply_(model, site, factor)
    for site in key_shift.find(model):
        shape = site.attention.key.columns.shape
        key_shift.apply_(model, site, generator.choice((-64.0, 0.0, 64.0), shape))
    return model


def test_outliers_and_shifts_are_taken_out_and_the_function_stays():
    model, clean = hurt(), largest_key(canonical("vit"))
    assert largest_key(model) > 20 * clean
    expected = outputs(model)
    done = fold_attention_(model, SCHEME, batches)
    assert {fold.fold for fold in done} == {"key_shift", "query_key_scale"}
    assert len(done) == 4
    assert largest_key(model) < 2 * clean
    difference = np.abs(outputs(model) - expected).max() / np.abs(expected).max()
    assert difference < 1e-4  # keys of 64 leave float32 that much


def test_a_second_run_changes_nothing():
    model = hurt()
    fold_attention_(model, SCHEME, batches)
    assert fold_attention_(model, SCHEME, batches) == ()


def test_attention_that_cannot_be_int8_is_left_alone():
    model = hurt()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    short = QuantScheme(most_int8_attention_tokens=16)
    assert fold_attention_(model, short, batches) == ()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_rotary_keys_are_not_shifted():
    sites = key_shift.find(canonical("dinov3"))
    assert all(key_shift.applies(site) for site in sites)
    model = canonical("dinov3")
    expected = outputs(model)
    done = fold_attention_(model, SCHEME, batches)
    assert "key_shift" not in {fold.fold for fold in done}
    assert np.abs(outputs(model) - expected).max() < 1e-5 * np.abs(expected).max()


def test_pinned_choices_fold_the_same():
    scheme = replace(SCHEME, splits_qkv=True, int8_attention_head_dims=(16,))
    options = Int8Section(rounding="nearest", placement="all")
    first = quantize_int8(hurt(), scheme, batches, options)
    again = quantize_int8(hurt(), scheme, batches, options, pinned=first.choices)
    assert [record.fold for record in first.folds].count("key_shift") == 2
    one, other = (
        ir.to_proto(result.model).SerializeToString(deterministic=True) for result in (first, again)
    )
    assert one == other
