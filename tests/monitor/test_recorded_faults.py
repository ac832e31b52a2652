"""What the rules say of the recorded runs, healthy and faulty, is what docs/normal.md quotes."""

import json
import re
from pathlib import Path

import pytest

from mpp.monitor.signs import Course, Signs

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "results" / "cpu2-faults.json").read_text())
SAID = {
    "healthy": [],
    "teacher": [],
    "channel": [],
    "one colour": ["features collapse"],
    "rate": ["features collapse"],
    "leak": ["nearly perfect"],
    "misaligned": ["features collapse"],
    "collapse": ["features collapse"],
}


def notes_of(run) -> tuple[list[str], set[str]]:
    signs = Signs(Course(warmup_samples=6_400, total_samples=64_000, baseline="nearest"))
    return [line for row in run["rows"] for line in signs.see(row)], signs.said


@pytest.mark.parametrize("name", RECORD["runs"])
def test_each_fault_is_noticed_by_its_figures_and_healthy_runs_are_left_in_peace(name):
    assert notes_of(RECORD["runs"][name])[1] == set(SAID[name])


def test_the_page_quotes_what_was_said():
    assert RECORD["runs"].keys() == SAID.keys()
    page = " ".join(re.sub(r"^> ", "", (ROOT / "docs" / "normal.md").read_text(), flags=re.M).split())
    for name, run in RECORD["runs"].items():
        for line in notes_of(run)[0]:
            quoted = " ".join(line.split())
            assert quoted in page, f"{name}: {line}"
    known = [line for run in RECORD["runs"].values() for line in notes_of(run)[0]]
    quoted = re.findall(r"note: .*? at [\d,]+ samples", page)
    assert len(quoted) == len(known) and all(any(line.startswith(start) for line in known) for start in quoted)
