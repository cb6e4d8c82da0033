"""A diagnosis as one HTML file: advice first, a bar plot of the worst products, tables."""

from collections.abc import Iterable, Sequence
from html import escape

from vitdeploy.diagnosis.schema import Diagnosis, PartDiagnosis, SiteRow, TimeByLayer

_BARS = 20
_ROW_PX = 22
_LABEL_PX = 320
_BAR_PX = 420
_NOTE_PX = 190
"""Beside a bar: "60.0 dB, 100 % of the error"."""
_BEST_DB = 60.0
"""Where the axis of the bars ends; more is rounding."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #1c2733; background: #fff; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #d5dbe1; padding: 0.2rem 0.7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.made { fill: #d1495b; } .inherited { fill: #9fb3c8; }
.advice li { margin: 0.3rem 0; }
@media (prefers-color-scheme: dark) {
  body { color: #dde5ec; background: #15202b; } th, td { border-color: #33424f; }
}
"""


def render(diagnosis: Diagnosis) -> str:
    """Return the page; every name is escaped and nothing is loaded from elsewhere."""
    title = f"{diagnosis.model}: where INT8 loses accuracy"
    parts = "".join(_part(part) for part in diagnosis.parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{diagnosis.images} images "
        f"({escape(diagnosis.images_from)}), target {escape(diagnosis.target)}, "
        f"vitdeploy {escape(diagnosis.vitdeploy_version)}.</p>{parts}</body></html>\n"
    )


def _part(part: PartDiagnosis) -> str:
    advice = "".join(f"<li>{escape(line)}</li>" for line in part.advice.lines)
    coverage = part.coverage
    return (
        f"<h2>{escape(part.part)}: output SQNR {part.output_db:.1f} dB</h2>"
        f'<ul class="advice">{advice}</ul>'
        f"<h3>Products, worst first</h3>{_plot(part.sites)}"
        f"{_sites(part.sites)}"
        "<h3>Blocks</h3>"
        + _table(
            ["Block", "Made, dB", "Inherited, dB"],
            ([b.name, _number(b.made_db), _number(b.inherited_db)] for b in part.blocks),
        )
        + "<h3>LayerNorm channels, largest over median</h3>"
        + _table(
            ["LayerNorm", "FP32", "After folds"],
            ([n.name, _number(n.before), _number(n.after)] for n in part.norms),
        )
        + f"<h3>In INT8</h3><p>{_number(coverage.weights_percent)} % of the MACs of products with "
        f"weights, {_number(coverage.all_percent)} % of all. In float: "
        f"{escape(', '.join(coverage.kept_float)) or 'none'}.</p>"
        "<h3>Against FP16's largest number, 65504</h3>"
        + _table(
            ["Tensor", "Quantity", "Largest", ""],
            (
                [t.name, t.quantity, f"{t.max_abs:.3g}", "overflows" if t.overflows else "close"]
                for t in part.fp16
            ),
        )
        + "".join(_time(time) for time in part.time)
        + _fusion(part)
    )


def _fusion(part: PartDiagnosis) -> str:
    """Return what builders made of a part, what fell back and why, and what is not known."""
    text = ""
    if part.fusion:
        text += "<h3>What the builder fused</h3>" + _table(
            ["Target", "Builder", "Kernels", "INT8 products", "Fused attention", "In INT8"],
            (
                [
                    row.target,
                    f"{row.builder} (forecast)" if row.is_forecast else row.builder,
                    str(row.kernels),
                    _of_all(row.int8_products, row.products),
                    _of_all(row.fused_attention, row.attention),
                    str(row.int8_attention),
                ]
                for row in part.fusion
            ),
        )
    fallen = [[item.name, item.reason] for row in part.fusion for item in row.fallbacks]
    if fallen:
        text += "<h3>Fell back</h3>" + _table(["Layer", "Why"], fallen)
    if part.half_db is not None:
        text += (
            f"<p>With its FP16 layers the artefact's output SQNR is {part.half_db:.1f} dB; the "
            "tables are of INT8 alone.</p>"
        )
    return text + "".join(f"<p>{escape(note)}</p>" for note in part.notes)


def _time(time: TimeByLayer) -> str:
    return (
        f"<h3>Time on {escape(time.target)}, by its counters</h3>"
        f"<p>{time.total_ms:.2f} ms; {_number(time.float_products_percent)} % in products of "
        "matrices in float, which is what more INT8 could at most take; "
        f"{_number(time.int8_products_percent)} % in INT8 products.</p>"
        + _table(
            ["Layer", "Kind", "ms", "%"],
            ([x.name, x.kind, f"{x.milliseconds:.3f}", _number(x.percent)] for x in time.layers),
        )
    )


def _plot(sites: Sequence[SiteRow]) -> str:
    """Return two bars a product, the shorter the worse: SQNR it makes, and in the INT8 model."""
    shown = [row for row in sites if row.is_int8][:_BARS]
    height = _ROW_PX * len(shown) + 24
    width = _LABEL_PX + _BAR_PX + _NOTE_PX
    bars = "".join(_bars(row, number) for number, row in enumerate(shown))
    legend = (
        f'<text x="{_LABEL_PX}" y="{height - 6}">red: made here; grey: in the INT8 model; '
        f"dB, axis ends at {_BEST_DB:.0f}</text>"
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" '
        f'aria-label="SQNR of the worst products">{bars}{legend}</svg>'
    )


def _bars(row: SiteRow, number: int) -> str:
    top = _ROW_PX * number
    label = row.name if len(row.name) <= 46 else "…" + row.name[-45:]
    made = row.made_db if row.made_db is not None else 0.0
    share = row.output_share_percent
    note = f"{made:.1f} dB" + ("" if share is None else f", {share:.0f} % of the error")
    return (
        f'<text x="{_LABEL_PX - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>'
        f'<rect class="made" x="{_LABEL_PX}" y="{top + 4}" width="{_length(made)}" height="7"/>'
        f'<rect class="inherited" x="{_LABEL_PX}" y="{top + 11}" '
        f'width="{_length(row.inherited_db)}" height="5"/>'
        f'<text x="{_LABEL_PX + max(_length(made), _length(row.inherited_db)) + 6}" '
        f'y="{top + 14}">{escape(note)}</text>'
    )


def _length(decibels: float) -> int:
    return round(_BAR_PX * min(max(decibels, 0.0), _BEST_DB) / _BEST_DB)


def _sites(sites: Sequence[SiteRow]) -> str:
    return _table(
        ["Product", "In", "Made, dB", "Inherited, dB", "Clipped, %", "Of output error, %"],
        (
            [
                row.name,
                "INT8" if row.is_int8 else "float",
                _number(row.made_db),
                _number(row.inherited_db),
                _number(row.clipped_percent),
                _number(row.output_share_percent),
            ]
            for row in sites
        ),
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    if not body:
        return "<p>none</p>"
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _of_all(count: int, total: int | None) -> str:
    return str(count) if total is None else f"{count} of {total}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
