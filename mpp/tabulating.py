"""What mpp/results.py does: one table over every results.json in and below the folders given, and paired differences."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpp import text
from mpp.errors import DataError
from mpp.files import write_atomically
from mpp.monitor import rank
from mpp.transfer.metrics import paired_bootstrap
from mpp.transfer.results import Result, find_results
from mpp.transfer.table import PIXELS, PRETRAINED, RANDOM, aligned, format_table

BASELINES = (PIXELS, RANDOM)


@dataclass(frozen=True)
class Line:
    name: str
    result: Result
    row: str  # its name in results.json

    @property
    def figures(self) -> dict[str, Any]:
        return self.result.about["rows"][self.row]


def tabulate(folders: Sequence[str], compare: str | None, json_file: str | None) -> int:
    """compare: a probe by which the rows are compared in pairs.  json_file: where the same is written.  Raises DataError."""
    results = find_results(folders)
    tables: dict[tuple, list[Result]] = defaultdict(list)
    for result in results:
        tables[measured_on(result)].append(result)
    written = []
    for members in tables.values():
        title, lines = in_words(members[0]), lines_of(members, folders)
        reads = sorted({result.about.get("test_reads", 0) for result in members})
        text.say(
            f"{title}; the test split was read {' to '.join(map(str, dict.fromkeys([reads[0], reads[-1]])))} {'time' if reads == [1] else 'times'} by each of "
            "these folders"
        )
        text.say_lines(format_table({line.name: line.figures for line in lines}, "top-1 in %, 95 % intervals"))
        for note in rank.notes({line.name: line.figures for line in lines}):
            text.say(note)
        made: dict[str, Any] = {
            "on": title,
            "rows": {line.name: line.figures for line in lines},
            "folders": [str(result.folder) for result in members],
        }
        if compare:
            made["differences"] = differences(lines, compare)
            text.say()
            text.say_lines(said(made["differences"], compare))
        written.append(made)
        text.say()
    if json_file:
        write_atomically(Path(json_file), (json.dumps(written, indent=1) + "\n").encode())
    return 0


def measured_on(result: Result) -> tuple:
    """What results agree in that were measured on the same images, wherever those lie now."""
    about = result.about
    side = "test" if about.get("reported_on") == "test" else "train"
    data = about["data"][side]
    if about.get("reported_on") is None:
        return data["identity"], "rank", about["train_images"], about["seed"]
    if side == "train":
        return data["identity"], about["reported_images"], about["kind"], about["seed"], about["holdout_fraction"], about["train_images"]
    some = about["reported_images"] != data.get("images", about["reported_images"])
    return data["identity"], about["reported_images"], *((about["seed"],) if some else ())  # other seeds draw other images


def in_words(result: Result) -> str:
    about = result.about
    if about.get("reported_on") is None:
        return f"{about['data']['train']['path']}, {about['train_images']} images, feature rank alone"
    if about["reported_on"] == "test":
        return f"{about['data']['test']['path']}, {about['reported_images']} images"
    return f"a hold-out of {about['data']['train']['path']}, {about['reported_images']} images"


def lines_of(results: Sequence[Result], folders: Sequence[str]) -> list[Line]:
    """Baselines first, each once; every other row under a name that tells its run."""
    baselines: dict[tuple, Line] = {}
    others = []
    for result in results:
        for row, figures in result.about["rows"].items():
            if row in BASELINES:
                spec = figures["about"]["feature_spec"]
                key = (json.dumps(spec, sort_keys=True), result.about["seed"], result.about["train_images"])
                again = sum(line.row == row for line in baselines.values())
                name = row if not again else f"{row} ({run_name(result.folder, folders)})"
                baselines.setdefault(key, Line(name, result, row))
            else:
                name = run_name(result.folder, folders)
                others.append(
                    Line(name if len(result.about["rows"]) == 1 or row in (PRETRAINED, "fine-tuned") else f"{name}: {row}", result, row)
                )
    lines = [*baselines.values(), *others]
    names = Counter(line.name for line in lines)  # a run that was probed twice, or probed and fine-tuned, keeps every row
    return [line if names[line.name] == 1 else replace(line, name=f"{line.result.folder}: {line.row}") for line in lines]


def run_name(folder: Path, folders: Sequence[str]) -> str:
    """The run's folder, without the transfer/DATA below it."""
    parts = folder.parts
    return str(Path(*parts[: parts.index("transfer")])) if "transfer" in parts[1:] else str(folder)


def differences(lines: Sequence[Line], probe: str) -> list[dict[str, Any]]:
    """Of every line to the first that is no baseline, on the same images.  Raises DataError where that cannot be."""
    able = [line for line in lines if probe in answered(line.figures)]
    if len(able) < 2:
        have = sorted({name for line in lines for name in answered(line.figures)})
        raise DataError(f"--compare {probe}: fewer than two of these rows have it; they have {', '.join(have)}")
    first = next((line for line in able if line.row not in BASELINES), able[0])
    ours = first.result.predictions()
    found = []
    for line in able:
        if line is first:
            continue
        theirs = line.result.predictions()
        if len(theirs["samples"]) != len(ours["samples"]) or bool((theirs["samples"] != ours["samples"]).any()):
            raise DataError(
                f"{line.result.folder} and {first.result.folder} were measured on other images; give the same test_samples and seed"
            )
        our_right, their_right = (
            (given[f"{each.row}/{probe}/predicted"] == given["truth"]).numpy() for each, given in ((first, ours), (line, theirs))
        )
        found.append({"a": first.name, "b": line.name, "probe": probe} | paired_bootstrap(our_right, their_right, seed=0))
    return found


def answered(figures: Mapping[str, Any]) -> list[str]:
    """The probes of which every image's answer is kept: figures of means over draws have none."""
    return [key for key, figure in figures.items() if isinstance(figure, dict) and "accuracy" in figure]


def said(found: Sequence[dict[str, Any]], probe: str) -> str:
    rows = [[f"{probe}: {found[0]['a']} less ...", "points", "95 % interval", "McNemar p"]]
    for each in found:
        low, high = each["ci95"]
        rows.append([each["b"], f"{100 * each['difference']:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}", f"{each['mcnemar_p']:.2g}"])
    return aligned(rows)
