"""Versions of TensorRT: how they are written, and what each one's ONNX parser takes.

From `docs/operators.md` and `docs/Changelog.md` of the parser's releases. The rules that use these
facts are in `rules`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vitdeploy.errors import UsageError

DEFAULT_VERSION = "10.3"
"""JetPack 6's."""
RTX = "trt-rtx"
ALLOWED = "8.6, 10.MINOR, 11.MINOR"

Number = tuple[int, int]

# TensorRT for RTX 1.7 takes what TensorRT 11.1 takes (asked of its parser), but for these.
_RTX_VERSION, _RTX_PARSER = (1, 7), (11, 1)
_RTX_LACKS = frozenset({"DeformConv"})

# First version, newest opset its parser documents. What is not documented is not promised: 10.14
# may well take opset 22.
_NEWEST_OPSETS: tuple[tuple[Number, int], ...] = (
    ((8, 6), 17),
    ((10, 0), 20),
    ((10, 15), 24),
    ((11, 0), 25),
)
OLDEST_OPSET = 9

_NEVER = (
    "AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor "
    "CenterCropPad Col2Im Compress ConcatFromSequence CumProd Det ImageDecoder MaxRoiPool "
    "MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement "
    "OptionalHasElement RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase "
    "SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence "
    "StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique"
)
NEVER_TAKEN = frozenset(_NEVER.split())
_FIRST_VERSIONS: Mapping[str, Number] = {
    "CastLike": (10, 0),
    "Gelu": (10, 0),
    "Hardmax": (10, 0),
    "Mish": (10, 0),
    "DeformConv": (10, 1),
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "STFT": (10, 5),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
    "Swish": (11, 0),
    "DFT": (11, 2),
}


@dataclass(frozen=True)
class TensorRT:
    """One version of TensorRT, or of TensorRT for RTX."""

    target: str
    """`trt` or `trt-rtx`."""
    number: Number
    """As NVIDIA counts that product."""

    @property
    def parser(self) -> Number:
        """The TensorRT whose parser this version's equals."""
        return _RTX_PARSER if self.is_rtx else self.number

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.target == RTX

    @property
    def newest_opset(self) -> int:
        """The newest opset that the parser documents."""
        return max(opset for first, opset in _NEWEST_OPSETS if first <= self.parser)

    @property
    def is_weakly_typed(self) -> bool:
        """Whether flags may choose the precision (`--fp16`); since 11 the graph alone does."""
        return self.parser < (11, 0)

    def lacks(self, operator: str) -> bool:
        """Return whether the parser has no importer for a standard operator."""
        if self.is_rtx and operator in _RTX_LACKS:
            return True
        return operator in NEVER_TAKEN or _FIRST_VERSIONS.get(operator, (0, 0)) > self.parser

    def __str__(self) -> str:
        name = "TensorRT for RTX" if self.is_rtx else "TensorRT"
        return f"{name} {shown(self.number)}"


def version_from_text(text: str) -> TensorRT:
    """Return the version that `8.6`, `10.3`, `10.3.0`, `11` or `trt-rtx` names.

    Raises:
        UsageError: no version, or one of which nothing is known.
    """
    if text == RTX:
        return TensorRT(RTX, _RTX_VERSION)
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:\.\d+)*", text)
    major = int(match[1]) if match else 0
    minor = int(match[2]) if match and match[2] else (6 if major == 8 else 0)
    if match is None or major not in {8, 10, 11} or (major == 8 and minor != 6):
        raise UsageError(
            f"'{text}' is no version of TensorRT that is known here. Allowed: {ALLOWED}; without "
            f"--trt-version it is {DEFAULT_VERSION} (JetPack 6)."
        )
    return TensorRT("trt", (major, minor))


def shown(number: Number) -> str:
    """Return `10.3`."""
    return f"{number[0]}.{number[1]}"


def first_taking_opset(opset: int) -> str:
    """Return the first version that documents `opset`, in words."""
    taking = [first for first, newest in _NEWEST_OPSETS if newest >= opset]
    return f"TensorRT {shown(taking[0])}" if taking else "no TensorRT so far"


def first_taking_operator(operator: str) -> str:
    """Return the first version that imports `operator`, in words."""
    first = _FIRST_VERSIONS.get(operator)
    return f"TensorRT {shown(first)}" if first else "no TensorRT so far"
