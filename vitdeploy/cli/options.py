"""Options that several commands share, and what is asked of their values."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")]
Summary = Annotated[
    Path | None,
    typer.Option(help="Append a few lines of Markdown, as to $GITHUB_STEP_SUMMARY."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Bundle folder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Alias, timm:NAME, hf:REPO, or a model folder.")
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights file, in timm's key layout or its publisher's.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Seeded random weights; stamped in the report.")
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels; the model's own by default.")]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="logits, features, cls, patch, pooled, mean, pyramid, attention, pixel-shuffle-K; "
        "several with commas."
    ),
]
Video = Annotated[
    bool, typer.Option("--video", help="Of SAM 2: also the parts that track objects over frames.")
]
Tiles = Annotated[
    int | None,
    typer.Option(help="Most tiles that `predict` cuts a picture into, of an encoder; 2 to 64."),
]
BakePreprocessing = Annotated[
    bool,
    typer.Option(
        "--bake-preprocessing",
        help="Resize, crop and normalise in the graph, which then reads uint8 pictures.",
    ),
]
Calib = Annotated[
    str | None, typer.Option(help="Calibration images: folder, list file, 'synthetic'.")
]
CalibSamples = Annotated[int, typer.Option(help="How many, class-stratified.")]
Eval = Annotated[
    str | None, typer.Option("--eval", help="Images to compare on; class folders for top-1.")
]
EvalSamples = Annotated[int | None, typer.Option(help="All by default.")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="onnx, openvino (ov), trt (engine), trt-rtx; repeatable."),
]
Opset = Annotated[int | None, typer.Option(help="ONNX opset; the target's default.")]
MaxDrop = Annotated[
    float | None, typer.Option(help="Gate: points of top-1, agreement, or 100 x cosine.")
]
SearchSeconds = Annotated[
    float | None,
    typer.Option(help="Budget for timing one target's candidates; as --measure-seconds."),
]
TrtVersion = Annotated[
    str | None,
    typer.Option(
        help="TensorRT on the device, of --target trt: 8.6, 10.MINOR, 11.MINOR; "
        "10.3 by default, for INT4 10.15."
    ),
]
KeepReference = Annotated[
    bool, typer.Option("--keep-reference", help="Ship the FP32 ONNX in the bundle.")
]
Seed = Annotated[int, typer.Option(help="Of sampling and of random weights.")]


def require_positive(value: float | None) -> float | None:
    """Return `value` where it is a finite number of at least 0; typer's own `min` lets NaN pass."""
    if value is not None and not 0 <= value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a number of at least 0.")
    return value


Int4 = Annotated[bool, typer.Option("--int4", help="INT4 weights (w4a16); W4A8 by --precision.")]
Int4Mixed = Annotated[
    bool, typer.Option("--int4-mixed", help="4 or 8 bits by layer, for the goal below.")
]
Int4MaxSize = Annotated[
    float | None, typer.Option(help="Goal of --int4-mixed: per cent of the FP32 graph's size.")
]
Int4MinSqnr = Annotated[
    float | None, typer.Option(help="Goal of --int4-mixed: SQNR in dB; 30 by default.")
]
Int4Block = Annotated[
    int, typer.Option(help="Input channels that share an INT4 scale: 16, 32, 64, 128.")
]


def trt_version_or_default(version: str | None, precision: str) -> str:
    """Return the TensorRT asked for, else JetPack 6's, or the first that reads INT4 weights."""
    if version is not None:
        return version
    return "10.15" if precision.lower() in ("int4", "w4a16", "w4a8") else "10.3"


def int4_section(
    precision: str, block: int, *, mixed: bool, max_size: float | None, min_sqnr: float | None
) -> dict[str, Any]:
    """Return the recipe's section for the options of INT4.

    Raises:
        UsageError: an option of --int4-mixed without it, or --int4-mixed without INT4 weights.
    """
    if mixed and precision.lower() not in ("int4", "w4a16", "w4a8"):
        raise UsageError(
            f"--int4-mixed chooses between INT4 and INT8 weights, and you ask for {precision} too. "
            "Give it alone, with --int4 or with --precision w4a8."
        )
    if not mixed and (max_size is not None or min_sqnr is not None):
        raise UsageError("--int4-max-size and --int4-min-sqnr are goals of --int4-mixed; give it.")
    return {
        "block_size": block,
        "mixed": mixed,
        "max_size_percent": max_size,
        "min_sqnr_db": min_sqnr,
    }


def one_precision(precision: str | None, **flags: bool) -> str:
    """Return the one precision that options ask for, `fp32` where none does."""
    asked = [name for name, is_set in flags.items() if is_set]
    if precision is not None:
        asked.append(precision)
    if len(set(asked)) > 1:
        raise UsageError(
            f"more than one precision asked for: {', '.join(asked)}. Give one of --int8, "
            "--int4, --fp16, --bf16, --precision NAME."
        )
    return asked[0] if asked else "fp32"
