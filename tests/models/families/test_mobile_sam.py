import pytest
import torch

from tests.models.segment_anything.mobile import SIZE, TRUNK, draw_mobile_checkpoint
from tests.models.segment_anything.publisher import mask_decoder
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models import LoadOptions, load, resolve
from vitdeploy.models.families.mobile_sam import load_trunk


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(draw_mobile_checkpoint(), tmp_path / "mobile_sam.pt")
    return tmp_path / "mobile_sam.pt"


def test_a_publishers_checkpoint_gives_the_publishers_masks(checkpoint):
    options = LoadOptions("mobile-sam", checkpoint=checkpoint, image_size=128)
    loaded = load_trunk(resolve("mobile-sam"), options, TRUNK)
    assert [part.name for part in loaded.parts] == ["image_encoder", "mask_decoder"]
    assert loaded.parts[0].outputs[0].shape == ("batch", 256, 8, 8)
    assert loaded.spec.preprocess.crop_mode == "corner"
    decoder = loaded.parts[1]
    feeds = {name: torch.from_numpy(value) for name, value in decoder.example(3).items()}
    with torch.no_grad():
        found = decoder.module(*feeds.values())
    expected = mask_decoder(draw_mobile_checkpoint(), SIZE, feeds)
    for value, wanted in zip(found, expected, strict=True):
        # float32 sums in another order, over outputs of size 1
        torch.testing.assert_close(value, wanted, atol=2e-5, rtol=0)


def test_random_weights_need_no_file():
    options = LoadOptions("mobile-sam", random_weights=True, image_size=128)
    loaded = load_trunk(resolve("mobile-sam"), options, TRUNK)
    assert loaded.spec.weights == "random"
    with torch.no_grad():
        first, second = loaded.parts[0].module(torch.randn(2, 3, 128, 128))
    assert (first - second).std() > 0.05 * first.std()


def test_without_weights_the_way_out_is_named():
    with pytest.raises(ModelError, match=r"--checkpoint mobile_sam.pt, or --random-weights"):
        load(LoadOptions("mobile-sam"))


def test_other_checkpoints_are_refused(checkpoint, tmp_path):
    torch.save({"image_encoder.blocks.0.norm1.weight": torch.ones(1)}, tmp_path / "sam.pth")
    with pytest.raises(ModelError, match="it is for MODEL sam-vitb, sam-vitl or sam-vith"):
        load(LoadOptions("mobile-sam", checkpoint=tmp_path / "sam.pth"))
    torch.save({"stem.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"publisher's mobile_sam.pt"):
        load(LoadOptions("mobile-sam", checkpoint=tmp_path / "other.pt"))
    with pytest.raises(ModelError, match=r"it is for MODEL mobile-sam"):
        load(LoadOptions("sam-vitb", checkpoint=checkpoint))
    with pytest.raises(ModelError, match="do not fit the architecture"):
        load(LoadOptions("mobile-sam", checkpoint=checkpoint))
