"""A few lines of Markdown for a pipeline's own page: verdict, key figures, gates, what changed.

`model_card.md`, which ships, is `markdown`'s. Written to be appended to `$GITHUB_STEP_SUMMARY`.
"""

from collections.abc import Sequence

from vitdeploy.report import summary
from vitdeploy.report.diff import Change
from vitdeploy.report.markdown import escaped, table_text
from vitdeploy.report.regression import Regression
from vitdeploy.report.schema import Report
from vitdeploy.report.tables import Cell, Table, gates_table
from vitdeploy.report.verdict import verdict

_SIGNS = {True: "✅", False: "❌", None: "⚪"}


def render(report: Report) -> str:
    """Return verdict, key figures and gates of a run."""
    found = verdict(report)
    title = f"## {_SIGNS[found.ships]} {found.title}: {escaped(report.model.name)}, "
    blocks = [
        title + escaped(report.precision.requested),
        escaped(found.summary),
        "\n".join(f"- {escaped(reason)}" for reason in found.reasons),
        " ".join(f"`{stamp}`" for stamp in report.stamps),
        table_text(_figures(report)),
        table_text(gates_table(report)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def render_diff(
    reports: tuple[Report, Report], changes: Sequence[Change], found: Sequence[Regression]
) -> str:
    """Return what changed between two reports, and what of it got worse than allowed.

    Args:
        reports: before, after.
        changes: of `diff`.
        found: of `regressions`.
    """
    before, after = reports
    verdict_line = (
        f"## ❌ {len(found)} figure(s) got worse"
        if found
        else "## ✅ Nothing got worse than allowed"
    )
    names = dict.fromkeys(escaped(report.model.name) for report in (before, after))
    rows = tuple(
        (
            Cell(change.key, tone="code"),
            Cell(number_text(change.before)),
            Cell(number_text(change.after)),
            Cell(change.unit),
            Cell(next((one.reason for one in found if one.change == change), "")),
        )
        for change in changes
    )
    columns = ("Figure", "#Before", "#After", "Unit", "Worse than allowed")
    changed = table_text(Table("Changes", columns, rows)) or "The figures are the same."
    blocks = [verdict_line + ": " + " → ".join(names), changed]
    return "\n\n".join(blocks) + "\n"


def number_text(value: float | None) -> str:
    """Return a figure of unknown kind with four digits; a dash for none."""
    return "\N{EM DASH}" if value is None else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _figures(report: Report) -> Table:
    rows = []
    for item in summary.headlines(report):
        row = item.fidelity
        known = row is not None and row.value is not None
        fidelity = summary.format_metric(row, row.value) if row and row.value is not None else "–"
        times = [item.reference_p50_ms, item.p50_ms]
        shown = ["–" if ms is None else summary.format_ms(ms) for ms in times]
        rows.append(
            (
                Cell(summary.target_label(item.target), item.precision.upper()),
                Cell(fidelity, summary.metric_label(row.metric) if row and known else ""),
                Cell(" → ".join(shown)),
                Cell("–" if item.speedup is None else summary.format_speedup(item.speedup)),
                Cell("–" if item.size_bytes is None else summary.format_bytes(item.size_bytes)),
            )
        )
    columns = ("Target", "#Fidelity", "#Latency, FP32 → here", "#Speed", "#Size")
    return Table("Key figures", columns, tuple(rows))
