"""The charts of `report.html`: what they show, and how to read them.

`drawing` makes them text. No chart holds a figure that the JSON does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.report import summary
from vitdeploy.report.drawing import GREY, LINE, PANEL, SERIES, SOFT, svg_text
from vitdeploy.report.schema import LatencyRow, Report
from vitdeploy.report.summary import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = tuple(range(0, 101, 5))
"""Of what `quantiles_ms` holds."""
_MOST_ROWS = 24
"""Bars of one chart; the largest are shown."""


@dataclass(frozen=True)
class Drawing:
    """One chart of the page."""

    title: str
    caption: str
    """How to read it."""
    svg: str


def drawings(report: Report) -> dict[str, list[Drawing]]:
    """Return the charts there is data for: by section of the page."""
    return {
        "latency": _latency(report),
        "pareto": _pareto(report),
        "sensitivity": _sensitivity(report),
        "outliers": _outliers(report),
        "roofline": _roofline(report),
    }


def _latency(report: Report) -> list[Drawing]:
    """Return for each part and batch how its latencies are distributed."""
    groups: dict[tuple[str, int], list[LatencyRow]] = {}
    for row in report.latency:
        if len(row.quantiles_ms) == len(QUANTILES):
            groups.setdefault((row.part, row.batch), []).append(row)
    found: list[Drawing] = []
    for (part, batch), rows in groups.items():
        # A rare outlier must not squeeze the curves: the axis ends beyond the slowest p90.
        end = max(row.quantiles_ms[18] for row in rows) * 1.15
        start = min(row.quantiles_ms[0] for row in rows) * 0.9

        def draw(axes: "Axes", rows: Sequence[LatencyRow] = rows, span: Any = (start, end)) -> None:
            for colour, row in _coloured(rows):
                label = summary.target_label(row.target)
                axes.plot(row.quantiles_ms, QUANTILES, color=colour, linewidth=2, label=label)
                axes.plot(row.quantiles_ms[10], 50, "o", color=colour, markersize=5)
            axes.set_xlim(*span)
            axes.set_ylim(0, 100)
            axes.set_yticks([0, 25, 50, 75, 90, 100])
            axes.set_xlabel("milliseconds")
            axes.set_ylabel("% of runs this fast")
            _legend_above(axes)

        title = f"Distribution of {part}, batch {batch}"
        caption = "Upright curves are steady; the dot is the median. Further left is faster."
        found.append(Drawing(title, caption, svg_text(f"latency-{len(found)}", title, draw)))
    return found


def _pareto(report: Report) -> list[Drawing]:
    """Return fidelity over latency, where both are known of something beside the reference."""
    points = []
    heads = summary.headlines(report)
    rows = [item.fidelity for item in heads if item.fidelity is not None]
    for item in heads:
        latency = _total_ms(report, item.target)
        row = item.fidelity
        same = row is not None and row.metric == rows[0].metric
        if same and row is not None and row.value is not None and latency is not None:
            label = f"{summary.target_label(item.target)}, {item.precision.upper()}"
            points.append((latency, row.value, label))
    reference_ms = _total_ms(report, REFERENCE)
    if not points or reference_ms is None or rows[0].reference is None:
        return []
    points.insert(0, (reference_ms, rows[0].reference, "FP32 reference"))
    front = [p for p in points if not any(_dominates(q, p) for q in points)]
    label = summary.metric_label(rows[0].metric)
    # Differences below a quarter of a point, or of 0.001, are not blown up to the whole height.
    least = 0.25 if rows[0].unit == "percent" else 0.001

    def draw(axes: "Axes") -> None:
        line = sorted(front)
        axes.plot([p[0] for p in line], [p[1] for p in line], color=LINE, linewidth=2, zorder=1)
        values = [p[1] for p in points]
        middle = (min(p[0] for p in points) + max(p[0] for p in points)) / 2
        for number, (milliseconds, value, name) in enumerate(points):
            colour = GREY if number == 0 else SERIES[(number - 1) % len(SERIES)]
            fill = colour if (milliseconds, value, name) in front else PANEL
            axes.plot(
                milliseconds, value, "o", markersize=9, color=colour, markerfacecolor=fill, zorder=3
            )
            right = milliseconds > middle
            axes.annotate(
                name,
                (milliseconds, value),
                xytext=(-9 if right else 9, 8 if number % 2 == 0 else -16),
                textcoords="offset points",
                ha="right" if right else "left",
            )
        spread = max(max(values) - min(values), least)
        axes.set_ylim(min(values) - 0.35 * spread, max(values) + 0.35 * spread)
        axes.margins(x=0.18)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_xlabel("median latency, milliseconds")
        axes.set_ylabel(label)

    caption = "Up is closer to the truth, left is faster. Hollow: another one is better in both."
    return [Drawing(f"{label} against latency", caption, svg_text("pareto", label, draw))]


def _dominates(one: tuple[float, float, str], other: tuple[float, float, str]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one[:2] != other[:2]


def _total_ms(report: Report, target: str) -> float | None:
    """Return the sum of a target's medians over its parts at its first batch."""
    first: dict[str, float | None] = {}
    for row in report.latency:
        if row.target == target:
            first.setdefault(row.part, row.p50_ms)
    times = list(first.values())
    known = [ms for ms in times if ms is not None]
    return sum(known) if known and len(known) == len(times) else None


def _sensitivity(report: Report) -> list[Drawing]:
    """Return for each part the share of INT8's error by block, side by side for the targets."""
    found: list[Drawing] = []
    for part in dict.fromkeys(row.part for row in report.sensitivity):
        rows = [row for row in report.sensitivity if row.part == part]
        totals: dict[str, float] = {}
        for row in rows:
            totals[row.target] = totals.get(row.target, 0.0) + row.noise
        blocks = list(dict.fromkeys(row.block for row in rows))
        shares = {
            (row.target, row.block): 100.0 * row.noise / (totals[row.target] or 1.0) for row in rows
        }
        largest = {b: max(shares.get((t, b), 0.0) for t in totals) for b in blocks}
        kept = set(sorted(blocks, key=lambda block: -largest[block])[:_MOST_ROWS])
        shown = [block for block in blocks if block in kept]

        def draw(
            axes: "Axes",
            shown: Sequence[str] = shown,
            shares: Mapping[tuple[str, str], float] = shares,
            targets: Sequence[str] = tuple(totals),
        ) -> None:
            height = 0.76 / len(targets)
            for number, target in enumerate(targets):
                places = [row + (number - (len(targets) - 1) / 2) * height for row in _rows(shown)]
                axes.barh(
                    places,
                    [shares.get((target, block), 0.0) for block in shown],
                    height=height * 0.9,
                    color=SERIES[number % len(SERIES)],
                    label=summary.target_label(target),
                )
            _name_rows(axes, shown)
            axes.set_xlabel("% of the error that INT8 makes")
            if len(targets) > 1:
                _legend_above(axes)

        name = f"sensitivity-{len(found)}"
        caption = (
            "Each product alone in INT8, summed by block; a long bar is what to keep in float."
        )
        inches = 0.9 + max(0.24, 0.16 * len(totals)) * len(shown)
        found.append(
            Drawing(
                f"Sensitivity by block, {part}",
                caption,
                svg_text(name, f"INT8 error by block of {part}", draw, inches),
            )
        )
    return found


def _outliers(report: Report) -> list[Drawing]:
    """Return for each target and part how the folds evened out its LayerNorms' channels."""
    from matplotlib.ticker import LogLocator

    found: list[Drawing] = []
    for place in dict.fromkeys((row.target, row.part) for row in report.outliers):
        rows = [row for row in report.outliers if (row.target, row.part) == place]
        kept = sorted(rows, key=lambda row: -row.before)[:_MOST_ROWS]
        shown = [row for row in rows if row in kept]

        def draw(axes: "Axes", shown: Sequence[Any] = shown) -> None:
            for height, row in zip(_rows(shown), shown, strict=True):
                if row.after is not None:
                    axes.plot(
                        [row.before, row.after], [height] * 2, color=LINE, linewidth=3, zorder=1
                    )
            before = [row.before for row in shown]
            axes.plot(before, _rows(shown), "o", color=GREY, markersize=6, label="before folding")
            after = [(row.after, h) for row, h in zip(shown, _rows(shown), strict=True)]
            known = [(value, height) for value, height in after if value is not None]
            axes.plot(
                [value for value, _ in known],
                [height for _, height in known],
                "o",
                color=SERIES[0],
                markersize=6,
                label="after",
            )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(lambda *_: "")
            _name_rows(axes, [row.norm for row in shown])
            axes.set_xlabel("largest channel over the median one")
            _legend_above(axes)

        place_name = f"{summary.target_label(place[0])}, {place[1]}"
        title = f"Outliers before and after folding, {place_name}"
        caption = "One LayerNorm a row; further left, INT8 loses less."
        inches = 1.2 + 0.24 * len(shown)
        name = f"outliers-{len(found)}"
        found.append(Drawing(title, caption, svg_text(name, title, draw, inches)))
    return found


def _roofline(report: Report) -> list[Drawing]:
    """Return artefacts and layers under the machine's ceilings, both axes logarithmic."""
    measured = report.profile.roofline if report.profile else None
    if measured is None or not measured.artefacts:
        return []
    ceilings = {name: tops for name, tops in measured.ceilings.tops.items() if tops}
    bandwidth = measured.ceilings.bandwidth_gbs / 1000.0  # TB/s, so that x times it is TOPS
    points = [
        (2 * sum(a.macs.values()) / a.bytes, 2e-9 * sum(a.macs.values()) / a.p50_ms, a)
        for a in measured.artefacts
        if a.bytes and a.p50_ms and sum(a.macs.values())
    ]

    if not points or not ceilings:
        return []

    def draw(axes: "Axes") -> None:
        end = 3 * max([x for x, _, _ in points] + [tops / bandwidth for tops in ceilings.values()])
        start = (
            min([x for x, _, _ in points] + [tops / bandwidth for tops in ceilings.values()]) / 8
        )
        for tops in ceilings.values():
            axes.plot([start, tops / bandwidth, end], [start * bandwidth, tops, tops], color=GREY)
        for names, tops in _ceiling_names(ceilings):
            axes.annotate(
                f"{names} {tops:.2g} TOPS",
                (end, tops),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right",
                color=SOFT,
            )
        axes.set_ylim(top=3 * max(ceilings.values()))
        for number, (x, y, item) in enumerate(points):
            colour = SERIES[number % len(SERIES)]
            label = f"{item.name}, {item.part}: {item.utilisation_percent:.0f} %"
            axes.plot(x, y, "o", markersize=8, color=colour, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(start, end)
        axes.set_xlabel("operations a byte")
        axes.set_ylabel("10¹² operations a second")
        _legend_above(axes)

    caption = "The lines are what this machine reaches at best; a dot on a line wastes nothing."
    return [Drawing("Roofline", caption, svg_text("roofline", "Roofline", draw, 3.6))]


def _ceiling_names(ceilings: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return ceilings from the lowest; those too close to be told apart share a line's name."""
    found: list[tuple[str, float]] = []
    for name, tops in sorted(ceilings.items(), key=lambda item: item[1]):
        if found and tops < 1.5 * found[-1][1]:
            found[-1] = (f"{found[-1][0]}, {name.upper()}", tops)
        else:
            found.append((name.upper(), tops))
    return found


def _legend_above(axes: "Axes") -> None:
    """Name the series above the axes, where no curve is."""
    longest = max(len(str(text)) for text in axes.get_legend_handles_labels()[1])
    columns = 3 if longest < 16 else 2 if longest < 24 else 1
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderpad=0, borderaxespad=0.3
    )


def _rows(shown: Sequence[Any]) -> list[float]:
    """Return the heights of rows, the first on top."""
    return [float(len(shown) - 1 - number) for number in range(len(shown))]


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    names = [name.removesuffix("/LayerNormalization") for name in names]
    short = [name if len(name) <= 24 else "…" + name[-23:] for name in names]
    axes.set_yticks(_rows(names), short)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")


def _coloured(rows: Sequence[LatencyRow]) -> list[tuple[str, LatencyRow]]:
    """Return the reference in grey, the others in the series' colours."""
    others = [row for row in rows if row.target != REFERENCE]
    colours = {id(row): SERIES[n % len(SERIES)] for n, row in enumerate(others)}
    return [(colours.get(id(row), GREY), row) for row in rows]
