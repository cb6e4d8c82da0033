import numpy as np
import torch
from torch import nn

from vitdeploy.models.segment_anything.parts import decoder_part, encoder_part

FEATURES = {"image_embeddings": (32, 8, 8), "high_res_feats_0": (4, 32, 32)}


class Decoder(nn.Module):
    masks = 4


def test_the_decoder_has_the_tensors_of_the_reference_in_their_order():
    part = decoder_part(Decoder(), 128, {"image_embeddings": (32, 8, 8)})
    assert part.name == "mask_decoder"
    assert {t.name: t.shape for t in part.inputs} == {
        "image_embeddings": (1, 32, 8, 8),
        "point_coords": ("prompts", "points", 2),
        "point_labels": ("prompts", "points"),
        "mask_input": (1, 1, 32, 32),
        "has_mask_input": (1,),
        "orig_im_size": (2,),
    }
    assert [t.name for t in part.inputs][:3] == ["image_embeddings", "point_coords", "point_labels"]
    assert {t.name: t.shape for t in part.outputs} == {
        "masks": ("prompts", 4, "height", "width"),
        "iou_predictions": ("prompts", 4),
        "low_res_masks": ("prompts", 4, 32, 32),
    }


def test_what_the_encoder_returns_the_decoder_reads_under_the_same_name():
    encoder = encoder_part(nn.Identity(), 128, FEATURES)
    decoder = decoder_part(Decoder(), 128, FEATURES)
    reads = {t.name: t.shape[1:] for t in decoder.inputs}
    assert encoder.name == "image_encoder"
    assert all(reads[t.name] == t.shape[1:] for t in encoder.outputs)


def test_examples_fit_and_differ_with_their_number():
    part = decoder_part(Decoder(), 128, FEATURES)
    for count in (1, 2, 3, 5):
        feeds = part.example(count)
        assert list(feeds) == [t.name for t in part.inputs]
        sizes = {"prompts": count, "points": count + 1}
        for tensor in part.inputs:
            value = feeds[tensor.name]
            assert value.shape == tuple(sizes.get(d, d) for d in tensor.shape)
            assert value.dtype == np.float32
        assert 0 <= feeds["point_coords"].min() <= feeds["point_coords"].max() <= 128
        assert set(np.unique(feeds["point_labels"])) <= {-1, 0, 1, 2, 3}
        np.testing.assert_array_equal(part.example(count)["point_coords"], feeds["point_coords"])
    assert set(np.unique(part.example(5)["point_labels"])) == {-1, 0, 1, 2, 3}
    assert part.example(1)["has_mask_input"] == 1
    assert part.example(2)["has_mask_input"] == 0
    assert not torch.equal(*(torch.from_numpy(part.example(n)["orig_im_size"]) for n in (1, 2)))
