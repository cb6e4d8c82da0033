"""F2: exact on pre-norm families, spreads outliers, refused on post-norm and fixed ends."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import double
from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.folds import rotation as fold
from vitdeploy.graph.linear import linear_at, scale_outputs_

PLAIN = ["vit", "vit_qk_norm", "deit_distilled", "dinov2_reg", "eva02", "dinov3", "cait"]
# (family, MatMuls inserted: behind the norm that writes the stream, before the one that is output)
INSERTED = [
    ("clip", 1),
    ("swin", 1),
    ("swin_padded", 1),
    ("hf_dinov2", 1),
    ("hf_siglip", 1),
    ("sam", 0),
]


def _turn_all_(model, *, allow_inserts=False):
    count = 0
    for site in fold.find(model):
        if fold.applies(site, allow_inserts=allow_inserts) is None:
            turn = fold.mean_preserving_rotation(site.channels, seed=1)
            fold.apply_(model, site, turn, allow_inserts=allow_inserts)
            count += 1
    return count


def test_the_rotation_is_orthogonal_keeps_the_mean_and_is_seeded():
    turn = fold.mean_preserving_rotation(48, seed=3)
    np.testing.assert_allclose(turn @ turn.T, np.eye(48), atol=1e-13)  # 48 float64 roundings
    np.testing.assert_allclose(turn.sum(axis=0), 1.0, atol=1e-13)
    np.testing.assert_allclose(turn.sum(axis=1), 1.0, atol=1e-13)
    assert np.array_equal(turn, fold.mean_preserving_rotation(48, seed=3))
    assert not np.allclose(turn, fold.mean_preserving_rotation(48, seed=4))


@pytest.mark.parametrize("family", PLAIN)
def test_the_function_is_unchanged(family):
    before = len(canonical(family).graph)
    model = assert_exact(canonical_bytes(family), lambda m: _check_turned(_turn_all_(m)))
    # Only biases that the norms' beta makes necessary may be new.
    assert {n.op_type for n in list(model.graph)[before:]} <= {"Add"} or len(model.graph) >= before


def _check_turned(count):
    assert count == 1


@pytest.mark.parametrize(("family", "inserts"), INSERTED)
def test_where_a_norm_is_an_end_of_the_stream_one_matmul_is_inserted(family, inserts):
    assert all(
        fold.applies(site) is not None or "layers.1" in site.name or family == "sam"
        for site in fold.find(canonical(family))
    )
    before = sum(node.op_type == "MatMul" for node in canonical(family).graph)
    model = assert_exact(canonical_bytes(family), lambda m: _turn_all_(m, allow_inserts=True))
    assert sum(node.op_type == "MatMul" for node in model.graph) == before + inserts


def test_gamma_and_beta_move_into_the_readers():
    model = canonical("vit")
    _turn_all_(model)
    for site in fold.find(model):
        for reader in site.stream.norms:
            gamma, beta = fold.norm_parameters(reader.norm)
            assert np.all(gamma == 1.0)
            assert not np.any(beta)


def test_all_that_writes_the_stream_is_found():
    stream = fold.find(canonical("deit_distilled"))[0].stream
    # patch embedding, two proj, two fc2; position embedding, class and distillation token
    assert len(stream.writers) == 5
    assert len(stream.tables) == 3
    assert len(stream.norms) == 5


def test_outliers_after_the_norm_become_small():
    """What the fold is for: a few channels of the stream stand out as in DINOv2, then none does."""
    model = canonical("dinov2_reg")
    _inject_outliers_(model, channels=(5, 17), factor=60.0)
    image = double.images(model, count=4).astype(np.float32)
    norms = [str(reader.norm.name) for reader in fold.find(model)[0].stream.norms][:-1]
    before = _peaks(model, image, norms)
    reference = double.run_ort(model, image)

    assert _turn_all_(model) == 1

    after = _peaks(model, image, norms)
    assert before.min() > 15.0
    assert after.max() < 8.0
    error = double.relative_error(double.run_ort(model, image), reference)
    assert error <= 1e-4  # the injected residual is 60 times larger, and so are its roundings


def _inject_outliers_(model, channels, factor):
    """Make `channels` of the stream large: scale them in all layers that write it."""
    (site,) = fold.find(model)
    for linear in site.stream.writers:
        scale = np.ones(linear.out_channels)
        scale[list(channels)] = factor
        scale_outputs_(model.graph, linear, scale)


def _peaks(model, image, norms):
    """Return max / median of |x| over channels of each norm's result, gamma aside, worst row."""
    copy = ir.from_proto(ir.to_proto(model))
    found = []
    for node in copy.graph:
        if node.name in norms:
            copy.graph.outputs[:] = [node.outputs[0]]
            gamma, beta = fold.norm_parameters(node)
            rows = np.abs((double.run_ort(copy, image) - beta) / gamma)
            found.append(float((rows.max(axis=-1) / np.median(rows, axis=-1)).mean()))
    return np.array(found)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("clip", "writes the stream"),
        ("swin", "writes the stream"),
        ("hf_vit", "graph output"),
        ("res_post_norm", "post-norm network"),
        ("swinv2", "post-norm network"),
        ("classic_post_norm", "no norm that reads it can be turned"),
    ],
)
def test_without_inserts_these_are_refused(family, reason):
    model = canonical(family)
    reasons = [(site, fold.applies(site)) for site in fold.find(model)]
    assert any(text is not None and reason in text for _, text in reasons)
    site = next(site for site, text in reasons if text is not None)
    with pytest.raises(ValueError, match="cannot rotate"):
        fold.apply_(model, site, np.eye(site.channels))


@pytest.mark.parametrize("family", ["res_post_norm", "classic_post_norm", "swinv2"])
def test_a_post_norm_network_is_refused_even_with_inserts(family):
    assert _turn_all_(canonical(family), allow_inserts=True) == 0


def test_a_stream_that_is_an_output_is_refused():
    model = canonical("vit")
    node = next(n for n in model.graph if n.name == "blocks.0/Add_1")
    model.graph.outputs.append(node.outputs[0])
    (site,) = fold.find(model)
    assert "is the stream itself" in fold.applies(site, allow_inserts=True)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (np.eye(7), "must be of shape"),
        (2.0 * np.eye(48), "not orthogonal"),
        (np.diag([-1.0] + [1.0] * 47), "does not keep the mean"),
    ],
)
def test_a_rotation_that_layer_norm_does_not_commute_with_is_refused(turn, message):
    model = canonical("vit")
    with pytest.raises(ValueError, match=message):
        fold.apply_(model, fold.find(model)[0], turn)


def test_a_graph_without_norms_has_no_stream():
    assert fold.find(canonical("fastvit")) == []


def test_the_patch_merging_norm_reads_four_blocks():
    streams = [site.stream for site in fold.find(canonical("swin"))]
    assert {reader.blocks for stream in streams for reader in stream.norms} == {1, 4}
    assert all(linear_at(writer.node) is not None for s in streams for writer in s.writers)
