"""`model_card.md` says what the artefacts are; its snippets are Python that compiles."""

import ast
import re

import pytest

from tests.report.samples import failing_sample, sample, two_part_sample
from vitdeploy.report import WRITERS

TENSOR = {"name": "pixel_values", "shape": ["batch", 3, 32, 32], "dtype": "float32"}


def part(target, path, settings):
    return {
        "name": "model",
        "target": target,
        "path": path,
        "inputs": [TENSOR],
        "settings": settings,
    }


MANIFEST = {
    "preprocess": {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    "parts": [
        part("onnx", "onnx/model.onnx", {"session.intra_op.allow_spinning": "0"}),
        part("openvino", "openvino/model.xml", {"INFERENCE_PRECISION_HINT": "f32"}),
        part("trt", "trt/model.onnx", {}),
    ],
}


def test_it_tells_what_the_model_is_and_how_it_does():
    card = WRITERS["markdown"].render(sample(), MANIFEST)
    assert card.startswith("# vit-digits, int8\n")
    assert "> **calibration: generic**" in card
    assert "Source: `package:vit-digits`, packaged weights." in card
    assert "int8 on ONNX Runtime, int8 on OpenVINO" in card
    assert "| mean | 0.5, 0.5, 0.5 |" in card
    assert "| Top-1 | 98.33 % | 97.78 % (−0.55 points) | 98.06 % (−0.27 points) | 360 |" in card
    assert "36 images of photos (generic)" in card
    assert "## Limits" in card
    assert "An Imaginary CPU" in card


def test_the_snippets_compile_and_name_the_files_and_settings():
    snippets = re.findall(
        r"```python\n(.*?)```", WRITERS["markdown"].render(sample(), MANIFEST), re.S
    )
    assert len(snippets) == 3  # vitdeploy, ONNX Runtime, OpenVINO; nothing for other targets
    for snippet in snippets:
        ast.parse(snippet)
    assert "'onnx/model.onnx'" in snippets[1]
    assert "add_session_config_entry('session.intra_op.allow_spinning', '0')" in snippets[1]
    assert "'pixel_values': np.zeros((1, 3, 32, 32), 'float32')" in snippets[1]
    assert "{'INFERENCE_PRECISION_HINT': 'f32'}" in snippets[2]


def test_without_a_manifest_it_leaves_out_what_it_does_not_know():
    card = WRITERS["markdown"].render(two_part_sample())
    assert "## Preprocessing" not in card
    assert "onnxruntime as ort" not in card
    assert "vitdeploy.load" in card
    assert "mask\\_decoder" in card
    assert "## Gates" not in card


def test_names_cannot_break_the_page():
    card = WRITERS["markdown"].render(failing_sample(), MANIFEST)
    assert "<script" not in card.replace("\\<script", "")
    assert "\\<b\\>bold\\</b\\> \\| pipe" in card
    assert "file \\| as \\`given\\`" in card


@pytest.mark.parametrize("make", [sample, failing_sample, two_part_sample])
def test_every_row_has_the_columns_of_its_table(make):
    card = WRITERS["markdown"].render(make(), MANIFEST)
    for block in card.split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block


def test_reasons_are_numbered_below_the_table():
    card = WRITERS["markdown"].render(sample())
    assert "| SQNR | — (1) |" in card
    assert "\n1. a distance between both models; the reference has no value of its own\n" in card
