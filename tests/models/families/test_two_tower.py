"""CLIP and SigLIP of transformers: two parts, and what they say of each other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model_folders import shake_
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models import LoadOptions, describe, load
from vitdeploy.models.families.two_tower import PROMPTS

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 16,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(params=["clip", "siglip"])
def folder(request, tmp_path) -> Path:
    """A shaken model in transformers' layout, without a tokenizer."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    if request.param == "clip":
        config = CLIPConfig(
            text_config=TEXT | {"eos_token_id": 98}, vision_config=VISION, projection_dim=16
        )
        model = CLIPModel(config)
    else:
        text = TEXT | {"projection_size": 32}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    shake_(model)
    model.save_pretrained(tmp_path / "towers")
    return tmp_path / "towers"


def test_towers_give_the_whole_models_embeddings(folder, pictures):
    from transformers import AutoModel

    loaded = load(LoadOptions(str(folder)))
    assert [part.name for part in loaded.parts] == ["image_encoder", "text_encoder"]
    image, text = loaded.parts
    ids = torch.from_numpy(text.example(32)["input_ids"])
    reference = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(input_ids=ids, pixel_values=pictures(32))
        assert torch.allclose(image.module(pictures(32)), expected.image_embeds, atol=1e-6)
        assert torch.allclose(text.module(ids), expected.text_embeds, atol=1e-6)
    # texts differ, or no figure made with them would mean anything
    assert float(expected.text_embeds.std(0).mean()) > 0.01
    assert (text.inputs[0].shape, text.inputs[0].dtype) == (("texts", 16), "int64")
    assert len(loaded.attention) == 2
    assert any("no tokenizer" in note for note in loaded.spec.notes)
    assert [part.name for part in describe(loaded).parts] == ["image_encoder", "text_encoder"]


def test_prompts_are_tokenised_where_there_is_a_tokenizer(folder):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: i + 2 for i, word in enumerate(words)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load(LoadOptions(str(folder)))
    ids = loaded.parts[1].example(len(PROMPTS))["input_ids"]
    names = {number: word for word, number in vocabulary.items()}
    read = [" ".join(names[i] for i in row if i) for row in ids.tolist()]
    assert read == list(PROMPTS)
    assert not any("tokenizer" in note for note in loaded.spec.notes)


def test_costs_count_both_towers_weights(folder):
    from vitdeploy.models.scaling import cost_of

    loaded = load(LoadOptions(str(folder), weightless=True))
    weights = sum(p.numel() for part in loaded.parts for p in part.module.parameters())
    assert cost_of(loaded).weight_bytes == 4 * weights
    assert cost_of(loaded).tokens in (16, 17)  # SigLIP has no class token


def test_what_two_towers_cannot_do_is_refused(folder):
    with pytest.raises(UsageError, match="always return image_embeds and text_embeds"):
        load(LoadOptions(str(folder), outputs="cls"))
    with pytest.raises(ModelError, match="trained together at 32 pixels"):
        load(LoadOptions(str(folder), image_size=64))
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be read"):
        load(LoadOptions(str(folder)))


def test_random_weights_answer_to_the_text(folder):
    loaded = load(LoadOptions(str(folder), random_weights=True, seed=3))
    text = loaded.parts[1]
    with torch.no_grad():
        found = text.module(torch.from_numpy(text.example(4)["input_ids"])).numpy()
    assert len(np.unique(found.round(4), axis=0)) == 4
