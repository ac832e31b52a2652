"""Shards (shard_format.py), opened and checked: random access to their samples by id.

A tar's own end mark is never trusted: a tar cut at a header ends silently in every tar reader.  Here sizes are checked when a set is
opened and a CRC-32 whenever a sample is read.
"""

import functools
import os
import resource
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpp.base.errors import BadSample, DataError, of_this_rank
from mpp.data.fingerprints import packed
from mpp.data.in_hand import InHand, refuse_beyond
from mpp.data.order import Order, Sampler
from mpp.data.shard_cache import CachedSet, cached_set, fetched_words
from mpp.data.shard_faults import UNREADABLE, Fault, file_faults, row_faults
from mpp.data.shard_format import MANIFEST, REMAKE, Manifest, read_manifest
from mpp.data.shard_index import Row, ShardIndex
from mpp.disk.patience import patiently
from mpp.processes.peers import ALONE, Peers
from mpp.remote.urls import Url, is_url

OPEN_FILES = 256  # shards a process keeps open at once where nobody says how many it will read (`keep_open`)
WANTED_AGAIN = 10  # times, that a shard has made way for others before it could be opened
LEAST_DEVIATION = 1 / 255  # of a colour, 0..1: below, it is the same everywhere


def flat_channels(deviations: Sequence[float]) -> str:
    """deviations: of red, green and blue over a set, 0..1 -> what is to be said of those that are the same everywhere; empty where none is."""
    flat = [name for name, deviation in zip(("red", "green", "blue"), deviations, strict=True) if deviation <= LEAST_DEVIATION]
    if not flat:
        return ""
    return (
        f"{' and '.join(flat)} {'is' if len(flat) == 1 else 'are'} the same in nearly all pixels of these images (python data_prep/inspect_shards.py "
        "shows them): to tell that is no task, so skill and loss look better than they are. Put something else there, or see how the images were made "
        "(a channel that was filled up, a window that is too wide)"
    )


class _ShardFile:
    """A read-only descriptor that is closed with its last user, so that dropping it from a cache is safe in any thread."""

    def __init__(self, path: str, _process: int):
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)

    def size(self) -> int:
        return os.fstat(self.handle).st_size

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes: fewer only at the end of the file."""
        data = os.pread(self.handle, size, offset)
        while len(data) < size and (more := os.pread(self.handle, size - len(data), offset + len(data))):
            data += more
        return data


class ShardSet:
    """An opened split: random access to its samples by id.  Safe to fork and to pickle; several threads may read."""

    remedy = "copy or make the split again"

    def __init__(self, path: Path | Url, manifest: Manifest, manifest_hash: str, unlabelled: int, cached: CachedSet | None = None):
        """Takes what `open`, which is the way in, has checked.  unlabelled: samples without a label.  cached: where shards are read that lie elsewhere."""
        self.path, self.cached = path, cached  # cached: where it is read that lies elsewhere
        self.folder = cached.folder if cached else Path(path)  # where files are read
        self.manifest: dict[str, Any] = manifest.model_dump(exclude={"shards"})  # of what is kept in columns below
        self.manifest_hash = manifest_hash  # sha256 of manifest.json's bytes, hexadecimal
        self.classes: list[str] = manifest.classes
        self.unlabelled = unlabelled
        # In arrays, of shards: many thousands of Python's objects would be copied into each loader process as it looks at them.
        self.shard_names = np.array(manifest.shards.names)
        self.shard_bytes, self.samples_per_shard = (
            np.array(column, np.int64) for column in (manifest.shards.bytes, manifest.shards.samples)
        )
        self.mean: list[float] = manifest.mean  # RGB, 0..1
        self.std: list[float] = [max(value, LEAST_DEVIATION) for value in manifest.std]  # a constant channel must not divide by zero
        self.index = ShardIndex(self.folder / manifest.index.name, manifest.samples)
        self.keep_open(OPEN_FILES)

    def keep_open(self, shards: int) -> int:
        """How many shards a process keeps open from now on, those read last: so many, or half of what the system lets it open; returned."""
        self.open_files = may_open(shards)
        self._file = functools.lru_cache(self.open_files)(_ShardFile)
        return self.open_files

    @classmethod
    def open(cls, path: str | os.PathLike, peers: Peers = ALONE) -> "ShardSet":
        """Open a split's folder, such as OUT/train, or a URL of one, and check it: the manifest, the index's hash and rows, every shard's size.

        peers: who opens it together, collectively: rank 0 checks it for all who see the same files, and so does the first process of each host that
        has others, such as a copy.  Raises DataError, one line, for anything missing, changed, cut or of another format.
        """
        cached = cached_set(str(path), peers)
        folder = cached.folder if cached else Path(path)
        manifest, found = peers.together(lambda: read_manifest(folder))
        check = lambda: _check(folder, manifest, cached)
        first = peers.from_first(lambda: [found, check(), _file_of(folder, manifest)])
        peers.together(lambda: _check_own(folder, manifest, found, first, peers, check))
        return cls(Url(path) if is_url(path) else Path(path), manifest, found, unlabelled=first[1], cached=cached)

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.manifest_hash, self.unlabelled, self.open_files, self.cached)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def identity(self) -> str:
        """sha256 of what the set is, the same on every machine: the manifest names every shard's bytes."""
        return self.manifest_hash

    @property
    def stamp(self) -> str:
        return self.manifest_hash

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [samples], -1 for none."""
        return np.ascontiguousarray(self.index["label"], dtype=np.int32)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """int32 [m]: as `labels`, of these alone, without those of all the others."""
        return np.array([self.index.row(int(sample)).label for sample in ids], np.int32)

    @property
    def labelled(self) -> bool:
        return self.unlabelled == 0

    @functools.cached_property
    def prints(self) -> np.ndarray:
        return self.index.of_each(lambda rows: packed(rows["crc32"], rows["size"]), np.dtype(np.uint64))

    def shard_name(self, shard: int) -> str:
        return os.fsdecode(self.shard_names[shard])

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        row = self.index.row(sample)
        return row.width, row.height

    def where(self, sample: int) -> str:
        """A sample's place, for messages: "train/000003.tar: 000000001234 (offset 51712)"."""
        return self._place(self.index.row(sample))

    def _place(self, row: Row) -> str:
        return f"{self.path.name}/{self.shard_name(row.shard)}: {row.key:012d} (offset {row.offset})"

    def name_of(self, sample: int) -> str:
        """Its shard and key: "000003.tar/000000001234"."""
        row = self.index.row(sample)
        return f"{self.shard_name(row.shard)}/{row.key:012d}"

    def in_hand(self, order: Order, world: int, local_world: int) -> InHand | None:
        """local_world: of the `world` processes of the job, those of this machine.  What it reads from at a time, where it is fetched first; None where shards are read where they lie.  Raises ConfigError where the
        cache does not hold it."""
        if self.cached is None:
            return None
        return refuse_beyond(order, world, max(1, world // local_world), self.shard_bytes, self.cached.limit, self.path, self.cached.room)

    def fetched_words(self, hand: InHand) -> str:
        """How far the cache is, for the start of a run."""
        assert self.cached is not None
        return fetched_words([self.cached], hand)

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        """As `Images.expects`."""
        return (lambda done: None) if self.cached is None else self.cached.plan(sampler, hand)

    def read(self, sample: int) -> bytes:
        """The image's bytes as stored.

        Raises BadSample when the shard ends early or the CRC-32 is wrong, and DataError when the system still reports an error after a
        patience (disk/patience.py): a lost disk is no bad sample.
        """
        row = self.index.row(sample)
        try:
            return self._bytes_of(row)
        except BadSample:
            if self.cached is None:
                raise
            self.cached.suspect(self.shard_name(row.shard))
            self._file.cache_clear()
            return self._bytes_of(row)  # perhaps of another copy

    def _bytes_of(self, row: Row) -> bytes:
        path = str(self.folder / self.shard_name(row.shard))

        def read() -> tuple[bytes, int]:
            file = self._opened(row.shard, path)
            data = file.pread(row.size, row.offset)
            return data, file.size() if len(data) < row.size else -1

        try:
            data, shard_bytes = patiently(read, path, self._file.cache_clear)  # a stale handle stays stale
        except OSError as error:
            raise of_this_rank(
                DataError(f"{self._place(row)}: {error}, also when tried again; check the disk or mount, then resume")
            ) from error
        if len(data) != row.size:
            was = self.shard_bytes[row.shard]
            raise BadSample(f"the shard has {shard_bytes} bytes now, not {was}: it ends after {len(data)} of the image's {row.size}")
        if (crc := zlib.crc32(data)) != row.crc32:
            raise BadSample(f"CRC-32 is {crc:08x}, the index says {row.crc32:08x}")
        return data

    def _opened(self, shard: int, path: str) -> _ShardFile:
        """By process: a fork opens its own."""
        if self.cached is None:
            return self._file(path, os.getpid())
        for _ in range(WANTED_AGAIN):
            try:
                return self._file(path, os.getpid())
            except FileNotFoundError:
                self.cached.want([self.shard_name(shard)])  # which may make way for others again before it is opened
        return self._file(path, os.getpid())

    def ahead(self, samples: Sequence[int]) -> None:
        """Tell the system that these are read next, so that it fetches all at once: a disk or a file server that is asked for one after the other
        makes the reader wait for each.  Faults are left to `read`."""
        if self.cached is not None:
            self._file.cache_clear()  # a file that is open takes room after it has made way for others
            names = {self.shard_name(self.index.row(sample).shard) for sample in samples}
            if missing := [name for name in names if not (self.folder / name).exists()]:
                self.cached.want(missing)
        if not hasattr(os, "posix_fadvise"):
            return
        for sample in samples[: self.open_files]:  # more would close each other's files
            row = self.index.row(sample)
            try:
                handle = self._file(str(self.folder / self.shard_name(row.shard)), os.getpid()).handle
                os.posix_fadvise(handle, row.offset, row.size, os.POSIX_FADV_WILLNEED)
            except OSError:
                return


def may_open(files: int) -> int:
    """So many, or half of what the system lets a process open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return files if limit == resource.RLIM_INFINITY else min(files, limit // 2)


def few_open_files(reach: int, kept: int) -> str:
    """reach: shards that a process reads from; kept: how many of them it may keep open."""
    return (
        f"note: the samples of a process lie in {reach:,} shards, and it may keep {kept:,} open (half of ulimit -n): it opens the others again and "
        "again; raise ulimit -n, set data.block, or make larger shards"
    )


def _check(folder: Path, manifest: Manifest, cached: CachedSet | None) -> int:
    """Everything that can be told without reading a shard.  Returns how many samples have no label.  Raises DataError."""
    unlabelled = 0

    def count(rows: np.ndarray) -> None:
        nonlocal unlabelled
        unlabelled += int((rows["label"] < 0).sum())

    try:
        _refuse(file_faults(folder, manifest, Url(cached.where), cached.sizes) if cached else file_faults(folder, manifest))
        _refuse(row_faults(folder, manifest, ShardIndex(folder / manifest.index.name, manifest.samples), count))
        return unlabelled
    except OSError as error:
        raise of_this_rank(DataError(f"{folder}: cannot read the shards: {error}; check the disk or mount and try again")) from error


def _file_of(folder: Path, manifest: Manifest) -> list[int]:
    """Of the index: the same on all hosts that see one shared file, and another of every copy."""
    found = (folder / manifest.index.name).stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _check_own(
    folder: Path, manifest: Manifest, found: str, first: tuple[str, int, list[int]], peers: Peers, check: Callable[[], object]
) -> None:
    """What rank 0 has not checked for this process.  first: the manifest's hash, and (last) the index's file, there."""
    if peers.first:
        return
    if found != first[0]:
        raise DataError(
            f"{folder}: on {peers.called(peers.rank)} it is another set (manifest sha256 {found[:12]}..., rank 0 has {first[0][:12]}...); "
            "give all hosts the same files"
        )
    try:
        same = _file_of(folder, manifest) == first[2]
    except OSError as error:
        raise DataError(f"{folder}: {peers.called(peers.rank)} cannot read the shards: {error}; check the disk or mount there") from error
    if not same and peers.first_of_host:
        check()


def _refuse(faults: Iterator[Fault]) -> None:
    for fault in faults:
        error = DataError(f"{fault.path}: {fault.message}; {REMAKE}")
        raise of_this_rank(error) if fault.kind == UNREADABLE else error


def _reopen(path: Path | Url, manifest_hash: str, unlabelled: int, open_files: int, cached: CachedSet | None) -> ShardSet:
    """Unpickle: the sender has checked the files, so only a changed manifest is looked for."""
    folder = cached.folder if cached else Path(path)
    manifest, found = read_manifest(folder)
    if found != manifest_hash:
        raise DataError(f"{folder / MANIFEST}: changed while the program was running; start it again")
    opened = ShardSet(path, manifest, manifest_hash, unlabelled, cached)
    opened.keep_open(open_files)
    return opened
