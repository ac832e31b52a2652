"""One table of several results.json: its rows and columns.

A column holds what was measured alike: one probe, its grid, labels and draws, features, hold-out and metric.  What differs in any of it stands in a
column of its own, and what differs is said.  No row is left out: baselines that several runs share are shown once where they are equal.  Runs that
differ in nothing but their seed are shown one by one, and once more together.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpp.config.schema import flat
from mpp.transfer.metrics import Metric, figures
from mpp.transfer.probes import PROBES
from mpp.transfer.probes.contract import Answers, stacked
from mpp.transfer.results import IN_TRAIN, Result
from mpp.transfer.table import ALWAYS, FINETUNED, MAJORITY, PIXELS, PRETRAINED, RANDOM, SCRATCH, TUNED, Column, by_column
from mpp.transfer.verdict import Judged, title_of

BASELINES = (MAJORITY, PIXELS, RANDOM)  # that runs share
# Of a fine-tuning's config: what it is of, where it lies, and what changes nothing.
ASIDE = ("encoder", "seed", "run_dir", "train", "test", "system", "log", "checkpoint", "resume", "ledger")
# The same, and what a row is; a fine-tuning's length and resolution are told apart.
OWN = (*ASIDE, "init", "resume_changes", "repeats", "optim", "model")


@dataclass(frozen=True)
class Cell:
    """One row's figure by one probe, in one results.json."""

    result: Result
    row: str  # its name there
    column: str  # likewise: a probe, or probe/part
    figure: Mapping[str, Any]
    answers: Answers | None = None  # of a row that was put together here

    @property
    def protocol(self) -> dict[str, Any]:
        """What figures must agree in to stand in one column."""
        about = self.result.about
        config, figure = about.get("config") or {}, self.figure
        data = (about.get("data") or {}).get("train") or {}
        known = {
            "train": str(data.get("content") or data.get("identity"))[:12],
            "labels": figure.get("labels", None if "/" in self.column else about.get("train_images")),
            "draws": figure.get("draws", 1),
        }
        known |= {key: config.get(key) for key in ("metric", "class_weight")}
        if self.column == FINETUNED:
            known |= {"resolution": about.get("resolution"), "precision": (config.get("system") or {}).get("precision")}
            known |= {f"optim.{key}": (config.get("optim") or {}).get(key) for key in ("epochs", "steps")}
            return known | flat({key: value for key, value in config.items() if key not in OWN})
        if self.column == ALWAYS:
            return {}
        spec = ((about["rows"][self.row].get("about") or {}).get("feature_spec")) or {}
        known |= {key: config.get(key) for key in ("holdout_fraction", "widen")}
        known |= {f"features.{key}": spec.get(key) for key in ("resolution", "crop", "precision")}
        known |= {f"features.{key}": (config.get("features") or {}).get(key) for key in ("layers", "pooling", "pixel_side")}
        probe = self.column.partition("/")[0]
        return known | flat({key: value for key, value in (config.get(probe) or {}).items() if key != "shots"}, f"{probe}.")

    @property
    def truth(self) -> Tensor:
        """int64 [m]."""
        return self.result.predictions()["truth"]

    @property
    def fresh(self) -> Tensor:
        """bool [m]: the images that are not in train, too; of older results all."""
        found = self.result.predictions()
        return ~found[IN_TRAIN].bool() if IN_TRAIN in found else torch.ones_like(found["truth"], dtype=torch.bool)

    def said(self) -> Answers | None:
        """Its answers to every image; None where they were not kept."""
        return self.answers or (None if self.result.problem else self.result.answers(self.row).get(self.column))


@dataclass
class Line:
    """A row of the table."""

    name: str
    kind: str  # its name in results.json
    cells: dict[str, Cell] = field(default_factory=dict)  # by column, as `columns` below names them
    feature_rank: Any = None
    whole: "Line | None" = None  # the row of several seeds that it is part of

    @property
    def about(self) -> dict[str, Any]:
        """Of the results.json that its first figure is from."""
        return next(iter(self.cells.values())).result.about

    @property
    def metric(self) -> Metric:
        return (self.about.get("config") or {}).get("metric") or "accuracy"

    @property
    def counts(self) -> bool:
        """Whether a verdict is to be given on it, and not on the row of several seeds that it is part of."""
        return self.whole is None and bool(self.cells)

    @property
    def always(self) -> dict[str, Any]:
        """What fills every column."""
        return {ALWAYS: self.cells[ALWAYS].figure} if ALWAYS in self.cells else {}

    @property
    def parameters(self) -> int | None:
        """Of the network: what tells architectures apart."""
        cell = next(iter(self.cells.values()))
        return (cell.result.about["rows"][cell.row].get("about") or {}).get("parameters")

    def judged(self, fresh: Tensor, columns: Sequence[str] | None = None) -> Judged:
        """fresh: bool [m], the images that count; columns: likewise, None: all."""
        cells = self.cells if columns is None else {column: self.cells[column] for column in columns}
        answers = {column: said.of(fresh) for column, cell in cells.items() if (said := cell.said()) is not None}
        name = self.kind if self.kind in (*BASELINES, SCRATCH) else self.name
        return Judged(name, {column: cell.figure for column, cell in cells.items()}, answers)


@dataclass
class CommonTable:
    """What several results give together."""

    results: list[Result]
    lines: list[Line]
    columns: dict[str, Column]
    apart: list[str]  # what was measured otherwise, in words


def put_together(results: Sequence[Result], folders: Sequence[str]) -> list[CommonTable]:
    """Of results on the same images: one table, and a further one for those that have every column otherwise than it."""
    tables: list[list[Result]] = []
    ways: list[dict[str, set[str]]] = []  # of each table: column -> how it was measured
    for result in results:
        own: dict[str, set[str]] = defaultdict(set)
        for cell in _cells([result]):
            if cell.column != ALWAYS:
                own[cell.column].add(_key(cell.protocol))
        fits = lambda known, own=own: (
            not own.keys() & known.keys() or any(own[column] & known[column] for column in own.keys() & known.keys())
        )
        place = next((i for i, known in enumerate(ways) if fits(known)), len(tables))
        if place == len(tables):
            tables.append([])
            ways.append(defaultdict(set))
        tables[place].append(result)
        for column, keys in own.items():
            ways[place][column] |= keys
    joined = [_table(members, folders) for members in tables]
    for table, known in zip(joined[1:], ways[1:], strict=True):
        table.apart = [*_otherwise(ways[0], known), *table.apart]
    return joined


def _otherwise(first: Mapping[str, set[str]], other: Mapping[str, set[str]]) -> list[str]:
    """How a table's columns differ from those of the first one."""
    said: dict[str, list[str]] = defaultdict(list)
    for column in (column for column in other if column in first):
        ours, theirs = json.loads(min(other[column])), json.loads(min(first[column]))
        odd = [
            f"{key}={_short(ours.get(key))} and not {_short(theirs.get(key))}"
            for key in {**theirs, **ours}
            if ours.get(key) != theirs.get(key)
        ]
        said[", ".join(odd)].append(title_of(column))
    return [f"apart from the first table, since measured otherwise: {words} ({', '.join(titles)})" for words, titles in said.items()]


def _cells(results: Sequence[Result]) -> list[Cell]:
    return [
        Cell(result, row, column, figure)
        for result in results
        for row, about in result.about["rows"].items()
        for column, figure in by_column(about).items()
    ]


def _table(results: Sequence[Result], folders: Sequence[str]) -> CommonTable:
    cells = _cells(results)
    names, apart = _column_names(cells)
    lines = _rows(results, cells, names, folders)
    lines += _over_seeds(lines)
    columns: dict[str, Column] = {}
    for name in sorted({name for name in names.values() if name != ALWAYS}, key=_place):
        variant = name.partition(" ")[2]
        title = title_of(name) + (f" {variant}" if variant else "")
        columns[name] = Column(title, {line.name: line.cells[name].figure for line in lines if name in line.cells})
    return CommonTable(list(results), lines, columns, apart)


def _place(name: str) -> tuple:
    key, _, part = name.partition(" ")[0].partition("/")
    order = [FINETUNED, *(probe.key for probe in PROBES)]
    return order.index(key) if key in order else len(order), int(part) if part.isdigit() else 0, part, name.partition(" ")[2]


def _column_names(cells: Sequence[Cell]) -> tuple[dict[tuple[str, str], str], list[str]]:
    """(column, its protocol) -> its name in this table: the column's, with [1], [2] ... where it was measured in several ways; and how they differ."""
    ways: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for cell in cells:
        ways[cell.column].setdefault(_key(cell.protocol), cell.protocol)
    names: dict[tuple[str, str], str] = {}
    said: dict[str, list[str]] = defaultdict(list)
    for column, protocols in ways.items():
        for number, (key, protocol) in enumerate(protocols.items(), 1):
            names[column, key] = column if len(protocols) == 1 or column == ALWAYS else f"{column} [{number}]"
            if len(protocols) > 1 and column != ALWAYS:
                odd = [k for k in protocol if len({_key(other.get(k)) for other in protocols.values()}) > 1]
                values = ", ".join(f"{k}={_short(protocol.get(k))}" for k in odd)
                said[f"[{number}]: {values}"].append(title_of(column))
    return names, [f"measured otherwise, so in columns of their own: {', '.join(titles)} {words}" for words, titles in said.items()]


def _short(value: Any) -> str:
    words = json.dumps(value)
    return words if len(words) <= 80 else words[:77] + "..."


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _rows(results: Sequence[Result], cells: Sequence[Cell], names: Mapping[tuple[str, str], str], folders: Sequence[str]) -> list[Line]:
    baselines: list[tuple[str, Line]] = []  # with what the baseline is
    others: list[Line] = []
    by_row: dict[tuple[int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_row[id(cell.result), cell.row].append(cell)
    for result in results:
        run = run_name(result.folder, folders)
        for row, about in result.about["rows"].items():
            own = {names[cell.column, _key(cell.protocol)]: cell for cell in by_row[id(result), row]}
            rank = about.get("feature_rank")
            if row not in BASELINES:
                plain = len([name for name in result.about["rows"] if name != MAJORITY]) == 1 or row in (PRETRAINED, TUNED)
                others.append(Line(run if plain else f"{run}: {row}", row, own, rank))
                continue
            identity = row + _key((about.get("about") or {}).get("feature_spec") or (about.get("about") or {}).get("class"))
            known = next((line for same, line in baselines if same == identity and _agree(line, own, rank)), None)
            if known is None:
                again = any(line.kind == row for _, line in baselines)
                baselines.append((identity, Line(f"{row} ({run})" if again else row, row, own, rank)))
            else:
                known.cells = own | known.cells
                known.feature_rank = rank if known.feature_rank is None else known.feature_rank
    lines = [*sorted((line for _, line in baselines), key=lambda line: BASELINES.index(line.kind)), *others]
    seen = Counter(line.name for line in lines)  # a run that was probed twice, or probed and fine-tuned, keeps every row
    for line in lines:
        if seen[line.name] > 1 and line.cells:
            line.name = f"{next(iter(line.cells.values())).result.folder}: {line.kind}"
    return lines


def _agree(line: Line, own: Mapping[str, Cell], rank: Any) -> bool:
    """Whether the same baseline has the same figures wherever both have some."""
    ranks = rank == line.feature_rank or rank is None or line.feature_rank is None
    return ranks and all(
        cell.figure.get("accuracy") == line.cells[name].figure.get("accuracy") for name, cell in own.items() if name in line.cells
    )


def _over_seeds(lines: Sequence[Line]) -> list[Line]:
    """Runs that differ in their seeds alone, as one row: seeds of the network, or, of one encoder fine-tuned again and again, draws of the labels."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.kind in (PRETRAINED, TUNED, SCRATCH) and line.cells:
            groups[_key([line.kind, _recipe(next(iter(line.cells.values())).result)])].append(line)
    joined = []
    for group in groups.values():
        if len(group) < 2 or len({_seeds(line) for line in group}) < len(group):
            continue
        networks = len({_seeds(line)[0] for line in group}) > 1
        cells: dict[str, Cell] = {}
        for column in group[0].cells:
            given = [line.cells[column].said() for line in group if column in line.cells]
            if len(given) < len(group) or any(one is None for one in given):
                continue
            runs = [Answers(**{name: part.flatten(0, -2) for name, part in one.parts().items()}) for one in given if one is not None]
            together = (
                stacked(runs)
                if networks
                else Answers(**{name: torch.cat([run.parts()[name] for run in runs])[None] for name in runs[0].parts()})
            )
            first = group[0].cells[column]
            truth = first.truth
            classes = len(first.result.about.get("classes") or []) or int(truth.max()) + 1
            found = figures(together.predicted, truth, classes, together.confidence, together.score)
            kept = {key: first.figure[key] for key in ("labels", "holdout_score") if key in first.figure}
            cells[column] = Cell(first.result, first.row, column, found | kept, together)
        if cells:
            kind = {PRETRAINED: "", TUNED: "", SCRATCH: ", from scratch"}[group[0].kind]
            whole = Line(f"mean of {len(group)} seeds{kind} ({group[0].name}, ...)", group[0].kind, cells)
            for line in group:
                line.whole = whole
            joined.append(whole)
    return joined


def _recipe(result: Result) -> Any:
    """What a run is, but for its seeds."""
    about, config = result.about, result.about.get("config") or {}
    encoder = about.get("encoder") or {}
    origin = (encoder.get("pretraining") or {}).get("recipe") or encoder.get("digest") or encoder.get("path")
    if about.get("kind") != "finetune":
        return [origin]
    own = {key: value for key, value in config.items() if key not in ASIDE}
    return [None if encoder.get("init") == "random" else origin, own]


def _seeds(line: Line) -> tuple[str, int]:
    about = next(iter(line.cells.values())).result.about
    encoder = about.get("encoder") or {}
    fixed = encoder.get("init") == "random"
    return "" if fixed else str(encoder.get("digest")), about.get("seed", 0) if about.get("kind") == "finetune" else 0


def run_name(folder: Path, folders: Sequence[str]) -> str:
    """The run's folder, without the transfer/DATA below it."""
    parts = folder.parts
    return str(Path(*parts[: parts.index("transfer")])) if "transfer" in parts[1:] else str(folder)
