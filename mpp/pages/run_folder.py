"""What the folder of a run says of it, for a page: read as it is, of a run that goes on, was stopped or is finished."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mpp.base.errors import ConfigError, DataError, UserError
from mpp.config.finetune import FinetuneConfig
from mpp.config.help import knobs_of
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import Section, flat, load
from mpp.data.shard_format import MANIFEST, Manifest, read_manifest
from mpp.monitor.board import rows_of
from mpp.monitor.reference import Reference, find_reference
from mpp.monitor.signs import Course, Signs
from mpp.train.commit import Commit, whole_commit
from mpp.train.run_folder import identity_of
from mpp.train.schedule import small_rate_note

PRETRAINING, FINE_TUNING = "pretraining", "fine-tuning"
GIVEN_ELSEWHERE = ("run_dir", "resume", "resume_changes")  # keys that say nothing of what a run is


@dataclass(frozen=True)
class Key:
    name: str  # dotted
    value: str
    changed: bool  # from mpp's own default
    source: str  # the comment behind the knob: unit, and where its default comes from


@dataclass
class RunFolder:
    path: Path
    tree: dict[str, Any]  # config.yaml

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        return PRETRAINING if "mask" in self.tree else FINE_TUNING

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.path)

    @cached_property
    def repeats(self) -> list["RunFolder"]:
        """Of a fine-tuning that was repeated: each, with its own rows; else none."""
        return [RunFolder(folder, self.tree) for folder in sorted(self.path.glob("repeat-*")) if (folder / "metrics.jsonl").exists()]

    @cached_property
    def commit(self) -> Commit | None:
        return whole_commit(self.path)

    def points(self, name: str) -> list[tuple[float, float]]:
        """(samples seen, figure), where it is finite."""
        return [(row["samples"], row[name]) for row in self.rows if row.get(name) is not None]

    def last(self, name: str) -> float | None:
        points = self.points(name)
        return points[-1][1] if points else None

    def names(self, prefix: str) -> list[str]:
        """Of the figures that begin so, in the order in which they came."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix)))

    @cached_property
    def clock(self) -> list[tuple[float, float]]:
        """(samples seen, seconds in steps until then), from the rows that tell the speed; hold-out, pictures and commits are not counted."""
        found, samples, seconds = [(0.0, 0.0)], 0.0, 0.0
        for row in self.rows:
            if rate := row.get("speed/samples_per_second"):
                seconds += (row["samples"] - samples) / rate
                samples = row["samples"]
                found.append((samples, seconds))
        return found

    def hours_at(self, samples: float) -> float:
        """Between the rows in straight lines."""
        before = (0.0, 0.0)
        for after in self.clock:
            if after[0] >= samples:
                share = (samples - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 1.0
                return (before[1] + share * (after[1] - before[1])) / 3600
            before = after
        return before[1] / 3600

    @property
    def seconds(self) -> float:
        """In steps, of all repeats."""
        return sum(part.clock[-1][1] for part in (self.repeats or [self]))

    @property
    def samples_seen(self) -> int:
        """Of all repeats."""
        return int(sum(max((row["samples"] for row in part.rows), default=0) for part in (self.repeats or [self])))

    @property
    def total_samples(self) -> int | None:
        """None where the config does not say: in epochs."""
        optim, data = self.tree.get("optim") or {}, self.tree.get("data") or {}
        batch = data.get("global_batch") or 0
        if optim.get("total_samples") and batch:
            return optim["total_samples"] // batch * batch
        return optim["steps"] * batch if optim.get("steps") and batch else None

    @property
    def finished(self) -> bool:
        return (self.path / ("verdict.json" if self.kind == PRETRAINING else "results.json")).exists() or (
            self.total_samples is not None and self.samples_seen >= self.total_samples
        )

    def json(self, name: str) -> Any:
        """None where there is no such file, or it cannot be read."""
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    @property
    def commands(self) -> list[str]:
        file = self.path / "command.txt"
        return file.read_text(errors="replace").splitlines() if file.exists() else []

    @property
    def baseline(self) -> Mapping[str, Any]:
        return self.json("baseline.json") or {}

    @cached_property
    def notes(self) -> list[str]:
        """What the run's figures mean in plain words (monitor/signs.py), as it was said while it ran."""
        if self.kind != PRETRAINING:
            return []
        optim = self.tree.get("optim") or {}
        name = self.baseline.get("name") or "none"
        more = bool(self.baseline.get("looks_beyond")) and name != "constant"
        signs = Signs(Course(optim.get("warmup_samples") or 0, optim.get("total_samples") or 0, name, more))
        said = [line for row in self.rows for line in signs.see(row)]
        if isinstance(self.config, PretrainConfig):
            said += filter(None, [small_rate_note(self.config.optim, self.config.data.global_batch)])
        return [line.removeprefix("note: ") for line in said]

    @cached_property
    def config(self) -> Section | None:
        """As today's mpp reads it; None where it can no longer."""
        try:
            return load(PretrainConfig if self.kind == PRETRAINING else FinetuneConfig, str(self.path / "config.yaml"), [])
        except ConfigError:
            return None

    @cached_property
    def reference(self) -> Reference | None:
        if self.kind != PRETRAINING or self.config is None or self.commit is None or self.tree.get("init_from"):
            return None
        return find_reference(identity_of(self.config, self.commit.record["manifests"]))  # type: ignore[arg-type]

    def pictures(self, kind: str) -> list[Path]:
        """By samples seen."""
        return sorted((self.path / "pictures").glob(f"*-{kind}.png"))

    def settings(self) -> list[Key]:
        known = knobs_of(self.config) if self.config else {}
        usual = lambda name, value: name in known and json.dumps(known[name].default) == json.dumps(value)
        return [
            Key(name, shown(value), not usual(name, value), known[name].comment if name in known else "")
            for name, value in flat(self.tree).items()
        ]

    @property
    def trained_on(self) -> list[str]:
        """What names its images: one word, or several of sources that were mixed."""
        where = (self.tree.get("data") or {}).get("shards") if self.kind == PRETRAINING else self.tree.get("train")
        return [str(word) for word in (where if isinstance(where, list) else [where]) if word]

    def manifest(self, word: str) -> tuple[Path, Manifest, str] | None:
        """Of such shards, where these still lie there, and its sha256."""
        folder = Path(word)
        try:
            if not (folder / MANIFEST).exists():
                return None
            found, digest = read_manifest(folder)
        except DataError:
            return None
        return folder, found, digest

    def bad_samples(self) -> list[dict[str, Any]]:
        lines = [
            line for file in sorted(self.path.glob("bad_samples.rank*.jsonl")) for line in file.read_text(errors="replace").splitlines()
        ]
        return [found for line in lines if isinstance(found := _json(line), dict)]


def open_run(path: Path) -> RunFolder:
    """Raises UserError where no run has begun."""
    file = path / "config.yaml"
    if not path.is_dir() or not file.exists():
        inner = sorted(str(each.parent) for each in path.glob("*/config.yaml"))[:3] if path.is_dir() else []
        more = f"; below it lie {', '.join(inner)}" if inner else ""
        raise UserError(
            f"{path} is no run: it has no config.yaml; give the run_dir of mpp/pretrain.py or mpp/finetune.py, once it has printed its first line{more}"
        )
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file} cannot be read ({' '.join(str(error).split())}); a run writes it at its start: give its command again"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds no keys; a run writes it at its start: give its command again")
    return RunFolder(path, tree)


def shown(value: Any) -> str:
    """As it would be typed."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}" if math.isclose(float(f"{value:g}"), value) else repr(value)
    return f"{value:_}" if isinstance(value, int) else json.dumps(value) if isinstance(value, list | dict) else str(value)


def differing(runs: list[RunFolder]) -> list[tuple[str, list[str]]]:
    """Keys in which runs differ, with the value of each ("-": it has no such key)."""
    trees = [flat(run.tree) for run in runs]
    keys = [key for key in dict.fromkeys(key for tree in trees for key in tree) if key not in GIVEN_ELSEWHERE]
    return [
        (key, [shown(tree[key]) if key in tree else "-" for tree in trees])
        for key in keys
        if len({json.dumps(tree.get(key, "-")) for tree in trees}) > 1
    ]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
