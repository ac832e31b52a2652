"""What a run's figures mean in plain words, while it still runs: each sign once, with what to try.

A sign is a rule over the rows of metrics.jsonl, nothing else, so that a page written afterwards says what was said.  The thresholds are ours.
docs/normal.md shows the runs they were tried on, healthy ones and planted faults (benchmarks/planted_faults.py); a rate of 1e-7, at which skill stays
below the trivial predictor, and the demo as it is, which says nothing, were run beside.  A loss that rises and waiting were tried on made-up rows alone.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

SETTLED = 0.1  # of the samples, beyond the warm-up: before, nothing is concluded
NOTHING = 0.005  # of skill: as good as the trivial predictor
PERFECT = 0.9  # of skill: no recipe here comes near it on photographs or digits; an encoder that sees what it predicts passes it at once
HALF = 0.5
SHRUNK = 0.25  # of the rank or the deviation that features had before training
FLAT = 0.1  # a deviation above it is none of images all alike, however large it was before: at random initialisation tones alone may make it so
RISEN = 1.25  # of the lowest training loss so far, each a mean over SMOOTHED
SMOOTHED = 0.05  # of the samples: a row of a short run is a single step, whose loss is mostly noise
WAITING = 0.2  # of the time
WAITED_SECONDS = 60  # that such rows must cover: a few short steps tell of the machine's mood, not of the loader
IN_A_ROW = 3  # rows
LOOKS_IN_A_ROW = 2  # at the features


@dataclass(frozen=True)
class Course:
    """What a row is held against."""

    warmup_samples: int
    total_samples: int
    baseline: str  # the trivial predictor's name
    knows_more: bool = False  # than the model does, so that it is no sign to be below it

    @property
    def settled(self) -> float:
        return self.warmup_samples + SETTLED * self.total_samples


@dataclass
class Signs:
    course: Course
    said: set[str] = field(default_factory=set)
    _first: dict[str, float] = field(default_factory=dict)  # of the features' figures
    _skill: float | None = None  # at the last look
    _settled_skill: float | None = None  # at the first look at which something is concluded
    _began: float = float("inf")  # samples of the first row with a loss
    _losses: list[tuple[int, float]] = field(default_factory=list)  # samples and training loss of the rows within SMOOTHED
    _lowest: float = float("inf")
    _in_a_row: dict[str, int] = field(default_factory=dict)
    _timed: float = 0.0  # samples up to which speed was last told
    _waiting: float = 0.0  # seconds that the rows of waiting cover

    def see(self, row: Mapping[str, Any]) -> list[str]:
        """row: {"samples": ..., figures}, in the order of the run; a line for each sign that is seen for the first time."""
        found = {name: words for name, words in self._read(row) if name not in self.said}
        self.said |= found.keys()
        return [f"note: {words}" for words in found.values()]

    def see_again(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """What was written down before this start, of which nothing is said once more."""
        for row in rows:
            self.see(row)

    def _read(self, row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        samples, course = row["samples"], self.course
        at = f"at {samples:,} samples"
        skill = row.get("holdout/skill")
        if skill is not None and samples >= course.settled:
            margin = max(2 * (row.get("holdout/skill_error") or 0.0), NOTHING)
            self._settled_skill = skill if self._settled_skill is None else self._settled_skill
            if skill <= margin and course.knows_more:
                pass
            elif skill < -margin and self._skill is not None and skill < self._skill + margin:  # and it does not rise either
                yield (
                    "below the trivial predictor",
                    (
                        f"hold-out skill is {skill:+.3f} {at}, after the warm-up: the model predicts worse than the trivial rule '{course.baseline}'. "
                        "A learning rate that is too high or far too low does that (optim.base_lr; a tenth, or three times as much), or a target that the "
                        "image does not tell; look at RUN/pictures"
                    ),
                )
            elif abs(skill) <= margin and samples >= HALF * course.total_samples and skill < self._settled_skill + margin:  # likewise
                yield (
                    "at the trivial predictor",
                    (
                        f"hold-out skill is {skill:+.3f} {at}: half of the run has taught the model nothing beyond the trivial rule '{course.baseline}'. "
                        "Raise optim.base_lr, hide less (mask.ratio), or check that images differ (RUN/pictures)"
                    ),
                )
            elif skill - margin > PERFECT:
                yield (
                    "nearly perfect",
                    (
                        f"hold-out skill is {skill:+.3f} {at}: what is hidden is told almost without error. A task as easy as that teaches little: see whether "
                        "the encoder sees what it should predict (a mask the wrong way round), or images repeat; look at RUN/pictures, and whether "
                        "features/linear and features/knn rise"
                    ),
                )
        self._skill = self._skill if skill is None else skill
        if row.get("train/loss") is not None:
            self._began, since = min(self._began, samples), samples - SMOOTHED * course.total_samples
            self._losses = [(seen, loss) for seen, loss in self._losses if seen > since] + [(samples, row["train/loss"])]
            loss = fmean(each for _, each in self._losses)
            risen = self._often("loss", loss > RISEN * self._lowest > 0 and samples >= course.settled)
            if risen and row.get("teacher/decay") is None:  # a target that moves may become harder
                yield (
                    "the loss rises",
                    (
                        f"the training loss is {loss:.4g} {at}, and was {self._lowest:.4g}: it rises. The learning rate is too high (optim.base_lr), or the "
                        "gradient is clipped too late (optim.clip_norm)"
                    ),
                )
            self._lowest = min(self._lowest, loss) if self._began <= since else self._lowest  # of whole means
        yield from self._of_features(row, at)
        yield from self._of_waiting(row)

    def _of_features(self, row: Mapping[str, Any], at: str) -> Iterable[tuple[str, str]]:
        for name, title, least in (("features/rank", "rank", math.inf), ("features/deviation", "deviation", FLAT)):
            value = row.get(name)
            if value is None:
                continue
            first = self._first.setdefault(name, value)
            # In the warm-up features of healthy runs shrink, too, and come back when the encoder begins to look (docs/normal.md).
            shrunk = self._often(name, value < min(SHRUNK * first, least) and row["samples"] >= self.course.settled, LOOKS_IN_A_ROW)
            if shrunk:
                yield (
                    "features collapse",
                    (
                        f"the {title} of the features is {value:.3g} {at} and was {first:.3g} before training: images are hardly told apart any more, a collapse. "
                        "Lower optim.base_lr; of a recipe with a teacher raise target.ema_start; see that each image has a target, and its own"
                    ),
                )

    def _of_waiting(self, row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        waited, rate = row.get("speed/wait_share"), row.get("speed/samples_per_second")
        if waited is None or not rate:
            return
        self._waiting = self._waiting + (row["samples"] - self._timed) / rate if waited > WAITING else 0.0
        self._timed = row["samples"]
        if self._often("wait", waited > WAITING) and self._waiting >= WAITED_SECONDS:
            yield (
                "waiting for images",
                (
                    f"{waited:.0%} of the time is spent waiting for images: the loader is slower than the training step. python mpp/loader_speed.py says which "
                    "part; more loader processes (system.workers), smaller stored images (make_shards.py --resize) or, for a set that fits, "
                    "system.images=ram help"
                ),
            )

    def _often(self, name: str, seen: bool, times: int = IN_A_ROW) -> bool:
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if seen else 0
        return self._in_a_row[name] >= times
