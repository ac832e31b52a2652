"""The printed table."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpp.text import printable
from mpp.transfer.probes import PROBES

PRETRAINED, RANDOM, PIXELS = "pretrained", "random init", "raw pixels"  # rows
FINETUNED = "finetune"  # the key of figures that no probe gave


def format_table(rows: Mapping[str, Mapping[str, Any]], heading: str = "features") -> str:
    """One line a row, aligned: accuracies in percent with their 95 % half-widths, feature rank; no column that no row has.

    rows: name -> {key of a probe: its figures, as `report` gives them, FINETUNED: likewise, "feature_rank": number}; absent ones show as "-".
    """
    columns: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    if tuned := figures_of(FINETUNED, rows):
        columns["fine-tuned"] = tuned
    for probe in PROBES:
        if found := figures_of(probe.key, rows):
            columns |= probe.columns(found)
    ranked = any("feature_rank" in row for row in rows.values())
    lines = [[heading, *columns, *(["rank"] if ranked else [])]]
    for name, row in rows.items():
        rank = [f"{row['feature_rank']:.1f}" if "feature_rank" in row else "-"] if ranked else []
        lines.append([name, *(percent(column.get(name)) for column in columns.values()), *rank])
    return aligned(lines)


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


def percent(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    if figure["ci95"] is None:
        return f"{100 * figure['accuracy']:.2f}"
    low, high = figure["ci95"]
    return f"{100 * figure['accuracy']:.2f} ±{50 * (high - low):.2f}"
