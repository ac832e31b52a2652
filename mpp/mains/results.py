"""What mpp/results.py does: one table over every results.json in and below the folders given, a verdict, and paired differences.

Which figures may stand in one column, and which rows are one, mpp/transfer/common_table.py says.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpp.base import text
from mpp.base.errors import DataError
from mpp.base.progress import Progress, tracked
from mpp.disk.files import write_atomically
from mpp.monitor import rank
from mpp.transfer.common_table import BASELINES, CommonTable, Line, put_together, run_name
from mpp.transfer.ledger import ledger_path, reads_of
from mpp.transfer.metrics import difference
from mpp.transfer.results import Result, find_results
from mpp.transfer.table import ALWAYS, MAJORITY, PRETRAINED, RANDOM, TUNED, aligned, by_column, format_table, remarks_on_table
from mpp.transfer.verdict import ORDER, judge


def tabulate(folders: Sequence[str], compare: str | None, json_file: str | None) -> int:
    """compare: a probe by which the rows are compared in pairs.  json_file: where the same is written.  Raises DataError."""
    with Progress("reading results", at_once=True):
        results = find_results(folders)
    if compare:
        refuse_unknown(compare, results)
    written = []
    joined = tables_of(results, folders)
    for table in tracked(joined, "comparing", len(joined), "tables", at_once=True):
        lines, columns, title = table.lines, list(table.columns.values()), in_words(table.results[0])
        text.say(f"{title}{reads_in_words(table.results)}")
        rows = {line.name: ({} if line.feature_rank is None else {"feature_rank": line.feature_rank}) | line.always for line in lines}
        text.say_lines(format_table(rows, columns, table.results[0].about.get("classes") or []))
        text.say()
        for remark in [*table.apart, *remarks_on_table(rows, columns)]:
            text.say(remark)
        for problem in [result.problem for result in table.results if columns and result.problem]:
            text.say(f"note      no verdict and no difference without its answers: {problem}")
        made: dict[str, Any] = {
            "on": title,
            "rows": {line.name: {column: cell.figure for column, cell in line.cells.items()} | rows[line.name] for line in lines},
            "apart": table.apart,
            "folders": [str(result.folder) for result in table.results],
            "verdict": verdicts(lines),
        }
        for found in made["verdict"]:
            text.say(f"verdict   {found['of']}: {found['words']}")
        for line in [*overlaps(table.results, folders), *rank.notes(rows)]:
            text.say(line)
        if compare:
            made["differences"] = differences(lines, compare)
            text.say()
            for part in by_first(made["differences"]) or [[]]:
                text.say_lines(said(part, compare, lines))
        written.append(made)
        text.say()
    if json_file:
        write_atomically(Path(json_file), (json.dumps(written, indent=1) + "\n").encode())
    return 0


def tables_of(results: Sequence[Result], folders: Sequence[str]) -> list[CommonTable]:
    """A table, or several, for each set of images that was measured on."""
    tables: dict[tuple, list[Result]] = defaultdict(list)
    contents = contents_of(results)
    for result in results:
        tables[measured_on(result, contents)].append(result)
    return [joined for members in tables.values() for joined in put_together(members, folders)]


def refuse_unknown(probe: str, results: Iterable[Result]) -> None:
    """Before anything is said.  Raises DataError for a probe that no row has."""
    have = {column for result in results for row in result.about["rows"].values() for column in by_column(row)} - {ALWAYS}
    if not any(_is_of(column, probe) for column in have):
        raise DataError(f"--compare {probe}: none of these rows has it; they have {', '.join(sorted(have)) or 'no probe'}")


def _is_of(column: str, probe: str) -> bool:
    column = column.partition(" ")[0]
    return probe in (column, column.partition("/")[0])


def contents_of(results: Sequence[Result]) -> dict[str, str]:
    """By identity of a set, what its images are: older results do not know that."""
    sets = [data for result in results for data in result.about["data"].values() if data]
    return {data["identity"]: data["content"] for data in sets if data.get("content")}


def measured_on(result: Result, contents: Mapping[str, str]) -> tuple:
    """What results agree in that were measured on the same images, wherever those lie now and however they are sharded; contents: by identity."""
    about = result.about
    side = "test" if about.get("reported_on") == "test" else "train"
    data = about["data"][side]
    images = contents.get(data["identity"], data["identity"])
    if about.get("reported_on") is None:
        return images, "rank", about["train_images"], about["seed"]
    if side == "train":
        return images, about["reported_images"], about["kind"], about["seed"], about["holdout_fraction"], about["train_images"]
    some = about["reported_images"] != data.get("images", about["reported_images"])
    return images, about["reported_images"], *((about["seed"],) if some else ())  # other seeds draw other images


def in_words(result: Result) -> str:
    about = result.about
    if about.get("reported_on") is None:
        return f"{about['data']['train']['path']}, {about['train_images']} images, feature rank alone"
    if about["reported_on"] == "test":
        return f"{about['data']['test']['path']}, {about['reported_images']} images"
    return f"a hold-out of {about['data']['train']['path']}, {about['reported_images']} images"


def reads_in_words(results: Sequence[Result]) -> str:
    """Over all folders given and the ledger: each of them knows of the others alone."""
    about = results[0].about
    if about.get("reported_on") != "test":
        return ""
    data, ledgers = about["data"]["test"], {str(ledger_path((result.about.get("config") or {}).get("ledger"))) for result in results}
    times, folders = reads_of([*(result.folder for result in results), *map(Path, ledgers)], data.get("content") or "", data["identity"])
    return f"; these test images have been read {text.counted(times, 'time')}, for {text.counted(folders, 'folder')}"


def overlaps(results: Sequence[Result], folders: Sequence[str]) -> list[str]:
    """Of each run, how many images train or the encoder had seen before, and what is not known."""
    known = {run_name(result.folder, folders): (result.about.get("overlap") or {}).get("words") for result in results}
    said: dict[str, list[str]] = defaultdict(list)
    for run, words in known.items():
        if words:
            said[words.removeprefix("overlap").strip()].append(run)
    return [f"overlap   {', '.join(runs)}: {words}" for words, runs in said.items()]


def verdicts(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Of each encoder, or of several seeds of it together, beside each baseline that was measured alike: random initialisation of its own
    architecture, training from scratch, raw pixels, the largest class."""
    ours = [line for line in lines if line.counts and line.kind in (PRETRAINED, TUNED)]
    baselines = [line for kind in ORDER for line in lines if line.counts and line.kind == kind]
    pairs = [(line, other) for line in ours for other in baselines if other.kind != RANDOM or line.parameters == other.parameters]
    return [found for line, other in pairs if (found := judged(line, other))]


def judged(line: Line, other: Line) -> dict[str, Any] | None:
    """None where nothing was measured alike."""
    shared = [column for column in line.cells if column in other.cells or other.kind == MAJORITY]
    if not shared or any(cell.result.problem for each in (line, other) for cell in each.cells.values()):
        return None
    cell = line.cells[shared[0]]
    about, config = cell.result.about, cell.result.about.get("config") or {}
    one_draw, all_labels = "", (about["data"].get("train") or {}).get("images") or math.inf
    if about.get("kind") == "finetune":
        one_draw = "one training each, of one seed and one draw of the labels: another may say the contrary (repeats=5)"
    elif (config.get("train_samples") or math.inf) < all_labels and about.get("repeats", 1) == 1:
        one_draw = f"one draw of {cell.figure.get('labels')} labels: another may say the contrary (repeats=5)"
    only = None if other.kind == MAJORITY else shared
    fresh = cell.fresh & next(iter(other.cells.values())).fresh
    if not fresh.any():
        return None
    return judge(line.judged(fresh, shared), other.judged(fresh, only), cell.truth[fresh], line.metric, one_draw, same_draws(line, other))


def same_draws(line: Line, other: Line) -> bool:
    """Whether draw t of both had the same labels."""
    drawn = [
        (about.get("seed"), about.get("seeds"), (about["data"].get("train") or {}).get("identity")) for about in (line.about, other.about)
    ]
    return drawn[0] == drawn[1]


def differences(lines: Sequence[Line], probe: str) -> list[dict[str, Any]]:
    """Of every line to the first that is no baseline, by every column of the probe, on the same images.  Runs that differ in their seeds alone are
    compared as their mean: one of them beside a mean that it is part of says nothing, and one seed is no recipe."""
    found = []
    for column in dict.fromkeys(column for line in lines for column in line.cells if _is_of(column, probe)):
        able = [line for line in lines if column in line.cells and line.cells[column].said() is not None]
        first = next((line for line in able if line.kind not in BASELINES), None)
        stands_for_itself = lambda line, able=able: not any(line.whole is other for other in able)
        if first and first.whole and not stands_for_itself(first):
            first = first.whole
        for line in filter(stands_for_itself, able):
            if first is None or line is first:
                continue
            ours, theirs = first.cells[column], line.cells[column]
            samples: list[Tensor] = [cell.result.predictions()["samples"] for cell in (ours, theirs)]
            a, b = ours.said(), theirs.said()
            if a is None or b is None or not torch.equal(*samples):
                continue  # other images of the same split
            fresh = ours.fresh & theirs.fresh
            if not fresh.any():
                continue  # train holds them all
            paired = difference(a.of(fresh).predicted, b.of(fresh).predicted, ours.truth[fresh], first.metric, same_draws(first, line))
            found.append({"a": first.name, "b": line.name, "probe": column, "labels": ours.figure.get("labels")} | paired)
    return found


def by_first(found: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Apart by what the others are compared to: in two columns it may be two rows."""
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in found:
        parts[each["a"]].append(each)
    return list(parts.values())


def said(found: Sequence[dict[str, Any]], probe: str, lines: Sequence[Line]) -> str:
    if not found:
        have = [line.name for line in lines if any(_is_of(column, probe) for column in line.cells)]
        return f"{probe}: nothing to compare, since {f'{have[0]} alone has' if len(have) == 1 else 'no two rows have'} figures measured alike on these images"
    rows = [
        [
            f"{found[0]['a']} less ...",
            "by",
            "labels",
            f"points of {found[0]['metric'].replace('_', ' ')}",
            "95 % interval",
            "p",
            "runs (seeds x draws)",
            "covers",
        ]
    ]
    for each in found:
        low, high = each["ci95"]
        runs = " and ".join(f"{seeds} x {draws}" for seeds, draws in each["runs"])
        labels = "-" if each["labels"] is None else f"{each['labels']:,}"
        words = [
            each["b"],
            each["probe"],
            labels,
            f"{100 * each['difference']:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            f"{each['p']:.2g}",
            runs,
        ]
        rows.append([*words, " + ".join(each["ci95_covers"])])
    return aligned(rows)
