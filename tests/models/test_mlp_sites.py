"""MLPs are found by structure; what mixes hidden channels is not."""

import pytest
from timm.layers import ConvMlp, GlobalResponseNormMlp, GluMlp, Mlp, SqueezeExcite, SwiGLU
from timm.models.fastvit import ConvMlp as FastVitMlp
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import nn

from tests.prunable_models import CASES, prunable
from vitdeploy.models.mlp_sites import find_mlp_sites
from vitdeploy.models.spec import MlpSite


@pytest.mark.parametrize(
    ("mlp", "site"),
    [
        (Mlp(8, 32), MlpSite("mlp", ("mlp.fc1",), "mlp.fc2", 32)),
        (Mlp(8, 32, use_conv=True), MlpSite("mlp", ("mlp.fc1",), "mlp.fc2", 32)),
        (FastVitMlp(8, 8), MlpSite("mlp", ("mlp.fc1",), "mlp.fc2", 8)),
        (GluMlp(8, 64), MlpSite("mlp", ("mlp.fc1",), "mlp.fc2", 32, is_packed=True)),
        (SwiGLU(8, 32), MlpSite("mlp", ("mlp.fc1_g", "mlp.fc1_x"), "mlp.fc2", 32)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mlps_that_are_found(mlp, site):
    assert find_mlp_sites(nn.ModuleDict({"mlp": mlp})) == (site,)


@pytest.mark.parametrize(
    "mlp",
    [
        Mlp(8, 32, norm_layer=nn.LayerNorm),
        SwiGLU(8, 32, norm_layer=nn.LayerNorm),
        GlobalResponseNormMlp(8, 32),
        MlpWithDepthwiseConv(8, 32),
        ConvMlp(8, 32, norm_layer=nn.BatchNorm2d),
        SqueezeExcite(32),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mlps_whose_channels_mix_are_left_out(mlp):
    assert find_mlp_sites(nn.ModuleDict({"mlp": mlp})) == ()


@pytest.mark.parametrize("name", CASES)
def test_every_block_of_every_family_has_one(name):
    loaded = prunable(name)
    mlps = find_mlp_sites(loaded.parts[0].module)
    blocks = {site.path.rpartition(".")[0] for site in mlps}
    assert {site.path.rpartition(".")[0] for site in loaded.attention} <= blocks
    assert len(blocks) == len(mlps)
