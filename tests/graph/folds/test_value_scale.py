"""F5: exact for every attention; the shift only while the softmax stays in float."""

import numpy as np
import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.folds import value_scale as fold

FAMILIES = [
    "vit",
    "vit_qk_norm",
    "dinov2_reg",
    "swin",
    "swinv2",
    "fastvit",
    "eva02",
    "dinov3",
    "cait",
    "hf_siglip",
    "sam",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_unchanged(family):
    def edit(model):
        draw = np.random.default_rng(0)
        for site in fold.find(model):
            assert fold.applies(site) is None
            shape = site.attention.value.columns.shape
            scale, shift = draw.uniform(0.25, 4.0, shape), draw.standard_normal(shape)
            fold.apply_(model, site, scale, shift, softmax_is_float=True)

    assert_exact(canonical_bytes(family), edit)


def test_a_shift_under_a_quantised_softmax_is_refused_and_a_scale_is_not():
    model = canonical("vit")
    site = fold.find(model)[0]
    assert "do not sum to one" in fold.shift_applies(site, softmax_is_float=False)
    with pytest.raises(ValueError, match="do not sum to one"):
        fold.apply_(model, site, np.ones((3, 16)), np.ones((3, 16)))
    fold.apply_(model, site, np.full((3, 16), 2.0))


def test_a_value_with_another_reader_is_refused():
    model = canonical("hf_siglip")
    model.graph.outputs.append(fold.find(model)[0].attention.value.linear.output)
    assert "graph output" in fold.applies(fold.find(model)[0])


def test_a_result_with_another_reader_is_refused():
    model = canonical("vit")
    attention = fold.find(model)[0].attention
    model.graph.outputs.append(attention.context_matmul.outputs[0])
    site = fold.find(model)[0]
    assert "no single output projection" in fold.applies(site)
    with pytest.raises(ValueError, match="no single output projection"):
        fold.apply_(model, site, np.ones((3, 16)))
