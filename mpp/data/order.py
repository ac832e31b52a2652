"""Which sample stands at which place of training: a pure function of (seed, epoch, position), the same on any cluster.

An epoch is made so:
  1. permute the shards by (seed, epoch) and lay them end to end: the line of n samples;
  2. start at a random offset of the line, cyclic;
  3. cut V logical streams of exactly S = steps * G / V places each, steps = floor(n / G); the few places left over differ each epoch;
  4. permute inside each stream (in blocks of `block` places where that is set, so that remote reads stay near each other);
  5. step t takes the next G / V places of every stream; rank r of W owns the streams [r V / W, (r + 1) V / W).
G (the samples of a step) and V are fixed in a run and W divides V divides G, so every admissible world W sees the same global batches.
A place's number counts samples from the start of the run: epoch = number // (steps * G).  Any place is found in O(log shards), no table of
n entries is ever made.

With k views of each sample (`data.views`) the batch of data.global_batch views holds G = global_batch / k samples.  A view's position is
k * (its sample's number) + view: schedules and logs count views.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from mpp.base.errors import ConfigError
from mpp.base.rng import OFFSET, SHARDS, STREAM, Draws
from mpp.data.batch_plan import BatchPlan

EPOCHS = 2  # that are kept, 16 bytes a shard each: that in hand and the next
FIXED = 2**62  # the "epoch" of draws that never change: hold-outs, and what is measured on


Sampler = Iterable[list[tuple[int, int, int]]]  # micro-batches of (epoch, sample id, position)


class SampleOrder(Protocol):
    """Which samples stand where in a run, as far as that is known before they are read."""

    @property
    def words(self) -> str:
        """For people: how many there are."""
        ...

    def places(self, step: int, rank: int, world: int) -> np.ndarray: ...

    def sample_ids(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def shards_in_reach(self, world: int) -> int: ...


@dataclass(frozen=True, eq=False)
class Order:
    """samples_per_shard: int64 [shards], or any sequence of them, in manifest order; batch: G, samples a step; streams: V."""

    samples_per_shard: np.ndarray
    batch: int
    streams: int
    seed: int
    block: int | None = None
    _epochs: dict[int, "_Epoch"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples_per_shard", np.asarray(self.samples_per_shard, np.int64))
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"a step of {self.batch} samples (data.global_batch / data.views) exceeds the {self.samples} training samples; "
                f"take a batch of {self.samples} or fewer, or more images"
            )

    @cached_property
    def samples(self) -> int:
        return int(self.samples_per_shard.sum())

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.batch

    @property
    def words(self) -> str:
        return f"{self.samples:,} training samples, {self.steps_per_epoch} steps an epoch"

    @property
    def samples_per_epoch(self) -> int:
        """Of those that are seen: a whole number of steps."""
        return self.steps_per_epoch * self.batch

    def places(self, step: int, rank: int, world: int) -> np.ndarray:
        """int64 [G / W]: the places that `rank` of `world` takes in optimiser step `step` of the run (0 is the first)."""
        return places_of(self.batch, step, rank, world)

    def shards_in_reach(self, world: int) -> int:
        """In how many shards the samples of one of `world` processes may lie, at most: in an epoch, or where that is less with blocks in a step."""
        stretch = self.samples_per_epoch // world
        reach = shards_of(self.samples_per_shard, stretch)
        if self.block is None:
            return reach
        blocks = -(-(self.batch // self.streams) // self.block) + 1  # that a stream's places of a step lie in
        each = shards_of(self.samples_per_shard, min(blocks * self.block, self.samples_per_epoch // self.streams))
        return min(reach, max(1, self.streams // world) * each)

    def sample_ids(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """places [n] -> (epoch [n], sample id [n]), both int64."""
        epoch, inside = np.divmod(places, self.samples_per_epoch)
        step, slot = np.divmod(inside, self.batch)
        each = self.batch // self.streams
        stream, nth = np.divmod(slot, each)
        ids = np.empty(len(places), dtype=np.int64)
        for e in np.unique(epoch):
            here = epoch == e
            ids[here] = self._epoch(int(e)).sample_ids(stream[here], step[here] * each + nth[here])
        return epoch, ids

    def _epoch(self, epoch: int) -> "_Epoch":
        if epoch not in self._epochs:
            if len(self._epochs) == EPOCHS:
                self._epochs.clear()
            self._epochs[epoch] = _epoch_of(self, epoch)
        return self._epochs[epoch]


def places_of(batch: int, step: int, rank: int, world: int) -> np.ndarray:
    """As Order.places."""
    own = batch // world
    first = step * batch + rank * own
    return np.arange(first, first + own, dtype=np.int64)


def shards_of(samples_per_shard: np.ndarray, stretch: int) -> int:
    """In how many shards a stretch of so many neighbouring places of a line may lie at most, whatever the order of the shards: all but its first and
    its last are in it whole."""
    whole = np.searchsorted(np.cumsum(np.sort(samples_per_shard)), stretch - 2, side="right")
    return min(len(samples_per_shard), stretch, int(whole) + 2)


@dataclass(frozen=True)
class _Epoch:
    order: Order
    number: int
    starts: np.ndarray  # of the permuted shards on the line, and the line's length
    first_ids: np.ndarray  # the sample id each permuted shard begins with
    offset: int

    def sample_ids(self, stream: np.ndarray, place: np.ndarray) -> np.ndarray:
        """stream [n], place [n] in that stream -> sample ids [n]."""
        length = self.order.samples_per_epoch // self.order.streams
        block = min(self.order.block or length, length)
        first = place // block * block
        size = np.minimum(block, length - first)
        moved = first + permute(place - first, size, self._keys(stream, place // block))
        line = (self.offset + stream * length + moved) % self.order.samples
        shard = np.searchsorted(self.starts, line, side="right") - 1
        return self.first_ids[shard] + line - self.starts[shard]

    def _keys(self, stream: np.ndarray, block: np.ndarray) -> np.ndarray:
        """uint64 [n]: one permutation's key for each (seed, epoch, stream, block)."""
        base = Draws(self.order.seed, STREAM, self.number).bits(2)
        return _mix(_mix(base[0] + stream.astype(np.uint64)) ^ (base[1] + block.astype(np.uint64)))


def _epoch_of(order: Order, epoch: int) -> _Epoch:
    sizes = order.samples_per_shard
    shards = Draws(order.seed, SHARDS, epoch).permutation(len(sizes))
    starts = np.concatenate([[0], np.cumsum(sizes[shards])])
    first_ids = (np.cumsum(sizes) - sizes)[shards]
    offset = int(Draws(order.seed, OFFSET, epoch).bits(1)[0] % np.uint64(order.samples))
    return _Epoch(order, epoch, starts, first_ids, offset)


def _mix(value: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of range(size) sends `index`; all [n], without a table.

    A balanced Feistel network of 6 rounds over the next power of four, walked until it lands inside (Black and Rogaway 2002): fewer than
    four steps are expected.
    """
    half = np.maximum(1, (np.ceil(np.log2(np.maximum(size, 2)))).astype(np.uint64) + np.uint64(1)) // np.uint64(2)
    low_mask = (np.uint64(1) << half) - np.uint64(1)
    value, size = index.astype(np.uint64), size.astype(np.uint64)
    pending = np.ones(len(value), dtype=bool)
    while pending.any():
        h, m, k = half[pending], low_mask[pending], key[pending]
        left, right = value[pending] >> h, value[pending] & m
        for round_number in range(6):
            with np.errstate(over="ignore"):
                scrambled = _mix(k + right + np.uint64(0x9E3779B97F4A7C15) * np.uint64(round_number + 1))
            left, right = right, left ^ (scrambled & m)
        value[pending] = (left << h) | right
        pending[pending] = value[pending] >= size[pending]
    return value.astype(np.int64)


def steps_over(ranges: Iterable[Sequence[int]], global_batch: int, steps: int) -> frozenset[int]:
    """Which of the first `steps` steps (0 is the first) see any of these positions, each range [first, behind the last): a step is left out whole
    or not at all."""
    return frozenset(step for first, end in ranges for step in range(first // global_batch, min(steps, -(-end // global_batch))))


def ranges_in_words(ranges: Iterable[Sequence[int]]) -> str:
    """24:48,96:108, as data.skip_samples takes them."""
    return ",".join(f"{first}:{end}" for first, end in ranges) or "[]"


class OrderSampler:
    """Micro-batches of (epoch, sample id, position of its first view) for one rank, from `step` up to `last_step`: a batch sampler for the torch
    DataLoader.  chosen: where the order is over some of the images only, their ids; the order's n-th sample is chosen[n]."""

    def __init__(
        self,
        order: SampleOrder,
        plan: BatchPlan,
        rank: int,
        world: int,
        step: int,
        last_step: int,
        chosen: np.ndarray | None = None,
        passed: Container[int] = (),
    ):
        self.order, self.plan, self.rank, self.world = order, plan, rank, world
        self.chosen = chosen
        self.steps = [each for each in range(step, last_step) if each not in passed] if passed else range(step, last_step)
        self.micro_batch = plan.micro_batch

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        taken = self.plan.micro_batch // self.plan.views
        for step in self.steps:
            places = self.order.places(step, self.rank, self.world)
            epochs, ids = self.order.sample_ids(places)
            if self.chosen is not None:
                ids = self.chosen[ids]
            rows = list(zip(epochs.tolist(), ids.tolist(), (places * self.plan.views).tolist(), strict=True))
            for first in range(0, len(rows), taken):
                yield rows[first : first + taken]

    def __len__(self) -> int:
        return len(self.steps) * self.plan.accumulation


class EveryOnce:
    """One rank's share of `ids`, in micro-batches of (FIXED, sample id, place in `ids`): together the ranks take every place exactly once.

    Every rank gives as many micro-batches of the same size, so that collective calls match; places from len(ids) on are padding, which repeats
    the last id.
    """

    def __init__(self, ids: np.ndarray, micro_batch: int, rank: int, world: int):
        self.ids, self.micro_batch, self.rank, self.world = ids, micro_batch, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for number in range(len(self)):
            places = (number * self.world + self.rank) * self.micro_batch + np.arange(self.micro_batch)
            chosen = self.ids[np.minimum(places, len(self.ids) - 1)]
            yield [(FIXED, sample, place) for sample, place in zip(chosen.tolist(), places.tolist(), strict=True)]

    def __len__(self) -> int:
        return -(-len(self.ids) // (self.micro_batch * self.world))


class Parts:
    """Rows of `ids` as somebody else has dealt them out to micro-batches: (epoch, sample id, row)."""

    def __init__(self, ids: np.ndarray, parts: Sequence[Sequence[int] | np.ndarray], epoch: int = FIXED):
        self.ids, self.parts, self.epoch = ids, parts, epoch
        self.micro_batch = max(map(len, parts), default=0)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for part in self.parts:
            yield [(self.epoch, int(self.ids[row]), int(row)) for row in part]

    def __len__(self) -> int:
        return len(self.parts)
