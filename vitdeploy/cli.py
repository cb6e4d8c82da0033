"""The commands: parse, one API call, render; and the only place that maps errors to exit codes.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import math
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vitdeploy.errors import EXIT_INTERRUPTED, GateError, UsageError, VitdeployError
from vitdeploy.version import __version__

if TYPE_CHECKING:
    from vitdeploy.recipe import Recipe
    from vitdeploy.report import Report

app = typer.Typer(
    name="vitdeploy",
    help="From a vision transformer's checkpoint to a checked artefact for an edge device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
report_app = typer.Typer(help="Look at reports that runs wrote.", no_args_is_help=True)
app.add_typer(report_app, name="report")

Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Bundle folder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Alias, timm:NAME, hf:REPO, or a model folder.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights file in timm's format.")]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Seeded random weights; stamped in the report.")
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels; the model's own by default.")]
Outputs = Annotated[str | None, typer.Option(help="logits or features.")]
Calib = Annotated[
    str | None, typer.Option(help="Calibration images: folder, list file, 'synthetic'.")
]
CalibSamples = Annotated[int, typer.Option(help="How many, class-stratified.")]
Eval = Annotated[
    str | None, typer.Option("--eval", help="Images to compare on; class folders for top-1.")
]
EvalSamples = Annotated[int | None, typer.Option(help="All by default.")]
Targets = Annotated[
    list[str] | None, typer.Option("--target", help="onnx or openvino (ov); repeatable.")
]
Opset = Annotated[int | None, typer.Option(help="ONNX opset; the target's default.")]
MaxDrop = Annotated[
    float | None, typer.Option(help="Gate: points of top-1, agreement, or 100 x cosine.")
]
KeepReference = Annotated[
    bool, typer.Option("--keep-reference", help="Ship the FP32 ONNX in the bundle.")
]
Seed = Annotated[int, typer.Option(help="Of sampling and of random weights.")]


# typer exports neither this class nor, from 0.16 on, the click it stems from.
_ClickError = cast(
    "type[Exception]",
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)


def _require_positive(value: float | None) -> float | None:
    """Return `value` where it is a finite number of at least 0; typer's own `min` lets NaN pass."""
    if value is not None and not 0 <= value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a number of at least 0.")
    return value


def _show_version(asked: bool) -> None:
    if asked:
        from vitdeploy.console import print_json

        print_json(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


@app.command()
def export(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8 weights and activations.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, int8 (w8a8).")] = None,
    target: Targets = None,
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    eval_: Eval = None,
    eval_samples: EvalSamples = None,
    image_size: ImageSize = None,
    batch: Annotated[str, typer.Option(help="'dynamic', or a fixed number.")] = "dynamic",
    opset: Opset = None,
    outputs: Outputs = None,
    max_drop: MaxDrop = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Gate: FP32 reference's median latency / artefact's.")
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Gate: median latency.")] = None,
    measure_seconds: Annotated[float, typer.Option(help="Timing budget; 0 skips.")] = 10.0,
    threads: Annotated[int | None, typer.Option(help="All cores by default.")] = None,
    output: Output = None,
    force: Force = False,
    keep_reference: KeepReference = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export MODEL to an artefact, compare it with FP32, time it, write a bundle."""
    from vitdeploy.recipe import recipe_from_dict

    chosen = _one_precision(precision, int8=int8, fp16=fp16, bf16=bf16)
    data: dict[str, Any] = {
        "model": {
            "source": model,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "random_weights": random_weights,
            "image_size": image_size,
            "outputs": outputs,
        },
        "precision": chosen,
        "targets": target or ["onnx"],
        "calibration": {"path": calib, "samples": calib_samples},
        "evaluation": {"path": eval_, "samples": eval_samples},
        "export": {"batch": int(batch) if batch.isdecimal() else batch, "opset": opset},
        "gates": {
            "max_drop_points": max_drop,
            "min_speedup": min_speedup,
            "max_latency_ms": max_latency_ms,
        },
        "measure": {"seconds": measure_seconds, "threads": threads},
        "keep_reference": keep_reference,
        "seed": seed,
        "output": str(output) if output else None,
    }
    _run(recipe_from_dict(data, "options"), force=force, json=json, quiet=quiet)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    output: Output = None,
    junit: Annotated[Path | None, typer.Option(help="Write the gates as JUnit XML.")] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run RECIPE: what `export` does, from a file; for release pipelines."""
    from vitdeploy.recipe import recipe_from_yaml

    loaded = recipe_from_yaml(recipe)
    if output:
        loaded = loaded.model_copy(update={"output": str(output)})
    _run(loaded, force=force, json=json, quiet=quiet, junit=junit)


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 ONNX file.")],
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    eval_: Eval = None,
    eval_samples: EvalSamples = None,
    target: Targets = None,
    mean: Annotated[str | None, typer.Option(help="Of R,G,B in 0..1; ImageNet's.")] = None,
    std: Annotated[str | None, typer.Option(help="Of R,G,B in 0..1; ImageNet's.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bicubic, bilinear, ...")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Size / size resized to; 1.")] = None,
    crop_mode: Annotated[str | None, typer.Option(help="center, squash or border.")] = None,
    preprocess: Annotated[
        Path | None, typer.Option(help="JSON file with mean, std, interpolation, crop_pct, ...")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Where the file leaves it open.")] = None,
    batch: Annotated[str, typer.Option(help="'dynamic' or fixed; as in the file.")] = "dynamic",
    opset: Opset = None,
    outputs: Outputs = None,
    max_drop: MaxDrop = None,
    min_speedup: Annotated[float | None, typer.Option(help="Gate: against FP32.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Gate: median latency.")] = None,
    measure_seconds: Annotated[float, typer.Option(help="Timing budget; 0 skips.")] = 10.0,
    threads: Annotated[int | None, typer.Option(help="All cores by default.")] = None,
    output: Output = None,
    force: Force = False,
    keep_reference: KeepReference = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring MODEL.onnx, an FP32 file from elsewhere, to INT8; no torch model is needed."""
    from vitdeploy.recipe import is_onnx_source, recipe_from_dict

    if not is_onnx_source(str(model)):
        raise UsageError(
            f"'{model}' is no .onnx file. `vitdeploy quantize` takes an FP32 ONNX file; for all "
            "other models use `vitdeploy export MODEL --int8`."
        )
    prepared = {
        **_preprocess_from_file(preprocess),
        **({"mean": _triple("--mean", mean)} if mean else {}),
        **({"std": _triple("--std", std)} if std else {}),
        **({"interpolation": interpolation} if interpolation else {}),
        **({"crop_pct": crop_pct} if crop_pct is not None else {}),
        **({"crop_mode": crop_mode} if crop_mode else {}),
    }
    data: dict[str, Any] = {
        "model": {
            "source": str(model),
            "image_size": image_size,
            "outputs": outputs,
            "preprocess": prepared or None,
        },
        "precision": "int8",
        "targets": target or ["onnx"],
        "calibration": {"path": calib, "samples": calib_samples},
        "evaluation": {"path": eval_, "samples": eval_samples},
        "export": {"batch": int(batch) if batch.isdecimal() else batch, "opset": opset},
        "gates": {
            "max_drop_points": max_drop,
            "min_speedup": min_speedup,
            "max_latency_ms": max_latency_ms,
        },
        "measure": {"seconds": measure_seconds, "threads": threads},
        "keep_reference": keep_reference,
        "seed": seed,
        "output": str(output) if output else None,
    }
    _run(recipe_from_dict(data, "options"), force=force, json=json, quiet=quiet)


@app.command()
def plan(recipe: Annotated[Path, typer.Argument(help="YAML recipe.")]) -> None:
    """Print RECIPE with every default filled in; nothing is done."""
    from vitdeploy.console import print_json
    from vitdeploy.recipe import recipe_from_yaml, yaml_from_recipe

    print_json(yaml_from_recipe(recipe_from_yaml(recipe)))


@app.command()
def check(
    artifact: Annotated[Path, typer.Argument(help="Bundle folder.")],
    against: Annotated[Path | None, typer.Option(help="Another bundle to compare with.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Gate; the bundle's own by default.", callback=_require_positive),
    ] = None,
    json: Json = False,
) -> None:
    """Verify a bundle's hashes and run it against its golden outputs on this machine."""
    from vitdeploy.checking import check as check_bundle
    from vitdeploy.display import print_check

    report = check_bundle(artifact, against=against, max_drop_points=max_drop)
    _print_json_or(report, json, print_check)
    _raise_failed_gates(report)


@app.command()
def profile(
    artifacts: Annotated[list[Path], typer.Argument(help="Bundles or ONNX files.")],
    batch: Annotated[int, typer.Option(help="Images per run.", min=1)] = 1,
    seconds: Annotated[
        float, typer.Option(help="Timing budget.", callback=_require_positive)
    ] = 10.0,
    threads: Annotated[int | None, typer.Option(help="All cores by default.", min=1)] = None,
    json: Json = False,
) -> None:
    """Time bundles and ONNX files in turns in one process."""
    from vitdeploy.console import ConsoleProgress
    from vitdeploy.display import print_profile
    from vitdeploy.profiling import profile as profile_artifacts

    with ConsoleProgress(quiet=json) as progress:
        report = profile_artifacts(
            artifacts, batch=batch, seconds=seconds, threads=threads, progress=progress
        )
    _print_json_or(report, json, print_profile)


@app.command()
def diagnose(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder with an INT8 ONNX artefact.")],
    calib: Annotated[
        str | None, typer.Option(help="Images to look at; the bundle's golden inputs by default.")
    ] = None,
    calib_samples: Annotated[int, typer.Option(help="How many of them.", min=1)] = 32,
    seconds: Annotated[
        float,
        typer.Option(
            help="Budget for measuring what each product in float gains.",
            callback=_require_positive,
        ),
    ] = 60.0,
    html: Annotated[Path | None, typer.Option(help="Write tables and plots as HTML.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which layers of an INT8 bundle lose the accuracy, and what to do about it."""
    from vitdeploy.console import ConsoleProgress, print_json
    from vitdeploy.diagnosis import diagnose as diagnose_bundle
    from vitdeploy.diagnosis.html import render
    from vitdeploy.display import print_diagnosis

    if html:
        _require_writable(html)
    with ConsoleProgress(quiet=quiet or json) as progress:
        diagnosis = diagnose_bundle(
            bundle, calib=calib, samples=calib_samples, seconds=seconds, progress=progress
        )
    if html:
        _write_text(html, render(diagnosis))
    if json:
        print_json(diagnosis.model_dump_json(indent=2))
    elif not quiet:
        print_diagnosis(diagnosis)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    target: Annotated[str | None, typer.Option(help="Which of the bundle's targets.")] = None,
    json: Json = False,
) -> None:
    """Run the bundle's model on image files."""
    from vitdeploy.display import print_predictions
    from vitdeploy.predictor import load

    with load(bundle, target) as predictor:
        results = [(str(path), predictor.predict(path)) for path in images]
    print_predictions(results, as_json=json)


@app.command()
def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    image_size: ImageSize = None,
    outputs: Outputs = None,
    json: Json = False,
) -> None:
    """Show parameters, GMACs, tokens, preprocessing, attention sites and parts of MODEL."""
    from vitdeploy.display import print_description
    from vitdeploy.models import describe, load
    from vitdeploy.pipeline import load_options
    from vitdeploy.recipe import recipe_from_dict

    options = {
        "source": model,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "random_weights": random_weights,
        "image_size": image_size,
        "outputs": outputs,
    }
    recipe = recipe_from_dict({"model": options}, "options")
    print_description(describe(load(load_options(recipe))), as_json=json)


@app.command()
def models(json: Json = False) -> None:
    """List the aliases and families."""
    from vitdeploy.display import print_aliases
    from vitdeploy.models import aliases

    print_aliases(aliases(), as_json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show what this machine offers: processor, versions, targets."""
    from vitdeploy.display import print_environment
    from vitdeploy.environment import describe_environment
    from vitdeploy.targets import describe_targets

    print_environment({**describe_environment(), **describe_targets()}, as_json=json)


@report_app.command("show")
def report_show(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    json: Json = False,
) -> None:
    """Print the report of a bundle."""
    from vitdeploy.display import print_report
    from vitdeploy.report import read_report

    _print_json_or(
        read_report(_report_path(bundle)), json, lambda report: print_report(report, None)
    )


@report_app.command("diff")
def report_diff(
    before: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    after: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    json: Json = False,
) -> None:
    """Print what changed from one report to another."""
    from vitdeploy.display import print_diff
    from vitdeploy.report import diff, read_report

    print_diff(
        diff(read_report(_report_path(before)), read_report(_report_path(after))), as_json=json
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code the design promises."""
    sys.exit(exit_code_from(arguments))


def exit_code_from(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, the code of the error's class, 1 for a bug, 130."""
    try:
        result = app(arguments, standalone_mode=False)
    except VitdeployError as error:
        _print_error(str(error))
        return error.exit_code
    except _ClickError as error:
        _print_error(getattr(error, "format_message", error.__str__)())
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - the one place where a bug is shown and mapped
        traceback.print_exc()
        _print_error("this is a bug in vitdeploy; please report the lines above.")
        return 1
    if result == EXIT_INTERRUPTED:  # typer answers Ctrl-C with this code and no word
        _print_error("interrupted; nothing was written.")
    return result if isinstance(result, int) else 0


def _print_error(message: str) -> None:
    from vitdeploy.console import print_error

    print_error(message)


def _one_precision(precision: str | None, **flags: bool) -> str:
    asked = [name for name, is_set in flags.items() if is_set]
    if precision is not None:
        asked.append(precision)
    if len(set(asked)) > 1:
        raise UsageError(
            f"more than one precision asked for: {', '.join(asked)}. Give one of --int8, "
            "--fp16, --bf16, --precision NAME."
        )
    return asked[0] if asked else "fp32"


def _triple(option: str, text: str) -> list[float]:
    """Return the three numbers of `0.485,0.456,0.406`; one number stands for all channels."""
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise UsageError(f"{option} is '{text}'; give three numbers, such as 0.5,0.5,0.5.")
    return values * (3 // len(values))


def _preprocess_from_file(path: Path | None) -> dict[str, Any]:
    """Return the preprocessing in a JSON file; what is wrong in it the recipe says."""
    import json as json_library

    if path is None:
        return {}
    try:
        content = json_library.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--preprocess '{path}' cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"--preprocess '{path}' holds no JSON object.")
    return content


def _run(
    recipe: "Recipe", *, force: bool, json: bool, quiet: bool, junit: Path | None = None
) -> None:
    from vitdeploy.console import ConsoleProgress, print_json
    from vitdeploy.display import print_report
    from vitdeploy.pipeline import output_folder
    from vitdeploy.pipeline import run as run_recipe
    from vitdeploy.report import WRITERS

    if junit:
        _require_writable(junit)  # before the work, not after it
    with ConsoleProgress(quiet=quiet) as progress:
        report = run_recipe(recipe, force=force, progress=progress)
    if junit:
        _write_text(junit, WRITERS["junit"].render(report))
    if json:
        print_json(WRITERS["json"].render(report))
    elif not quiet:
        print_report(report, str(output_folder(recipe)))
    _raise_failed_gates(report)


def _print_json_or(report: "Report", json: bool, render: Any) -> None:
    from vitdeploy.console import print_json
    from vitdeploy.report import WRITERS

    if json:
        print_json(WRITERS["json"].render(report))
    else:
        render(report)


def _raise_failed_gates(report: "Report") -> None:
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        shown = "; ".join(
            f"{gate.name}: {'not measured' if gate.value is None else f'{gate.value:.4g}'}, "
            f"limit {gate.limit:g}"
            for gate in failed
        )
        raise GateError(f"{len(failed)} gate(s) failed: {shown}")


def _report_path(place: Path) -> Path:
    return place / "report.json" if place.is_dir() else place


def _require_writable(path: Path) -> None:
    above = path.absolute().parent
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(
            f"cannot write '{path}': it is a folder, or '{above}' is not a folder you may write "
            "to. Give the path of a file."
        )


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}.") from error
