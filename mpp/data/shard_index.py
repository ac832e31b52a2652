"""index.bin, one row a sample, read as a file.

It is not mapped into memory: a page of a mapped file that cannot be read, as of a file server that restarts or of a file that was cut, is a bus
error, which ends the process without a word.  A row costs one pread, mostly from the system's page cache, which all processes of a machine share.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpp.base.errors import DataError, of_this_rank
from mpp.data.shard_format import INDEX_DTYPE, REMAKE
from mpp.disk.patience import patiently

_ROW = struct.Struct("<IQIIIIiQ")  # INDEX_DTYPE, which a test compares
STRETCH = 1 << 18  # rows that are read together: 10 MB


class Row(NamedTuple):
    """A row of the index, its fields in INDEX_DTYPE's order."""

    shard: int
    offset: int
    size: int
    crc32: int
    width: int
    height: int
    label: int
    key: int


class ShardIndex:
    """Rows by sample.  Safe to fork; several threads may read.  All raise DataError where rows cannot be read, after a patience (disk/patience.py)."""

    def __init__(self, path: Path, samples: int):
        self.path, self.samples = path, samples
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return self.samples

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def __getitem__(self, what: Any) -> np.ndarray:
        """As an array of INDEX_DTYPE answers: to a column's name, a sample, or several (slice, range, sequence)."""
        if isinstance(what, str):
            return self.column(what)
        if isinstance(what, int | np.integer):
            return self.rows(int(what), int(what) + 1)[0]
        if isinstance(what, range) and what.step == 1:
            what = slice(what.start, what.stop)
        if isinstance(what, slice):
            first, end, step = what.indices(self.samples)
            return self.rows(first, max(first, end))[::step]
        return np.array([self.rows(int(sample), int(sample) + 1)[0] for sample in what], INDEX_DTYPE)

    def row(self, sample: int) -> Row:
        if not 0 <= sample < self.samples:
            raise IndexError(f"sample {sample} of {self.samples}")
        return Row._make(_ROW.unpack(self._read(sample, 1)))

    def rows(self, first: int, end: int) -> np.ndarray:
        """INDEX_DTYPE [end - first]."""
        return np.frombuffer(self._read(first, end - first), INDEX_DTYPE)

    def column(self, name: str) -> np.ndarray:
        """One number of each sample [samples], contiguous."""
        return self.of_each(lambda rows: rows[name], INDEX_DTYPE[name])

    def of_each(self, work: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> np.ndarray:
        """One number of each sample [samples], contiguous: what `work` makes of rows, STRETCH at a time."""
        found = np.empty(self.samples, dtype)
        for first in range(0, self.samples, STRETCH):
            found[first : first + STRETCH] = work(self.rows(first, min(first + STRETCH, self.samples)))
        return found

    def _read(self, first: int, count: int) -> bytes:
        size, offset = count * INDEX_DTYPE.itemsize, first * INDEX_DTYPE.itemsize
        try:
            data = patiently(lambda: self._pread(size, offset), str(self.path), self._open_again)
        except OSError as error:
            raise of_this_rank(DataError(f"{self.path}: {error}; check the disk or mount, then resume")) from error
        if len(data) < size:
            raise of_this_rank(
                DataError(f"{self.path}: ends at row {first + len(data) // INDEX_DTYPE.itemsize} of {self.samples}: it was cut; {REMAKE}")
            )
        return data

    def _pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._handle, size, offset)
        while len(data) < size and (more := os.pread(self._handle, size - len(data), offset + len(data))):
            data += more
        return data

    def _open_again(self) -> None:
        """A handle that went stale stays stale."""
        fresh = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(fresh, self._handle, inheritable=False)  # under its number, which other threads use
        os.close(fresh)
