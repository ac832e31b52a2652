"""Pictures of probes as PNG bytes: accuracy by layer, along a path of strengths, confusions, and reliability.

Drawn on figures of their own, without pyplot, so that no state is shared with a caller's pictures.
"""

import functools
import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpp.base.text import font_file, printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito: told apart by every kind of eye
MARKS = ("o", "s", "^", "D", "v", "P", "X")
FONT = font_file()
PANELLED = 12  # classes up to which all rows' confusion matrices stand in one picture
LONGEST = 200  # letters of a name or a line of a title
CELL = 0.55  # inches of a cell with its numbers
NUMBERED = 20  # classes up to which every cell of a confusion matrix has its numbers
NAMED = 50  # and up to which every class has its name beside the matrix
DRAWN = 500  # squares a side: a smaller one could not be seen
DOTS_PER_INCH = 120
LISTED = 20  # most frequent confusions listed beside a matrix without numbers


def by_layer(
    curves: Mapping[str, Sequence[tuple[int, float, tuple[float, float]]]],
    title: str,
    names: Sequence[str] = (),
    score: str = "top-1 accuracy",
) -> bytes:
    """Accuracy after each block: for each name (layer, accuracy, interval) as shares of 1; intervals as bands.

    names: of all rows of which these are some, so that a row has the same colour in every picture.  score: what it is, for people.
    """
    figure, axes = _figure(7.5, 4.5)
    band = any(low < high for points in curves.values() for _, _, (low, high) in points)
    for i, (name, points) in enumerate(curves.items()):
        i = list(names).index(name) if names else i
        layers, accuracies, intervals = (list(part) for part in zip(*sorted(points), strict=True))
        low, high = (100 * np.array(part) for part in zip(*intervals, strict=True))
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(layers, 100 * np.array(accuracies), color=colour, marker=mark, markersize=4.5, label=_short(name, 60))
    axes.set(
        xlabel="blocks passed (0: patch embeddings)",
        ylabel=f"{score}, %{' (band: 95 % interval)' if band else ''}",
        title=wrapped(title, 7.5),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes)
    return png(figure)


def along_path(
    curves: Mapping[str, Sequence[tuple[float, float]]], chosen: Mapping[str, float], title: str, label: str, score: str = "top-1 accuracy"
) -> bytes:
    """Hold-out accuracy by a hyper-parameter, on a logarithmic axis: name -> (value, share of 1); a ring marks each name's chosen value."""
    figure, axes = _figure(7.5, 4.5)
    for i, (name, points) in enumerate(curves.items()):
        values, accuracies = zip(*points, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(values, 100 * np.array(accuracies), color=colour, marker=MARKS[i % len(MARKS)], markersize=4.5, label=_short(name, 60))
        if name in chosen:
            best = 100 * accuracies[values.index(chosen[name])]
            axes.plot(
                [chosen[name]], [best], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5
            )
    axes.set_xscale("log")
    axes.set(xlabel=label, ylabel=f"{score} on the hold-out, %", title=wrapped(title, 7.5))
    finish(axes)
    return png(figure)


def reliability(rows: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """Accuracy by confidence, for each name what `metrics.calibration` gives; below, how many images each bin holds."""
    figure = Figure(figsize=(5.5, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot([0, 100], [0, 100], color="0.5", linestyle="--", linewidth=1, label="as sure as right")
    for i, (name, row) in enumerate(rows.items()):
        bins, colour = row["bins"], COLOURS[i % len(COLOURS)]
        filled = [j for j, images in enumerate(bins["images"]) if images]
        sure, right = ([100 * bins[key][j] for j in filled] for key in ("confidence", "accuracy"))
        label = f"{_short(name, 60)}: ECE {100 * row['ece']:.1f} %"
        above.plot(sure, right, color=colour, marker=MARKS[i % len(MARKS)], markersize=4.5, label=label)
        share = 100 * np.array(bins["images"]) / sum(bins["images"])
        below.stairs(share, np.linspace(0, 100, len(share) + 1), color=colour, linewidth=1.5)
    above.set(ylabel="accuracy, %", title=wrapped(title, 5.5), xlim=(0, 100), ylim=(0, 100))
    below.set(xlabel="confidence, %", ylabel="images, %")
    finish(above)
    finish(below, legend=False)
    return png(figure)


def confusions(matrices: Mapping[str, np.ndarray], names: Sequence[str], title: str) -> dict[str, bytes]:
    """By file name: counts int [C, C] of each row of the table as panels of one picture while classes are few, else a picture a row.

    names: of the C classes; title: what all rows answered.
    """
    if len(names) > PANELLED and len(matrices) > 1:
        files = file_names("confusion", list(matrices))
        return {files[row]: confusion(matrix, names, f"{row}, {title}") for row, matrix in matrices.items()}
    if len(matrices) == 1:
        ((row, matrix),) = matrices.items()
        return {"confusion.png": confusion(matrix, names, f"{row}, {title}")}
    across = 2 if len(matrices) == 4 else min(len(matrices), 3)
    down = math.ceil(len(matrices) / across)
    width, height = _numbered_size(names)
    figure = Figure(figsize=(across * width, down * height + 0.4), layout="constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, (row, matrix) in zip(places, matrices.items(), strict=False):
        _numbered(axes, matrix, names, row)
    for axes in places[len(matrices) :]:
        axes.axis("off")
    figure.suptitle(wrapped(title, across * width), fontsize=12)
    return {"confusion.png": png(figure)}


def confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> bytes:
    """Images of each true class (rows) by the class given (columns), from counts int [C, C].

    Up to 20 classes every cell has its share of the true class and its count; beyond, the most frequent confusions are listed beside the matrix.
    """
    if len(names) <= NUMBERED:
        width, height = _numbered_size(names)
        figure, axes = _figure(width, height + 0.2)
        _numbered(axes, matrix, names, title)
        return png(figure)
    counts = matrix.sum(1, keepdims=True)
    share = 100 * matrix / np.maximum(counts, 1)
    classes = len(names)
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(3, 1.7))
    smallest = 100 / max(int(counts.max()), 10) / 4  # one image is not to be the palest colour
    shown = np.ma.masked_less_equal(_brightest(share, DRAWN), 0)
    end = len(shown) * math.ceil(classes / DRAWN) - 0.5
    picture = axes.imshow(shown, cmap="magma_r", norm=LogNorm(smallest, 100), extent=(-0.5, end, end, -0.5), interpolation="nearest")
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, label="% of the true class, logarithmic; white: none")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    beside.axis("off")
    beside.set_title("most frequent confusions: images (share), true → given", fontsize=9.5, loc="left")
    beside.text(0, 0.985, "\n".join(_worst(matrix, share, names)), va="top", fontsize=9, linespacing=1.6, transform=beside.transAxes)
    if classes <= NAMED:
        axes.set_xticks(range(classes), [_short(name, 18) for name in names], rotation=90, fontsize=9)
        axes.set_yticks(range(classes), [_short(name, 18) for name in names], fontsize=9)
    axes.set(xlabel="class given", ylabel="true class")
    figure.suptitle(wrapped(f"{title}\n{_in_all(matrix)}", 14), fontsize=12)
    return png(figure)


def file_names(stem: str, rows: Sequence[str]) -> dict[str, str]:
    """Of a picture for each row: STEM-ROW.png of plain letters, all different, whatever the rows are called."""
    found: dict[str, str] = {}
    for row in rows:
        plain = f"{stem}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', row).strip('-.')[-80:] or 'row'}"
        taken = {file.lower() for file in found.values()}
        again = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        found[row] = next(file for end in again if (file := f"{plain}{end}.png").lower() not in taken)
    return found


def _numbered_size(names: Sequence[str]) -> tuple[float, float]:
    """Inches of a matrix in whose cells numbers fit, with names beside and below it."""
    cells, labels = _cell(names) * len(names), 0.085 * max(min(len(name), 18) for name in names)
    return cells + labels + 1.1, cells + (labels if _turned(names) else 0.2) + 1.1


def _turned(names: Sequence[str]) -> bool:
    """Whether the names below a matrix with numbers must stand upright."""
    return 0.085 * max(len(_short(name, 18)) for name in names) > _cell(names) - 0.1


def _cell(names: Sequence[str]) -> float:
    """Inches of a cell with its numbers: the matrix leaves room for a title."""
    return max(CELL, 2.8 / len(names))


def _numbered(axes: Axes, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
    counts = matrix.sum(1, keepdims=True)
    share, classes = 100 * matrix / np.maximum(counts, 1), len(names)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (true, given), value in np.ndenumerate(share):
        if images := int(matrix[true, given]):
            text = f"{f'{value:.0f}' if value >= 0.5 else '<1'} %\n{images:,}"
            axes.text(given, true, text, ha="center", va="center", fontsize=8, color="white" if value > 55 else "black")
    axes.set_xticks(range(classes), [_short(name, 18) for name in names], rotation=90 if _turned(names) else 0, fontsize=9)
    axes.set_yticks(
        range(classes), [f"{_short(name, 18)} ({n:,})" for name, n in zip(names, counts[:, 0].tolist(), strict=True)], fontsize=9
    )
    axes.set(xlabel="class given", ylabel="true class (images)")
    axes.set_title(wrapped(f"{title}\n{_in_all(matrix)}", _cell(names) * classes + 0.3), fontsize=11)  # it is centred above the cells


def _in_all(matrix: np.ndarray) -> str:
    """Accuracies, in words."""
    present = matrix.sum(1) > 0
    balanced = (matrix.diagonal()[present] / matrix.sum(1)[present]).mean()
    return f"{matrix.trace():,} of {matrix.sum():,} right ({100 * matrix.trace() / matrix.sum():.1f} %), balanced {100 * balanced:.1f} %"


def _brightest(share: np.ndarray, most: int) -> np.ndarray:
    """The maximum of each square of cells, of as few as it takes for at most `most` squares a side: one cell would be less than a dot."""
    step = math.ceil(len(share) / most)
    padded = np.pad(share, (0, -len(share) % step))
    return padded.reshape(len(padded) // step, step, -1, step).max(axis=(1, 3))


def _worst(matrix: np.ndarray, share: np.ndarray, names: Sequence[str]) -> list[str]:
    apart = np.where(np.eye(len(names), dtype=bool), 0, matrix)
    order = np.argsort(-apart, axis=None, kind="stable")[:LISTED]
    pairs = [tuple(map(int, np.unravel_index(place, matrix.shape))) for place in order]
    return [
        f"{apart[true, given]:>4}  ({share[true, given]:.0f} %)  {_short(names[true], 20)} → {_short(names[given], 20)}"
        for true, given in pairs
        if apart[true, given]
    ]


def _short(name: str, longest: int) -> str:
    """One line for matplotlib, both ends of it where it is too long: names often differ in the last letters only."""
    return clipped(name, lambda text: len(text) <= longest).replace("$", r"\$")  # which begins a formula


def wrapped(title: str, width: float) -> str:
    """A title as lines that fit above so many inches; each of its own lines up to LONGEST letters."""
    lines = [clipped(line, lambda text: len(text) <= LONGEST) for line in title.split("\n")]
    return "\n".join(textwrap.fill(line, max(20, int(10 * width))) for line in lines).replace("$", r"\$")


def clipped(name: str, fits: Callable[[str], bool]) -> str:
    """On one line, of letters that can be drawn, with its middle left out as far as it must be to fit."""
    name = "".join(letter if letter in _drawn() else letter.encode("unicode_escape").decode() for letter in printable(name))
    if fits(name):
        return name
    some = (f"{name[: -(-kept // 2)]}…{name[len(name) - kept // 2 :]}" for kept in range(min(len(name), LONGEST), 1, -1))
    return next(filter(fits, some), f"{name[:1]}…")


@functools.cache
def _drawn() -> frozenset[str]:
    """What matplotlib's own font has letters for; all others would look alike, as boxes."""
    from matplotlib.font_manager import get_font

    return frozenset(map(chr, get_font(FONT).get_charmap()))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def finish(axes: Axes, legend: bool = True) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def png(figure: Figure) -> bytes:
    figure.set_dpi(DOTS_PER_INCH)
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    return data.getvalue()
