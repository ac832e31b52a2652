"""How much of a set one machine reads from at a time, where its shards are fetched into a cache: said at the start, and refused where it does not fit.

Within a block of a stream (order.py) the next sample may lie in any of its shards, so all of them are in hand until the block is done.  Without blocks
that is all that a machine reads in an epoch.
"""

from dataclasses import dataclass, replace

import numpy as np

from mpp.base.errors import ConfigError
from mpp.base.text import sized
from mpp.data.order import Order

WORTH = 0.9  # of the widest window of shuffling, for which more streams are taken


@dataclass(frozen=True)
class InHand:
    shards: int  # at most
    bytes: int

    def __str__(self) -> str:
        return f"{self.shards:,} {'shard' if self.shards == 1 else 'shards'}, {sized(self.bytes)}"


def in_hand(order: Order, machines: int, shard_bytes: np.ndarray) -> InHand:
    """Of one of so many machines.  shard_bytes [shards]."""
    shards = order.shards_in_reach(machines)
    return InHand(shards, int(np.sort(shard_bytes)[::-1][:shards].sum()))


def refuse_beyond(
    order: Order, world: int, machines: int, shard_bytes: np.ndarray, limit: int, where: object, disk: int | None = None
) -> InHand:
    """limit: bytes of the cache; where: the shards lie; disk: bytes that the cache's disk has for them.  Raises ConfigError, with what would fit."""
    found = in_hand(order, machines, shard_bytes)
    asked, limit = limit, limit if disk is None else min(limit, disk)
    if found.bytes <= limit:
        return found
    room = int(np.searchsorted(np.cumsum(np.sort(shard_bytes)[::-1]), limit, side="right"))
    wider = f"raise system.cache_gb to {found.bytes / 1e9 * 1.05:.3g}"
    if disk is not None and found.bytes * 1.05 > disk:
        wider = f"give system.cache= on a disk with {sized(found.bytes * 1.05)} of room (this one has {sized(disk)})"
    best = max((size for streams in _streams(order, world) if (size := _window(order, streams, machines, room))), default=None, key=np.prod)
    if best:
        chosen = next(
            window
            for streams in _streams(order, world)
            if (window := _window(order, streams, machines, room)) and np.prod(window) >= WORTH * np.prod(best)
        )
        streams = f"data.streams={chosen[0]} " if chosen[0] != order.streams else ""
        wider = f"set {streams}data.block={chosen[1]} from the start of a run (samples are then shuffled among {chosen[0] * chosen[1]:,}), or {wider}"
    words = "an epoch" if order.block is None else "a block of its streams"
    raise ConfigError(
        f"{where}: a machine reads from up to {found} in {words}, and the cache holds {sized(limit)}{', which is all that its disk has' if limit < asked else ''} ({room:,} shards): it would fetch the same "
        f"shards again and again; {wider}"
    )


def _streams(order: Order, world: int) -> list[int]:
    """How many there may be, at most as many as now; descending."""
    return [streams for streams in range(order.streams, 0, -1) if order.batch % streams == 0 and streams % world == 0]


def _window(order: Order, streams: int, machines: int, room: int) -> tuple[int, int] | None:
    """(streams, the largest block with which a machine has no more than `room` shards in hand); None where there is none."""
    low, high = 0, order.samples_per_epoch // streams
    fits = lambda block: replace(order, streams=streams, block=block).shards_in_reach(machines) <= room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return (streams, low) if low else None
