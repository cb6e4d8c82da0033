"""Models of transformers, from folders that the tests write."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model_folders import shake_
from vitdeploy.errors import ModelError, UnsupportedError, UsageError
from vitdeploy.models import LoadOptions, describe, load

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def vit(**fields):
    from transformers import ViTConfig

    names = {0: "ant", 1: "bee", 2: "cat"}
    return ViTConfig(
        **SMALL, intermediate_size=64, image_size=32, patch_size=8, id2label=names, **fields
    )


def dinov2(**fields):
    from transformers import Dinov2Config

    return Dinov2Config(**SMALL, image_size=56, patch_size=14, **fields)


def swin():
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        image_size=32,
        patch_size=2,
        num_labels=3,
    )


def run(loaded, images):
    with torch.no_grad():
        return loaded.parts[0].module(images)


def test_a_vit_classifier_is_loaded_as_transformers_loads_it(transformers_folder, pictures):
    from transformers import ViTForImageClassification

    folder = transformers_folder(vit(), classifier=True)
    loaded = load(LoadOptions(str(folder)))
    spec = loaded.spec
    assert (spec.family, spec.source, spec.weights) == ("transformers", "folder:hf", "checkpoint")
    assert spec.label_names == ("ant", "bee", "cat")
    assert "assumed" in spec.notes[0]
    assert [(out.name, out.shape) for out in loaded.parts[0].outputs] == [("logits", ("batch", 3))]
    reference = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        expected = reference.eval()(pictures(32)).logits
    assert torch.equal(run(loaded, pictures(32)), expected)
    assert len(loaded.attention) == 2
    module = loaded.parts[0].module
    for site in loaded.attention:
        assert (site.num_heads, site.head_dim, site.tokens) == (2, 16, 17)
        widths = [module.get_submodule(path).out_features for path in (*site.qkv, site.proj)]
        assert widths == [32, 32, 32, 32]
    assert describe(loaded).tokens == 17


def test_a_swin_classifier_has_windows_and_tables(transformers_folder, pictures):
    loaded = load(LoadOptions(str(transformers_folder(swin(), classifier=True))))
    assert run(loaded, pictures(32)).shape == (2, 3)
    assert {site.tokens for site in loaded.attention} == {16}
    assert all("relative_position_bias_table" in site.per_head[0] for site in loaded.attention)
    assert loaded.spec.label_names == ()  # transformers' placeholders are no names


def test_an_encoder_gives_features_at_the_size_of_its_processor(transformers_folder, pictures):
    from transformers import Dinov2Model

    processor = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 28}
    folder = transformers_folder(dinov2(), classifier=False, processor=processor)
    loaded = load(LoadOptions(str(folder)))
    shapes = {out.name: out.shape for out in loaded.parts[0].outputs}
    assert shapes == {"last_hidden_state": ("batch", 5, 32), "pooler_output": ("batch", 32)}
    reference = Dinov2Model.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = reference(pictures(28)).last_hidden_state  # interpolates as it runs
    # the same interpolation, done once at loading: equal up to the order of float32 sums
    torch.testing.assert_close(run(loaded, pictures(28))[0], expected, atol=1e-5, rtol=1e-5)
    program = torch.export.export(loaded.parts[0].module, (pictures(28),))
    assert not any("upsample" in str(node.target) for node in program.graph.nodes)


def test_features_of_a_classifier_have_no_pooler(transformers_folder):
    folder = transformers_folder(vit(), classifier=True)
    loaded = load(LoadOptions(str(folder), outputs="features"))
    assert [out.name for out in loaded.parts[0].outputs] == ["last_hidden_state"]
    with pytest.raises(UsageError, match="no classifier"):
        load(LoadOptions(str(transformers_folder(dinov2(), classifier=False)), outputs="logits"))


def test_a_pooler_without_weights_is_dropped(transformers_folder):
    folder = transformers_folder(vit(), classifier=False)
    file = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if not k.startswith("pooler.")}
    save_file(weights, file, metadata={"format": "pt"})
    loaded = load(LoadOptions(str(folder)))
    assert [out.name for out in loaded.parts[0].outputs] == ["last_hidden_state"]
    assert any("no pooler" in note for note in loaded.spec.notes)


@pytest.mark.parametrize("config", [vit, swin], ids=["vit", "swin"])
def test_another_image_size(transformers_folder, pictures, config):
    folder = transformers_folder(config(), classifier=True)
    loaded = load(LoadOptions(str(folder), image_size=64))
    assert loaded.parts[0].inputs[0].shape == ("batch", 3, 64, 64)
    assert run(loaded, pictures(64)).shape == (2, 3)
    with pytest.raises(ModelError, match="multiples of"):
        load(LoadOptions(str(folder), image_size=61))


@pytest.mark.parametrize("kind", ["beit", "clip", "hiera", "siglip"])
def test_positions_are_resampled_as_the_library_does_while_it_runs(
    transformers_folder, pictures, kind
):
    import transformers

    small = {**SMALL, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = {
        "beit": lambda: transformers.BeitConfig(
            **small, use_relative_position_bias=True, use_absolute_position_embeddings=True
        ),
        "clip": lambda: transformers.CLIPVisionConfig(**small),
        "hiera": lambda: transformers.HieraConfig(
            embed_dim=16, image_size=[64, 64], depths=[1, 1], num_heads=[1, 2], num_query_pool=1
        ),
        "siglip": lambda: transformers.SiglipVisionConfig(**small),
    }[kind]()
    folder = transformers_folder(config, classifier=False)
    source = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    shake_(source)
    source.save_pretrained(folder)
    # BEiT's flag resamples its biases twice; without it both kinds of its positions are resampled
    flag = {} if kind == "beit" else {"interpolate_pos_encoding": True}
    for pixels in (64, 96) if kind == "hiera" else (32, 48):
        with torch.no_grad():
            expected = source(pictures(pixels), **flag).last_hidden_state
        found = run(load(LoadOptions(str(folder), image_size=pixels)), pictures(pixels))[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [vit, swin, dinov2], ids=["vit", "swin", "dinov2"])
def test_random_weights_depend_on_the_input_and_the_seed(transformers_folder, pictures, config):
    folder = transformers_folder(config(), classifier=config is not dinov2)
    (folder / "model.safetensors").unlink()
    size = config().image_size
    outputs = []
    for seed in (0, 0, 1):
        loaded = load(LoadOptions(str(folder), random_weights=True, seed=seed))
        result = run(loaded, pictures(size))
        outputs.append(result[1] if isinstance(result, tuple) else result)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.cosine_similarity(*outputs[0], dim=0) < 0.999


def test_a_checkpoint_beside_the_folder(transformers_folder, tmp_path: Path, pictures):
    folder = transformers_folder(vit(), classifier=True)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, tmp_path / "mine.safetensors")
    plain = run(load(LoadOptions(str(folder))), pictures(32))
    options = LoadOptions(str(folder), checkpoint=tmp_path / "mine.safetensors")
    torch.testing.assert_close(run(load(options), pictures(32)), plain + 1)


def test_weights_that_do_not_fit_are_refused(transformers_folder):
    folder = transformers_folder(vit(), classifier=True)
    file = folder / "model.safetensors"
    good = load_file(file)
    bad = {k: v for k, v in good.items() if k != "vit.embeddings.cls_token"}
    bad["surprise"] = torch.zeros(1)
    bad["classifier.weight"] = torch.zeros(5, 32)
    save_file(bad, file, metadata={"format": "pt"})
    with pytest.raises(ModelError) as refusal:
        load(LoadOptions(str(folder)))
    for part in ("1 missing (vit.embeddings.cls_token)", "1 unexpected (surprise)", "(5, 32)"):
        assert part in str(refusal.value)
    good["classifier.weight"][0, 0] = float("nan")
    save_file(good, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN.*classifier\.weight"):
        load(LoadOptions(str(folder)))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="truncated"):
        load(LoadOptions(str(folder)))
    file.unlink()
    with pytest.raises(ModelError, match="cannot load the weights"):
        load(LoadOptions(str(folder)))


def test_a_pickle_bomb_in_a_folder_does_not_go_off(transformers_folder, tmp_path: Path):
    victim = tmp_path / "victim"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {victim}",)

    folder = transformers_folder(vit(), classifier=True)
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.bias": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load(LoadOptions(str(folder)))
    assert not victim.exists()


def test_code_of_a_repository_is_not_run(transformers_folder, tmp_path: Path):
    folder = transformers_folder(vit(), classifier=True)
    victim = tmp_path / "victim"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(victim)!r}, 'w')\nclass MineConfig: pass\n")
    with pytest.raises(ModelError, match="not run"):
        load(LoadOptions(str(folder)))
    assert not victim.exists()


def test_models_that_are_no_image_encoders_are_refused(transformers_folder):
    from transformers import BertConfig

    config = BertConfig(**SMALL, intermediate_size=32, vocab_size=50)
    with pytest.raises(ModelError):
        load(LoadOptions(str(transformers_folder(config, classifier=False))))
    one_channel = transformers_folder(vit(num_channels=1), classifier=True)
    with pytest.raises(UnsupportedError, match="1 channels"):
        load(LoadOptions(str(one_channel)))


def test_encoders_that_call_their_layers_model_are_taken_whole(transformers_folder, pictures):
    """DINOv3's encoder holds its blocks as `model`, which is where others keep all they are."""
    from transformers import AutoModel, DINOv3ViTConfig

    config = DINOv3ViTConfig(**SMALL, intermediate_size=64, image_size=32, patch_size=8)
    folder = transformers_folder(config, classifier=False)
    reference = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = reference(pictures(32))
    tokens, pooled = run(load(LoadOptions(str(folder))), pictures(32))
    assert torch.equal(tokens, expected.last_hidden_state)
    assert torch.equal(pooled, expected.pooler_output)


def test_an_image_size_may_be_a_pair(transformers_folder, pictures):
    from transformers import InternVLVisionConfig

    config = InternVLVisionConfig(
        **SMALL, intermediate_size=64, image_size=[32, 32], patch_size=[8, 8]
    )
    folder = transformers_folder(config, classifier=False)
    for pixels, patches in ((None, 16), (48, 36)):
        loaded = load(LoadOptions(str(folder), random_weights=True, image_size=pixels))
        assert loaded.parts[0].outputs[0].shape == ("batch", 1 + patches, 32)
        assert len(loaded.attention) == 2


def test_a_masked_autoencoder_gives_the_same_twice_and_all_patches(transformers_folder, pictures):
    from transformers import ViTMAEConfig

    config = ViTMAEConfig(**SMALL, intermediate_size=64, image_size=32, patch_size=8)
    loaded = load(LoadOptions(str(transformers_folder(config, classifier=False))))
    first, second = (run(loaded, pictures(32)) for _ in range(2))
    assert first.shape == (2, 17, 32)
    assert torch.equal(first, second)
