"""Figures of `vitdeploy inspect`, against a count by hand."""

from vitdeploy.models import LoadOptions, describe, load


def test_vit_figures_equal_those_counted_by_hand(timm_folder):
    loaded = load(LoadOptions(str(timm_folder())))
    figures = describe(loaded)
    width, tokens, depth, patch, classes = 32, 17, 2, 8 * 8 * 3, 3
    block = tokens * (3 + 1 + 4 + 4) * width**2 + 2 * tokens**2 * width
    macs = (tokens - 1) * patch * width + depth * block + width * classes
    assert figures.gmacs * 1e9 == macs
    linear = 12 * width**2 + (3 + 1 + 4 + 1) * width  # weights and biases of a block
    norms = depth * 4 * width + 2 * width
    embeddings = patch * width + width + width + tokens * width
    assert figures.parameters == depth * linear + norms + embeddings + classes * (width + 1)
    assert (figures.tokens, figures.image_size, len(figures.attention)) == (17, (32, 32), 2)
    assert figures.parts[0].outputs == loaded.parts[0].outputs
    assert figures.preprocess.crop_pct == 0.8
    assert figures.label_names == ("ant", "bee", "cat")


def test_a_model_without_attention_has_no_tokens(timm_folder):
    folder = timm_folder("resnet18", {}, size=64)
    figures = describe(load(LoadOptions(str(folder), random_weights=True)))
    assert figures.tokens is None
    assert figures.attention == ()
    assert figures.family == "timm"
