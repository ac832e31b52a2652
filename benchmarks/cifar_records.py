"""What the runs of cifar_runs.py have left behind, as one JSON that is small enough to be committed.

runs       by name: what each pretraining took and reached
measured   by mode (hold-out, test): lines of figures with their intervals; of runs that differ in their seeds alone one line together
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mpp.base.errors import DataError
from mpp.disk.files import write_atomically
from mpp.transfer.common_table import Line, put_together
from mpp.transfer.ledger import TEST_READS
from mpp.transfer.metrics import difference
from mpp.transfer.results import Result, find_results
from mpp.transfer.table import FINETUNED, PIXELS, PRETRAINED, RANDOM, SCRATCH, TUNED

HOLDOUT, TEST = "hold-out", "test"
MODES = (HOLDOUT, TEST)
SCRATCH_RUN = "scratch"
KINDS = {"probe": (PIXELS, RANDOM, PRETRAINED), "finetune": (SCRATCH, TUNED)}
COMPARED = {PRETRAINED: (RANDOM, "linear"), TUNED: (SCRATCH, FINETUNED)}  # kind of line -> what it is laid beside, by which column


class Named(Protocol):
    @property
    def name(self) -> str: ...


def collect(out: Path, record: Path) -> None:
    """Write `record` anew of all that is finished below `out`.  Raises DataError."""
    found = {"runs": runs_in(out), "measured": {mode: lines for mode in MODES if (lines := lines_of(out, mode))}}
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(record, (json.dumps(found, indent=1) + "\n").encode())


def read_records(record: Path) -> dict[str, Any]:
    """What `collect` has written.  Raises DataError."""
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{record} cannot be read ({error}); benchmarks/cifar_runs.py writes it") from error
    if not isinstance(found, dict) or not {"runs", "measured"} <= found.keys():
        raise DataError(f"{record} holds no records of benchmarks/cifar_runs.py")
    return found


def finished(out: Path, stage: str) -> list[Path]:
    """Folders of the runs that have ended a stage well."""
    return sorted(mark.parents[1] for mark in out.glob(f"*/stages/{stage}.json"))


def runs_in(out: Path) -> dict[str, Any]:
    return {folder.name: run_of(folder) for folder in finished(out, "pretrain")}


def run_of(folder: Path) -> dict[str, Any]:
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    samples, seconds = 0, 0.0
    for row in metrics:
        if "speed/samples_per_second" in row:
            seconds += (row["samples"] - samples) / row["speed/samples_per_second"]
            samples = row["samples"]
    last = [row for row in metrics if "holdout/loss" in row][-1]
    marks = {mark.stem: json.loads(mark.read_text()) for mark in sorted((folder / "stages").glob("*.json"))}
    return {
        "samples": samples,
        "seconds": round(seconds, 1),
        "holdout_loss": last["holdout/loss"],
        "holdout_skill": last.get("holdout/skill"),
        "skill_error": last.get("holdout/skill_error"),
        "baseline": json.loads((folder / "baseline.json").read_text())["name"],
        "apart": {key: value for key, value in last.items() if key not in ("samples", "step") and not key.startswith("holdout/")},
        "environment": json.loads((folder / "environment.json").read_text()),
        "words": {stage: knobs_of(mark["command"]) for stage, mark in marks.items()},
        "wall_seconds": {stage: mark["wall_seconds"] for stage, mark in marks.items()},
        "cpu_seconds": {stage: mark["cpu_seconds"] for stage, mark in marks.items()},
        "starts": len(
            (folder / "command.txt").read_text().splitlines()
        ),  # of pretraining: cpu_seconds know nothing of those that were killed
        "ended": max(mark["ended"] for mark in marks.values()),
    }


def knobs_of(command: str) -> list[str]:
    """Its key=value words, but for those that say where something lies."""
    return [word for word in shlex.split(command) if "=" in word and "/" not in word]


def lines_of(out: Path, mode: str) -> dict[str, Any]:
    """Empty where nothing has been measured yet.  Raises DataError where runs were measured in different ways: their figures are no table."""
    found: dict[str, Any] = {}
    for program, kinds in KINDS.items():
        results = [
            result for folder in finished(out, f"{mode}-{program}") for result in find_results([str(folder / "transfer" / mode / program)])
        ]
        if not results:
            continue
        # Raw pixels are float32 whatever the encoder's precision, and so no part of its table.
        with_pixels = [only(result, {PIXELS}) for result in results if PIXELS in result.about["rows"]][:1]
        pixels = [line for table in put_together(with_pixels, [str(out)]) for line in table.lines]
        tables = put_together([only(result, set(result.about["rows"]) - {PIXELS}) for result in results], [str(out)])
        if len(tables) > 1 or tables[0].apart:
            raise DataError(f"{out}: {program} has measured runs in different ways: {' | '.join(tables[-1].apart)}; give another --out")
        lines = [line for line in (*pixels, *tables[0].lines) if line.kind in kinds]
        about = results[0].about
        logs = [result.folder / TEST_READS for result in results]
        found[program] = {
            "images": about["reported_images"] if program == "probe" else figure_of(lines[0])["images"],
            "classes": len(about["classes"]),
            "test_reads": max(len(log.read_text().splitlines()) if log.exists() else 0 for log in logs),  # by one of them
            "lines": [line_of(line, lines, out) for line in lines],
        }
    return found


def only(result: Result, rows: set[str]) -> Result:
    return Result(result.folder, result.about | {"rows": {name: row for name, row in result.about["rows"].items() if name in rows}})


def figure_of(line: Line) -> dict[str, Any]:
    return dict(next(iter(line.cells.values())).figure)


def line_of(line: Line, lines: Sequence[Line], out: Path) -> dict[str, Any]:
    first = next(iter(line.cells.values()))
    run = first.result.folder.relative_to(out).parts[0]
    other, column = COMPARED.get(line.kind, ("", ""))
    besides = [each for each in lines if each.kind == other and each.parameters == line.parameters]
    return {
        "kind": line.kind,
        "run": run,
        "seeds": first.figure.get("seeds", 1),
        "figures": {name: shown(cell.figure) for name, cell in line.cells.items() if name != "always"},
        "rank": None if line.feature_rank is None else line.feature_rank["rank"],
        "beside": beside(line, besides[0], column) if besides else None,
    }


def shown(figure: Any) -> dict[str, Any]:
    return {
        key: figure[key]
        for key in ("accuracy", "ci95", "ci95_covers", "by_run", "labels", "holdout_score", "chosen", "place")
        if key in figure
    }


def beside(line: Line, other: Line, column: str) -> dict[str, Any] | None:
    """How far a line lies from its baseline on the same images, with an interval; None where answers are missing."""
    ours, theirs = line.cells[column], other.cells[column]
    a, b = ours.said(), theirs.said()
    if a is None or b is None:
        return None
    found = difference(a.predicted, b.predicted, ours.truth, "accuracy", new_seed=other.kind == RANDOM)
    return {"over": other.kind, "column": column} | {key: found[key] for key in ("difference", "ci95", "ci95_covers", "p")}


def linear_on_holdout(record: Path, runs: Iterable[Named]) -> dict[str, float]:
    """By row, of those of `runs` that have been measured: what rows are chosen by."""
    if not record.exists():
        return {}
    lines = read_records(record)["measured"].get(HOLDOUT, {}).get("probe", {}).get("lines", [])
    by_run = {line["run"]: line["figures"]["linear"]["accuracy"] for line in lines if line["kind"] == PRETRAINED and line["seeds"] == 1}
    return {run.name.rpartition("_s")[0]: by_run[run.name] for run in runs if run.name in by_run}
