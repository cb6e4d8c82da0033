"""`vitdeploy predict`: a bundle on image files; classes, or masks of what is pointed at."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.mask_files import MaskFiles, ShownMask
from vitdeploy.cli.options import Json
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.predictor import EverythingOptions, MaskPredictor
    from vitdeploy.prompts import Prompt


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files; one where masks are wanted.")],
    target: Annotated[str | None, typer.Option(help="Which of the bundle's targets.")] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="Point on the object, in pixels; repeatable."),
    ] = None,
    label: Annotated[
        list[int] | None,
        typer.Option(help="Of each --point: 1 inside the object (default), 0 outside; repeatable."),
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Box around the object, in pixels.")
    ] = None,
    multimask: Annotated[
        bool, typer.Option("--multimask", help="All three masks of an ambiguous prompt.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="Masks of all that a grid of points finds.")
    ] = False,
    points_per_side: Annotated[int, typer.Option(help="Of the grid of --everything.")] = 32,
    pred_iou_thresh: Annotated[
        float, typer.Option(help="Least predicted IoU of a mask of --everything.")
    ] = 0.88,
    stability_score_thresh: Annotated[
        float, typer.Option(help="Least stability of a mask of --everything.")
    ] = 0.95,
    box_nms_thresh: Annotated[
        float, typer.Option(help="Largest IoU of two boxes of --everything.")
    ] = 0.7,
    min_area: Annotated[int, typer.Option(help="Least pixels of a mask of --everything.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Picture with masks drawn on (<image>-masks.png)."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="New folder for one black and white PNG a mask.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the picture of --output.")
    ] = False,
    json: Json = False,
) -> None:
    """Run the bundle's model on images; one of Segment Anything takes prompts."""
    from vitdeploy.display import print_predictions
    from vitdeploy.predictor import EverythingOptions, MaskPredictor, load

    prompt = _prompt(point or (), label or (), box)
    options = EverythingOptions(
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        box_nms_thresh=box_nms_thresh,
        min_area=min_area,
    )
    with load(bundle, target) as predictor:
        if isinstance(predictor, MaskPredictor):
            image = _one_image(images)
            _require_one_question(bundle, image, prompt, everything=everything)
            _require_used(options, everything=everything, multimask=multimask)
            files = MaskFiles(image, output or Path(f"{image.stem}-masks.png"), masks)
            files.require_free(force=force)
            found = _found(predictor, image, prompt or options, multimask=multimask)
            files.show(files.write(found, prompt), as_json=json)
            return
        if prompt or everything or multimask or output or masks or options != EverythingOptions():
            raise UsageError(
                f"bundle '{bundle}' classifies or describes whole pictures and has no masks; give "
                "it images alone, without --point, --box, --everything, --output or --masks."
            )
        results = [(str(path), predictor.predict(path)) for path in images]
    print_predictions(results, as_json=json)


def _found(
    predictor: "MaskPredictor", image: Path, asked: "Prompt | EverythingOptions", *, multimask: bool
) -> list[ShownMask]:
    """Return the masks asked for, the best predicted IoU first."""
    from vitdeploy.predictor import EverythingOptions

    predictor.set_image(image)
    if isinstance(asked, EverythingOptions):
        return [
            ShownMask(found.mask, found.score, {"stability": found.stability, "point": found.point})
            for found in predictor.everything(asked)
        ]
    prediction = predictor.predict(asked.points, asked.labels, asked.box, multimask=multimask)
    shown = [
        ShownMask(mask, float(score))
        for mask, score in zip(prediction.masks, prediction.scores, strict=True)
    ]
    return sorted(shown, key=lambda mask: -mask.score)


def _prompt(points: Sequence[str], labels: Sequence[int], box: str | None) -> "Prompt | None":
    """Return the prompt that the options give; None where they give none."""
    from vitdeploy.prompts import prompt_from_arrays

    if not points and not labels and box is None:
        return None
    return prompt_from_arrays(
        [_numbers("--point", text, "250,300") for text in points],
        labels or None,
        None if box is None else _numbers("--box", box, "40,60,320,400"),
    )


def _numbers(option: str, text: str, example: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(example.split(",")):
        raise UsageError(
            f"{option} '{text}' is not {len(example.split(','))} numbers with commas between; "
            f"write for instance {option} {example}, in pixels of the picture."
        )
    return numbers


def _one_image(images: Sequence[Path]) -> Path:
    if len(images) > 1:
        raise UsageError(
            f"{len(images)} images, but points and boxes belong to one; run the command once for "
            "each."
        )
    return images[0]


def _require_one_question(
    bundle: Path, image: Path, prompt: "Prompt | None", *, everything: bool
) -> None:
    if everything and prompt is not None:
        raise UsageError("--everything finds masks without a prompt; leave --point and --box out.")
    if not everything and prompt is None:
        raise UsageError(
            f"bundle '{bundle}' segments what is pointed at; say what, in pixels:\n"
            f"  vitdeploy predict {bundle} {image} --point 250,300\n"
            f"  vitdeploy predict {bundle} {image} --box 40,60,320,400\n"
            f"or ask for all: vitdeploy predict {bundle} {image} --everything"
        )


def _require_used(options: "EverythingOptions", *, everything: bool, multimask: bool) -> None:
    """Refuse options that would change nothing."""
    from vitdeploy.predictor import EverythingOptions

    if everything and multimask:
        raise UsageError("--multimask is for --point and --box; --everything tries all masks.")
    if not everything and options != EverythingOptions():
        raise UsageError(
            "--points-per-side, --pred-iou-thresh, --stability-score-thresh, --box-nms-thresh and "
            "--min-area filter what --everything finds; add it, or leave them out."
        )
