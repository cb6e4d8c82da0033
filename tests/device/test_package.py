"""Writing a package: what is in it, what decides the tolerance, what is refused."""

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.device.packages import CLASSES, WIDTH, make_package, matrix, package_part
from vitdeploy.device import (
    PackageOptions,
    cases_from_arrays,
    graph_from_file,
    write_package,
)
from vitdeploy.device.onboard.contents import read_contents
from vitdeploy.device.package import tolerance_db
from vitdeploy.errors import DataError, ExportError


def package_json(folder: Path) -> dict:
    return json.loads((folder / "package.json").read_text())


def test_every_file_is_listed_with_its_hash(tmp_path: Path):
    folder = make_package(tmp_path / "trt")
    listed = {item["file"]: item["sha256"] for item in package_json(folder)["files"]}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(listed) == there - {"package.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_what_is_returned_is_what_was_written(tmp_path: Path):
    part = package_part(tmp_path)
    before = set(tmp_path.rglob("*"))
    written = write_package(tmp_path, (part,), PackageOptions("vit-test"))
    assert set(written) == {p for p in set(tmp_path.rglob("*")) - before if p.is_file()}


def test_equal_arguments_give_equal_bytes(tmp_path: Path):
    first, second = make_package(tmp_path / "a"), make_package(tmp_path / "b")
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_golden_files_are_plain_little_endian_numbers(tmp_path: Path):
    folder = make_package(tmp_path / "trt")
    part = package_part(tmp_path)
    entry = package_json(folder)["parts"][0]["golden"][1]["inputs"]["x"]
    values = struct.unpack(f"<{2 * WIDTH}f", (folder / entry["file"]).read_bytes())
    assert entry["shape"] == [2, WIDTH]
    np.testing.assert_array_equal(np.reshape(values, (2, WIDTH)), part.golden[1].inputs["x"])


def test_graphs_stand_from_high_to_low_precision(tmp_path: Path):
    graphs = [("int8", "weak"), ("int8", "strong"), ("fp16", "strong")]
    contents = read_contents(make_package(tmp_path / "trt", graphs))
    order = [(graph.precision, graph.typing) for graph in contents.parts[0].graphs]
    assert order == [("fp16", "strong"), ("int8", "strong"), ("int8", "weak")]
    assert contents.parts[0].precisions == ("fp16", "int8")


def test_the_tolerance_is_what_the_graph_keeps_less_three_db():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((8, 100))
    for noise_db in (10.0, 30.0):
        noise = rng.standard_normal((8, 100)) * 10 ** (-noise_db / 20)
        # Centring over 8 images takes an eighth of the signal, 0.6 dB; sampling some more.
        assert tolerance_db([reference], [reference + noise]) == pytest.approx(
            noise_db - 3.6, abs=0.5
        )


def test_no_more_than_fp16_can_give_and_no_less_than_nothing_is_asked():
    reference = np.random.default_rng(0).standard_normal((4, 50))
    assert tolerance_db([reference], [reference]) == 40.0
    assert tolerance_db([reference], [-reference]) == 0.0


def test_a_weak_graph_is_asked_no_more_than_its_strong_one(tmp_path: Path):
    part = package_part(tmp_path, [("fp16", "strong"), ("fp16", "weak")])
    strong, weak = part.graphs
    loose = tuple({"logits": case.inputs["x"] @ matrix("int8")} for case in part.golden)
    graphs = (dataclasses.replace(strong, quantized=loose), weak)
    write_package(tmp_path, (dataclasses.replace(part, graphs=graphs),), PackageOptions("m"))
    limits = [g["min_sqnr_db"]["logits"] for g in package_json(tmp_path)["parts"][0]["graphs"]]
    assert limits[0] == limits[1]
    assert limits[0] < 39


def test_cases_leave_out_what_fills_no_batch():
    images = np.arange(10, dtype=np.float32).reshape(5, 2)
    cases = cases_from_arrays({"x": images}, {"y": images}, 2)
    assert [case.inputs["x"][0, 0] for case in cases] == [0.0, 4.0]
    with pytest.raises(ExportError, match="5 golden images do not fill a batch of 8"):
        cases_from_arrays({"x": images}, {"y": images}, 8)


def test_the_readme_names_graphs_inputs_and_notes(tmp_path: Path):
    part = package_part(tmp_path)
    options = PackageOptions("vit-test", trt_version="10.3", notes=("Calibrated on pictures.",))
    write_package(tmp_path, (part,), options)
    text = (tmp_path / "README.md").read_text()
    for graph in part.graphs:
        assert graph.path.name in text
    assert "| `x` | float32 | batch x 12 | 1 x 12 | 2 x 12 | 8 x 12 |" in text
    assert "Calibrated on pictures." in text


def test_a_name_with_a_slash_stays_in_the_folder(tmp_path: Path):
    part = package_part(tmp_path, [("int8", "strong")])
    (graph,) = part.graphs
    cases = tuple(
        dataclasses.replace(case, reference={"a/logits": case.reference["logits"]})
        for case in part.golden
    )
    outputs = tuple({"a/logits": item["logits"]} for item in graph.quantized)
    graph = dataclasses.replace(graph, quantized=outputs)
    part = dataclasses.replace(part, outputs=("a/logits",), graphs=(graph,), golden=cases)
    write_package(tmp_path, (part,), PackageOptions("m"))
    assert (tmp_path / "golden/model.0.reference.a_logits.bin").is_file()
    read_contents(tmp_path)


@pytest.mark.parametrize(
    ("name", "opset", "oldest"),
    [
        ("m.weak.onnx", 17, "8.6"),
        ("m.weak.onnx", 20, "10.0"),
        ("m.strong.onnx", 17, "10.0"),
        ("m.fp16.strong.onnx", 25, "11.0"),
    ],
)
def test_a_graphs_typing_and_oldest_version_are_its_files(
    tmp_path: Path, name: str, opset: int, oldest: str
):
    onnx.save(onnx_model(opset), tmp_path / name)
    graph = graph_from_file("fp16", tmp_path / name, ())
    assert (graph.typing, graph.oldest_tensorrt) == (name.split(".")[-2], oldest)


def test_a_file_of_no_typing_or_version_is_refused(tmp_path: Path):
    with pytest.raises(ExportError, match=r"must end in \.strong\.onnx or \.weak\.onnx"):
        graph_from_file("fp16", tmp_path / "model.onnx", ())
    onnx.save(onnx_model(99), tmp_path / "m.weak.onnx")
    with pytest.raises(ExportError, match="opset 99, which no TensorRT takes"):
        graph_from_file("fp16", tmp_path / "m.weak.onnx", ())


def onnx_model(opset: int) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def broken(folder: Path, what: str):
    part = package_part(folder, [("int8", "strong")])
    (graph,), case = part.graphs, part.golden[0]
    others = part.golden[1:]
    nan = np.full((2, CLASSES), np.nan, np.float32)
    return {
        "no golden": lambda: dataclasses.replace(part, golden=()),
        "no graph": lambda: dataclasses.replace(part, graphs=()),
        "outside": lambda: dataclasses.replace(
            part, graphs=(dataclasses.replace(graph, path=folder.parent / "m.onnx"),)
        ),
        "missing case": lambda: dataclasses.replace(
            part, graphs=(dataclasses.replace(graph, quantized=graph.quantized[:1]),)
        ),
        "missing input": lambda: dataclasses.replace(
            part, golden=(dataclasses.replace(case, inputs={}), *others)
        ),
        "large batch": lambda: dataclasses.replace(
            part,
            golden=(
                dataclasses.replace(case, inputs={"x": np.zeros((9, WIDTH), np.float32)}),
                *others,
            ),
        ),
        "wrong dtype": lambda: dataclasses.replace(
            part,
            golden=(
                dataclasses.replace(case, inputs={"x": case.inputs["x"].astype("f8")}),
                *others,
            ),
        ),
        "missing output": lambda: dataclasses.replace(part, outputs=("logits", "pooler_output")),
        "nan": lambda: dataclasses.replace(
            part, golden=(dataclasses.replace(case, reference={"logits": nan}), *others)
        ),
    }[what]()


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("no golden", ExportError, "no golden case or no graph"),
        ("no graph", ExportError, "no golden case or no graph"),
        ("outside", ExportError, "is not a file of"),
        ("missing case", ExportError, "outputs of 1 golden cases"),
        ("missing input", ExportError, "golden input 'x' of part 'model' is missing"),
        ("large batch", ExportError, r"float32 \(9, 12\); the engine takes"),
        ("wrong dtype", ExportError, "is float64"),
        ("missing output", ExportError, "they must be logits, pooler_output"),
        ("nan", DataError, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, what: str, error: type, words: str):
    folder = tmp_path / "trt"
    folder.mkdir()
    part = broken(folder, what)
    with pytest.raises(error, match=words):
        write_package(folder, (part,), PackageOptions("m"))
    assert not (folder / "package.json").exists()


def test_a_type_no_engine_takes_is_refused(tmp_path: Path):
    part = package_part(tmp_path, [("int8", "strong")])
    (spec,), case = part.inputs, part.golden[0]
    inputs = {"x": case.inputs["x"].astype(np.complex64)}
    changed = dataclasses.replace(
        part,
        inputs=(dataclasses.replace(spec, dtype="complex64"),),
        golden=tuple(dataclasses.replace(c, inputs=inputs) for c in part.golden),
    )
    with pytest.raises(DataError, match="complex64; allowed are"):
        write_package(tmp_path, (changed,), PackageOptions("m"))
