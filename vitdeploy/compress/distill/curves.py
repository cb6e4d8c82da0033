"""`training.html`: the curves of a training in one file without network or script."""

from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 640, 200
_PLOTS = (
    ("Loss", "loss", "#b4461f"),
    ("Top-1 on training batches, %", "train_top1", "#3465a4"),
    ("Top-1 on evaluation images, %", "eval_top1", "#2e7d32"),
    ("Learning rate", "lr", "#666666"),
    ("Images per second", "images_per_second", "#666666"),
)


def html_from_metrics(title: str, facts: Sequence[tuple[str, str]], rows: Sequence[Any]) -> str:
    """Return a page with the facts of a training and one plot for each figure of its metrics.

    Args:
        title: heading.
        facts: name and value of what is said in words.
        rows: of the metrics, each with its `step`.
    """
    table = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts)
    plots = "".join(_plot(label, key, colour, rows) for label, key, colour in _PLOTS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1><table>{table}</table>{plots}</body></html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}th{text-align:left;padding-right:1.5rem;font-weight:600}"
    "figure{margin:1.5rem 0}svg{width:100%;height:auto;background:#f7f7f7}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}svg{background:#262626}}"
)


def _plot(label: str, key: str, colour: str, rows: Sequence[Any]) -> str:
    """Return one line over the optimiser steps; empty where fewer than two rows have the figure."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if len(points) < 2:
        return ""
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    wide, tall = max(steps[-1] - steps[0], 1), (high - low) or 1.0
    line = " ".join(
        f"{_WIDTH * (step - steps[0]) / wide:.1f},{_HEIGHT * (high - value) / tall:.1f}"
        for step, value in points
    )
    return (
        f"<figure><figcaption>{escape(label)}: {values[0]:.4g} to {values[-1]:.4g} "
        f"(least {low:.4g}, most {high:.4g}; steps {steps[0]} to {steps[-1]})</figcaption>"
        f'<svg viewBox="-4 -4 {_WIDTH + 8} {_HEIGHT + 8}" role="img" aria-label="{escape(label)}">'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/></svg></figure>'
    )
