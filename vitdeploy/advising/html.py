"""The advice as one HTML page that opens offline: what to ship, the front as a plot, the table."""

from html import escape

from vitdeploy.advising.schema import Advice, AdviceRow, Objective

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 380, 64, 52
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #1c2733; background: #fff; }
code { display: block; overflow-x: auto; padding: .7rem; background: #eef2f6; border-radius: 6px; }
.scroll { overflow-x: auto; } .scroll svg { min-width: 34rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #d5dbe1; padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child, td:last-child, th:last-child { text-align: left; }
tr.best td { font-weight: 600; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg line { stroke: #9fb3c8; } svg .limit { stroke: #d1495b; stroke-dasharray: 5 4; }
svg .front { fill: none; stroke: #2a6f97; stroke-width: 1.5; }
svg circle { fill: #9fb3c8; } svg circle.on { fill: #2a6f97; } svg circle.best { fill: #2a9d5c; }
@media (prefers-color-scheme: dark) {
  body { color: #dde5ec; background: #15202b; } code { background: #22303d; }
  th, td { border-color: #33424f; }
}
"""


def render(advice: Advice) -> str:
    """Return the page; every name is escaped and nothing is loaded from elsewhere."""
    title = f"{advice.model}: what to ship for {advice.objective}"
    command = f"<code>{escape(advice.command)}</code>" if advice.command else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in advice.notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p><strong>{escape(advice.recommended_reason)}.</strong></p>"
        f"{command}{notes}<h2>Points lost against {escape(advice.objective)}</h2>"
        f'<div class="scroll">{_plot(advice)}</div>'
        f'<h2>All candidates</h2><div class="scroll">{_table(advice)}</div>'
        f"<p>{escape(advice.environment.get('cpu', ''))}, vitdeploy "
        f"{escape(advice.vitdeploy_version)}.</p></body></html>\n"
    )


def columns(objective: Objective) -> tuple[str, ...]:
    """Return the titles of `table_cells`."""
    energy = ("mJ",) if objective == "energy" else ()
    return ("candidate", "kept", "points lost", "p50, ms", "speed-up", "MB", *energy, "remark")


def table_cells(row: AdviceRow, objective: Objective) -> tuple[str, ...]:
    """Return a row as text; what was not measured is a dash."""
    share = row.relative_cost("latency")
    energy = (_number(row.energy_mj, ".3g"),) if objective == "energy" else ()
    return (
        row.name,
        "" if row.kept_precision in (None, row.precision) else str(row.kept_precision),
        _number(row.drop_points, "+.2f"),
        _number(row.latency_ms, ".3g"),
        f"{1 / share:.2f}x" if share else "-",
        _number(row.size_bytes / 1e6 if row.size_bytes is not None else None, ".2f"),
        *energy,
        row.reason or ("known from before" if row.is_from_cache else f"{row.seconds:.0f} s"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _table(advice: Advice) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns(advice.objective))
    body = ""
    for row in advice.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in table_cells(row, advice.objective))
        kind = ' class="best"' if row.name == advice.recommended else ""
        body += f"<tr{kind}>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plot(advice: Advice) -> str:
    """Return cost to the right, points lost upwards; the front as a line, the limit dashed."""
    points = [
        (row, cost, row.drop_points)
        for row in advice.rows
        if (cost := row.relative_cost(advice.objective)) is not None and row.drop_points is not None
    ]
    if not points:
        return "<p>Nothing was measured.</p>"
    limit = advice.max_drop_points
    right = 1.1 * max(1.0, *(cost for _, cost, _ in points))
    # one hopeless candidate must not squeeze all others into a line: those above are at the edge
    top = max(1.5 * limit, 0.1, *(min(lost, 4 * limit) for _, _, lost in points)) * 1.1
    low = min(0.0, *(lost for _, _, lost in points))

    def place(cost: float, lost: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - 16) * cost / right
        share = (min(lost, top) - low) / (top - low)
        return x, 16 + (_HEIGHT - _BOTTOM - 16) * (1 - share)

    front = [place(cost, lost) for row, cost, lost in points if row.name in advice.front]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(front))
    dots = "".join(_dot(row, place(cost, lost), advice) for row, cost, lost in points)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img" '
        f'aria-label="points lost against {escape(advice.objective)}">'
        f"{_axes(place(0, low), place(right, top), advice.objective, (low, top, right))}"
        f"{_limit(place(0, limit)[1], limit)}"
        f'<polyline class="front" points="{path}"/>{dots}</svg>'
    )


def _dot(row: AdviceRow, place: tuple[float, float], advice: Advice) -> str:
    kind = "best" if row.name == advice.recommended else "on" if row.name in advice.front else ""
    x, y = place
    is_right = x > 0.75 * _WIDTH
    anchor, shift = ("end", -8) if is_right else ("start", 8)
    title = " ".join(table_cells(row, advice.objective))
    label = f'<text x="{x + shift:.1f}" y="{y - 6:.1f}" text-anchor="{anchor}">{escape(row.name)}'
    label = f"{label}</text>" if kind else ""
    return (
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(title)}</title>'
        f"</circle>{label}"
    )


def _axes(
    origin: tuple[float, float],
    end: tuple[float, float],
    objective: str,
    scale: tuple[float, float, float],
) -> str:
    """Return both axes with three ticks each; `scale` is points low and top, and cost right."""
    low, top, right = scale
    (x0, y0), (x1, y1) = origin, end
    parts = [
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}"/>',
        f'<line x1="{x0}" y1="{y0}" x2="{x0}" y2="{y1}"/>',
        f'<text x="{x1}" y="{y0 + 40}" text-anchor="end">{escape(objective)}, % of the FP32 '
        "reference's</text>",
        f'<text x="{x0 + 6}" y="{y1 - 2}">points lost</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        cost, lost = 100 * share * right, low + share * (top - low)
        parts.append(f'<text x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">{cost:.0f}</text>')
        parts.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{lost:.2g}</text>')
    return "".join(parts)


def _limit(y: float, limit: float) -> str:
    return (
        f'<line class="limit" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 16}" y2="{y:.1f}"/>'
        f'<text x="{_WIDTH - 20}" y="{y - 4:.1f}" text-anchor="end">{limit:g} allowed</text>'
    )
