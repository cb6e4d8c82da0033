"""Token merging: what merges, what does not, and that a merged model exports and runs."""

import json

import numpy as np
import pytest
import timm
import torch

from vitdeploy.compress.merge_tokens import merge_most_similar, merge_tokens, unmerge
from vitdeploy.data import Preprocess
from vitdeploy.errors import CompressionError
from vitdeploy.models.outputs import FEATURE_NAMES, TimmFeatures, loaded_model
from vitdeploy.models.random_weights import randomise_
from vitdeploy.models.spec import LoadedModel, ModelSpec
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.recipe import MergeTokensSection
from vitdeploy.targets.onnx import runner_from_model

SIZE = 48


def tiny_vit(architecture: str = "vit_tiny_patch16_224", **arguments) -> torch.nn.Module:
    model = timm.create_model(
        architecture,
        **{"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
        | {"num_classes": 5}
        | arguments,
    )
    randomise_(model, 0, SIZE)
    return model.eval()


def loaded(module: torch.nn.Module, names: tuple[str, ...] = ("logits",)) -> LoadedModel:
    preprocess = Preprocess((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, "bicubic")
    return loaded_model(
        ModelSpec("tiny", "vit", "timm:tiny", "classification", preprocess), module, names
    )


def pictures(count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 3, SIZE, SIZE), "f4"))


def by_hand(tokens: np.ndarray, metric: np.ndarray, removed: int, prefix: int) -> np.ndarray:
    """ToMe for one image, pair by pair, unmerged: (prefix + patches, C)."""
    unit = metric[prefix:] / np.linalg.norm(metric[prefix:], axis=-1, keepdims=True)
    even, odd = range(0, len(unit), 2), range(1, len(unit), 2)
    best = {i: max(odd, key=lambda j: unit[i] @ unit[j]) for i in even}
    gone = sorted(even, key=lambda i: -(unit[i] @ unit[best[i]]))[:removed]
    result = tokens.copy()
    for target in odd:
        group = [target, *(i for i in gone if best[i] == target)]
        result[[prefix + i for i in group]] = tokens[[prefix + i for i in group]].mean(axis=0)
    return result


@pytest.mark.parametrize(("patches", "removed", "prefix"), [(36, 12, 1), (9, 4, 0), (16, 8, 5)])
def test_the_most_similar_pairs_merge(patches: int, removed: int, prefix: int):
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((2, prefix + patches, 8))
    metric = rng.standard_normal((2, prefix + patches, 4))
    merge = merge_most_similar(torch.from_numpy(tokens), torch.from_numpy(metric), removed, prefix)
    assert merge.tokens.shape == (2, prefix + patches - removed, 8)
    found = unmerge(merge.tokens, merge.places, prefix).numpy()
    for image in range(2):
        expected = by_hand(tokens[image], metric[image], removed, prefix)
        np.testing.assert_allclose(found[image], expected, rtol=0, atol=1e-12)


def test_duplicated_tokens_merge_to_themselves():
    tokens = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0))
    twice = tokens.repeat_interleave(2, dim=1)
    merge = merge_most_similar(twice, twice, 8, 0)
    assert merge.tokens.shape == tokens.shape
    torch.testing.assert_close(unmerge(merge.tokens, merge.places, 0), twice)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("blocks", [(), (1, 3)])
def test_a_merged_model_exports_with_the_same_outputs(share: float, blocks: tuple[int, ...]):
    whole = loaded(tiny_vit())
    result = merge_tokens(whole, MergeTokensSection(share=share, blocks=blocks))
    assert result.patches[0] == 36
    assert result.patches[1] == 36 - round(36 * share)
    graph = onnx_from_part(result.loaded.parts[0], pictures().numpy(), "dynamic", 20)
    with torch.no_grad():
        expected = result.loaded.parts[0].module(pictures()).numpy()
        unmerged = whole.parts[0].module(pictures()).numpy()
    with runner_from_model(graph) as runner:
        (found,) = runner({"pixel_values": pictures().numpy()}).values()
        (one,) = runner({"pixel_values": pictures(1).numpy()}).values()
    # float32 sums of another order
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected - unmerged).max() > 1e-3 * np.abs(unmerged).max()
    assert max(site.tokens for site in result.loaded.attention) <= 37


def test_dense_outputs_keep_a_token_for_every_patch():
    whole = loaded(TimmFeatures(tiny_vit(num_classes=0)), FEATURE_NAMES)
    result = merge_tokens(whole, MergeTokensSection(share=0.5, blocks=(1, 2)))
    assert result.patches == (36, 18, 9)
    with torch.no_grad():
        tokens, pooled = result.loaded.parts[0].module(pictures())
    assert tokens.shape == (3, 37, 32)
    assert pooled.shape == (3, 32)
    assert len(torch.unique(tokens[0, 1:], dim=0)) == 9


def test_few_merges_change_little_and_many_change_more():
    whole = loaded(tiny_vit())
    with torch.no_grad():
        expected = whole.parts[0].module(pictures(8))

        def error(share: float) -> float:
            merged = merge_tokens(whole, MergeTokensSection(share=share)).loaded
            return float((merged.parts[0].module(pictures(8)) - expected).square().mean())

        assert error(0.05) < error(0.5)


def test_what_cannot_merge_is_refused():
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=56,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(1, 1),
    )
    preprocess = Preprocess((56, 56), (0.5,) * 3, (0.5,) * 3, "bicubic")
    spec = ModelSpec("swin", "swin", "timm:swin", "classification", preprocess)
    with pytest.raises(CompressionError, match=r"'swin' cannot merge tokens.*--image-size"):
        merge_tokens(loaded_model(spec, swin, ("logits",)), MergeTokensSection(share=0.3))
    with pytest.raises(CompressionError, match=r"has 4 blocks; allowed: 1\.\.3"):
        merge_tokens(loaded(tiny_vit()), MergeTokensSection(share=0.3, blocks=(4,)))
    with pytest.raises(CompressionError, match=r"36 patch tokens .*0\.01.*allowed: 1\.\.18"):
        merge_tokens(loaded(tiny_vit()), MergeTokensSection(share=0.01))


def test_a_run_merges_compares_with_the_whole_model_and_says_so(tmp_path):
    import vitdeploy

    report = vitdeploy.export(
        "vit-digits",
        merge_tokens={"share": 0.25},
        measure={"seconds": 0},
        output=tmp_path / "out",
    )
    assert any("token merging: " in note for note in report.notes)
    row = next(row for row in report.fidelity if row.metric == "agreement")
    assert 50 < row.value <= 100
    sqnr = next(row for row in report.fidelity if row.metric == "sqnr_db")
    assert sqnr.value < 60  # the reference is the model without merging
    assert json.loads((tmp_path / "out/report.json").read_text())["notes"] == list(report.notes)
