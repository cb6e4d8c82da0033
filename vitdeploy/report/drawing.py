"""How a chart becomes text: matplotlib draws, the page's style sheet colours.

What is drawn is `charts`' matter. Text stays text, and colours are the page's own variables, so
that a drawing follows light, dark and print.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_INCHES = 5.2
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--grey)",
    "#050505": "var(--panel)",
    "#0a0101": "var(--series-1)",
    "#0a0202": "var(--series-2)",
    "#0a0303": "var(--series-3)",
    "#0a0404": "var(--series-4)",
}
"""What matplotlib is told, and what the page reads in its place."""
INK, SOFT, LINE, GREY, PANEL, *SERIES = _COLOURS
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.handlelength": 1.0,
    "legend.columnspacing": 1.2,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def svg_text(
    name: str, label: str, draw: Callable[["Axes"], None], height_inches: float = 3.0
) -> str:
    """Return one drawing as an element to stand within HTML; the same data, the same text.

    Args:
        name: unique on the page: in front of all identifiers.
        label: what it shows, for who cannot see it.
        draw: fills the axes.
        height_inches: of the drawing.
    """
    with _quiet_matplotlib():
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
            figure = Figure(figsize=(_WIDTH_INCHES, height_inches))
            draw(figure.add_subplot())
            stream = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    if box is None:
        raise AssertionError("matplotlib wrote an SVG without a viewBox")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = body.replace("xlink:href", "href")
    # The page's own typeface: matplotlib's may not be there.
    body = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", body)
    for told, meant in _COLOURS.items():
        body = body.replace(told, meant)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" {box[0]}>{body.strip()}'


@contextmanager
def _quiet_matplotlib() -> Iterator[None]:
    """Keep its notes on caches and fonts, which no reader of a report needs, from the terminal."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
