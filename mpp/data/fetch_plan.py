"""Which shards a process needs, and in how many micro-batches: read off the sampler that it will go through, a little ahead of it."""

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from mpp.data.cache_folder import Shard

MOST_USES = 200_000  # of shards by micro-batches, that a plan looks ahead: its memory
LEAST_AHEAD = 64  # micro-batches that it looks ahead at least: loader processes are so far before their rank
LOOKING = 0.05  # seconds at a time, as long as nothing else is answered


class Plan:
    """What one process will read: its micro-batches in order, as far as has been looked ahead."""

    def __init__(self, sampler: Iterable[list[tuple[int, int, int]]], key: str, names: Sequence[bytes], starts: np.ndarray):
        """names: as the file system has them; starts: the first sample's id of each shard, and their number."""
        self._rest, self._key, self._names, self._starts = iter(sampler), key, names, starts
        self._ahead: deque[list[Shard]] = deque()  # of micro-batches from `at` on
        self.uses: dict[Shard, deque[int]] = {}  # in which of them, ascending
        self.at = self._seen = self._pairs = 0
        self.ends = False

    def look(self, shards: int) -> None:
        """Ahead, until so many different ones are seen, or for LOOKING seconds."""
        end = time.monotonic() + LOOKING
        while not self.ends and (
            self._seen - self.at < LEAST_AHEAD or (len(self.uses) < shards and self._pairs < MOST_USES and time.monotonic() < end)
        ):
            if (keys := next(self._rest, None)) is None:
                self.ends = True
                return
            found = np.unique(np.searchsorted(self._starts, [sample for _, sample, _ in keys], side="right") - 1)
            batch = [Shard(self._key, os.fsdecode(self._names[number])) for number in found.tolist()]
            for shard in batch:
                self.uses.setdefault(shard, deque()).append(self._seen)
            self._ahead.append(batch)
            self._pairs += len(batch)
            self._seen += 1

    def moved(self, at: int) -> None:
        self.look(0)
        while self.at < at and self._ahead:
            for shard in self._ahead.popleft():
                self.uses[shard].popleft()
                self._pairs -= 1
                if not self.uses[shard]:
                    del self.uses[shard]
            self.at += 1
            self.look(0)

    def distance(self, shard: Shard) -> float:
        """Micro-batches until it is needed."""
        found = self.uses.get(shard)
        return found[0] - self.at if found else math.inf
