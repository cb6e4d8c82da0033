"""`vitdeploy distill`: train a student on what a teacher says; write a model folder."""

import json as json_library
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.cli.options import Checkpoint, Force, ImageSize, Json, Quiet, RandomWeights, Seed
from vitdeploy.errors import UsageError

_RECIPES = (".yaml", ".yml")


def distill(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The student: alias, timm:NAME or a model folder (pruned ones too); or a recipe "
            "(.yaml) with a distill section, which then says everything.",
        ),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Alias, timm:NAME, hf:REPO, model folder or .onnx file; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Training images; class folders give labels.")
    ] = None,
    eval_: Annotated[
        str | None, typer.Option("--eval", help="Images for top-1 after every epoch.")
    ] = None,
    distillation_type: Annotated[
        str, typer.Option(help="soft, hard, or none (labels and features alone).")
    ] = "soft",
    alpha: Annotated[float, typer.Option(help="Share of the teacher's logits in the loss.")] = 0.5,
    tau: Annotated[float, typer.Option(help="Temperature of soft.")] = 1.0,
    token: Annotated[
        bool | None, typer.Option(help="Teach the distillation token; where there is one.")
    ] = None,
    features: Annotated[
        float, typer.Option(help="Weight of matching pooled features and patches.")
    ] = 0.0,
    resize_teacher: Annotated[
        bool, typer.Option("--resize-teacher", help="Resize pictures to the teacher's size.")
    ] = False,
    store: Annotated[
        str, typer.Option(help="Folder that keeps the teacher's outputs; auto, off.")
    ] = "auto",
    views: Annotated[
        int | None, typer.Option(help="Augmentations a picture in the store; one an epoch.")
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of timm's model, from scratch: depth=6; repeatable."),
    ] = None,
    student_from_teacher: Annotated[
        bool,
        typer.Option("--student-from-teacher", help="Begin with the teacher's layers, thinned."),
    ] = False,
    random_weights: RandomWeights = False,
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    epochs: Annotated[int, typer.Option()] = 10,
    batch_size: Annotated[int, typer.Option(help="Of a step, over all processes.")] = 128,
    accumulation: Annotated[int, typer.Option(help="Forward passes of a step.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    warmup_epochs: Annotated[float, typer.Option()] = 0.0,
    weight_decay: Annotated[float, typer.Option()] = 0.05,
    layer_decay: Annotated[float | None, typer.Option(help="Of the rate, by layer.")] = None,
    clip_grad: Annotated[float | None, typer.Option(help="Largest norm.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the running mean kept.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "fp32",
    workers: Annotated[int, typer.Option(help="Processes that read pictures.")] = 0,
    crop_scale: Annotated[float, typer.Option(help="Least share of a picture in a crop.")] = 0.08,
    flip: Annotated[float, typer.Option(help="Probability.")] = 0.5,
    auto_augment: Annotated[str | None, typer.Option(help="As rand-m9-mstd0.5-inc1.")] = None,
    erasing: Annotated[float, typer.Option(help="Probability.")] = 0.0,
    mixup: Annotated[float, typer.Option(help="Alpha.")] = 0.0,
    cutmix: Annotated[float, typer.Option(help="Alpha.")] = 0.0,
    smoothing: Annotated[float, typer.Option(help="Of labels.")] = 0.1,
    repeats: Annotated[int, typer.Option(help="Repeated augmentation.")] = 1,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Between checkpoints; each epoch by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Model folder; ./<model>-distilled.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was broken off.")
    ] = False,
    force: Force = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train MODEL on what its teachers say; write a model folder, which is a MODEL itself.

    On several GPUs or machines: `accelerate launch -m vitdeploy distill ...`; in several processes
    on CPUs: `torchrun --nproc_per_node 2 -m vitdeploy distill ...`.
    """
    from vitdeploy.console import ConsoleProgress, print_json, print_line
    from vitdeploy.distilling import Trial, distill_from_recipe
    from vitdeploy.recipe import recipe_from_dict, recipe_from_yaml

    if model.lower().endswith(_RECIPES):
        recipe = recipe_from_yaml(model)
    elif data is None:
        raise UsageError("distill needs training images: --data FOLDER (one folder per class).")
    else:
        teachers = teacher or []
        initialise = "scratch" if random_weights or model_arg else "weights"
        sections = {
            "student": {
                "source": model,
                "arguments": arguments_from(model_arg or []),
                "checkpoint": str(checkpoint) if checkpoint else None,
                "image_size": image_size,
                "initialise": "teacher" if student_from_teacher else initialise,
            },
            "teachers": [{"source": name, "resize": resize_teacher} for name in teachers],
            "path": data,
            "eval_path": eval_,
            "loss": distillation_type,
            "alpha": alpha,
            "tau": tau,
            "token": token,
            "features": features,
            "store": store,
            "views": views,
            "augment": {
                "crop_scale": (crop_scale, 1.0),
                "flip": flip,
                "auto_augment": auto_augment,
                "erasing": erasing,
                "mixup": mixup,
                "cutmix": cutmix,
                "smoothing": smoothing,
                "repeats": repeats,
            },
            "training": {
                "epochs": epochs,
                "batch_size": batch_size,
                "accumulation": accumulation,
                "lr": lr,
                "warmup_epochs": warmup_epochs,
                "weight_decay": weight_decay,
                "layer_decay": layer_decay,
                "clip_grad": clip_grad,
                "ema": ema,
                "precision": precision,
                "workers": workers,
                "checkpoint_steps": checkpoint_steps,
            },
        }
        source = teachers[0] if teachers else model
        recipe = recipe_from_dict(
            {"model": {"source": source}, "distill": sections, "seed": seed}, "options"
        )
    stem = Path(model).stem if model.lower().endswith(_RECIPES) else Path(model).name
    folder = output or Path(f"{stem.rpartition(':')[2]}-distilled")
    with ConsoleProgress(quiet=quiet or json) as progress:
        trial = Trial(progress=progress, resume=resume, force=force)
        report = distill_from_recipe(recipe, folder, trial)
    if not report.result.is_main:
        return
    if json:
        print_json(json_library.dumps(report.to_dict(), indent=2))
    elif not quiet:
        print_line(f"model folder: {folder}   next: vitdeploy export {folder}")


def arguments_from(pairs: list[str]) -> dict[str, Any]:
    """Return what NAME=VALUE options say; values are JSON (true, 0.1, [2,2]), else text.

    Raises:
        UsageError: one without a name or a value.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--model-arg '{pair}': NAME=VALUE is expected, as depth=6.")
        try:
            found[name] = json_library.loads(value)
        except ValueError:
            found[name] = value
    return found
