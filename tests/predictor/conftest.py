"""One bundle of a tiny classifier, one of a tiny Segment Anything, for all tests here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models.segment_anything.publisher import Weights
from tests.predictor.bundles import write_classifier_bundle, write_sam_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A classifier for ONNX Runtime and OpenVINO."""
    return write_classifier_bundle(tmp_path_factory.mktemp("classifier") / "bundle")


@pytest.fixture(scope="session")
def baked_bundle(tmp_path_factory) -> Path:
    """The same, reading pictures as they are."""
    path = tmp_path_factory.mktemp("baked") / "bundle"
    return write_classifier_bundle(path, bakes_preprocessing=True)


@pytest.fixture(scope="session")
def sam(tmp_path_factory) -> tuple[Path, Weights]:
    """The bundle, for three targets, and its weights under the publisher's names."""
    path = tmp_path_factory.mktemp("sam") / "bundle"
    return write_sam_bundle(path, ("onnx", "openvino", "trt"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """A PNG of 140 x 211 pixels (height x width)."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    Image.fromarray(noise).resize((211, 140), Image.Resampling.BICUBIC).save(path)
    return path
