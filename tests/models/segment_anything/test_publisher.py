import re

import pytest
import torch

from tests.models.segment_anything.publisher import Size, draw_checkpoint
from tests.models.segment_anything.tiny import sam_model
from vitdeploy.errors import ModelError
from vitdeploy.models.segment_anything.publisher import (
    IMAGE_POSITIONS,
    POSITIONS,
    is_publisher_layout,
    require_encoder,
    transformers_from_publisher,
    with_shared_positions,
)


def test_every_name_and_shape_is_one_of_transformers():
    renamed = transformers_from_publisher(draw_checkpoint(Size()))
    expected = sam_model().state_dict()
    assert {n: t.shape for n, t in renamed.items()} == {n: t.shape for n, t in expected.items()}


def test_tensors_are_neither_copied_nor_lost():
    weights = draw_checkpoint(Size())
    pointers = {t.data_ptr() for t in transformers_from_publisher(weights).values()}
    assert pointers == {t.data_ptr() for t in weights.values()}


def test_a_longer_iou_head_is_mapped_by_its_own_length():
    head = "mask_decoder.iou_prediction_head"
    weights = {f"{head}.layers.{i}.weight": torch.zeros(1) for i in range(5)}
    layers = ("proj_in", "layers.0", "layers.1", "layers.2", "proj_out")
    expected = [f"{head}.{layer}.weight" for layer in layers]
    assert list(transformers_from_publisher(weights)) == expected


def test_unknown_names_stay_to_be_listed():
    weights = {"image_encoder.blocks.0.gate": torch.zeros(1), "optimizer": torch.zeros(1)}
    assert set(transformers_from_publisher(weights)) == set(weights)


def test_the_layouts_are_told_apart():
    assert is_publisher_layout(draw_checkpoint(Size()))
    assert not is_publisher_layout(sam_model().state_dict())


@pytest.mark.parametrize("there", [POSITIONS, IMAGE_POSITIONS])
def test_frequencies_are_there_twice_whichever_was_saved(there):
    value = torch.randn(2, 4)
    assert with_shared_positions({there: value}) == {POSITIONS: value, IMAGE_POSITIONS: value}


def test_another_image_encoder_is_refused_with_its_model():
    require_encoder(["image_encoder.blocks.0.norm1.weight"], "blocks", "checkpoint 'a'")
    with pytest.raises(ModelError, match=r"another image encoder; it is for MODEL mobile-sam"):
        require_encoder(["image_encoder.layers.0.x"], "blocks", "checkpoint 'a'")
    with pytest.raises(ModelError, match=re.escape("for MODEL sam-vitb, sam-vitl or sam-vith")):
        require_encoder(["image_encoder.blocks.0.x"], "layers", "checkpoint 'a'")
    with pytest.raises(ModelError, match=r"not known here \(image_encoder.stem, .*mobile-sam"):
        require_encoder(["image_encoder.stem.0.weight"], "blocks", "checkpoint 'a'")
