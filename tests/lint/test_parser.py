"""The rules against NVIDIA's own parser and builder, those of TensorRT for RTX; no GPU is needed.

That parser is newer than most and takes more: `LENIENT` names the rules it does not share, which
stand for older versions, for speed, or against results that are silently wrong.
"""

import re
from typing import Any

import onnx
import pytest

from tests.lint.attention_graph import Attention
from tests.lint.cases import CASES, Case
from vitdeploy.lint.versions import NEVER_TAKEN

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

REFUSED_BY_PARSER = {1, 3, 4, 8, 9, 10, 11, 12, 13, 15, 30}
REFUSED_BY_BUILDER = {19}
LENIENT = {2, 5, 6, 7, 14, 16, 17, 18, *range(20, 30)}


@pytest.fixture(scope="module")
def builder() -> Any:
    return trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))


def parses(builder: Any, model: onnx.ModelProto, *, build: bool = False) -> bool:
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    if not parser.parse(model.SerializeToString()):
        assert parser.num_errors
        return False
    if not build:
        return True
    return builder.build_serialized_network(network, builder.create_builder_config()) is not None


def test_each_rule_is_in_one_group():
    groups = (REFUSED_BY_PARSER, REFUSED_BY_BUILDER, LENIENT)
    assert sorted(number for group in groups for number in group) == list(range(1, 31))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_what_the_rules_accept_parses(builder: Any, case: Case):
    assert parses(builder, case.good())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_what_the_rules_refuse(builder: Any, case: Case):
    accepted = parses(builder, case.bad())
    assert accepted is (case.number not in REFUSED_BY_PARSER)


def test_a_dynamic_input_without_a_profile_does_not_build(builder: Any):
    bad = CASES[18]
    assert parses(builder, bad.good(), build=True)
    assert not parses(builder, bad.bad(), build=True)


class Listing(trt.ILogger):  # type: ignore[misc, name-defined]
    """Keeps what the builder says: at its most verbose, the layers of the engine."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.text: list[str] = []

    def log(self, _severity: object, message: str) -> None:
        self.text.append(message)


def layers(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(kind, type of the first input) of each layer of the engine."""
    listing = Listing()
    builder = trt.Builder(listing)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, listing).parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None
    found = re.findall(
        r"^Name: .*?LayerType: (\w+), .*?Datatype: (\w+)", "\n".join(listing.text), re.M
    )
    assert found
    return found


def int8_products(model: onnx.ModelProto) -> int:
    return layers(model).count(("gemm", "Int8"))


def test_attention_in_part_keeps_products_in_float():
    """Rule 21."""
    assert int8_products(Attention().proto()) == 3  # q, k and v are one; scores; context
    assert int8_products(Attention(quantized="qk").proto()) == 2


def test_int8_attention_of_more_than_512_tokens_falls_apart():
    """Rule 22."""
    at_512, at_513 = (len(layers(Attention(tokens=n).proto())) for n in (512, 513))
    in_float = len(layers(Attention(tokens=513, quantized="").proto()))
    assert in_float < at_513
    assert at_512 < at_513


def test_a_packed_weight_with_scales_per_channel_is_no_int8_product():
    """Rule 23."""
    assert int8_products(Attention(packed=True).proto()) < int8_products(Attention().proto())


def test_operators_without_an_importer(builder: Any):
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    assert [name for name in sorted(NEVER_TAKEN) if parser.supports_operator(name)] == []
