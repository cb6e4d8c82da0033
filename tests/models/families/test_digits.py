"""vit-digits: packaged, and found by its alias."""

import torch

from vitdeploy.models import LoadOptions, load, resolve


def test_the_packaged_model_loads_offline(empty_hub):
    reference = resolve("vit-digits")
    assert (reference.family, reference.source) == ("digits", "packaged:vit-digits")
    loaded = load(LoadOptions("vit-digits"))
    spec = loaded.spec
    assert (spec.weights, spec.calibration_set, spec.task) == (
        "packaged",
        "digits",
        "classification",
    )
    assert spec.preprocess.size == (reference.image_size, reference.image_size)
    assert spec.label_names == tuple("0123456789")
    with torch.no_grad():
        images = torch.zeros(1, 3, *spec.preprocess.size)
        assert loaded.parts[0].module(images).shape == (1, 10)
