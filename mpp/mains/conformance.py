"""What mpp/conformance.py does: each claim of a paper beside what is measured of the recipe, by the code that trains."""

import difflib
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpp.base.errors import ConfigError
from mpp.base.progress import tracked
from mpp.base.text import printable, say, say_json, say_lines
from mpp.claims.claim import DECLARED, DIFFERS, LEFT_OUT, OK, Finding, hold
from mpp.claims.papers import CLAIMS
from mpp.claims.subject import Subject
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load

WIDTHS = (44, 34, 34, 40)  # of the columns, at most: what, the paper, measured, source


@dataclass(frozen=True)
class Report:
    recipe: str
    path: Path
    findings: list[Finding]

    @property
    def conforms(self) -> bool:
        return all(finding.verdict != DIFFERS for finding in self.findings)

    @property
    def counts(self) -> str:
        counted = Counter(finding.verdict for finding in self.findings)
        return ", ".join(f"{counted[verdict]} {verdict}" for verdict in (OK, DECLARED, LEFT_OUT, DIFFERS) if counted[verdict])


def conform(recipes: Sequence[str], path: str | None, words: Sequence[str], folder: Path, json: bool) -> int:
    """recipes: names of YAMLs in `folder`, all known ones where there are none; path: another YAML, to be held beside the claims of the one recipe that
    is named, or of its own name.  Exit status: 1 where something differs that is not declared.  Raises UserError."""
    names = list(recipes) or ([Path(path).stem] if path else list(CLAIMS))
    for name in names:
        if name not in CLAIMS:
            close = difflib.get_close_matches(name, CLAIMS, 1)
            near = f"; the nearest known one is {close[0]!r}" if close else ""
            raise ConfigError(f"there are no claims of a recipe {name!r}{near}; known are {', '.join(CLAIMS)}")
    if path and len(names) > 1:
        raise ConfigError(f"--config={path} is held beside the claims of one recipe, not of {len(names)}; name one")
    reports = []
    for name in tracked(names, "recipes", len(names), "recipes"):
        report = measured(name, Path(path) if path else folder / f"{name}.yaml", words)
        reports.append(report)
        if not json:
            say_lines(table(report))
            say()
    if json:
        say_json(
            {r.recipe: {"config": str(r.path), "conforms": r.conforms, "claims": [each._asdict() for each in r.findings]} for r in reports}
        )
    else:
        wrong = [report.recipe for report in reports if not report.conforms]
        say(f"{len(reports) - len(wrong)} of {len(reports)} recipes as their papers say" + (f"; not {', '.join(wrong)}" if wrong else ""))
    return 0 if all(report.conforms for report in reports) else 1


def measured(recipe: str, path: Path, words: Sequence[str] = ()) -> Report:
    """Raises ConfigError."""
    subject = Subject(recipe, load(PretrainConfig, path, words), head_of(path))
    claims = CLAIMS[recipe]
    return Report(
        recipe, path, [hold(claim, subject) for claim in tracked(claims, f"measuring {recipe}", len(claims), "claims", at_once=True)]
    )


def head_of(path: Path) -> str:
    """The comments that a YAML begins with, on one line."""
    lines = path.read_text().splitlines()
    head = lines[: next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return " ".join(" ".join(line.lstrip("#") for line in head).split())


def table(report: Report) -> str:
    rows = [("what", "the paper", "measured", "source", ""), *(finding[:5] for finding in report.findings)]
    notes = [""] + [finding.note for finding in report.findings]
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [min(most, max(len(row[column]) for row in cells)) for column, most in enumerate(WIDTHS)]
    lines = [f"{printable(report.recipe)}  ({printable(report.path)}): {report.counts}"]
    for row, note in zip(cells, notes, strict=True):
        folded = [
            textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]
            for cell, width in zip(row, widths, strict=False)
        ]
        last = row[4] + (f": {note}" if note else "")
        for number in range(max(map(len, folded))):
            parts = [(part[number] if number < len(part) else "").ljust(width) for part, width in zip(folded, widths, strict=True)]
            lines.append(("  " + "  ".join(parts) + ("  " + last if number == 0 else "")).rstrip())
    return "\n".join(lines)
