"""A teacher sees what it would see alone, whatever it is: torch, CNN or ONNX, any normalisation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model_folders import write_images, write_vit_folder
from tests.small_models import loaded_from_part, timm_part
from vitdeploy.compress.distill.teachers import Lesson, teacher_from_model
from vitdeploy.data import Preprocess, prepare, scan_images
from vitdeploy.errors import CompressionError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.outputs import FEATURE_NAMES, TimmFeatures, loaded_model
from vitdeploy.onnx_export import onnx_from_part

OTHER = Preprocess((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
LOGITS = frozenset({"logits"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    write_vit_folder(root / "vit")
    write_images(root / "images", 2)
    return root


def shown(place: Path, preprocess: Preprocess) -> torch.Tensor:
    images = scan_images(place / "images")
    return torch.from_numpy(np.stack([prepare(images.open(i), preprocess) for i in range(4)]))


def test_pixels_are_normalised_for_the_teacher(place):
    loaded = load(LoadOptions(str(place / "vit")))
    teacher = teacher_from_model(Lesson(loaded), OTHER, LOGITS, "cpu")
    own = dataclasses.replace(loaded.spec.preprocess, interpolation="bicubic")
    with torch.no_grad():
        expected = loaded.parts[0].module(shown(place, own))
    # One more multiply and add in FP32.
    torch.testing.assert_close(
        teacher.ask(shown(place, OTHER))["logits"], expected, rtol=1e-4, atol=1e-4
    )
    assert teacher.shapes == {"logits": (3,)}


def test_an_onnx_file_teaches_as_the_model_does(place, tmp_path):
    from vitdeploy.graph.save import save_model

    loaded = load(LoadOptions(str(place / "vit")))
    pixels = shown(place, loaded.spec.preprocess)
    for batch in ("dynamic", 3):
        path = tmp_path / f"{batch}.onnx"
        save_model(onnx_from_part(loaded.parts[0], pixels.numpy(), batch, 20), path)
        file = load(LoadOptions(str(path)))
        preprocess = dataclasses.replace(file.spec.preprocess, size=(32, 32))
        teacher = teacher_from_model(Lesson(file), preprocess, LOGITS, "cpu")
        with torch.no_grad():
            expected = loaded.parts[0].module(pixels)
        # ORT sums in another order.
        torch.testing.assert_close(teacher.ask(pixels)["logits"], expected, rtol=1e-4, atol=1e-4)
    kinds = frozenset({"summary", "patches"})
    with pytest.raises(CompressionError, match="does not give patches, summary, only logits"):
        teacher_from_model(Lesson(file), preprocess, kinds, "cpu")


def test_a_cnn_gives_features_on_its_own_grid():
    cnn = loaded_from_part(timm_part("resnet10t"), preprocess=OTHER)
    teacher = teacher_from_model(
        Lesson(cnn), OTHER, frozenset({"logits", "summary", "patches"}), "cpu"
    )
    assert teacher.shapes == {"logits": (5,), "summary": (512,), "patches": (1, 1, 512)}
    assert not any(p.requires_grad for p in cnn.parts[0].module.parameters())


def test_an_image_encoder_gives_features_alone():
    part = timm_part("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, num_heads=2)
    spec = dataclasses.replace(loaded_from_part(part).spec, preprocess=OTHER)
    encoder = loaded_model(spec, TimmFeatures(part.module), FEATURE_NAMES)
    encoder.parts[0].module.model.reset_classifier(0)
    kinds = frozenset({"summary", "patches"})
    teacher = teacher_from_model(Lesson(encoder), OTHER, kinds, "cpu")
    assert teacher.shapes == {"summary": (32,), "patches": (4, 4, 32)}
    with pytest.raises(CompressionError, match="does not give logits"):
        teacher_from_model(Lesson(encoder), OTHER, LOGITS, "cpu")


def test_another_size_is_refused_or_resized(place):
    loaded = load(LoadOptions(str(place / "vit")))
    large = dataclasses.replace(OTHER, size=(64, 64))
    with pytest.raises(CompressionError, match=r"sees 32 x 32 pixels, the student 64 x 64"):
        teacher_from_model(Lesson(loaded), large, LOGITS, "cpu")
    teacher = teacher_from_model(Lesson(loaded, resize=True), large, LOGITS, "cpu")
    assert teacher.ask(torch.zeros(2, 3, 64, 64))["logits"].shape == (2, 3)


def test_a_fingerprint_is_of_the_weights(place, tmp_path):
    def fingerprint(folder: Path) -> str:
        loaded = load(LoadOptions(str(folder)))
        return teacher_from_model(Lesson(loaded), loaded.spec.preprocess, LOGITS, "cpu").fingerprint

    other = write_vit_folder(tmp_path / "other", seed=1)
    assert fingerprint(place / "vit") == fingerprint(place / "vit")
    assert fingerprint(place / "vit") != fingerprint(other)


def test_segment_anything_teaches_its_embeddings():
    """The image encoder alone: patches (h, w, C), and no summary."""
    sam = load(LoadOptions("sam-scenes"))
    kinds = frozenset({"summary", "patches"})
    teacher = teacher_from_model(Lesson(sam), sam.spec.preprocess, kinds, "cpu")
    height, width = sam.spec.preprocess.size
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = sam.parts[0].module(pixels)
    assert list(teacher.shapes) == ["patches"]
    assert torch.equal(teacher.ask(pixels)["patches"].permute(0, 3, 1, 2), expected)
