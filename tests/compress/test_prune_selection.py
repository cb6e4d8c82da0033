"""Ranking: shares, floors, kinds apart, steps of width."""

import numpy as np
import pytest
from timm.layers import SwiGLU

from tests.prunable_models import prunable
from vitdeploy.compress.prune.importance import Importance
from vitdeploy.compress.prune.selection import Shares, select
from vitdeploy.compress.prune.units import find_sites, width_step
from vitdeploy.errors import CompressionError
from vitdeploy.models.outputs import loaded_model


def ascending(sites) -> Importance:
    """Later layers matter more; within a layer, later units."""
    return Importance(
        {s.path: 10.0 * i + np.arange(s.num_heads) for i, s in enumerate(sites.attention)},
        {s.path: 1000.0 * i + np.arange(s.width) for i, s in enumerate(sites.mlp)},
        {path: float(i) for i, path in enumerate(sites.blocks)},
    )


def chosen(name: str, **shares):
    loaded = prunable(name)
    sites = find_sites(loaded)
    return select(loaded.parts[0].module, sites, ascending(sites), Shares(**shares))


def test_the_least_important_go_first_over_all_layers_and_each_keeps_one():
    kept = chosen("vit", heads=5 / 12)  # 3 layers of 4 heads
    assert kept.heads == {"blocks.0.attn": (3,), "blocks.1.attn": (2, 3)}
    assert not kept.channels


def test_within_each_layer_all_lose_the_same():
    kept = chosen("vit", heads=0.5, ranking="layer")
    assert set(kept.heads.values()) == {(2, 3)}
    assert len(kept.heads) == 3


def test_channels_go_in_steps_that_suit_the_width():
    kept = chosen("vit", mlp=0.5)  # 3 MLPs of 128 channels in steps of 16: 192 go, 112 at most each
    assert {path: len(ids) for path, ids in kept.channels.items()} == {
        "blocks.0.mlp": 16,
        "blocks.1.mlp": 48,
    }
    assert kept.channels["blocks.0.mlp"] == tuple(range(112, 128))


def test_a_width_multiple_of_ones_own_is_obeyed():
    kept = chosen("vit", mlp=0.1, width_multiple=10)
    assert {len(ids) for ids in kept.channels.values()} == {128 - 40}


@pytest.mark.parametrize(
    ("width", "asked", "step"),
    [
        (3072, None, 64),
        (512, None, 64),
        (256, None, 32),
        (100, None, 4),
        (7, None, 1),
        (96, 128, 96),
    ],
)
def test_steps_of_width(width, asked, step):
    assert width_step(width, asked) == step


def test_kinds_are_ranked_apart():
    loaded = prunable("vit")
    module = loaded.parts[0].module
    module.blocks[0].mlp = SwiGLU(32, 128)
    loaded = loaded_model(loaded.spec, module, ("logits",))
    sites = find_sites(loaded)
    # though every channel of the SwiGLU scores below all others, its kind loses its own share
    kept = select(module, sites, ascending(sites), Shares(mlp=0.5))
    assert {path: len(ids) for path, ids in kept.channels.items()} == {
        "blocks.0.mlp": 64,
        "blocks.1.mlp": 16,
        "blocks.2.mlp": 112,
    }


def test_blocks_go_first_and_every_list_keeps_one():
    kept = chosen("swin", blocks=0.5, heads=0.2)  # two stages of two blocks
    assert kept.removed_blocks == ("layers.0.blocks.0", "layers.1.blocks.0")
    assert all(not path.startswith(kept.removed_blocks) for path in kept.heads)
    with pytest.raises(CompressionError, match="only 2 can go"):
        chosen("swin", blocks=0.75)
