"""`model_card.md`: what the artefacts are, how to run them, and what is known of them.

Figures and words come from `summary` and `tables`. The manifest, where it is given, adds what
the report does not hold: preprocessing, tensor names, session settings.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.report import summary, tables
from vitdeploy.report.schema import ImagesInfo, Report
from vitdeploy.report.summary import Headline
from vitdeploy.report.tables import Cell, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$])")


def render(report: Report, manifest: Mapping[str, Any] | None = None) -> str:
    """Return the model card.

    Args:
        report: what was measured.
        manifest: `Manifest.model_dump()` of the bundle the card lies in; without it the card has
            neither preprocessing nor snippets for the engines.
    """
    blocks = [
        f"# {escaped(report.model.name)}, {escaped(report.precision.requested)}",
        _stamps(report),
        _lead(report),
        *_section("At a glance", _glance(report)),
        *_section("How to run it", *_usage(report, manifest)),
        *_section("Preprocessing", _preprocessing(manifest)),
        *_section("Calibration and evaluation", *_images(report)),
        *_section("Fidelity", table_text(tables.fidelity_table(report))),
        *_section("Latency", _where(report), table_text(tables.latency_table(report))),
        *_section("Artefacts", table_text(tables.artifacts_table(report))),
        *_section("Gates", table_text(tables.gates_table(report))),
        *_section("Limits", _limits(report)),
        *_section("Notes", _bullets([escaped(note) for note in report.notes])),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(title: str, *blocks: str) -> list[str]:
    return [f"## {title}", *blocks] if any(blocks) else []


def _stamps(report: Report) -> str:
    lines = []
    for stamp in report.stamps:
        meaning = summary.STAMP_MEANINGS.get(stamp, "")
        lines.append(f"> **{escaped(stamp)}** {escaped(meaning)}".rstrip())
    return "\n>\n".join(lines)


def _lead(report: Report) -> str:
    model = report.model
    size = "image size unknown"
    if model.image_size is not None:
        size = f"{model.image_size[0]} × {model.image_size[1]} pixels"
    if model.parameters is not None:
        size += f", {summary.format_count(model.parameters)} parameters"
    if model.gmacs is not None:
        size += f", {model.gmacs:.3g} GMACs"
    where = " and ".join(summary.target_label(target) for target in report.targets)
    return (
        f"A {escaped(model.family)} model for {escaped(model.task)} ({size}), compressed for "
        f"{escaped(where) or 'no target'} by vitdeploy {escaped(report.vitdeploy_version)}. "
        f"Source: {_code(model.source)}, {escaped(model.weights)} weights. "
        f"Precision asked for: {escaped(report.precision.requested)}; kept: {_kept(report)}."
    )


def _kept(report: Report) -> str:
    kept = [
        f"{escaped(item.precision)} on {escaped(summary.target_label(item.target))}"
        for item in summary.headlines(report)
    ]
    return ", ".join(kept) or "nothing"


def _glance(report: Report) -> str:
    rows = tuple(_glance_row(item) for item in summary.headlines(report))
    columns = ("Target", "Fidelity", "#FP32", "#Here", "#Speed", "#Size")
    return table_text(Table("At a glance", columns, rows))


def _glance_row(item: Headline) -> tuple[Cell, ...]:
    row = item.fidelity
    known = None if row is None else row.reference
    value = None if row is None else row.value
    speed = "not measured" if item.speedup is None else summary.format_speedup(item.speedup)
    size = "not measured"
    if item.size_bytes is not None:
        size = summary.format_bytes(item.size_bytes)
        if item.reference_bytes is not None:
            size += f", {summary.format_size_ratio(item.reference_bytes, item.size_bytes)}"
    return (
        Cell(summary.target_label(item.target), item.precision),
        Cell("not measured" if row is None else summary.metric_label(row.metric)),
        Cell("" if row is None or known is None else summary.format_metric(row, known)),
        Cell("" if row is None or value is None else summary.format_metric(row, value)),
        Cell(speed),
        Cell(size),
    )


def _usage(report: Report, manifest: Mapping[str, Any] | None) -> list[str]:
    """Return one block per way to run the bundle; only for the targets it has."""
    ours = (
        "With vitdeploy, in the folder of this card:\n\n"
        "```python\nimport vitdeploy\n\n"
        'with vitdeploy.load(".") as model:\n'
        '    print(model.predict("image.jpg").label)\n```'
        if report.model.task == "classification"
        else "With vitdeploy, in the folder of this card:\n\n"
        "```python\nimport vitdeploy\n\n"
        'with vitdeploy.load(".") as model:\n'
        '    outputs = model.predict("image.jpg").outputs\n```'
    )
    check = (
        "`vitdeploy check .` verifies every file and compares the artefacts with the golden "
        "outputs of the FP32 model."
    )
    snippets = []
    seen = set()
    for part in manifest.get("parts", ()) if manifest else ():
        if part["target"] in _SNIPPETS and (part["target"], part["name"]) not in seen:
            seen.add((part["target"], part["name"]))
            snippets.append(_SNIPPETS[part["target"]](part))
    return [ours, check, *snippets]


def _onnxruntime_snippet(part: Mapping[str, Any]) -> str:
    settings = "".join(
        f"options.add_session_config_entry({key!r}, {str(value)!r})\n"
        for key, value in part["settings"].items()
    )
    return (
        "With ONNX Runtime alone:\n\n"
        "```python\nimport numpy as np\nimport onnxruntime as ort\n\n"
        f"options = ort.SessionOptions()\n{settings}"
        f"session = ort.InferenceSession({part['path']!r}, options)\n"
        f"outputs = session.run(None, {{{_feeds(part)}}})\n```"
    )


def _openvino_snippet(part: Mapping[str, Any]) -> str:
    return (
        "With OpenVINO alone:\n\n"
        "```python\nimport numpy as np\nimport openvino as ov\n\n"
        f"model = ov.Core().compile_model({part['path']!r}, 'CPU', {dict(part['settings'])!r})\n"
        f"outputs = model({{{_feeds(part)}}})\n```"
    )


_SNIPPETS = {"onnx": _onnxruntime_snippet, "openvino": _openvino_snippet}


def _feeds(part: Mapping[str, Any]) -> str:
    feeds = []
    for tensor in part["inputs"]:
        shape = tuple(size if isinstance(size, int) else 1 for size in tensor["shape"])
        feeds.append(f"{tensor['name']!r}: np.zeros({shape!r}, {tensor['dtype']!r})")
    return ", ".join(feeds)


def _preprocessing(manifest: Mapping[str, Any] | None) -> str:
    fields: Mapping[str, Any] = manifest.get("preprocess", {}) if manifest else {}
    rows = tuple((Cell(name), Cell(_value(value))) for name, value in fields.items())
    table = table_text(Table("Preprocessing", ("Step", "Value"), rows))
    parts = manifest["parts"] if manifest else ()
    if any(tensor["dtype"] == "uint8" for part in parts for tensor in part["inputs"]):
        return f"The graph does this itself: it reads pictures as they are, uint8.\n\n{table}"
    return table


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _images(report: Report) -> list[str]:
    return [
        _images_line("Calibrated", report.calibration, report.calibration_reason),
        _images_line("Evaluated", report.evaluation, report.evaluation_reason),
    ]


def _images_line(verb: str, images: ImagesInfo | None, reason: str | None) -> str:
    if images is None:
        return f"{verb}: no ({escaped(reason or 'not said')})."
    skipped = f", {images.skipped} unreadable ones skipped" if images.skipped else ""
    return (
        f"{verb} on {images.images} images of {escaped(images.name)} ({images.origin}){skipped}; "
        f"digest {_code(images.digest)}."
    )


def _where(report: Report) -> str:
    if not report.latency:
        return ""
    cpu = report.environment.get("cpu")
    machine = f"on {escaped(cpu)}" if cpu else "on one machine"
    return f"Measured {machine}, reference and artefacts in turns within one process."


def _limits(report: Report) -> str:
    limits = [escaped(summary.STAMP_MEANINGS.get(stamp, stamp)) for stamp in report.stamps]
    if report.latency:
        limits.append("Latency holds for the machine, engine and thread count above, no other.")
    if report.evaluation is not None:
        limits.append(
            f"Fidelity was measured on {report.evaluation.images} images; rare inputs may differ "
            "by more than the worst one shown."
        )
    if report.calibration is not None:
        limits.append(
            "Activation ranges come from the calibration images; inputs unlike them (another "
            "preprocessing, another sensor) are clipped."
        )
    limits.append("What the FP32 model cannot do or is biased in, the artefact inherits.")
    return _bullets(limits)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def table_text(table: Table) -> str:
    """Return a pipe table and its notes; empty where there are no rows."""
    if not table.rows:
        return ""
    head = "| " + " | ".join(escaped(name.lstrip("#")) for name in table.columns) + " |"
    rule = "|" + "|".join("---:" if name.startswith("#") else "---" for name in table.columns) + "|"
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows]
    notes = "\n".join(f"{number}. {escaped(text)}" for number, text in enumerate(table.notes, 1))
    return "\n".join([head, rule, *lines]) + (f"\n\n{notes}" if notes else "")


def _cell(cell: Cell) -> str:
    text = _code(cell.text).replace("|", "\\|") if cell.tone == "code" else escaped(cell.text)
    if cell.note:
        text += f" ({cell.note})"
    return f"{text} ({escaped(cell.detail)})" if cell.detail else text


def escaped(value: str) -> str:
    """Return `value` on one line with everything escaped that Markdown or HTML would read."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    """Return `value` as code; backticks inside would end it, so they become quotes."""
    return f"`{' '.join(value.split()).replace('`', chr(39))}`"
