"""The printed table, and the log of every read of a test split."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpp.errors import DataError
from mpp.text import printable
from mpp.transfer.probes import PROBES

TEST_READS = "test_reads.jsonl"
PRETRAINED, RANDOM, PIXELS = "pretrained", "random init", "raw pixels"  # rows
FINETUNED = "finetune"  # the key of figures that no probe gave
# Column -> (its key in "feature_rank", decimals).
RANKS = {"rank": ("rank", 1), "uncentred": ("rank_uncentred", 1), "cosine": ("mean_cosine", 3), "spread": ("deviation", 3)}


def log_test_read(folder: Path, *, command: Sequence[str], encoder: str, test: str, test_identity: str) -> int:
    """Append one line, flushed to the disk, before the test split is read; returns how often this folder has read that split, now included.

    Raises DataError for a log that is not the one this function writes.
    """
    path = folder / TEST_READS
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(command),
        "encoder": encoder,
        "test": test,
        "test_identity": test_identity,
    }
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        identities = [json.loads(line)["test_identity"] for line in path.read_text().splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); put it right by hand: it is the record of every read of the test split") from error
    return identities.count(test_identity)


def format_table(rows: Mapping[str, Mapping[str, Any]], heading: str = "features") -> str:
    """One line a row, aligned: accuracies in percent with their 95 % half-widths, feature rank; no column that no row has.

    rows: name -> {key of a probe: its figures, as `report` gives them, FINETUNED: likewise, "feature_rank": what
    monitor/rank.py gives}; absent ones show as "-".
    """
    columns: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    if tuned := figures_of(FINETUNED, rows):
        columns["fine-tuned"] = tuned
    for probe in PROBES:
        if found := figures_of(probe.key, rows):
            columns |= probe.columns(found)
    ranked = any("feature_rank" in row for row in rows.values())
    lines = [[heading, *columns, *(RANKS if ranked else ())]]
    for name, row in rows.items():
        ranks = rank_cells(row.get("feature_rank")) if ranked else []
        lines.append([name, *(percent(column.get(name)) for column in columns.values()), *ranks])
    return aligned(lines)


def rank_cells(found: Mapping[str, float] | float | None) -> list[str]:
    """Of RANKS; found: what monitor/rank.py gives, or a bare number, as older results have it: the uncentred rank alone."""
    known = found if isinstance(found, Mapping) else {} if found is None else {"rank_uncentred": found}
    return [f"{known[key]:.{digits}f}" if key in known else "-" for key, digits in RANKS.values()]


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
