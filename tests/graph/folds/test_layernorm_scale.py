"""F1: exact wherever it applies, refused where a reader cannot absorb it."""

import numpy as np
import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.folds import layernorm_scale as fold

# (family, norms that scale, norms that shift too)
COUNTS = [
    ("vit", 5, 5),
    ("vit_qk_norm", 5, 5),
    ("deit_distilled", 5, 5),
    ("dinov2_reg", 5, 5),
    ("clip", 5, 5),
    ("swin", 8, 8),
    ("swin_padded", 8, 5),
    ("swinv2", 1, 1),
    ("eva02", 5, 5),
    ("dinov3", 5, 5),
    ("cait", 7, 7),
    ("hf_dinov2", 4, 4),
    ("hf_siglip", 4, 4),
    ("sam", 5, 3),
]


@pytest.mark.parametrize(("family", "scaled", "shifted"), COUNTS)
def test_the_function_is_unchanged(family, scaled, shifted):
    found = fold.find(canonical(family))
    assert sum(fold.applies(site) is None for site in found) == scaled
    assert sum(fold.shift_applies(site) is None for site in found) == shifted

    def edit(model):
        draw = np.random.default_rng(0)
        for site in fold.find(model):
            if fold.applies(site) is not None:
                continue
            shift = None
            if fold.shift_applies(site) is None:
                shift = draw.standard_normal(site.channels)
            fold.apply_(model, site, draw.uniform(0.25, 4.0, site.channels), shift)

    assert_exact(canonical_bytes(family), edit)


def test_the_norm_itself_changes():
    model = canonical("vit")
    site = fold.find(model)[0]
    gamma, beta = fold.norm_parameters(site.norm)
    fold.apply_(model, site, np.full(48, 2.0), np.full(48, 3.0))
    after = fold.norm_parameters(site.norm)
    np.testing.assert_allclose(after[0], gamma / 2, rtol=1e-6)
    np.testing.assert_allclose(after[1], (beta - 3) / 2, rtol=1e-6)


def test_other_norms_are_left_alone():
    model = canonical("vit")
    sites = fold.find(model)
    before = fold.norm_parameters(sites[1].norm)
    fold.apply_(model, sites[0], np.full(48, 2.0))
    after = fold.norm_parameters(sites[1].norm)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("clip", "LayerNormalization blocks.0.norm1"),  # the norm writes the residual
        ("swin", "LayerNormalization layers.0.blocks.0.norm1"),
        ("res_post_norm", "Add blocks.0/Add"),
        ("classic_post_norm", "is no layer with weights"),
        ("hf_vit", "graph output"),
        ("vit_qk_norm", "MatMul blocks.0.attn/MatMul"),  # the norm of q and k
    ],
)
def test_a_norm_with_other_readers_is_refused(family, reason):
    model = canonical(family)
    refused = [site for site in fold.find(model) if fold.applies(site) is not None]
    assert any(reason in fold.applies(site) for site in refused)
    with pytest.raises(ValueError, match="cannot fold"):
        fold.apply_(model, refused[0], np.ones(refused[0].channels))


def test_a_shift_through_zero_padding_is_refused_and_a_scale_is_not():
    model = canonical("swin_padded")
    site = next(s for s in fold.find(model) if s.readers.shift_reason is not None)
    assert "zero padding" in fold.shift_applies(site)
    with pytest.raises(ValueError, match="zero padding"):
        fold.apply_(model, site, np.ones(site.channels), np.ones(site.channels))
    fold.apply_(model, site, np.full(site.channels, 2.0))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (np.ones(7), r"shape \(48,\), got \(7,\)"),
        (np.zeros(48), "other than zero"),
        (np.full(48, np.nan), "finite"),
    ],
)
def test_a_bad_scale_is_refused(scale, message):
    model = canonical("vit")
    with pytest.raises(ValueError, match=message):
        fold.apply_(model, fold.find(model)[0], scale)
