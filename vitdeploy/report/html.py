"""`report.html`: one file for people, no network, no script, nothing outside itself.

Figures and words come from `summary`, `verdict` and `tables`, charts from `charts`, the looks from
`report.html.j2`; here they meet, and the bars get their lengths.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from vitdeploy.report import charts, summary, tables
from vitdeploy.report.findings import WorstImage
from vitdeploy.report.schema import LatencyRow, ModelInfo, Report
from vitdeploy.report.summary import REFERENCE, Headline
from vitdeploy.report.verdict import verdict

# A rare outlier must not squeeze all the bars: the axis ends here, a longer tail is cut.
_AXIS_END_IN_MEDIANS = 2.0


@dataclass(frozen=True)
class Card:
    """One key figure."""

    label: str
    value: str
    detail: str
    tone: str = ""
    """`good`, `bad`, or nothing."""


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; lengths are per cent of the axis."""

    label: str
    precision: str
    value: str
    detail: str
    solid: float
    band: float = 0.0
    """Where the paler part ends; 0 without one."""
    tick: float = 0.0
    """Where the tick stands; 0 without one."""
    beyond: str = ""
    """What lies past the end of the axis."""
    is_reference: bool = False


@dataclass(frozen=True)
class Chart:
    """Bars on one axis."""

    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class WorstOfTarget:
    """The images on which one target differs most."""

    label: str
    caption: str
    metric: str
    has_masks: bool
    images: tuple[WorstImage, ...]


def render(report: Report, device: Sequence[tables.Table] = ()) -> str:
    """Return the report as one HTML document; every value is escaped.

    Args:
        report: of the run.
        device: tables of what was found where the artefact is used, shown after it.
    """
    from jinja2 import Environment, StrictUndefined

    text = files("vitdeploy.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).render(
        report=report,
        facts=_facts(report.model) if report.model.source != "profile" else [],
        verdict=verdict(report),
        drawings=charts.drawings(report),
        worst=_worst(report),
        profiles=[
            table
            for table in (tables.profile_table(report), tables.loads_table(report))
            if table.rows
        ],
        roofline=tables.roofline_table(report),
        stamps=[(stamp, summary.STAMP_MEANINGS.get(stamp, "")) for stamp in report.stamps],
        blocks=[
            (summary.target_label(item.target), item.precision.upper(), _cards(item))
            for item in summary.headlines(report)
        ],
        gates=tables.gates_table(report),
        fidelity=tables.fidelity_table(report),
        latency=tables.latency_table(report),
        latency_charts=_latency_charts(report),
        size_chart=_size_chart(report),
        artifacts=tables.artifacts_table(report),
        images=tables.images_table(report),
        parity=tables.parity_table(report),
        stages=tables.stages_table(report),
        environment=tables.environment_table(report),
        device=device,
        total_seconds=sum(stage.seconds for stage in report.stages),
    )


def _facts(model: ModelInfo) -> list[str]:
    facts = [model.task, model.family]
    if model.image_size is not None:
        facts.append(f"{model.image_size[0]} × {model.image_size[1]} pixels")
    if model.parameters is not None:
        facts.append(f"{summary.format_count(model.parameters)} parameters")
    if model.gmacs is not None:
        facts.append(f"{model.gmacs:.3g} GMACs")
    return [*facts, f"{model.weights} weights"]


def _worst(report: Report) -> list[WorstOfTarget]:
    found = []
    for target in dict.fromkeys(row.target for row in report.worst_images):
        images = tuple(row for row in report.worst_images if row.target == target)
        has_masks = images[0].own_picture is not None
        flipped = sum(row.reference != row.own for row in images)
        caption = (
            f"The {len(images)} on which it differs most from FP32: what FP32 says → what it says."
        )
        if has_masks:
            caption = f"The {len(images)} masks that agree least with FP32's."
        elif flipped:
            caption = f"{caption} {flipped} flipped."
        label, metric = summary.target_label(target), summary.metric_label(images[0].metric)
        found.append(WorstOfTarget(label, caption, metric, has_masks, images))
    return found


def _cards(item: Headline) -> list[Card]:
    cards = [_fidelity_card(item), _speed_card(item)]
    if item.size_bytes is not None and item.reference_bytes is not None:
        smaller = item.size_bytes < item.reference_bytes
        cards.append(
            Card(
                "Size",
                summary.format_size_ratio(item.reference_bytes, item.size_bytes),
                f"{summary.format_bytes(item.reference_bytes)} → "
                f"{summary.format_bytes(item.size_bytes)}",
                "good" if smaller else "",
            )
        )
    if item.int8_macs_percent is not None:
        share = f"{item.int8_macs_percent:.1f} %"
        cards.append(Card("Done in INT8", share, "of the MACs of layers with weights"))
    return cards


def _fidelity_card(item: Headline) -> Card:
    row = item.fidelity
    if row is None or row.value is None:
        return Card("Fidelity", "not measured", "see the table below")
    value = summary.format_metric(row, row.value)
    label = summary.metric_label(row.metric)
    if row.metric == "mask_iou_mean":
        return Card(label, value, f"on {row.n} masks, against FP32's")
    if row.metric in {"agreement", "cosine_mean"} or row.reference is None:
        return Card(label, value, f"on {row.n} images")
    before = summary.format_metric(row, row.reference).removesuffix(" %")
    return Card(
        label,
        f"{before} → {value}",
        f"{summary.format_delta(row)} on {row.n} images",
    )


def _speed_card(item: Headline) -> Card:
    if item.speedup is None:
        return Card("Speed", "not measured", item.speedup_reason)
    detail = "median latency against FP32"
    if item.p50_ms is not None and item.reference_p50_ms is not None:
        before, after = summary.format_ms(item.reference_p50_ms), summary.format_ms(item.p50_ms)
        detail = f"{before} → {after}, median"
    tone = "good" if item.speedup > 1.005 else "bad" if item.speedup < 0.995 else ""
    return Card("Speed", summary.format_speedup(item.speedup), detail, tone)


def _latency_charts(report: Report) -> list[Chart]:
    groups: dict[tuple[str, int], list[LatencyRow]] = {}
    for row in report.latency:
        if row.p50_ms is not None:
            groups.setdefault((row.part, row.batch), []).append(row)
    return [
        Chart(f"{part}, batch {batch}", tuple(_latency_bars(rows)))
        for (part, batch), rows in groups.items()
    ]


def _latency_bars(rows: Iterable[LatencyRow]) -> list[Bar]:
    timed = [(row, row.p50_ms) for row in rows if row.p50_ms is not None]
    limit = _AXIS_END_IN_MEDIANS * max(p50 for _, p50 in timed)
    longest = max(row.p99_ms or row.p90_ms or p50 for row, p50 in timed)
    axis = min(longest, limit) or 1.0
    bars = []
    for row, p50 in timed:
        known = [(name, getattr(row, f"{name}_ms")) for name in ("p50", "p90", "p99")]
        detail = ", ".join(
            f"{name} {summary.format_ms(ms)}" for name, ms in known if ms is not None
        )
        p99 = row.p99_ms or 0.0
        bars.append(
            Bar(
                label=summary.target_label(row.target),
                precision=row.precision.upper(),
                value=summary.format_ms(p50),
                detail=detail,
                solid=_percent(p50, axis),
                band=_percent(row.p90_ms or 0.0, axis),
                tick=_percent(p99, axis) if p99 <= axis else 0.0,
                beyond=f"p99 {summary.format_ms(p99)} ›" if p99 > axis else "",
                is_reference=row.target == REFERENCE,
            )
        )
    return bars


def _size_chart(report: Report) -> Chart:
    axis = max(report.size_bytes.values(), default=0) or 1
    precisions = {item.target: item.precision.upper() for item in summary.headlines(report)}
    names = sorted(report.size_bytes, key=lambda name: name != REFERENCE)
    bars = tuple(
        Bar(
            label=summary.target_label(name),
            precision=precisions.get(name, "FP32" if name == REFERENCE else ""),
            value=summary.format_bytes(report.size_bytes[name]),
            detail=f"{report.size_bytes[name]} bytes",
            solid=_percent(report.size_bytes[name], axis),
            is_reference=name == REFERENCE,
        )
        for name in names
    )
    return Chart("Size on disk", bars)


def _percent(value: float, axis: float) -> float:
    return round(min(100.0, 100.0 * value / axis), 2)
