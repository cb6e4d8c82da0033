"""Pruning: what goes is what the gates masked, the rest stays, what cannot go is refused."""

import copy

import numpy as np
import pytest
import timm
import torch

from tests.models.segment_anything.tiny import sam2_model, sam_model, write_sam_folder
from tests.prunable_models import CASES, VIT, noise, outputs_of, prunable
from tests.small_models import PREPROCESS
from vitdeploy.compress.prune import PruneInputs, PruneResult, prune_model, size_of
from vitdeploy.compress.prune.gates import masked
from vitdeploy.compress.prune.units import find_sites
from vitdeploy.errors import CompressionError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.outputs import loaded_model
from vitdeploy.models.spec import ExportPart, LoadedModel, ModelSpec
from vitdeploy.onnx_export import check_parity, onnx_from_part
from vitdeploy.recipe import PruneSection

EXACT = 1e-12
"""Of the output's RMS, in float64: sums of fewer terms in another order give up to 4e-15 here."""


def pruned(loaded: LoadedModel, seed: int = 0, **options) -> PruneResult:
    images = noise(loaded)
    return prune_model(loaded, PruneSection(**options), PruneInputs(lambda: [(images, None)], seed))


def largest_difference(expected: list[torch.Tensor], seen: list[torch.Tensor]) -> float:
    pairs = zip(expected, seen, strict=True)
    return max(float((a - b).abs().max() / a.square().mean().sqrt()) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
def test_the_pruned_model_is_the_masked_model(name):
    loaded = prunable(name)
    result = pruned(loaded, heads=0.4, mlp=0.4, blocks=0.3)
    assert result.kept.heads
    assert result.kept.channels
    assert len(result.kept.removed_blocks) == 1
    assert_is_the_masked_model(loaded, result)
    assert result.after.parameters < result.before.parameters
    assert result.after.gmacs < result.before.gmacs
    assert result.after.parameters == size_of(result.loaded).parameters


def assert_is_the_masked_model(loaded: LoadedModel, result: PruneResult) -> None:
    """In float64."""
    whole = copy.deepcopy(loaded.parts[0].module).double()
    small = copy.deepcopy(result.loaded.parts[0].module).double()
    images = torch.from_numpy(noise(loaded, seed=7)).double()
    with masked(whole, find_sites(loaded), result.kept):
        expected = outputs_of(whole, images)
    assert largest_difference(expected, outputs_of(small, images)) <= EXACT
    # and the mask is not one that changes nothing
    assert largest_difference(outputs_of(whole, images), expected) > 1e-3


def test_the_image_encoder_of_sam_is_pruned_and_its_tables_and_decoder_stay(tmp_path):
    loaded = load(LoadOptions(str(write_sam_folder(tmp_path, sam_model()))))
    result = pruned(loaded, heads=0.4, mlp=0.4, criterion="gate")
    tables = {key: v for key, v in loaded.parts[0].module.state_dict().items() if "table" in key}
    after = result.loaded.parts[0].module.state_dict()
    assert tables
    assert all(torch.equal(table, after[key]) for key, table in tables.items())
    assert result.loaded.parts[1] is loaded.parts[1]
    assert_is_the_masked_model(loaded, result)


def test_the_image_encoder_of_sam2_is_pruned_too(tmp_path):
    loaded = load(LoadOptions(str(write_sam_folder(tmp_path, sam2_model()))))
    result = pruned(loaded, heads=0.2, mlp=0.3, criterion="magnitude")
    assert result.kept.heads
    assert result.kept.channels
    assert_is_the_masked_model(loaded, result)


def test_the_model_that_was_given_stays_as_it_is():
    loaded = prunable("swinv2")
    weights = copy.deepcopy(loaded.parts[0].module.state_dict())
    images = noise(loaded)
    expected = outputs_of(loaded.parts[0].module, images)
    pruned(loaded, heads=0.4, mlp=0.4, criterion="gate")
    after = loaded.parts[0].module.state_dict()
    assert all(torch.equal(weights[key], after[key]) for key in weights)
    assert torch.equal(expected[0], outputs_of(loaded.parts[0].module, images)[0])
    assert not any(m._forward_pre_hooks for m in loaded.parts[0].module.modules())


def test_weights_are_slices_of_the_originals_and_all_else_is_untouched():
    loaded = prunable("vit")
    result = pruned(loaded, heads=0.5)
    whole = loaded.parts[0].module.state_dict()
    small = result.loaded.parts[0].module.state_dict()
    assert set(whole) == set(small)
    path, kept = next(iter(result.kept.heads.items()))
    rows = torch.tensor(
        [part * 32 + h * 8 + i for part in range(3) for h in kept for i in range(8)]
    )
    assert torch.equal(small[f"{path}.qkv.weight"], whole[f"{path}.qkv.weight"][rows])
    assert torch.equal(small[f"{path}.qkv.bias"], whole[f"{path}.qkv.bias"][rows])
    changed = {key for key in whole if whole[key].shape != small[key].shape}
    names = ("qkv.weight", "qkv.bias", "proj.weight")
    assert changed == {f"{path}.{name}" for path in result.kept.heads for name in names}
    assert all(torch.equal(whole[key], small[key]) for key in set(whole) - changed)


def test_layers_end_up_with_different_numbers_of_heads():
    loaded = prunable("vit")
    block = loaded.parts[0].module.blocks[0]
    with torch.no_grad():  # the first layer's heads all but silent: they go first
        block.attn.proj.weight.mul_(1e-3)
        block.attn.qkv.weight.mul_(1e-2)
    result = pruned(loaded, heads=0.4)
    heads = [site.num_heads for site in result.loaded.attention]
    assert heads[0] == 1
    assert len(set(heads)) > 1
    assert sum(heads) == 12 - round(0.4 * 12)


@pytest.mark.parametrize("name", ["vit", "swinv2", "eva02", "fastvit"])
def test_a_pruned_model_exports_and_the_graph_computes_the_same(name, tmp_path):
    from vitdeploy.graph.save import save_model
    from vitdeploy.targets.onnx import OrtRunner

    result = pruned(prunable(name), heads=0.4, mlp=0.4, criterion="magnitude")
    part, images = result.loaded.parts[0], noise(result.loaded)
    save_model(onnx_from_part(part, images, "dynamic", 20), tmp_path / "model.onnx")
    with OrtRunner(tmp_path / "model.onnx") as runner:
        assert all(row.passed for row in check_parity(part, runner, images, [1, 3]))


@pytest.mark.parametrize("criterion", ["taylor", "gate", "magnitude", "random"])
def test_the_same_seed_removes_the_same(criterion):
    loaded = prunable("vit")
    first, second = (pruned(loaded, heads=0.4, mlp=0.4, criterion=criterion) for _ in range(2))
    assert first.kept == second.kept
    if criterion == "random":
        assert pruned(loaded, 1, heads=0.4, mlp=0.4, criterion=criterion).kept != first.kept


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("to_gmacs", lambda size: size.gmacs),
        ("to_million_parameters", lambda s: s.parameters / 1e6),
    ],
)
def test_a_size_is_reached_with_little_to_spare(limit, value):
    loaded = prunable("vit")
    most = 0.7 * value(size_of(loaded))
    result = pruned(loaded, criterion="magnitude", width_multiple=1, **{limit: most})
    assert 0.9 * most < value(result.after) <= most
    again = prune_model(loaded, result.section, PruneInputs(None))
    assert again.kept == result.kept  # and without a search


def test_a_latency_is_reached_by_what_measures_it():
    loaded = prunable("vit")
    asked = PruneSection(to_latency_ms=5.0, criterion="magnitude")
    heads = lambda model: float(sum(site.num_heads for site in model.attention))  # noqa: E731
    result = prune_model(loaded, asked, PruneInputs(None, latency_ms=heads))
    assert sum(site.num_heads for site in result.loaded.attention) == 5
    with pytest.raises(CompressionError, match="needs a target to measure on"):
        prune_model(loaded, asked, PruneInputs(None))


def test_sizes_that_cannot_be_had_are_refused():
    loaded = prunable("vit")
    with pytest.raises(CompressionError, match="cannot be reached"):
        pruned(loaded, criterion="magnitude", to_million_parameters=1e-6)
    with pytest.raises(CompressionError, match="nothing to prune"):
        pruned(loaded, criterion="magnitude", to_gmacs=100.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0.9}, r"means 11, but only 9 can go.*largest share here is 0\.750"),
        ({"mlp": 0.99}, "largest share here"),
        ({"blocks": 0.9}, "means 3, but only 2 can go"),
        ({"heads": 0.01}, "rounds to none"),
    ],
)
def test_shares_that_cannot_be_had_are_refused(options, message):
    with pytest.raises(CompressionError, match=message):
        pruned(prunable("vit"), criterion="magnitude", **options)


def test_a_criterion_without_its_images_is_refused():
    with pytest.raises(CompressionError, match="needs images"):
        prune_model(prunable("vit"), PruneSection(heads=0.4), PruneInputs(None))


def test_gradients_that_are_not_finite_are_refused():
    loaded = prunable("vit")
    images = noise(loaded)
    images[0] = np.nan
    with pytest.raises(CompressionError, match="not finite"):
        prune_model(loaded, PruneSection(heads=0.4), PruneInputs(lambda: [(images, None)]))


def timm_model(architecture: str, **arguments) -> LoadedModel:
    model = timm.create_model(architecture, num_classes=5, **arguments).eval()
    spec = ModelSpec("other", "timm", f"timm:{architecture}", "classification", PREPROCESS)
    return loaded_model(spec, model, ("logits",))


def test_heads_that_are_counted_outside_their_layer_are_refused():
    loaded = timm_model("vit_relpos_small_patch16_224", **VIT)
    assert find_sites(loaded).attention == ()
    assert find_sites(loaded).notes == (
        "3 attention layers keep all heads: something outside the layer's projections counts them",
    )
    with pytest.raises(CompressionError, match=r"no heads to remove .*3 attention layers keep all"):
        pruned(loaded, heads=0.4, criterion="magnitude")
    assert pruned(loaded, mlp=0.4, criterion="magnitude").kept.channels


def test_an_architecture_that_computes_something_else_afterwards_is_refused():
    loaded = prunable("vit")
    layer = loaded.parts[0].module.blocks[0].attn
    layer.register_forward_hook(lambda m, _, out: out * m.num_heads)  # a use no surgery can see
    with pytest.raises(CompressionError, match="does not compute what the model computes"):
        pruned(loaded, heads=0.5, criterion="magnitude", ranking="layer")


def test_layers_that_norm_over_all_heads_stay_whole():
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, scale_attn_norm=True, scale_mlp_norm=True, **VIT
    )
    spec = ModelSpec("scaled", "vit", "timm:vit", "classification", PREPROCESS)
    loaded = loaded_model(spec, model.eval(), ("logits",))
    assert find_sites(loaded).attention == ()
    assert find_sites(loaded).mlp == ()
    assert "normalises over all heads" in find_sites(loaded).notes[0]
    with pytest.raises(CompressionError, match="there are no heads to remove"):
        pruned(loaded, heads=0.4, criterion="magnitude")


def test_an_onnx_file_is_refused(tmp_path):
    loaded = prunable("vit")
    part = ExportPart("model", None, (), (), tmp_path / "model.onnx")
    file = LoadedModel(loaded.spec, (part,))
    with pytest.raises(CompressionError, match="is an ONNX file"):
        prune_model(file, PruneSection(heads=0.4), PruneInputs(None))
