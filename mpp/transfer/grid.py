"""A search over a grid that widens itself: a choice at the end of a grid says more about the grid than about the features.

While the best value of an axis is its first or last, the grid grows at that end, and what is new is tried, up to the axis's limits.  So
rows of a comparison whose grids differ in the end had the same means.  A choice that still lies at an end is marked.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Asked = TypeVar("Asked")
Given = TypeVar("Given")


@dataclass(frozen=True)
class Axis:
    """values: ascending.  One value alone was fixed on purpose, and is left as it is."""

    name: str
    values: Sequence[Any]
    factor: float = 0.0  # between new values; 0: nothing can be added (no order, or no more of them)
    lowest: float = 0.0
    highest: float = 0.0
    stride: int = 1  # values that are added at once, where trying one takes about as long as trying several

    @property
    def grows(self) -> bool:
        return self.factor > 0 and len(self.values) > 1

    def beyond(self, values: Sequence[Any], upwards: bool) -> list[Any]:
        """The next values at that end, ascending; none where the limit is reached."""
        new: list[Any] = []
        while len(new) < self.stride and (one := self._next([*new, *values] if not upwards else [*values, *new], upwards)) is not None:
            new = [*new, one] if upwards else [one, *new]
        return new

    def _next(self, values: Sequence[Any], upwards: bool) -> Any | None:
        end = values[-1] if upwards else values[0]
        kind = type(end)
        nearest = kind(float(f"{end * self.factor if upwards else end / self.factor:.3g}"))
        bounded = kind(min(nearest, self.highest) if upwards else max(nearest, self.lowest))
        return bounded if (bounded > end if upwards else bounded < end) else None


@dataclass(frozen=True)
class Found:
    values: list[list[Any]]  # of each axis, widened
    scores: np.ndarray  # float64, an axis each
    best: tuple[int, ...]
    edges: list[str]  # of the axes whose best value is still the first or last

    @property
    def score(self) -> float:
        return float(self.scores[self.best])

    def chosen(self, axis: int) -> Any:
        return self.values[axis][self.best[axis]]


def search(axes: Sequence[Axis], evaluate: Callable[[list[list[Any]]], np.ndarray], widen: bool = True) -> Found:
    """evaluate: values of each axis -> the scores of their product, an axis each.  Ties go to what lies farthest from the ends of the axes that can
    grow, then to what was tried first, so that a level stretch is no reason to go on."""

    def at_once(values: list[list[Any]]) -> Generator[None, None, np.ndarray]:
        return evaluate(values)
        yield  # nothing, which makes it a generator

    try:
        next(searching(axes, at_once, widen))
    except StopIteration as end:
        return end.value
    raise AssertionError("it asks nobody")


def searching(
    axes: Sequence[Axis], evaluate: Callable[[list[list[Any]]], Generator[Asked, Given, np.ndarray]], widen: bool = True
) -> Generator[Asked, Given, Found]:
    """As `search`, where evaluating asks others: what they are asked is yielded, and what they say is sent."""
    values = [list(axis.values) for axis in axes]
    scores = np.asarray((yield from evaluate(values)), dtype=np.float64)
    while True:
        best = _pick(scores, axes)
        grown = False
        for i, axis in enumerate(axes):
            for upwards in (False, True):
                if not (widen and axis.grows and best[i] == (len(values[i]) - 1 if upwards else 0)):
                    continue
                new = axis.beyond(values[i], upwards)
                if not new or grown:
                    continue
                more = np.asarray((yield from evaluate([new if j == i else values[j] for j in range(len(axes))])), dtype=np.float64)
                values[i] = [*values[i], *new] if upwards else [*new, *values[i]]
                scores = np.concatenate([scores, more] if upwards else [more, scores], axis=i)
                grown = True
        if not grown:
            edges = [axis.name for i, axis in enumerate(axes) if axis.grows and best[i] in (0, len(values[i]) - 1)]
            return Found(values, scores, best, edges)


def _pick(scores: np.ndarray, axes: Sequence[Axis]) -> tuple[int, ...]:
    def inside(place: tuple[int, ...]) -> int:
        return min((min(at, size - 1 - at) for at, size, axis in zip(place, scores.shape, axes, strict=True) if axis.grows), default=0)

    tied = [tuple(int(at) for at in place) for place in np.argwhere(scores == scores.max())]
    return max(tied, key=inside)  # the first of several
