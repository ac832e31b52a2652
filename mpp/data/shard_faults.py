"""What may be wrong with a split's files, each fault by itself: opening a set stops at the first, data_prep/verify_shards.py lists them all.

Here is what can be told without reading a shard: the manifest's claims about itself, sizes, the index's hash and its rows.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpp.base.progress import tracked
from mpp.data.decode import MAX_PIXELS
from mpp.data.shard_format import BLOCK, INDEX_DTYPE, MANIFEST, IndexEntry, Manifest, check_of
from mpp.data.shard_index import ShardIndex
from mpp.data.shard_table import ShardEntry
from mpp.disk.files import sha256_of
from mpp.remote.urls import Url

ROWS = 1 << 16  # looked at together: 2.6 MB
LISTED = 20  # rows of one kind among them that get a message of their own
ASKERS, IN_A_ROW = 16, 16  # threads that ask for sizes of files; files that each asks for
ROUND = 16 * ASKERS * IN_A_ROW  # files whose answers are waited for together
UNREADABLE = "unreadable file"  # an error of the system, perhaps of this machine alone
Entry = IndexEntry | ShardEntry


class Fault(NamedTuple):
    """One thing that is wrong."""

    kind: str  # faults of one kind are counted together
    path: Path | Url  # of the file that is at fault
    message: str
    shard: str = ""  # name of the shard concerned
    key: int | None = None  # of the sample concerned
    offset: int | None = None  # in the shard, bytes
    more: int = 0  # faults of this kind that come with this one and are not listed


def file_faults(folder: Path, manifest: Manifest, elsewhere: Url | None = None, sizes: Mapping[str, int] | None = None) -> Iterator[Fault]:
    """The manifest's totals and seal, the size of every file, the index's hash.

    elsewhere, sizes: where the shards lie if not in the folder, and the bytes there of those that are not as large as the manifest says; -1 for none.
    """
    lies: Path | Url = elsewhere or folder
    path: Path | Url = lies / MANIFEST
    for what, total, parts in (
        ("samples", manifest.samples, manifest.shards.samples),
        ("bytes", manifest.bytes, manifest.shards.bytes),
        ("index bytes", manifest.index.bytes, [manifest.samples * INDEX_DTYPE.itemsize]),
    ):
        if sum(parts) != total:
            yield Fault("manifest", path, f"says {total} {what}, but its parts add up to {sum(parts)}, so it was edited")
    if not manifest.samples:
        yield Fault("manifest", path, "holds no samples")
    if len(set(manifest.shards.names)) != len(manifest.shards):
        yield Fault("manifest", path, "names a shard twice, so it was edited")
    if manifest.check != check_of(manifest):
        yield Fault("manifest", path, "was changed after it was written: its check does not fit the rest of it")

    def size_of(entry: Entry) -> int | OSError:
        """Bytes, -1 for no file, or why that cannot be told."""
        try:
            here = entry is manifest.index or sizes is None
            return (folder / entry.name).stat().st_size if here else sizes.get(entry.name, entry.bytes)  # type: ignore[union-attr]
        except FileNotFoundError:
            return -1
        except OSError as error:
            return error

    entries: Iterator[Entry] = itertools.chain([manifest.index], manifest.shards)
    for entry, size in tracked(_asked(entries, size_of), f"looking at the files of {folder}", 1 + len(manifest.shards), "files"):
        shard = "" if entry is manifest.index else entry.name
        if isinstance(size, OSError):
            yield Fault(UNREADABLE, lies / entry.name, f"cannot be read ({size.strerror})", shard)
            continue
        if size < 0:
            yield Fault("missing file", lies / entry.name, "is missing, the manifest lists it", shard)
        elif size != entry.bytes:
            yield Fault(
                "file size", lies / entry.name, f"has {size} bytes, the manifest says {entry.bytes}: cut or changed", shard, None, size
            )
    path = lies / manifest.index.name
    try:
        found = sha256_of(folder / manifest.index.name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Fault(UNREADABLE, path, f"cannot be read ({error.strerror})")
        return
    if found != manifest.index.sha256:
        yield Fault("index sha256", path, f"sha256 is {found[:12]}…, the manifest says {manifest.index.sha256[:12]}…")


def _asked(entries: Iterator[Entry], ask: Callable[[Entry], int | OSError]) -> Iterator[tuple[Entry, int | OSError]]:
    """Each with its answer, in order.  Many are asked for at once, as a file server answers each of perhaps a million late.

    No thread outlives a round: whoever asks may stop at the first fault, and Python then ends this when it likes, such as in the middle of a thread's start,
    where waiting for another thread never ends.
    """
    while some := list(itertools.islice(entries, ROUND)):
        parts = [some[first : first + IN_A_ROW] for first in range(0, len(some), IN_A_ROW)]
        with ThreadPoolExecutor(ASKERS) as pool:
            answers = list(pool.map(lambda part: [ask(entry) for entry in part], parts))
        yield from zip(some, itertools.chain.from_iterable(answers), strict=True)


def most_pixels(source: dict[str, Any]) -> int:
    """Of one image of the set whose manifest has this `source`: --max-pixels of the program that made it, where that was given."""
    given = source.get("max_pixels")
    return given if isinstance(given, int) and given > 0 else MAX_PIXELS


def row_faults(
    folder: Path, manifest: Manifest, index: ShardIndex | np.ndarray, seen: Callable[[np.ndarray], None] = lambda rows: None
) -> Iterator[Fault]:
    """Rows that cannot be those of this manifest's shards and classes.

    index: INDEX_DTYPE [samples], as many as the manifest says: it is looked at in stretches of ROWS, each of which `seen` is given, too.
    """
    path, classes, most = folder / manifest.index.name, len(manifest.classes), most_pixels(manifest.source)
    ends = np.cumsum(manifest.shards.samples, dtype=np.int64)
    shard_bytes = np.array(manifest.shards.bytes, np.uint64)
    free = last_key = -1  # of the row before: first byte of its shard in which the next image may begin; its key
    for first in range(0, len(index), ROWS):
        rows = np.asarray(index[first : first + ROWS])
        seen(rows)
        shards = np.searchsorted(ends, (first, first + len(rows) - 1), side="right")
        span = np.arange(shards[0], shards[1] + 1)
        expected = np.repeat(span, np.diff(np.minimum(ends[span], first + len(rows)), prepend=first))  # [rows]: the shard each must lie in
        offset, size, key = (np.ascontiguousarray(rows[name], np.uint64) for name in ("offset", "size", "key"))
        limit = shard_bytes[expected]
        lowest = np.empty(len(rows), np.uint64)  # an image begins behind the one before it and its own header
        lowest[0] = min(free, 2**64 - 1) if first > ends[span[0]] - manifest.shards.samples[span[0]] else BLOCK
        lowest[1:] = np.where(expected[1:] == expected[:-1], (offset + size)[:-1] + np.uint64(BLOCK), np.uint64(BLOCK))
        disorder = np.append(int(key[0]) <= last_key, key[1:] <= key[:-1])
        pixels = rows["width"].astype(np.uint64) * rows["height"]
        for kind, wrong, message in (
            ("row of another shard", rows["shard"] != expected, "names shard {shard}: its rows are not those of the manifest's shards"),
            ("row outside its shard", (offset > limit) | (size > limit - offset), "points outside its shard"),
            ("row not at a block", offset % np.uint64(BLOCK) != 0, f"points to byte {{offset}}, not to the start of a block of {BLOCK}"),
            ("row that overlaps", offset < lowest, "points to byte {offset}, where its header or the sample before it must lie"),
            ("row without bytes", size == 0, "has no bytes"),
            ("row with impossible sides", (pixels == 0) | (pixels > most), f"has {{width}}x{{height}} pixels, not 1 to {most}"),
            ("row with an unknown class", (rows["label"] < -1) | (rows["label"] >= classes), f"has label {{label}}, for {classes} classes"),
            ("row with a key out of order", disorder, "has key {key}, which is not above that of the row before it"),
        ):
            found = np.flatnonzero(wrong)
            for nth, place in enumerate(found[:LISTED].tolist(), start=1):
                row = dict(zip(INDEX_DTYPE.fields or (), rows[place].item(), strict=True))
                yield Fault(
                    kind,
                    path,
                    f"row {first + place} {message.format_map(row)}",
                    manifest.shards[expected[place]].name,
                    row["key"],
                    row["offset"],
                    len(found) - LISTED if nth == LISTED else 0,
                )
        free, last_key = int(offset[-1]) + int(size[-1]) + BLOCK, int(key[-1])
