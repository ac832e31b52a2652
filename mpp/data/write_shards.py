"""How shards, their index and their manifest (shard_format.py) are written: whole or not at all, and read back."""

import hashlib
import io
import math
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import mpp
from mpp.base.errors import DataError
from mpp.data.shard_format import (
    BLOCK,
    INDEX,
    INDEX_DTYPE,
    MANIFEST,
    MEAN_STD_IMAGES,
    SHORT_SIDES,
    IndexEntry,
    Manifest,
    manifest_pieces,
    member_header,
    sealed,
)
from mpp.data.shard_table import ShardEntry, ShardTable
from mpp.disk.files import sync_path, temporary, write_stream

BUFFER = 1 << 20  # bytes written and read together


class Sample(NamedTuple):
    """One image on its way into a shard."""

    key: int
    field: str  # one of FIELDS' values
    data: bytes
    width: int  # pixels, as decoded
    height: int
    label: int = -1
    told: bytes = b""  # JSON beside it, where there is any


def write_shard(folder: Path, name: str, samples: Iterable[Sample]) -> tuple[dict, np.ndarray]:
    """Write samples to folder/name; return its manifest entry and its rows, INDEX_DTYPE [samples] with shard 0.

    The file gets its name only after it was flushed to the disk and read back whole.  No samples, no file: the entry then says 0.
    Raises DataError when what was read back is not what was written; OSError passes through.
    """
    rows = []
    fields: list[tuple[bytes, int, int]] = []  # header block, bytes, CRC-32
    end = 0
    part = temporary(folder / name)
    try:
        with part.open("wb", buffering=BUFFER) as file:
            for sample in samples:
                members = [(sample.field, sample.data)]
                members += [("cls", b"%d" % sample.label)] if sample.label >= 0 else []
                members += [("json", sample.told)] if sample.told else []
                first, start = len(fields), end + BLOCK
                for field, data in members:
                    header = member_header(sample.key, field, len(data))
                    fields.append((header, len(data), zlib.crc32(data)))
                    for piece in (header, data, bytes(-len(data) % BLOCK)):
                        end += file.write(piece)
                crc32 = fields[first][2]  # of the image
                rows.append((0, start, len(sample.data), crc32, sample.width, sample.height, sample.label, sample.key))
            if not rows:
                return {"name": name, "bytes": 0, "sha256": "", "samples": 0}, np.empty(0, INDEX_DTYPE)
            end += file.write(bytes(2 * BLOCK + -(end + 2 * BLOCK) % tarfile.RECORDSIZE))  # the end mark, padded as tar does
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # read back from the disk, not from the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with part.open("rb", buffering=0) as raw:
            digest = _read_back(raw, fields, end, folder / name)
        part.rename(folder / name)
        sync_path(folder)
    finally:
        part.unlink(missing_ok=True)
    return {"name": name, "bytes": end, "sha256": digest, "samples": len(rows)}, np.array(rows, INDEX_DTYPE)


def _read_back(file: io.FileIO, fields: list[tuple[bytes, int, int]], size: int, final: Path) -> str:
    """sha256 of the file, after comparing every byte of it, by its CRC-32 where it is payload, with what was meant."""
    digest, buffer, left = hashlib.sha256(), bytearray(BUFFER), size

    def read(count: int) -> memoryview:
        """So many bytes, as long as there are any, into the same memory: fresh memory for every image takes longer than reading it."""
        nonlocal buffer, left
        if count > len(buffer):
            buffer = bytearray(count)
        view, done = memoryview(buffer)[:count], 0
        while done < count and (more := file.readinto(view[done:])):
            done += more
        digest.update(view[:done])
        left -= done
        return view[:done]

    def differs() -> bool:
        for together in _up_to(BUFFER, fields):
            view, at = read(sum(BLOCK + length + -length % BLOCK for _, length, _ in together)), 0
            for header, length, crc in together:
                start, stop = at + BLOCK, at + BLOCK + length
                at = stop + -length % BLOCK
                if view[start - BLOCK : start] != header or zlib.crc32(view[start:stop]) != crc or view[stop:at] != bytes(at - stop):
                    return True
        expected = bytes(left)
        return read(left + 1) != expected

    if differs():
        raise DataError(f"{final}: what was read back differs from what was written; check the disk, then run the same command again")
    return digest.hexdigest()


def _up_to(size: int, fields: list[tuple[bytes, int, int]]) -> Iterator[list[tuple[bytes, int, int]]]:
    """The fields in groups of about so many bytes."""
    together, waiting = [], 0
    for field in fields:
        together.append(field)
        waiting += BLOCK + field[1]
        if waiting >= size:
            yield together
            together, waiting = [], 0
    yield together


def write_manifest(
    folder: Path,
    *,
    split: str,
    shards: Iterable[tuple[dict, np.ndarray]],
    classes: list[str],
    colours: np.ndarray,
    colour_images: int,
    rejects: int,
    source: dict,
    repeats: int = 0,
) -> Manifest:
    """Write the index, then, last, the manifest.

    shards: what `write_shard` returned, in order; taken one at a time.  Empty shards are left out.
    colours: int64 [3, 256], how often each value occurs in each channel of `colour_images` decoded images.
    """
    entries = ShardTable()
    digest = hashlib.sha256()
    bins = np.zeros(len(SHORT_SIDES), np.int64)

    def index() -> Iterator[bytes]:
        for entry, rows in shards:
            if entry["samples"]:
                rows = rows.copy()
                rows["shard"] = len(entries)
                entries.extend([ShardEntry(**entry)])
                bins[:] += short_side_bins(rows)
                data = rows.tobytes()
                digest.update(data)
                yield data

    write_stream(folder / INDEX, index())
    mean, std = mean_and_std(colours)
    samples = sum(entries.samples)
    manifest = Manifest(
        split=split,
        samples=samples,
        bytes=sum(entries.bytes),
        rejects=rejects,
        repeats=repeats,
        classes=classes,
        mean=mean,
        std=std,
        mean_std_images=colour_images,
        short_sides=[(low, count) for low, count in zip(SHORT_SIDES, bins.tolist(), strict=True) if count],
        source=source,
        mpp=mpp.__version__,
        index=IndexEntry(name=INDEX, bytes=samples * INDEX_DTYPE.itemsize, sha256=digest.hexdigest()),
        shards=entries,
        check="",
    )
    manifest = sealed(manifest)
    write_stream(folder / MANIFEST, manifest_pieces(manifest))
    return manifest


def short_side_bins(rows: np.ndarray) -> np.ndarray:
    """int64 [len(SHORT_SIDES)]: of rows, INDEX_DTYPE [N], how many images have a short side from each edge to the next."""
    return np.bincount(np.digitize(np.minimum(rows["width"], rows["height"]), SHORT_SIDES), minlength=len(SHORT_SIDES) + 1)[1:]


def mean_and_std(colours: np.ndarray) -> tuple[list[float], list[float]]:
    """RGB mean and standard deviation in 0..1 from int64 [3, 256] counts, by exact integer sums: no order of adding can change them.

    Raises DataError when there are no pixels.
    """
    mean, std = [], []
    for counts in colours.tolist():
        pixels = sum(counts)
        if not pixels:
            raise DataError(
                f"none of the first {MEAN_STD_IMAGES} images is readable, so there is no mean colour; mend them and start again"
            )
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        mean.append(first / pixels / 255)
        std.append(math.sqrt((pixels * second - first * first) / pixels**2) / 255)
    return mean, std
