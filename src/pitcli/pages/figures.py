"""Draw figures as inline SVG by matplotlib, in colors for both light and dark pages."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8a8a8a"
COLORS = ("#3b82c4", "#d9772b", "#2f9e6e", "#9065c9", "#d1495b", "#8c7a4f", "#1f9aa8", "#c264a4")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_GLYPHS = "●■▲◆▼✚✖★"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, in the font and color of the page
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
}


class LegendEntry(NamedTuple):
    """One entry of a legend, which is HTML next to the SVG so that long names wrap."""

    color: str
    glyph: str
    label: str


class Plot(NamedTuple):
    svg: Markup
    caption: str
    legend: list[LegendEntry]


@contextmanager
def plotting() -> Iterator[None]:
    """Use pit's style instead of the user's matplotlibrc, without warnings about glyphs that only the browser has."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def style_of(number: int) -> tuple[str, str, str]:
    """A series' color, marker and the marker's character; the first 64 are distinct."""
    shape = (number + number // len(COLORS)) % len(_MARKERS)
    return COLORS[number % len(COLORS)], _MARKERS[shape], _GLYPHS[shape]


def legend_entry(number: int, label: str) -> LegendEntry:
    return LegendEntry(*style_of(number)[::2], label)


def blank_axes(width: int, height: int, left: int = 62, bottom: int = 48, top: int = 12) -> tuple["Figure", "Axes"]:
    """Make a figure of this size in CSS pixels with one plot. Margins are fixed: measuring labels would need fonts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    box = (left / width, bottom / height, (width - left - 14) / width, (height - bottom - top) / height)
    return figure, figure.add_axes(box)


def svg_of(figure: "Figure", title: str) -> Markup:
    import matplotlib

    file = io.StringIO()
    # A salt per figure: figures share a page, so the ids of their clip paths must differ.
    matplotlib.rcParams["svg.hashsalt"] = title
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    _, _, drawn = file.getvalue().partition("<defs>")
    drawn = re.sub(r'<g id="[\w.]+_\d+">', "<g>", drawn)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg role="img" aria-label="{escape(title)}" {size}><defs>{drawn}')
