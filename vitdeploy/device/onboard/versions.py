"""Which graph a version of TensorRT builds, and with which flags, all by name.

Numbers of flags change between versions (STRONGLY_TYPED is 1 in 10.x and 0 in 11.x), so none is
written down here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .contents import GraphSpec
from .failure import BUILD, MISSING, USAGE, Failure

OLDEST = (8, 6, 0)
STRONG_SINCE = (10, 0, 0)
WEAK_UNTIL = (11, 0, 0)
# NVIDIA's migration guide: JetPack is not supported by these.
NOT_ON_JETSON = ((11, 0, 0), (11, 4, 0))

# What a weakly typed graph needs to be allowed its precision.
WEAK_FLAGS = {
    "fp32": (),
    "fp16": ("FP16",),
    "bf16": ("BF16",),
    "int8": ("FP16", "INT8"),
    "mixed": ("FP16", "INT8"),
}
INSTALL = (
    "On a Jetson it comes with JetPack: sudo apt install nvidia-jetpack (6.1 has TensorRT 10.3). "
    "On x86: pip install tensorrt"
)


@dataclass(frozen=True)
class BuildPlan:
    """One way to build one part."""

    graph: GraphSpec
    network_flags: tuple[str, ...]
    """Names in NetworkDefinitionCreationFlag."""
    builder_flags: tuple[str, ...]
    """Names in BuilderFlag."""


def version_from_text(text: str) -> tuple[int, int, int]:
    """Return major, minor and patch of `10.3.0.26`, `10.3` or the like.

    Raises:
        Failure: there is no number in it.
    """
    numbers = [int(part) for part in re.findall(r"\d+", text)[:3]]
    if not numbers:
        raise Failure(f"cannot tell the version of TensorRT from '{text}'. {INSTALL}", MISSING)
    major, minor, patch = [*numbers, 0, 0][:3]
    return major, minor, patch


def require_supported(version: tuple[int, int, int], *, is_jetson: bool) -> None:
    """Return where this version can be used here.

    Raises:
        Failure: it is too old, or not made for a Jetson.
    """
    shown = ".".join(str(number) for number in version)
    if version < OLDEST:
        raise Failure(
            f"TensorRT {shown} is too old: 8.6 or newer is needed (JetPack 6; JetPack 5 has 8.5). "
            f"{INSTALL}",
            MISSING,
        )
    if is_jetson and NOT_ON_JETSON[0] <= version <= NOT_ON_JETSON[1]:
        raise Failure(
            f"TensorRT {shown} does not support JetPack (11.0 to 11.4.0 do not). "
            "Use the TensorRT that your JetPack brings.",
            MISSING,
        )


def plan_builds(
    graphs: Sequence[GraphSpec], precision: str, version: tuple[int, int, int]
) -> tuple[BuildPlan, ...]:
    """Return how to build `precision`, the best way first; a second one is the fallback.

    Raises:
        Failure: the package has no graph of this precision, or none that this version takes.
    """
    shown = ".".join(str(number) for number in version)
    own = [graph for graph in graphs if graph.precision == precision]
    if not own:
        there = ", ".join(dict.fromkeys(graph.precision for graph in graphs))
        raise Failure(
            f"the package has no {precision} graph; it has {there}. Choose with --engine.", USAGE
        )
    plans = [_plan(graph, version) for graph in own]
    possible = [plan for plan in plans if plan is not None]
    if not possible:
        oldest = min(version_from_text(graph.oldest_tensorrt) for graph in own)
        if version < oldest:
            needed = f"TensorRT {oldest[0]}.{oldest[1]} or newer reads them"
        else:
            needed = "weakly typed graphs build before TensorRT 11 only"
        raise Failure(
            f"none of the {precision} graphs builds with TensorRT {shown}: {needed}. Export again "
            f"with --trt-version {version[0]}.{version[1]}, or use such a TensorRT.",
            MISSING,
        )
    return tuple(sorted(possible, key=lambda plan: plan.graph.typing != "strong"))


def _plan(graph: GraphSpec, version: tuple[int, int, int]) -> BuildPlan | None:
    """Return how this version builds the graph, None where it cannot."""
    if version < version_from_text(graph.oldest_tensorrt):
        return None
    if graph.typing == "strong":
        return BuildPlan(graph, ("STRONGLY_TYPED",), ()) if version >= STRONG_SINCE else None
    if version >= WEAK_UNTIL:  # no precision flags: FP32 is what the graph says, the rest is not
        return BuildPlan(graph, ("STRONGLY_TYPED",), ()) if graph.precision == "fp32" else None
    if graph.precision not in WEAK_FLAGS:
        raise Failure(
            f"'{graph.file}' is weakly typed {graph.precision}; allowed are "
            f"{', '.join(WEAK_FLAGS)}. Export again.",
            BUILD,
        )
    network = ("EXPLICIT_BATCH",) if version < STRONG_SINCE else ()
    return BuildPlan(graph, network, WEAK_FLAGS[graph.precision])
