"""Which file and which flags a version gets."""

import pytest

from vitdeploy.device.onboard.contents import GraphSpec
from vitdeploy.device.onboard.failure import Failure
from vitdeploy.device.onboard.versions import plan_builds, require_supported, version_from_text


def graph(precision: str, typing: str, oldest: str | None = None) -> GraphSpec:
    oldest = oldest or ("10.0" if typing == "strong" else "8.6")
    return GraphSpec(precision, typing, f"m.{precision}.{typing}.onnx", "", oldest, {})


BOTH = [graph("int8", "strong"), graph("int8", "weak"), graph("fp32", "weak")]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("10.3.0.26", (10, 3, 0)),
        ("8.6.1", (8, 6, 1)),
        ("11.4", (11, 4, 0)),
        ("10.0.0b6", (10, 0, 0)),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, int, int]):
    assert version_from_text(text) == version


def test_no_version_is_refused():
    with pytest.raises(Failure, match="cannot tell the version") as caught:
        version_from_text("unknown")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((8, 6, 1), [("weak", ("EXPLICIT_BATCH",), ("FP16", "INT8"))]),
        ((10, 3, 0), [("strong", ("STRONGLY_TYPED",), ()), ("weak", (), ("FP16", "INT8"))]),
        ((11, 0, 0), [("strong", ("STRONGLY_TYPED",), ())]),
    ],
)
def test_int8_by_version(version: tuple[int, int, int], expected: list):
    plans = plan_builds(BOTH, "int8", version)
    assert [(p.graph.typing, p.network_flags, p.builder_flags) for p in plans] == expected


def test_a_graph_for_newer_versions_is_skipped():
    graphs = [graph("int8", "strong", "11.0"), graph("int8", "weak")]
    assert [p.graph.typing for p in plan_builds(graphs, "int8", (10, 3, 0))] == ["weak"]


@pytest.mark.parametrize(
    ("precision", "version", "words", "code"),
    [
        ("fp16", (10, 3, 0), "it has int8, fp32", 2),
        ("int8", (8, 6, 1), "TensorRT 11.0 or newer", 6),
        ("int4", (10, 3, 0), "allowed are fp32", 5),
    ],
)
def test_refusals(precision: str, version: tuple[int, int, int], words: str, code: int):
    graphs = {
        "fp16": BOTH,
        "int8": [graph("int8", "strong", "11.0")],
        "int4": [graph("int4", "weak")],
    }
    with pytest.raises(Failure, match=words) as caught:
        plan_builds(graphs[precision], precision, version)
    assert caught.value.exit_code == code


def test_what_does_not_support_jetpack_is_refused_on_a_jetson_only():
    require_supported((11, 4, 0), is_jetson=False)
    require_supported((11, 4, 1), is_jetson=True)
    require_supported((10, 3, 0), is_jetson=True)
    with pytest.raises(Failure, match=r"TensorRT 11\.4\.0 does not support JetPack") as caught:
        require_supported((11, 4, 0), is_jetson=True)
    assert caught.value.exit_code == 6
