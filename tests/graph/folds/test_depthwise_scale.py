"""F7: exact on FastViT's chains, refused behind a nonlinearity or another reader."""

import numpy as np
import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.folds import depthwise_scale as fold


def test_the_function_is_unchanged():
    found = fold.find(canonical("fastvit"))
    # the ConvMlp of four stages and three downsamplings
    assert sum(fold.applies(site) is None for site in found) == 7

    def edit(model):
        draw = np.random.default_rng(0)
        for site in fold.find(model):
            if fold.applies(site) is None:
                scale = draw.uniform(0.25, 4.0, site.depthwise.out_channels)
                fold.apply_(model, site, scale)

    assert_exact(canonical_bytes("fastvit"), edit)


@pytest.mark.parametrize("reason", ["Gelu", "Add", "channel by channel"])
def test_other_readers_are_refused(reason):
    model = canonical("fastvit")
    refused = {site: fold.applies(site) for site in fold.find(model) if fold.applies(site)}
    assert any(reason in text for text in refused.values())
    site = next(iter(refused))
    with pytest.raises(ValueError, match="cannot scale"):
        fold.apply_(model, site, np.ones(site.depthwise.out_channels))


def test_a_graph_without_grouped_convolutions_has_no_site():
    assert fold.find(canonical("vit")) == []
