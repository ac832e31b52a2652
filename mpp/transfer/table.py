"""The printed table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpp.base.text import printable
from mpp.transfer.probes import PROBES

PRETRAINED, RANDOM, PIXELS, MAJORITY = "pretrained", "random init", "raw pixels", "majority class"  # rows
TUNED, SCRATCH = "fine-tuned", "from scratch"
FINETUNED, ALWAYS = "finetune", "always"  # keys of figures that no probe gave
WIDEST = 150  # letters of a line: what is wider goes on below
# Column -> (its key in "feature_rank", decimals).
RANKS = {"rank": ("rank", 1), "uncentred": ("rank_uncentred", 1), "cosine": ("mean_cosine", 3), "spread": ("deviation", 3)}


def by_column(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A row's figures as in results.json, by column: those of a probe with several parts as probe/part."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, figure in figures.items():
        if _is_figure(figure):
            found[key] = figure
        if isinstance(figure, Mapping):
            found |= {f"{key}/{part}": one for part, one in figure.items() if _is_figure(one)}
    return found


def _is_figure(found: Any) -> bool:
    return isinstance(found, Mapping) and isinstance(found.get("accuracy"), float | int)


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
    return "\n".join(aligned(part) for part in within(lines, WIDEST))


def rank_cells(found: Mapping[str, float] | float | None) -> list[str]:
    """Of RANKS; found: what monitor/rank.py gives, or a bare number, as older results have it: the uncentred rank alone."""
    known = found if isinstance(found, Mapping) else {} if found is None else {"rank_uncentred": found}
    return [f"{known[key]:.{digits}f}" if key in known else "-" for key, digits in RANKS.values()]


def remarks_on_table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[Column] | None = None) -> list[str]:
    """What the figures leave unsaid: choices at the end of a grid, where in the encoder the hold-out chose to look, and what the intervals cover."""
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
    for name in rows:
        placed = {column.title: column.figures[name] for column in columns if "place" in column.figures.get(name, {})}
        if placed:
            places = [f"{title}: {figure['place']}" for title, figure in placed.items()]
            remarks.append(f"place     {name}: {'; '.join(places)}")
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


def within(lines: Sequence[Sequence[str]], widest: int) -> list[list[list[str]]]:
    """The same as several tables below each other, none of which is wider than so many letters; each begins with the first column."""
    widths = [max(len(printable(line[i])) for line in lines) for i in range(len(lines[0]))]
    starts, used = [1], widths[0]
    for i, width in enumerate(widths[1:], 1):
        used += 2 + width
        if used > widest and i > starts[-1]:
            starts.append(i)
            used = widths[0] + 2 + width
    return [[[line[0], *line[start:stop]] for line in lines] for start, stop in zip(starts, [*starts[1:], len(widths)], strict=True)]


def layers_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the probes that chose where to look scored on the hold-out of train, a line a block; empty where none did.  rows: as `format_table`."""
    columns: list[tuple[str, str, str, dict[str, float]]] = []  # row, probe, pooling, and by place the score
    for name, row in rows.items():
        for probe in PROBES:
            found: dict[str, dict[str, float]] = {}
            for one in (row.get(probe.key) or {}).get("by_layer") or []:
                if one["layer"] is None:  # beside the means: it is one, of the predictor's places
                    found.setdefault("mean", {})[one["pooling"]] = one["holdout_score"]
                else:
                    found.setdefault(one["pooling"], {})[str(one["layer"])] = one["holdout_score"]
            found_at = {place for scores in found.values() for place in scores}
            columns += [
                (name, probe.title, "" if part == probe.key else part, scores) for part, scores in found.items() if len(found_at) > 1
            ]
    places = list(dict.fromkeys(place for *_, scores in columns for place in scores))
    if len(places) < 2:
        return ""
    places.sort(key=lambda place: (not place.isdigit(), int(place) if place.isdigit() else 0))
    # What is as in the column before is not said again.
    said = [("", "", ""), *((name, probe, part) for name, probe, part, _ in columns)]
    heads = list(zip(said[1:], said, strict=False))
    lines = [["hold-out, %", *(now[0] if now[0] != before[0] else "" for now, before in heads)]]
    lines.append(["", *(now[1] if now[:2] != before[:2] else "" for now, before in heads)])
    lines.append(["block", *(now[2] for now, _ in heads)])
    lines += [[place, *(f"{100 * scores[place]:.2f}" if place in scores else "-" for *_, scores in columns)] for place in places]
    return "\n".join(aligned(part) for part in within(lines, WIDEST))


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
