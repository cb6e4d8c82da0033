"""F3: exact with and without RoPE, refused behind a norm of q or k."""

import numpy as np
import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.folds import query_key_scale as fold

FAMILIES = ["vit", "dinov2_reg", "clip", "swin", "fastvit", "eva02", "dinov3", "cait", "hf_siglip"]


def _scale(site, draw):
    shape = site.groups.shape
    scale = draw.uniform(0.25, 4.0, shape) * draw.choice([-1.0, 1.0], shape)
    return scale.reshape(-1)[site.groups]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_unchanged(family):
    def edit(model):
        draw = np.random.default_rng(0)
        for site in fold.find(model):
            assert fold.applies(site) is None
            fold.apply_(model, site, _scale(site, draw))

    assert_exact(canonical_bytes(family), edit)


def test_without_rope_every_channel_is_free():
    site = fold.find(canonical("vit"))[0]
    assert np.unique(site.groups).size == site.groups.size


@pytest.mark.parametrize(("family", "partner"), [("eva02", 1), ("dinov3", 8)])
def test_rope_ties_its_pairs_and_a_scale_that_parts_them_is_refused(family, partner):
    """eva02 turns neighbours (0, 1); DINOv3 turns halves (0, 8)."""
    model = canonical(family)
    site = fold.find(model)[0]
    assert site.groups[0, partner] == site.groups[0, 0]
    assert np.unique(site.groups).size == site.groups.size // 2
    scale = np.ones(site.groups.shape)
    scale[0, partner] = 2.0
    with pytest.raises(ValueError, match="rotated pair"):
        fold.apply_(model, site, scale)


@pytest.mark.parametrize("family", ["vit_qk_norm", "eva_qk_norm", "swinv2"])
def test_a_norm_of_q_and_k_is_refused(family):
    model = canonical(family)
    site = fold.find(model)[0]
    assert "norm" in fold.applies(site)
    with pytest.raises(ValueError, match="cannot scale query and key"):
        fold.apply_(model, site, np.ones(site.groups.shape))


def test_a_query_with_another_reader_is_refused():
    model = canonical("hf_siglip")
    query = fold.find(model)[0].attention.query.linear
    model.graph.outputs.append(query.output)
    assert "graph output" in fold.applies(fold.find(model)[0])


def test_a_relative_position_that_reads_the_query_is_refused():
    model = canonical("sam")
    assert "Einsum" in fold.applies(fold.find(model)[0])


def test_zero_is_refused():
    model = canonical("vit")
    site = fold.find(model)[0]
    with pytest.raises(ValueError, match="other than zero"):
        fold.apply_(model, site, np.zeros(site.groups.shape))
