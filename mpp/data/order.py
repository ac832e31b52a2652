"""Which sample stands at which place of training: a pure function of (seed, epoch, position), the same on any cluster.

An epoch is made so:
  1. permute the shards by (seed, epoch) and lay them end to end: the line of n samples;
  2. start at a random offset of the line, cyclic;
  3. cut V logical streams of exactly S = steps * G / V places each, steps = floor(n / G); the few places left over differ each epoch;
  4. permute inside each stream (in blocks of `block` places where that is set, so that remote reads stay near each other);
  5. step t takes the next G / V places of every stream; rank r of W owns the streams [r V / W, (r + 1) V / W).
G (the global batch) and V are fixed in a run and W divides V divides G, so every admissible world W sees the same global batches.
A position counts samples from the start of the run: epoch = position // (steps * G).  Any place is found in O(log shards), no table of
n entries is ever made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from mpp.errors import ConfigError
from mpp.rng import OFFSET, SHARDS, STREAM, Draws


@dataclass(frozen=True)
class Order:
    """samples_per_shard: in manifest order; global_batch: G; streams: V."""

    samples_per_shard: tuple[int, ...]
    global_batch: int
    streams: int
    seed: int
    block: int | None = None

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"data.global_batch={self.global_batch} exceeds the {self.samples} training samples of data.shards; "
                f"take a batch of {self.samples} or fewer, or more images"
            )

    @property
    def samples(self) -> int:
        return sum(self.samples_per_shard)

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.global_batch

    @property
    def samples_per_epoch(self) -> int:
        """Of those that are seen: a whole number of steps."""
        return self.steps_per_epoch * self.global_batch

    def positions(self, step: int, rank: int, world: int) -> np.ndarray:
        """int64 [G / W]: the positions that `rank` of `world` takes in optimiser step `step` of the run (0 is the first)."""
        each = self.global_batch // self.streams
        own = self.streams // world
        first = step * self.global_batch + rank * own * each
        return np.arange(first, first + own * each, dtype=np.int64)

    def sample_ids(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """positions [n] of one epoch -> (epoch [n], sample id [n]), both int64."""
        epoch, inside = np.divmod(positions, self.samples_per_epoch)
        step, slot = np.divmod(inside, self.global_batch)
        each = self.global_batch // self.streams
        stream, nth = np.divmod(slot, each)
        ids = np.empty(len(positions), dtype=np.int64)
        for e in np.unique(epoch):
            here = epoch == e
            ids[here] = self._epoch(int(e)).sample_ids(stream[here], step[here] * each + nth[here])
        return epoch, ids

    def _epoch(self, epoch: int) -> "_Epoch":
        return _epoch_of(self, epoch)


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


@lru_cache(maxsize=4)
def _epoch_of(order: Order, epoch: int) -> _Epoch:
    sizes = np.asarray(order.samples_per_shard, dtype=np.int64)
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


# --------------------------------------------------------------------------------------------------------------- worlds and batches


def default_streams(global_batch: int) -> int:
    """The largest divisor of the batch up to 1024."""
    return max(v for v in range(1, min(global_batch, 1024) + 1) if global_batch % v == 0)


@dataclass(frozen=True)
class BatchPlan:
    streams: int
    micro_batch: int  # samples a process takes at once
    accumulation: int  # micro-batches a step
    worlds: tuple[int, ...]  # the admissible numbers of processes


def plan_batch(global_batch: int, streams: int | None, world: int, micro_batch_max: int) -> BatchPlan:
    """How a step of `global_batch` samples is shared.  Raises ConfigError when `world` processes cannot share it equally."""
    v = streams or default_streams(global_batch)
    if global_batch % v:
        raise ConfigError(
            f"data.streams={v} must divide data.global_batch={global_batch}; leave it null for {default_streams(global_batch)}"
        )
    worlds = tuple(w for w in range(1, v + 1) if v % w == 0)
    if v % world:
        lower, upper = global_batch // world * world, -(-global_batch // world) * world
        batches = " and ".join(str(batch) for batch in sorted({lower, upper}) if batch)
        raise ConfigError(
            f"data.global_batch={global_batch} in {v} streams cannot be shared equally by {world} processes; "
            f"start one of {', '.join(map(str, worlds))} processes, or take the nearest batches that fit: {batches}"
        )
    share = global_batch // world
    accumulation = next(a for a in range(1, share + 1) if share % a == 0 and share // a <= micro_batch_max)
    return BatchPlan(v, share // accumulation, accumulation, worlds)


class OrderSampler(Sampler[list[tuple[int, int, int]]]):
    """Micro-batches of (epoch, sample id, position) for one rank, from `step` to `last_step`: a batch sampler for the torch DataLoader."""

    def __init__(self, order: Order, plan: BatchPlan, rank: int, world: int, step: int, last_step: int):
        self.order, self.plan, self.rank, self.world = order, plan, rank, world
        self.step, self.last_step = step, last_step

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in range(self.step, self.last_step):
            positions = self.order.positions(step, self.rank, self.world)
            epochs, ids = self.order.sample_ids(positions)
            rows = list(zip(epochs.tolist(), ids.tolist(), positions.tolist(), strict=True))
            for first in range(0, len(rows), self.plan.micro_batch):
                yield rows[first : first + self.plan.micro_batch]

    def __len__(self) -> int:
        return (self.last_step - self.step) * self.plan.accumulation
