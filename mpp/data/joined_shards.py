"""Several sets of shards as one: what a run trains on where data.shards is a list.

Ids run through stretches: of each set those that are trained on, set after set, and behind them of each set those that are held out.  So everything that
takes a range of ids, for training or hold-out, takes that of several sets; sources.json in the run folder says which id is whose.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mpp.base.errors import ConfigError
from mpp.config.schema import Words
from mpp.data.fingerprints import overlap
from mpp.data.in_hand import InHand, refuse_beyond
from mpp.data.order import Order, Sampler
from mpp.data.shard_cache import CachedSet, fetched_words
from mpp.data.shards import ShardSet, may_open
from mpp.processes.peers import ALONE, Peers


@dataclass(frozen=True)
class Stretch:
    """Neighbouring ids of one set."""

    source: int  # which set
    first: int  # its own id of the first
    count: int


LOOKED_THROUGH = 1_000_000  # images: their prints take a second and 40 MB to read


class JoinedShards:
    """As ShardSet answers; ids are of the whole.  Safe to fork and to pickle; several threads may read."""

    remedy = ShardSet.remedy

    def __init__(self, sources: Sequence[ShardSet], names: Sequence[str], held_out: Sequence[int]):
        """names: short ones.  held_out: of each set, its last images."""
        self.sources, self.names = tuple(sources), tuple(names)
        self.trained = tuple(len(each) - last for each, last in zip(sources, held_out, strict=True))  # images of each set before those
        stretches = [Stretch(number, 0, count) for number, count in enumerate(self.trained)]
        stretches += [Stretch(number, self.trained[number], last) for number, last in enumerate(held_out) if last]
        self.stretches = tuple(stretches)
        self.starts = np.cumsum([0, *(each.count for each in stretches)]).tolist()  # the first id of each, and how many there are
        self.path = Path(" + ".join(str(each.path) for each in sources))  # for messages
        self.manifest_hash = sha256("".join(each.manifest_hash for each in sources).encode()).hexdigest()
        shares = np.array([len(each) for each in sources]) / sum(map(len, sources))
        means, deviations = (np.array([getattr(each, name) for each in sources]) for name in ("mean", "std"))
        mean = shares @ means
        self.mean: list[float] = mean.tolist()
        self.std: list[float] = np.sqrt(shares @ (deviations**2 + means**2) - mean**2).tolist()
        alike = all(each.classes == sources[0].classes for each in sources)
        self.classes: list[str] = sources[0].classes if alike else []
        self.labelled = alike and all(each.labelled for each in sources)
        self.shard_bytes = np.concatenate([each.shard_bytes for each in sources])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def identity(self) -> str:
        return self.manifest_hash

    @property
    def stamp(self) -> str:
        return self.manifest_hash

    @property
    def samples_per_shard(self) -> np.ndarray:
        """int64, in the order of the ids: a shard of which some images are held out counts twice."""
        return np.concatenate([within(self.sources[each.source].samples_per_shard, each.first, each.count) for each in self.stretches])

    @property
    def shards_of_each(self) -> tuple[int, ...]:
        """How many of them each source is trained on."""
        return tuple(len(within(each.samples_per_shard, 0, count)) for each, count in zip(self.sources, self.trained, strict=True))

    def place(self, sample: int) -> tuple[int, int]:
        """(which set, its own id) of an id."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        at = bisect_right(self.starts, sample) - 1
        each = self.stretches[at]
        return each.source, each.first + sample - self.starts[at]

    def sources_of(self, ids: Sequence[int]) -> list[int]:
        """Which set each id is of."""
        return [self.place(sample)[0] for sample in ids]

    @property
    def remarks(self) -> list[str]:
        """Which images several of them share, byte for byte; of LOOKED_THROUGH at most."""
        if len(self) > LOOKED_THROUGH:
            return []
        of = np.repeat([each.source for each in self.stretches], [each.count for each in self.stretches])
        trained, held = self.prints[: sum(self.trained)], self.prints[sum(self.trained) :]
        shared = [
            f"{count:,} images of {name} are also in another source"
            for number, name in enumerate(self.names)
            if number and (count := int(overlap(self.prints[of == number], self.prints[of < number]).sum()))
        ]
        if not shared:
            return []
        leaked = int(overlap(held, trained).sum())
        also = (
            f"; {leaked:,} of {len(held):,} that are held out are trained on, too, so that hold-out figures look better than they are"
            if leaked
            else ""
        )
        return [f"note: {', '.join(shared)}, byte for byte{also}"]

    def as_json(self) -> str:
        """Which ids are whose, a line a stretch: {"source", "shards", "manifest" (sha256), "first", "samples" (ids), "first_there" (in its own set)}."""
        lines = []
        for start, each in zip(self.starts, self.stretches, strict=False):
            source = self.sources[each.source]
            about = {"source": self.names[each.source], "shards": str(source.path), "manifest": source.manifest_hash}
            lines.append(json.dumps(about | {"first": start, "samples": each.count, "first_there": each.first}))
        return "[\n" + ",\n".join(lines) + "\n]\n"

    @property
    def index(self) -> "JoinedIndex":
        return JoinedIndex(self)

    @cached_property
    def labels(self) -> np.ndarray:
        return self._laid_out(lambda source: source.labels)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        return np.array([self._asked(sample, lambda source, own: source.index.row(own).label) for sample in ids], np.int32)

    @cached_property
    def prints(self) -> np.ndarray:
        return self._laid_out(lambda source: source.prints)

    def size_of(self, sample: int) -> tuple[int, int]:
        return self._asked(sample, lambda source, own: source.size_of(own))

    def where(self, sample: int) -> str:
        """With its source's name before it: "photos: train/000003.tar: 000000001234 (offset 51712)"."""
        number, own = self.place(sample)
        return f"{self.names[number]}: {self.sources[number].where(own)}"

    def name_of(self, sample: int) -> str:
        number, own = self.place(sample)
        return f"{self.names[number]}/{self.sources[number].name_of(own)}"

    def read(self, sample: int) -> bytes:
        return self._asked(sample, lambda source, own: source.read(own))

    def ahead(self, samples: Sequence[int]) -> None:
        places = [self.place(sample) for sample in samples]
        for number, source in enumerate(self.sources):
            source.ahead([own for of, own in places if of == number])

    def in_hand(self, order: Order, world: int, local_world: int) -> InHand | None:
        """As ShardSet's: of all sets, where any is read through a cache."""
        if not (cached := self._cached()):
            return None
        sizes = [source.shard_bytes * (source.cached is not None) for source in self.sources]  # what lies on the disk takes no room
        return refuse_beyond(order, world, max(1, world // local_world), np.concatenate(sizes), cached[0].limit, self.path, cached[0].room)

    def fetched_words(self, hand: InHand) -> str:
        return fetched_words(self._cached(), hand)

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        """As ShardSet's, of each set."""
        cached = [number for number, source in enumerate(self.sources) if source.cached is not None]
        own = lambda number: OwnSamples(sampler, self.stretches, self.starts, number)
        told = [self.sources[number].expects(own(number), hand if number == cached[0] else 0) for number in cached]

        def done(batches: int) -> None:
            for tell in told:
                tell(batches)

        return done

    def _cached(self) -> list[CachedSet]:
        return [source.cached for source in self.sources if source.cached is not None]

    def keep_open(self, shards: int) -> int:
        """As ShardSet's: any of the sets may hold all of them; where that is too many in all, each has its part."""
        wanted = [min(shards, len(each.shard_bytes)) for each in self.sources]
        may = may_open(sum(wanted))
        kept = [each.keep_open(max(1, count * may // sum(wanted))) for each, count in zip(self.sources, wanted, strict=True)]
        return min(shards, sum(kept))

    def _asked(self, sample: int, ask: Callable[[ShardSet, int], Any]) -> Any:
        number, own = self.place(sample)
        return ask(self.sources[number], own)

    def _laid_out(self, column: Callable[[ShardSet], np.ndarray]) -> np.ndarray:
        """A column of all sets, in the order of the ids."""
        columns = [column(source) for source in self.sources]
        return np.concatenate([columns[each.source][each.first : each.first + each.count] for each in self.stretches])


@dataclass(frozen=True)
class OwnSamples:
    """A sampler of the whole, as one of its sets sees it: the same micro-batches, of its own samples alone."""

    sampler: Sampler
    stretches: tuple[Stretch, ...]
    starts: list[int]
    source: int

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for keys in self.sampler:
            places = ((epoch, sample, position, bisect_right(self.starts, sample) - 1) for epoch, sample, position in keys)
            yield [
                (epoch, self.stretches[at].first + sample - self.starts[at], position)
                for epoch, sample, position, at in places
                if self.stretches[at].source == self.source
            ]


class JoinedIndex:
    """As ShardIndex answers: a column by its name, or the rows of some ids."""

    def __init__(self, joined: JoinedShards):
        self.joined = joined

    def __getitem__(self, what: str | range | np.ndarray) -> np.ndarray:
        if isinstance(what, str):
            return self.joined._laid_out(lambda source: source.index.column(what))
        parts = [what] if isinstance(what, range) else [range(sample, sample + 1) for sample in what.tolist()]
        return np.concatenate([source.index.rows(first, end) for ids in parts for source, first, end in self._parts(ids)])

    def _parts(self, ids: range) -> Iterator[tuple[ShardSet, int, int]]:
        for start, each in zip(self.joined.starts, self.joined.stretches, strict=False):
            first, end = max(ids.start, start), min(ids.stop, start + each.count)
            if first < end:
                yield self.joined.sources[each.source], each.first + first - start, each.first + end - start


def within(samples_per_shard: np.ndarray, first: int, count: int) -> np.ndarray:
    """int64: samples a shard of a stretch of a set's samples, without the shards that hold none of them."""
    edges = np.clip(np.cumsum(np.concatenate([[0], samples_per_shard])), first, first + count)
    each = np.diff(edges)
    return each[each > 0]


Opened = ShardSet | JoinedShards


def open_shards(words: Words, peers: Peers = ALONE, held_out: int = 0, key: str = "data.shards") -> Opened:
    """The set, or several as one, with their last `held_out` images, some of each, as the last ids.  Collective.

    Raises ConfigError for sets that cannot be joined, DataError as ShardSet.open does.
    """
    if isinstance(words, str):
        return ShardSet.open(words, peers)
    sources = _open_each(words, peers, key)
    sizes = [len(source) for source in sources]
    last = shared_out(held_out, sizes) if 0 < held_out < sum(sizes) else [0] * len(sizes)
    for source, count in zip(sources, last, strict=True):
        if count >= len(source):
            raise ConfigError(
                f"data.holdout_samples={held_out} takes {count} of each {len(source)} images of {source.path}, which leaves none to train on; lower it, give "
                "more images, or hold others out with data.holdout_shards"
            )
    return JoinedShards(sources, short_names(words), last)


def open_holdout(words: Words, peers: Peers, samples: int) -> Opened:
    """As `open_shards`; of several sets, the first `samples` ids are the first images of each."""
    if isinstance(words, str):
        return ShardSet.open(words, peers)
    sources = _open_each(words, peers, "data.holdout_shards")
    sizes = [len(source) for source in sources]
    first = shared_out(samples, sizes) if samples < sum(sizes) else sizes
    return JoinedShards(sources, short_names(words), [size - count for size, count in zip(sizes, first, strict=True)])


def _open_each(words: Sequence[str], peers: Peers, key: str) -> list[ShardSet]:
    """Raises ConfigError where one set is given twice."""
    sources = [ShardSet.open(word, peers) for word in words]
    known: dict[str, str] = {}
    for word, source in zip(words, sources, strict=True):
        if other := known.get(source.manifest_hash):
            raise ConfigError(
                f"{key} names the same images twice, {other} and {word} (manifest sha256 {source.manifest_hash[:12]}...); leave one out; to have them drawn "
                "more often, give data.weights"
            )
        known[source.manifest_hash] = word
    return sources


def shared_out(count: int, sizes: Sequence[int]) -> list[int]:
    """So many of all, by size: one of each, the rest by largest remainder, ties to the first.  Raises ConfigError for fewer than there are sets."""
    if count < len(sizes):
        raise ConfigError(f"data.holdout_samples={count} must be at least {len(sizes)}, one of each source; raise it")
    rest, every = count - len(sizes), sum(sizes)
    found = [1 + rest * size // every for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda number: -(rest * sizes[number] % every))  # stable
    for number in by_remainder[: count - sum(found)]:
        found[number] += 1
    return found


def short_names(words: Sequence[str]) -> tuple[str, ...]:
    """shards/photos/train, /data/old/scans/train -> photos, scans: where the ends of their paths are the same, as little of what stands before as tells them
    apart; else what their paths do not share from the front."""
    parts = [word.rstrip("/").split("/") for word in words]
    least, most = min(map(len, parts)), max(map(len, parts))
    first = next((at for at in range(least) if len({part[at] for part in parts}) > 1), least)
    last = next((at for at in range(least - first) if len({part[-1 - at] for part in parts}) > 1), least - first)
    rest = [part[first : len(part) - last] for part in parts]
    joined = [["/".join(part[-count:]) for part in rest] for count in range(1 if last else most, most + 1)]
    return tuple(next((names for names in joined if all(names) and len(set(names)) == len(names)), words))
