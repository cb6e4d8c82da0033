"""Pruned SAM models as folders: written, loaded by name and by transformers itself, refused."""

import json
from pathlib import Path

import pytest
import torch

from tests.models.segment_anything.tiny import sam2_model, sam_model, write_sam_folder
from vitdeploy.compress.prune import PruneInputs, prune_model
from vitdeploy.errors import ModelError, UnsupportedError
from vitdeploy.models import LoadedModel, LoadOptions, load
from vitdeploy.models.pruned import load_pruned, save_model_folder
from vitdeploy.recipe import PruneSection


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(LoadOptions(str(write_sam_folder(tmp_path_factory.mktemp("sam"), sam_model()))))


def pruned(loaded: LoadedModel, **shares) -> LoadedModel:
    return prune_model(loaded, PruneSection(criterion="random", **shares), PruneInputs(None)).loaded


def saved(loaded: LoadedModel, folder: Path) -> Path:
    folder.mkdir()
    save_model_folder(loaded, folder)
    return folder


def embeddings(loaded: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return loaded.parts[0].module(pixels)


def pictures(loaded: LoadedModel) -> torch.Tensor:
    size = loaded.spec.preprocess.size
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def test_what_is_left_is_loaded_again_exactly(whole: LoadedModel, tmp_path: Path):
    small = pruned(whole, heads=0.4, mlp=0.4, width_multiple=1)
    folder = saved(small, tmp_path / "small")
    again = load(LoadOptions(str(folder)))
    pixels = pictures(whole)
    assert torch.equal(embeddings(again, pixels), embeddings(small, pixels))
    assert not torch.equal(embeddings(again, pixels), embeddings(whole, pixels))
    heads = [site.num_heads for site in again.attention]
    assert heads == [site.num_heads for site in small.attention]
    assert sum(heads) < sum(site.num_heads for site in whole.attention)
    decoders = (model.parts[1].module.state_dict() for model in (whole, again))
    for (name, before), after in zip(*(d.items() for d in decoders), strict=True):
        assert torch.equal(before, after[1]), name


def test_transformers_own_model_computes_the_same(whole: LoadedModel, tmp_path: Path):
    small = pruned(whole, heads=0.4, mlp=0.4, width_multiple=1)
    model = load_pruned(saved(small, tmp_path / "small"))
    assert type(model).__name__ == "SamModel"
    pixels = pictures(whole)
    with torch.no_grad():
        seen = model.get_image_embeddings(pixels)
    # the same layers; the relative positions are added in another order
    torch.testing.assert_close(seen, embeddings(small, pixels), rtol=0, atol=1e-4)


def test_blocks_go_and_a_pruned_model_is_pruned_again(whole: LoadedModel, tmp_path: Path):
    first = load(LoadOptions(str(saved(pruned(whole, blocks=0.3), tmp_path / "first"))))
    second = pruned(first, heads=0.3, blocks=0.4)
    folder = saved(second, tmp_path / "second")
    record = json.loads((folder / "config.json").read_text())["vitdeploy_pruning"]
    assert len(record["blocks"]) == 2
    assert all(path.startswith("vision_encoder.layers.") for path in record["blocks"])
    assert len(record["history"]) == 2
    again = load(LoadOptions(str(folder)))
    assert len(again.attention) == len(whole.attention) - 2
    pixels = pictures(whole)
    assert torch.equal(embeddings(again, pixels), embeddings(second, pixels))


def test_positions_are_kept_for_other_image_sizes(whole: LoadedModel, tmp_path: Path):
    small = pruned(whole, heads=0.4)
    size = 2 * whole.spec.preprocess.size[0]
    folder = saved(small, tmp_path / "small")
    larger = load(LoadOptions(str(folder), image_size=size))
    copied = saved(larger, tmp_path / "copied")  # from the larger one, the native sizes come back
    pixels = pictures(whole)
    native = load(LoadOptions(str(copied)))
    assert torch.equal(embeddings(native, pixels), embeddings(small, pixels))


def test_a_record_of_another_encoder_is_refused(whole: LoadedModel, tmp_path: Path):
    folder = saved(pruned(whole, heads=0.4), tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    config["vitdeploy_pruning"]["mlp"] = {"vision_encoder.layers.77.mlp": 8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"layers\.77\.mlp was pruned"):
        load(LoadOptions(str(folder)))


def test_sam_2_cannot_be_saved_yet(tmp_path: Path):
    loaded = load(LoadOptions(str(write_sam_folder(tmp_path / "sam2", sam2_model()))))
    (tmp_path / "copy").mkdir()
    with pytest.raises(UnsupportedError, match="cannot be saved as a model folder"):
        save_model_folder(loaded, tmp_path / "copy")
