"""F4: the softmax does not see a shift of the key; RoPE and QK-norm do."""

import numpy as np
import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.folds import key_shift as fold
from vitdeploy.graph.linear import bias_of

FAMILIES = [
    "vit",
    "dinov2_reg",
    "clip",
    "swin",
    "swin_padded",
    "fastvit",
    "cait",
    "hf_dinov2",
    "sam",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_unchanged(family):
    def edit(model):
        draw = np.random.default_rng(0)
        for site in fold.find(model):
            assert fold.applies(site) is None
            fold.apply_(model, site, draw.standard_normal(site.attention.key.columns.shape))

    assert_exact(canonical_bytes(family), edit)


def test_only_the_bias_of_the_key_changes():
    model = canonical("vit")
    site = fold.find(model)[0]
    before = bias_of(site.attention.key.linear)
    fold.apply_(model, site, np.full((3, 16), 2.0))
    change = bias_of(site.attention.key.linear) - before
    np.testing.assert_allclose(change[48:96], 2.0, rtol=1e-6)  # float32 biases
    assert not np.any(change[:48])
    assert not np.any(change[96:])


@pytest.mark.parametrize(
    ("family", "reason"),
    [("eva02", "RoPE"), ("dinov3", "RoPE"), ("vit_qk_norm", "norm"), ("swinv2", "norm")],
)
def test_rope_and_qk_norm_are_refused(family, reason):
    model = canonical(family)
    site = fold.find(model)[0]
    assert reason in fold.applies(site)
    with pytest.raises(ValueError, match=reason):
        fold.apply_(model, site, np.ones(site.attention.key.columns.shape))


def test_a_shift_of_the_wrong_shape_is_refused():
    model = canonical("vit")
    with pytest.raises(ValueError, match="shape"):
        fold.apply_(model, fold.find(model)[0], np.ones(48))
