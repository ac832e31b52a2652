"""A stream of items -> one shuffled order on disk, in two passes of bounded memory.

Every item is given a key: BLAKE2b of its name under the seed.  Sorted by key, the items are shuffled, and where each one lands depends on
nothing but the seed and the names: not on the order of listing, the machine, or how the work is divided.  Pass one deals the items out to
files by the first bits of the key; pass two sorts one such file after the other.

    FOLDER/train.items     JSON lines, in shuffled order
    FOLDER/train.offsets   uint64: where every STRIDE-th line begins
"""

import hashlib
import itertools
import json
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError
from mpp.base.progress import tracked
from mpp.data.class_folders import MAX_CLASSES
from mpp.disk.files import temporary, write_atomically, write_stream
from mpp.prep.source import Item, Source

BUCKETS = 1024  # a bucket of a thousand million items still fits into 400 MB
BUFFER_BYTES = 32 << 20  # held before anything is written
KEY_BYTES = 16
STRIDE = 256
AS_LISTED = (1, 0)  # levels of class and split: the first folder is the class, and none is a split


class Buckets:
    """Sorts (key, line) pairs that need not fit into memory: `add` them all, then iterate over `drain`, once."""

    def __init__(self, folder: Path, name: str):
        self._paths = [temporary(folder / f"{name}-{bucket:04d}") for bucket in range(BUCKETS)]
        self._waiting: list[list[bytes]] = [[] for _ in range(BUCKETS)]
        self._waiting_bytes = 0
        self._spilled = False

    def add(self, key: bytes, line: bytes) -> None:
        """key: KEY_BYTES evenly spread bytes; line: without a line feed."""
        self._waiting[(key[0] << 8 | key[1]) * BUCKETS >> 16].append(key + line)
        self._waiting_bytes += len(line) + 100  # a Python object costs something too
        if self._waiting_bytes > BUFFER_BYTES:
            self._spill()

    def _spill(self) -> None:
        for path, lines in zip(self._paths, self._waiting, strict=True):
            if lines:
                with path.open("ab") as file:
                    for line in lines:
                        file.write(len(line).to_bytes(4, "little") + line)
                lines.clear()
        self._waiting_bytes = 0
        self._spilled = True

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        """Every pair, sorted by key; pairs with equal keys in the order in which they were added."""
        if self._spilled:
            self._spill()
        for path, waiting in zip(self._paths, self._waiting, strict=True):
            lines = list(_lines(path)) if self._spilled and path.exists() else waiting
            lines.sort(key=lambda line: line[:KEY_BYTES])
            for line in lines:
                yield line[:KEY_BYTES], line[KEY_BYTES:]
            waiting.clear()
        self.discard()

    def discard(self) -> None:
        """Remove what was spilled."""
        if self._spilled:
            for path in self._paths:
                path.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[bytes]:
    data = memoryview(path.read_bytes())
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        yield bytes(data[start + 4 : end])
        start = end


class Listed:
    """What was learnt while listing."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()  # images by split
        self.bytes = 0  # of all images, as far as the source knows
        self.labels: set[str] = set()
        self.unlabelled = ""  # the least name of an image without a label
        self.ignored: Counter = Counter()  # what was left out: suffix or reason -> files
        self.levels = list(AS_LISTED)  # of the folders that are the class and the split
        self.remarks: list[str] = []  # what is unusual about its folders
        self.holdout: dict[str, Any] = {}  # what was kept apart by class or group (holdout.py)
        self.cut: dict[str, Any] = {}  # of tiles, where they lie and how many there are of how many scans (tiles.py)
        self._stamp = 0

    @property
    def stamp(self) -> str:
        """Changes when any item does; does not depend on their order.  Of tiles that of their scans."""
        return f"{self._stamp:032x}"

    @stamp.setter
    def stamp(self, stamp: str) -> None:
        self._stamp = int(stamp, 16)

    def add(self, item: Item, line: bytes) -> None:
        self._stamp = (self._stamp + int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "little")) % 2**128
        self.bytes += max(item.size, 0)
        if not item.label:
            self.unlabelled = min(self.unlabelled or item.name, item.name)
        elif len(self.labels) <= MAX_CLASSES:
            self.labels.add(item.label)

    def to_json(self) -> bytes:
        return json.dumps({**vars(self), "labels": sorted(self.labels)}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Listed":
        listed = cls()
        vars(listed).update(json.loads(data))
        listed.counts, listed.labels, listed.ignored = Counter(listed.counts), set(listed.labels), Counter(listed.ignored)
        return listed


def survey(source: Source) -> Listed:
    """List a source without putting anything in order: for its stamp."""
    listed = Listed()
    for item in tracked(source.items(listed.ignored), f"listing {source.name}", None, "images"):
        listed.add(item, _line(item))
    return listed


def shuffle(source: Source, seed: int, folder: Path, tick: Callable[[], object]) -> Listed:
    """Write the shuffled order of every split that occurs.  Of a repeated name the last counts, as it would when extracting.

    tick: called after every item.  Raises DataError as the source does.
    """
    listed = Listed()
    splits: dict[str, Buckets] = {}
    secret = seed.to_bytes(8, "little")
    try:
        for item in source.items(listed.ignored):
            line = _line(item)
            listed.add(item, line)
            key = hashlib.blake2b(item.name.encode(errors="surrogatepass"), key=secret, digest_size=KEY_BYTES).digest()
            if item.split not in splits:
                splits[item.split] = Buckets(folder, item.split)
            splits[item.split].add(key, line)
            tick()
        for split, buckets in splits.items():
            listed.counts[split] = _write_order(buckets.drain(), folder, split, listed.ignored)
    finally:
        for buckets in splits.values():
            buckets.discard()
    return listed


def _line(item: Item) -> bytes:
    return json.dumps(item if item.group else item[:-1], separators=(",", ":")).encode()


def _write_order(pairs: Iterable[tuple[bytes, bytes]], folder: Path, split: str, ignored: Counter) -> int:
    """Write one split's order; returns its number of items."""

    def lines() -> Iterator[bytes]:
        for _, same in itertools.groupby(pairs, key=lambda pair: pair[0]):
            *repeated, (_, line) = same
            if repeated:
                ignored["(repeated names)"] += len(repeated)
            yield line

    return rewrite_order(folder, split, lines())


def rewrite_order(folder: Path, split: str, lines: Iterable[bytes]) -> int:
    """lines: of items, without line feeds; they may come from the order that is there.  Returns their number."""
    offsets = array("Q")
    count = end = 0

    def ended() -> Iterator[bytes]:
        nonlocal count, end
        for line in lines:
            if count % STRIDE == 0:
                offsets.append(end)
            count, end = count + 1, end + len(line) + 1
            yield line + b"\n"

    write_stream(folder / f"{split}.items", ended())
    write_atomically(folder / f"{split}.offsets", offsets.tobytes())
    return count


def order_lines(folder: Path, split: str) -> Iterator[bytes]:
    """A split's items in their order, as `rewrite_order` takes them."""
    with (folder / f"{split}.items").open("rb") as file:
        for line in file:
            yield line.removesuffix(b"\n")


def read_order(folder: Path, split: str, first: int, count: int) -> list[Item]:
    """Items [first, first + count) of a split's order."""
    with (folder / f"{split}.offsets").open("rb") as file:
        file.seek(first // STRIDE * 8)
        (start,) = struct.unpack("=Q", file.read(8))
    with (folder / f"{split}.items").open("rb") as file:
        file.seek(start)
        lines = itertools.islice(file, first % STRIDE, first % STRIDE + count)
        items = [Item(name, size, tuple(place), *rest) for name, size, place, *rest in map(json.loads, lines)]
    if len(items) != count:
        raise DataError(f"{folder / split}.items: holds fewer items than planned; remove OUT and start again")
    return items
