"""Shards (shard_format.py), opened and checked: random access to their samples by id.

A tar's own end mark is never trusted: a tar cut at a header ends silently in every tar reader.  Here sizes are checked when a set is
opened and a CRC-32 whenever a sample is read.
"""

import functools
import hashlib
import os
import resource
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mpp.data.fingerprints import packed
from mpp.data.shard_faults import UNREADABLE, Fault, file_faults, row_faults
from mpp.data.shard_format import INDEX_DTYPE, MANIFEST, REMAKE, read_manifest
from mpp.errors import BadSample, DataError, of_this_rank
from mpp.files import sha256_of

OPEN_FILES = 256  # shards a process keeps open at once, or a quarter of what the system lets it open
RETRY_SECONDS = (0.1, 0.4, 1.6)  # waits before a failed read is tried again

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

    def __init__(self, path: Path, manifest: dict, manifest_hash: str):
        """Takes a manifest as checked by `open`, which is the way in."""
        self.path = path
        self.manifest = manifest
        self.manifest_hash = manifest_hash  # sha256 of manifest.json's bytes, hexadecimal
        self.classes: list[str] = manifest["classes"]
        self.samples_per_shard: Sequence[int] = [entry["samples"] for entry in manifest["shards"]]
        self.mean: list[float] = manifest["mean"]  # RGB, 0..1
        self.std: list[float] = [max(value, LEAST_DEVIATION) for value in manifest["std"]]  # a constant channel must not divide by zero
        self.index: np.memmap = np.memmap(path / manifest["index"]["name"], INDEX_DTYPE, mode="r", shape=(manifest["samples"],))
        self._rows = np.asarray(self.index)  # the same memory without memmap's cost at every access
        self._paths = [str(path / entry["name"]) for entry in manifest["shards"]]
        self._file = functools.lru_cache(_open_files())(_ShardFile)

    @classmethod
    def open(cls, path: str | os.PathLike) -> "ShardSet":
        """Open a split's folder, such as OUT/train, and check it: the manifest, the index's hash and rows, every shard's size.

        Raises DataError, one line, for anything missing, changed, cut or of another format.
        """
        folder = Path(path)
        manifest, data = read_manifest(folder)
        try:
            _refuse(file_faults(folder, manifest))
            shard_set = cls(folder, manifest.model_dump(), hashlib.sha256(data).hexdigest())
            _refuse(row_faults(folder, manifest, shard_set.index))
        except OSError as error:
            raise of_this_rank(DataError(f"{folder}: cannot read the shards: {error}; check the disk or mount and try again")) from error
        return shard_set

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.manifest_hash)

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

    @property
    def labelled(self) -> bool:
        return bool((self.labels >= 0).all())

    @functools.cached_property
    def prints(self) -> np.ndarray:
        return packed(self.index["crc32"], self.index["size"])

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        row = self._rows[sample]
        return int(row["width"]), int(row["height"])

    def where(self, sample: int) -> str:
        """A sample's place, for messages: "train/000003.tar: 000000001234 (offset 51712)"."""
        row = self._rows[sample]
        return f"{self.path.name}/{self.manifest['shards'][row['shard']]['name']}: {row['key']:012d} (offset {row['offset']})"

    def name_of(self, sample: int) -> str:
        """Its shard and key: "000003.tar/000000001234"."""
        row = self._rows[sample]
        return f"{self.manifest['shards'][row['shard']]['name']}/{row['key']:012d}"

    def read(self, sample: int) -> bytes:
        """The image's bytes as stored.

        Raises BadSample when the shard ends early or the CRC-32 is wrong, and DataError when the system still reports an error
        after RETRY_SECONDS: a lost disk is no bad sample.
        """
        row = self._rows[sample]
        size, offset = int(row["size"]), int(row["offset"])
        for wait in (*RETRY_SECONDS, None):
            try:
                file = self._file(self._paths[row["shard"]], os.getpid())  # by process: a fork opens its own
                data = file.pread(size, offset)
                shard_bytes = file.size() if len(data) < size else -1
                break
            except OSError as error:
                self._file.cache_clear()  # a stale handle stays stale
                if wait is None:
                    raise of_this_rank(
                        DataError(
                            f"{self.where(sample)}: {error}, after {len(RETRY_SECONDS)} retries; check the disk or mount, then resume"
                        )
                    ) from error
                time.sleep(wait)
        if len(data) != size:
            was = self.manifest["shards"][row["shard"]]["bytes"]
            raise BadSample(f"the shard has {shard_bytes} bytes now, not {was}: it ends after {len(data)} of the image's {size}")
        if (crc := zlib.crc32(data)) != row["crc32"]:
            raise BadSample(f"CRC-32 is {crc:08x}, the index says {int(row['crc32']):08x}")
        return data

    def verify_sha256(self, shard: int) -> None:
        """Read one whole shard.  Raises DataError when its sha256 is not the manifest's."""
        entry = self.manifest["shards"][shard]
        found = sha256_of(self.path / entry["name"])
        if found != entry["sha256"]:
            raise DataError(f"{self.path / entry['name']}: sha256 is {found[:12]}…, the manifest says {entry['sha256'][:12]}…; {REMAKE}")


def _open_files() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if limit == resource.RLIM_INFINITY else min(OPEN_FILES, limit // 4)


def _refuse(faults: Iterator[Fault]) -> None:
    for fault in faults:
        error = DataError(f"{fault.path}: {fault.message}; {REMAKE}")
        raise of_this_rank(error) if fault.kind == UNREADABLE else error


def _reopen(path: Path, manifest_hash: str) -> ShardSet:
    """Unpickle: the sender has checked the files, so only a changed manifest is looked for."""
    manifest, data = read_manifest(path)
    if hashlib.sha256(data).hexdigest() != manifest_hash:
        raise DataError(f"{path / MANIFEST}: changed while the program was running; start it again")
    return ShardSet(path, manifest.model_dump(), manifest_hash)
