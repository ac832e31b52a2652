"""An order over several sources, each drawn as often as its weight says: like order.py's a pure function of (seed, position), the same on any cluster.

Of a step's G samples, source k has floor(G w_k) or ceil(G w_k), for its exact weight w_k.  So:
  1. In step t the G slots stand for G points, equally far apart on a circle of circumference 1; source k owns an arc of length w_k.  Any arc holds the
     floor or the ceiling of G times its length.  (Systematic sampling.)
  2. From step to step the points are turned by a van der Corput sequence, in a base that does not divide V.  So each of the V streams sees every part of
     the circle equally often, and so do the V streams together: after t steps a source differs from its share by fewer than 2 times the sum of t's digits
     in that base, in a stream and in all, that is by a few samples.  Slots that lie side by side have points far apart, so that ranks and micro-batches
     have about the shares of the step.
  3. The j-th draw of source k in stream v is place j of stream v in source k's own Order.  So each source has epochs of its own, in which each of its
     samples comes at most once, the few that V streams leave over apart, and the streams of a rank read its own part of every source.

Counts stand in closed form: a place costs O(digits of t + log shards), and nothing is kept between steps.  All is done in integers.

An epoch of the mix is as many samples as the sources have together, in whole steps; which of them it holds, the weights say.
Letters: G, V, S of order.py; K sources, M = base ** digits turns of the circle, each stream `each` = G / V places a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from mpp.base.errors import ConfigError
from mpp.base.rng import SOURCES, Draws, seed_of
from mpp.data.order import Order

TURNS = 2**24  # M at most: int64 holds M * V * (a few)
PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29)  # their product exceeds any V


@dataclass(frozen=True, eq=False)
class MixedOrder(Order):
    """samples_per_shard: of all sources, source after source.  Raises ConfigError for a source that is smaller than the streams."""

    shards: tuple[int, ...] = field(kw_only=True)  # of each source
    weights: tuple[Fraction, ...] = field(kw_only=True)  # of each, which sum to 1
    names: tuple[str, ...] = field(kw_only=True)  # for messages

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (first, end) in zip(self.names, self._shards_of_each(), strict=True):
            if (samples := int(self.samples_per_shard[first:end].sum())) < self.streams:
                fits = max(streams for streams in range(1, samples + 1) if self.batch % streams == 0)
                raise ConfigError(
                    f"{name} has {samples:,} training samples, fewer than the {self.streams:,} streams that each draw from it; set data.streams={fits}, give more "
                    "images, or leave data.weights out"
                )

    def _shards_of_each(self) -> list[tuple[int, int]]:
        ends = np.cumsum(self.shards).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def sources(self) -> list[Order]:
        """Each one's own: a step of it is one place of every stream."""
        return [
            Order(self.samples_per_shard[first:end], self.streams, self.streams, seed_of(self.seed, SOURCES, 1 + number), self.block)
            for number, (first, end) in enumerate(self._shards_of_each())
        ]

    @cached_property
    def first_ids(self) -> list[int]:
        """Of each source."""
        sizes = np.array([source.samples for source in self.sources], np.int64)
        return (np.cumsum(sizes) - sizes).tolist()

    def passes(self, samples: int) -> list[float]:
        """How often each source is gone through in a run of so many samples."""
        return [float(samples * weight / source.samples) for weight, source in zip(self.weights, self.sources, strict=True)]

    def shards_in_reach(self, world: int) -> int:
        return sum(source.shards_in_reach(world) for source in self.sources)

    def sample_ids(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """places [n] -> (epoch of its own source [n], sample id [n]), both int64."""
        source, stream, draw = self.draws(places)
        epoch, ids = np.empty(len(places), dtype=np.int64), np.empty(len(places), dtype=np.int64)
        for number, order in enumerate(self.sources):
            here = source == number
            epoch[here], own = order.sample_ids(draw[here] * self.streams + stream[here])
            ids[here] = self.first_ids[number] + own
        return epoch, ids

    def draws(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """places [n] -> (source [n], stream [n], how many of that source that stream has had before [n])."""
        step, slot = np.divmod(places, self.batch)
        stream, nth = np.divmod(slot, self._each)
        whole, part = self._edges
        point, phase = nth * _stride(self._each) % self._each, stream * _stride(self.streams) % self.streams
        within = self._within(step, phase)
        behind = (point[:, None] > whole) | ((point[:, None] == whole) & (within[:, None] >= part))  # [n, K + 1]
        source = behind.sum(1) - 1
        in_step = point - whole[source] - (within < part[source])
        return source, stream, self._before(step, phase, source + 1) - self._before(step, phase, source) + in_step

    @property
    def _each(self) -> int:
        return self.batch // self.streams

    @cached_property
    def _base(self) -> int:
        return next(prime for prime in PRIMES if self.streams % prime)

    @cached_property
    def _turns(self) -> int:
        return int(self._base ** int(math.log(TURNS, self._base)))

    @cached_property
    def _shift(self) -> int:
        return int(Draws(self.seed, SOURCES, 0).bits(1)[0] % np.uint64(self._turns))

    @cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [K + 1] twice: the sources' arcs end at whole + part / (M V), rounded up, of `each`."""
        ends = [self._each * sum(self.weights[:count], Fraction(0)) for count in range(len(self.weights) + 1)]
        whole = [math.floor(end) for end in ends]
        part = [math.ceil((end - floor) * self._turns * self.streams) for end, floor in zip(ends, whole, strict=True)]
        return np.array(whole, np.int64), np.array(part, np.int64)

    def _within(self, step: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Where a stream's first point stands, of M V that go round to its second: the others lie as far apart."""
        turn, left, value = np.zeros_like(step), step, self._turns
        while value > 1:
            value //= self._base
            left, digit = np.divmod(left, self._base)
            turn = turn + digit * value
        return ((turn + self._shift) % self._turns * self.streams + phase * self._turns) % (self._turns * self.streams)

    def _before(self, step: np.ndarray, phase: np.ndarray, edge: np.ndarray) -> np.ndarray:
        """How many points of a stream's steps before `step` stand before that edge."""
        whole, part = self._edges
        low, high = (-((phase * self._turns - least) // self.streams) - self._shift for least in (0, part[edge]))
        return step * whole[edge] + self._turned(step, high) - self._turned(step, low)

    def _turned(self, steps: np.ndarray, below: np.ndarray) -> np.ndarray:
        """How many of the first steps have a turn in [0, below), which goes round where it exceeds M or is negative."""
        rounds, below = np.divmod(below, self._turns)
        count, left, value = rounds * steps, steps, self._turns
        while value > 1:
            value //= self._base
            digit, below = np.divmod(below, value)
            whole, rest = np.divmod(left, self._base)  # steps by their last digit: those of a lower one are all in
            count = count + digit * whole + np.minimum(digit, rest)
            left = whole + (digit < rest)
        return count


def _stride(places: int) -> int:
    """Steps of so many around a circle of `places` reach all of them, and a few steps are spread evenly: near the golden section, and coprime."""
    golden = round(places * (math.sqrt(5) - 1) / 2)
    return next(near for away in range(places) for near in (golden + away, golden - away) if near > 0 and math.gcd(near, places) == 1)


def exact_weights(weights: Sequence[float]) -> tuple[Fraction, ...]:
    """As they are written, 0.7 as 7 / 10, and scaled to sum to 1."""
    exact = [Fraction(repr(weight)) for weight in weights]
    return tuple(weight / sum(exact) for weight in exact)
