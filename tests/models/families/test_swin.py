"""Swin: windows at other image sizes."""

import pytest
import torch

from tests.models.conftest import TINY_SWIN
from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.families import swin

NAMES = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize(("size", "window"), [(None, 4), (64, 4), (40, 5), (48, 4)])
def test_windows_are_kept_where_they_tile_every_stage(
    timm_folder, pictures, architecture, size, window
):
    # grids of 16 and 8 at 32 pixels; at 40 they are 20 and 10, which windows of 4 do not tile
    loaded = load(LoadOptions(str(timm_folder(architecture, TINY_SWIN)), image_size=size))
    assert {site.tokens for site in loaded.attention} == {window**2}
    with torch.no_grad():
        assert loaded.parts[0].module(pictures(size or 32)).shape == (2, 3)
    assert len(loaded.spec.notes) == (0 if size is None else 1)


def test_tables_are_kept_with_the_windows_and_resampled_otherwise(timm_folder):
    folder = str(timm_folder(NAMES[0], TINY_SWIN))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    native, kept, grown = (
        load(LoadOptions(folder, image_size=size)).parts[0].module.get_parameter(name)
        for size in (None, 64, 40)
    )
    assert torch.equal(native, kept)
    assert grown.shape == (81, 2)


def test_sizes_it_cannot_take_are_refused(timm_folder):
    folder = timm_folder(NAMES[0], TINY_SWIN)
    with pytest.raises(ModelError, match=r"multiples of 4 pixels\. Nearest: 32 or 36"):
        load(LoadOptions(str(folder), image_size=34))


def test_tables_of_another_window_are_refused(timm_folder):
    folder = timm_folder(NAMES[0], TINY_SWIN)
    other = timm_folder(NAMES[0], {**TINY_SWIN, "window_size": 8}, name="eight")
    with pytest.raises(ModelError, match="relative_position_bias_table"):
        load(LoadOptions(str(folder), checkpoint=other / "model.safetensors"))


def test_names_of_the_family():
    assert all(swin.owns(name) for name in NAMES)
    assert not swin.owns("swinv2_cr_tiny_224")
