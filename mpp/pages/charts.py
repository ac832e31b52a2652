"""Curves as SVG for a page: text stays text, and lines take the page's own colours, light or dark.

Drawn by matplotlib on figures of their own, without pyplot.
"""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: told apart by every kind of eye
SHADES = "viridis"  # matplotlib's, for many lines in an order, such as blocks by depth
INK, LINE = "#010203", "#040506"  # stand for the page's own
INCHES = (4.6, 3.0)
MOST_POINTS = 400  # of a line: more could not be seen
MANY = 6  # lines; beyond, they are shaded in their order and the legend names the ends alone
_number = itertools.count()

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    title: str
    lines: Mapping[str, Points]  # by label; an empty one is left out
    y: str = ""  # the axis
    x: str = "samples seen"
    band: tuple[str, Sequence[float], Sequence[float], Sequence[float]] | None = None  # label, x, low, high
    level: tuple[str, float] | None = None  # a horizontal line, such as a baseline
    log: bool = False


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Evenly, with both ends."""
    if len(points) <= most:
        return points
    return [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)]


def draw(chart: Chart) -> Markup:
    lines = {label: thinned(points) for label, points in chart.lines.items() if points}
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5}):
        figure = Figure(INCHES, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        _style(axes, chart)
        if chart.band:
            label, xs, low, high = chart.band
            axes.fill_between(xs, low, high, color=COLOURS[0], alpha=0.18, linewidth=0, label=label)
        shades = matplotlib.colormaps[SHADES]
        for at, (label, points) in enumerate(lines.items()):
            many = len(lines) > MANY
            colour = shades(0.9 * at / (len(lines) - 1)) if many else COLOURS[at % len(COLOURS)]
            named = not many or at in (0, len(lines) - 1)
            xs, ys = zip(*points, strict=True)
            axes.plot(
                xs, ys, color=colour, label=label if named else None, linewidth=1.6, marker="o" if len(points) < 30 else None, markersize=3
            )
        if chart.level:
            axes.axhline(chart.level[1], color=INK, linewidth=1, linestyle="--", label=chart.level[0])
        if len(axes.get_legend_handles_labels()[1]) > 1 or chart.level:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best")
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return Markup(_of_page(out.getvalue(), chart.title))


def _style(axes: Axes, chart: Chart) -> None:
    axes.patch.set_alpha(0)
    axes.set_ylabel(chart.y, color=INK)
    axes.set_xlabel(chart.x, color=INK)
    axes.tick_params(colors=INK, length=3)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    if chart.log:
        axes.set_yscale("log")
    places = {x for points in chart.lines.values() for x, _ in points}
    axes.xaxis.set_major_locator(FixedLocator([*places]) if len(places) == 1 else MaxNLocator(5))
    if chart.x == "samples seen":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _of_page(svg: str, title: str) -> str:
    """Names of its own, the page's colours, a width that fits, and words for those who cannot see it."""
    svg = svg[svg.index("<svg") :]
    own = f"c{next(_number)}-"
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda found: found[0] + own, svg)
    svg = svg.replace(INK, "currentColor").replace(LINE, "var(--rule)")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" {box[0]}>'
    return f"{opening}<title>{Markup.escape(title)}</title>{svg[svg.index('>') + 1 :]}"
