"""The printed table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpp.text import printable
from mpp.transfer.probes import PROBES

PRETRAINED, RANDOM, PIXELS, MAJORITY = "pretrained", "random init", "raw pixels", "majority class"  # rows
TUNED, SCRATCH = "fine-tuned", "from scratch"
FINETUNED, ALWAYS = "finetune", "always"  # keys of figures that no probe gave
# Column -> (its key in "feature_rank", decimals).
RANKS = {"rank": ("rank", 1), "uncentred": ("rank_uncentred", 1), "cosine": ("mean_cosine", 3), "spread": ("deviation", 3)}


def by_column(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A row's figures as in results.json, by column: those of a probe with several parts as probe/part."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, figure in figures.items():
        if isinstance(figure, Mapping) and "accuracy" in figure:
            found[key] = figure
        elif isinstance(figure, Mapping):
            found |= {f"{key}/{part}": one for part, one in figure.items() if isinstance(one, Mapping) and "accuracy" in one}
    return found


@dataclass
class Column:
    """A probe, measured alike in every row that has a figure here."""

    title: str
    figures: dict[str, Mapping[str, Any]]  # by row

    def said(self, key: str) -> str:
        """What is the same in every row, as it stands in results.json."""
        found = [f"{figure[key]:,}" for figure in self.figures.values() if figure.get(key) is not None]
        return max(dict.fromkeys(found), key=lambda words: (len(words), words)) if found else "-"


def columns_of(rows: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """rows: name -> {key of a probe: its figures, FINETUNED: likewise}; no column that no row has."""
    columns = [Column("fine-tuned", dict(tuned))] if (tuned := figures_of(FINETUNED, rows)) else []
    for probe in PROBES:
        if found := figures_of(probe.key, rows):
            columns += [Column(title, dict(figures)) for title, figures in probe.columns(found).items()]
    return columns


def format_table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[Column] | None = None, classes: Sequence[str] = ()) -> str:
    """A block a metric, all of the same rows and columns: top-1, balanced accuracy, of two classes the area under the ROC curve and average
    precision; then what is known of the features.  What is needed to read a figure stands below its column's title.

    rows: name -> figures as in results.json; the row of ALWAYS fills every column.  columns: those of `rows`, or the caller's own.
    """
    columns = columns_of(rows) if columns is None else columns
    always = {name: row[ALWAYS] for name, row in rows.items() if ALWAYS in row}
    blocks = []
    if columns:
        given = [figure for column in columns for figure in column.figures.values()]
        blocks.append(_block("top-1, %", rows, columns, always, "accuracy", "ci95", marked=True))
        if any("balanced_accuracy" in figure for figure in given):
            images = {n for figure in given if "per_class" in figure for n in figure["per_class"]["images"] if n}
            if len(images) == 1:
                blocks.append(f"balanced accuracy is top-1: each class has {images.pop():,} images")
            else:
                blocks.append(_block("balanced accuracy, %", rows, columns, always, "balanced_accuracy", "balanced_ci95"))
        if any("auroc" in figure for figure in given):
            blocks.append(_block("area under ROC, %", rows, columns, always, "auroc", "auroc_ci95"))
            rarer = _rarer(given)
            picked = lambda figure: (
                figure | {"average_precision": figure["average_precision"][rarer]} if "average_precision" in figure else figure
            )
            name = f"'{classes[rarer]}'" if classes else f"class {rarer}"
            columns = [replace(column, figures={row: picked(figure) for row, figure in column.figures.items()}) for column in columns]
            always = {row: picked(figure) for row, figure in always.items()}
            blocks.append(_block(f"average precision of {name}, %", rows, columns, always, "average_precision", None))
    if ranks := {name: row["feature_rank"] for name, row in rows.items() if "feature_rank" in row}:
        blocks.append(aligned([["features", *RANKS], *([name, *rank_cells(found)] for name, found in ranks.items())]))
    return "\n\n".join(blocks)


def _rarer(figures: Sequence[Mapping[str, Any]]) -> int:
    """Of two classes, the one with fewer images: where a good ranking is harder to have by chance."""
    images = next(figure["per_class"]["images"] for figure in figures if "auroc" in figure)
    return int(images[1] <= images[0])


def _block(
    heading: str,
    rows: Mapping[str, Mapping[str, Any]],
    columns: Sequence[Column],
    always: Mapping[str, Mapping[str, Any]],
    key: str,
    interval: str | None,
    marked: bool = False,
) -> str:
    lines = [[heading, *(column.title for column in columns)]]
    if marked:
        lines += [[name, *(column.said(name) for column in columns)] for name in ("labels", "draws")]
    for name in rows:
        if name in always or any(name in column.figures for column in columns):
            lines.append([name, *(_percent(column.figures.get(name, always.get(name)), key, interval, marked) for column in columns)])
    return aligned(lines)


def rank_cells(found: Mapping[str, float] | float | None) -> list[str]:
    """Of RANKS; found: what monitor/rank.py gives, or a bare number, as older results have it: the uncentred rank alone."""
    known = found if isinstance(found, Mapping) else {} if found is None else {"rank_uncentred": found}
    return [f"{known[key]:.{digits}f}" if key in known else "-" for key, digits in RANKS.values()]


def remarks_on_table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[Column] | None = None) -> list[str]:
    """What the figures leave unsaid: choices at the end of a grid, and what the intervals cover."""
    columns = columns_of(rows) if columns is None else columns
    remarks = []
    for column in columns:
        for name, figure in column.figures.items():
            if figure.get("edge"):
                chosen = ", ".join(
                    f"{key.replace('_', ' ')} {value}" for key, value in figure["chosen"].items() if isinstance(value, int | float)
                )
                remarks.append(
                    f"* {name}, {column.title}: {' and '.join(figure['edge'])} at the end of the grid ({chosen}): a wider one may do better"
                )
    drawn = [column.title for column in columns if any(figure.get("draws", 1) > 1 for figure in column.figures.values())]
    seeds = {name: figure["seeds"] for column in columns for name, figure in column.figures.items() if figure.get("seeds", 1) > 1}
    if columns:
        where = "" if len(drawn) == len(columns) else f"in {', '.join(drawn)} "
        more = [f"{where}also the draws of the labels"] if drawn else []
        more += [f"of {name} also its {count} seeds" for name, count in seeds.items()]
        remarks.append(
            f"± covers {'; '.join(['the test images', *more])}. Nothing else, such as another pretraining; images count as independent"
        )
    return remarks


def figures_of(key: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By row, of those that have any."""
    return {name: row[key] for name, row in rows.items() if key in row}


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _percent(figure: Mapping[str, Any] | None, key: str, interval: str | None, marked: bool) -> str:
    if figure is None or figure.get(key) is None:
        return "-"
    mark = ("*" if figure.get("edge") else " ") if marked else ""
    if interval is None or figure.get(interval) is None:
        return f"{100 * figure[key]:.2f}{mark}"
    low, high = figure[interval]
    return f"{100 * figure[key]:.2f} ±{50 * (high - low):.2f}{mark}"
