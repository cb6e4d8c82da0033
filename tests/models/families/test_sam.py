from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.segment_anything.publisher import draw_checkpoint, image_encoder, mask_decoder
from tests.models.segment_anything.tiny import (
    SIZE,
    sam_config,
    sam_model,
    smooth_pictures,
    write_publisher,
    write_sam_folder,
)
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models import LoadOptions, describe, load, resolve
from vitdeploy.models.families import sam


def outputs(loaded, pixels, count=2):
    """Of both parts, for `count` prompts on the first picture."""
    encoder, decoder = loaded.parts
    feeds = {name: torch.from_numpy(value) for name, value in decoder.example(count).items()}
    with torch.no_grad():
        embeddings = encoder.module(torch.from_numpy(pixels))
        feeds["image_embeddings"] = embeddings[:1]
        return embeddings, feeds, decoder.module(*feeds.values())


def test_a_publishers_checkpoint_gives_the_publishers_outputs(tmp_path):
    folder, file, weights = write_publisher(tmp_path / "tiny")
    loaded = load(LoadOptions(str(folder), checkpoint=file))
    pixels = smooth_pictures(2, SIZE.image)
    embeddings, feeds, found = outputs(loaded, pixels)
    expected = image_encoder(weights, SIZE, torch.from_numpy(pixels))
    # float32 sums in another order, over outputs of size 1; transformers' own epsilon in the
    # decoder's norms would give 8e-6 and more
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    for value, wanted in zip(found, mask_decoder(weights, SIZE, feeds), strict=True):
        torch.testing.assert_close(value, wanted, atol=5e-6, rtol=0)
    spec = loaded.spec
    assert (spec.family, spec.task, spec.weights) == ("sam", "segmentation", "checkpoint")
    assert (spec.preprocess.size, spec.preprocess.crop_mode) == ((128, 128), "corner")
    assert (spec.preprocess.interpolation, spec.notes) == ("bilinear", ())
    assert [part.name for part in loaded.parts] == ["image_encoder", "mask_decoder"]
    assert [site.tokens for site in loaded.attention] == [9, 64, 9, 64]


def test_a_transformers_folder_gives_transformers_outputs(tmp_path):
    model = sam_model()
    loaded = load(LoadOptions(str(write_sam_folder(tmp_path / "hf", model))))
    pixels = smooth_pictures(1, SIZE.image)
    embeddings, feeds, (_, quality, low) = outputs(loaded, pixels, count=1)
    with torch.no_grad():
        expected = model(
            image_embeddings=embeddings,
            input_points=feeds["point_coords"][:, None, :1],
            input_labels=feeds["point_labels"][:, None, :1].int(),
        )
        plain = model.vision_encoder(torch.from_numpy(pixels)).last_hidden_state
        feeds["point_labels"][:, 1] = -1
        feeds["has_mask_input"].zero_()
        _, quality, low = loaded.parts[1].module(*feeds.values())
    torch.testing.assert_close(embeddings, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(low[:, 1:], expected.pred_masks[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(quality[:, 1:], expected.iou_scores[0], atol=1e-5, rtol=0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists mapped files")
def test_weights_stay_in_their_file(tmp_path):
    folder, file, weights = write_publisher(tmp_path / "tiny")
    loaded = load(LoadOptions(str(folder), checkpoint=file))
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]

    def is_mapped(tensor):
        return any(start <= tensor.data_ptr() < end for start, end in ranges)

    parameters = {p for part in loaded.parts for p in part.module.parameters()}
    # all but the tables that are computed, which are no parameters
    assert len(parameters) > 0.8 * len(weights)
    assert all(is_mapped(parameter) for parameter in parameters)


def test_another_image_size_resamples_positions_and_says_so(tmp_path):
    folder, file, _ = write_publisher(tmp_path / "tiny")
    loaded = load(LoadOptions(str(folder), checkpoint=file, image_size=64))
    assert "absolute bicubic, relative linear" in loaded.spec.notes[0]
    encoder, decoder = loaded.parts
    assert encoder.outputs[0].shape == ("batch", 32, 4, 4)
    assert {t.name: t.shape for t in decoder.inputs}["mask_input"] == (1, 1, 16, 16)
    embeddings, _, (masks, _, low) = outputs(loaded, smooth_pictures(1, 64), count=1)
    assert embeddings.shape == (1, 32, 4, 4)
    assert low.shape == (1, 4, 16, 16)
    assert np.isfinite(masks.numpy()).all()


def test_one_mask_a_prompt_where_asked(tmp_path):
    folder, file, _ = write_publisher(tmp_path / "tiny")
    loaded = load(LoadOptions(str(folder), checkpoint=file, single_mask=True))
    assert loaded.parts[1].outputs[1].shape == ("prompts", 1)
    assert outputs(loaded, smooth_pictures(1, 128))[2][1].shape == (2, 1)


def test_random_weights_answer_to_picture_and_prompt(tmp_path):
    sam_config().save_pretrained(tmp_path / "tiny")
    loaded = load(LoadOptions(str(tmp_path / "tiny"), random_weights=True, seed=4))
    assert loaded.spec.weights == "random"
    embeddings, _, (_, quality, low) = outputs(loaded, smooth_pictures(2, SIZE.image), count=3)
    assert (embeddings[0] - embeddings[1]).std() > 0.1 * embeddings.std()
    assert (low[0] - low[1]).std() > 0.05 * low.std()
    assert quality.std() > 0
    again = load(LoadOptions(str(tmp_path / "tiny"), random_weights=True, seed=4))
    assert torch.equal(outputs(again, smooth_pictures(2, 128), count=3)[2][2], low)


def test_figures_of_both_parts_are_described(tmp_path):
    folder, file, _ = write_publisher(tmp_path / "tiny")
    figures = describe(load(LoadOptions(str(folder), checkpoint=file)))
    assert [part.name for part in figures.parts] == ["image_encoder", "mask_decoder"]
    assert figures.tokens == 64
    assert all(part.gmacs > 0 for part in figures.parts)


@pytest.mark.parametrize(
    ("name", "width", "depth", "whole"),
    [
        ("sam-vitb", 768, 12, [2, 5, 8, 11]),
        ("sam-vitl", 1024, 24, [5, 11, 17, 23]),
        ("sam-vith", 1280, 32, [7, 15, 23, 31]),
    ],
)
def test_aliases_know_their_architecture_without_a_network(name, width, depth, whole):
    reference = resolve(name)
    assert (reference.family, reference.kind, reference.image_size) == ("sam", "hf", 1024)
    vision = sam._KNOWN[reference.value]["vision_config"]
    assert (vision["hidden_size"], vision["num_hidden_layers"]) == (width, depth)
    assert vision["global_attn_indexes"] == whole
    assert vision["mlp_dim"] == 4 * width


def test_weights_of_another_architecture_are_refused(tmp_path):
    folder, file, weights = write_publisher(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"do not fit the architecture: \d+ missing .*of another"):
        load(LoadOptions("sam-vitb", checkpoint=file))
    torch.save({**weights, "image_encoder.blocks.9.gate": torch.ones(1)}, file)
    with pytest.raises(ModelError, match=r"1 unexpected \(image_encoder.blocks.9.gate\)"):
        load(LoadOptions(str(folder), checkpoint=file))
    weights.pop("mask_decoder.iou_token.weight")
    torch.save(weights, file)
    with pytest.raises(ModelError, match=r"1 missing \(mask_decoder.iou_token.weight\)"):
        load(LoadOptions(str(folder), checkpoint=file))


def test_a_light_variant_is_refused_with_what_to_do(tmp_path):
    folder, file, weights = write_publisher(tmp_path / "tiny")
    others = {n.replace("blocks", "stages"): t for n, t in weights.items()}
    torch.save(others, file)
    with pytest.raises(
        ModelError, match=r"'sam_vit_tiny.pth' is a variant .*\(image_encoder.stages, .*mobile-sam"
    ):
        load(LoadOptions(str(folder), checkpoint=file))


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(tmp_path):
    folder, file, _ = write_publisher(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"multiples of 16 pixels. Nearest: 96 or 112"):
        load(LoadOptions(str(folder), checkpoint=file, image_size=100))


def test_two_sources_of_weights_are_refused(tmp_path):
    with pytest.raises(UsageError, match="exclude each other"):
        load(LoadOptions("sam-vitb", checkpoint=Path("a.pth"), random_weights=True))


def test_a_configuration_that_does_not_build_is_refused(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text(
        '{"model_type": "sam", "vision_config": {"hidden_size": "wide"}}'
    )
    with pytest.raises(ModelError, match=r"config.json"):
        load(LoadOptions(str(tmp_path / "bad"), random_weights=True))


def test_the_checkpoint_of_the_test_has_no_zero():
    assert all(bool((t != 0).all()) for t in draw_checkpoint(SIZE).values())
