"""Sizes of models that cut patches once; the families' tests hold the rest."""

from types import SimpleNamespace

import pytest

from vitdeploy.errors import ModelError
from vitdeploy.models.patches import patch_arguments

MODEL = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(14, 14)))


def test_a_multiple_of_the_patch_is_taken():
    assert patch_arguments(MODEL, 224) == {"img_size": 224}


def test_others_are_refused_with_their_neighbours():
    with pytest.raises(ModelError, match=r"--image-size 225.*Nearest: 224 or 238"):
        patch_arguments(MODEL, 225)
