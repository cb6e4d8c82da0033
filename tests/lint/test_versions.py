"""Which versions are known, and what is said of the others."""

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.lint.versions import TensorRT, version_from_text


@pytest.mark.parametrize(
    ("text", "number"),
    [("8.6", (8, 6)), ("8", (8, 6)), ("10.3", (10, 3)), ("10.3.0.26", (10, 3)), ("11", (11, 0))],
)
def test_a_version_is_major_and_minor(text: str, number: tuple[int, int]):
    assert version_from_text(text) == TensorRT("trt", number)


@pytest.mark.parametrize("text", ["8.5", "9.3", "12", "7.1", "ten", "", "10.x"])
def test_others_are_refused(text: str):
    with pytest.raises(UsageError, match=r"8\.6, 10\.MINOR, 11\.MINOR"):
        version_from_text(text)


def test_tensorrt_for_rtx_counts_on_its_own():
    rtx = version_from_text("trt-rtx")
    assert str(rtx) == "TensorRT for RTX 1.7"
    assert rtx.lacks("DeformConv")
    assert not version_from_text("10.3").lacks("DeformConv")
    assert not rtx.is_weakly_typed
