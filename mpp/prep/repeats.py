"""Images that occur more than once, byte for byte: found in the finished shards' rows, named in OUT/duplicates.jsonl, left out if asked.

Nothing is read a second time to find them: rows of equal size and CRC-32 are brought together in bounded memory, and only those few images
are read back and compared by their SHA-256.  Which one is kept does not depend on how the work was divided: the first in OUT's numbering,
but before all an image of val or test, so that what a model is measured on does not leak into what it is trained on.
"""

import hashlib
import itertools
import json
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpp.prep.destination import WORK, Destination
from mpp.prep.shard_job import Job, Record, Work
from mpp.prep.shuffle import Buckets, read_order
from mpp.remote.retries import shown

DROPS = f"{WORK}/drops"  # a line of JSON with the counts, then what to leave out: DROP rows sorted by job and key
LISTED = "duplicates.jsonl"
DROP = np.dtype([("job", "<u4"), ("key", "<u8")])
KEPT_WHOLE, MADE_BY_US, TRAIN = range(3)  # the least is kept
CHECKSUM = struct.Struct(">IIQ")  # CRC-32, size, rank and key: as bytes in the order in which images are kept
PLACE = struct.Struct("<IQi")  # job, offset, label


class Image(NamedTuple):
    job: int
    rank: int
    key: int
    offset: int
    size: int
    label: int


def rank_of(job: Job) -> int:
    """Whose images are kept before whose.  A val or test split that the source itself made is never changed."""
    if job.split == "train":
        return TRAIN
    return KEPT_WHOLE if job.order == job.split else MADE_BY_US


def note_repeats(jobs: Sequence[Job], records: Iterable[Record], work: Work, *, leave_out: bool) -> tuple[Counter, bytes]:
    """Write OUT/duplicates.jsonl, if there is anything to say, and return its counts and what `without` needs.

    jobs: of all splits, without anything left out yet.  Counts: repeats, of them in_val (train images that occur in val or test),
    relabelled (under another label than the one kept) and left_out.  Memory: 12 bytes for each image to leave out, and the images that share
    one checksum.
    """
    counts: Counter = Counter(repeats=0, in_val=0, relabelled=0, left_out=0)
    drop_jobs, drop_keys = array("I"), array("Q")

    def lines() -> Iterator[bytes]:
        for kept, repeat in _equal(jobs, records, work.orders, work.out):
            drop = leave_out and repeat.rank != KEPT_WHOLE
            if drop:
                drop_jobs.append(repeat.job)
                drop_keys.append(repeat.key)
            counts["repeats"] += 1
            counts["in_val"] += repeat.rank == TRAIN != kept.rank
            counts["relabelled"] += repeat.label != kept.label
            counts["left_out"] += drop
            line = {**_describe(jobs, repeat, work), "same_as": _describe(jobs, kept, work), "left_out": drop}
            yield json.dumps(line).encode() + b"\n"

    found = lines()
    first = next(found, None)
    if first is not None:
        work.out.put_stream(LISTED, itertools.chain([first], found))
    drops = np.empty(len(drop_jobs), DROP)
    drops["job"], drops["key"] = drop_jobs, drop_keys
    drops.sort(order=("job", "key"))
    return counts, json.dumps(counts).encode() + b"\n" + drops.tobytes()


def without(jobs: Sequence[Job], noted: bytes) -> tuple[list[Job], Counter]:
    """The jobs, each knowing which keys it leaves out, and the counts, from what `note_repeats` returned."""
    counts, _, rows = noted.partition(b"\n")
    drops = np.frombuffer(rows, DROP)
    edges = np.searchsorted(drops["job"], np.arange(len(jobs) + 1))
    kept = [replace(job, drop=drops["key"][start:end].tobytes()) for job, start, end in zip(jobs, edges[:-1], edges[1:], strict=True)]
    return kept, Counter(json.loads(counts))


def _equal(jobs: Sequence[Job], records: Iterable[Record], scratch: Path, out: Destination) -> Iterator[tuple[Image, Image]]:
    """(the image to keep, another) for every two images that are equal byte for byte."""
    buckets = Buckets(scratch, "repeats")
    try:
        for number, (job, record) in enumerate(zip(jobs, records, strict=True)):
            rank = rank_of(job) << 62
            for crc32, size, key, offset, label in record.rows[["crc32", "size", "key", "offset", "label"]].tolist():
                buckets.add(CHECKSUM.pack(crc32, size, rank | key), PLACE.pack(number, offset, label))
        for _, alike in itertools.groupby(map(_unpacked, buckets.drain()), key=lambda found: found[0]):
            first, *others = (image for _, image in alike)
            kept: dict[bytes, Image] = {}  # by content; one, but for two images with the same checksum
            for image in (first, *others) if others else ():
                job = jobs[image.job]
                digest = hashlib.sha256(out.read(job.split, job.name, image.offset, image.size)).digest()
                if digest in kept:
                    yield kept[digest], image
                else:
                    kept[digest] = image
    finally:
        buckets.discard()


def _unpacked(pair: tuple[bytes, bytes]) -> tuple[tuple[int, int], Image]:
    """((CRC-32, size), image)"""
    (crc32, size, rank_and_key), (job, offset, label) = CHECKSUM.unpack(pair[0]), PLACE.unpack(pair[1])
    return (crc32, size), Image(job, rank_and_key >> 62, rank_and_key & (1 << 62) - 1, offset, size, label)


def _describe(jobs: Sequence[Job], image: Image, work: Work) -> dict:
    """An image for people: its split, its key, and what its source calls it."""
    job = jobs[image.job]
    (item,) = read_order(work.orders, job.order, job.at + image.key - job.first, 1)
    return {"split": job.split, "key": image.key, "name": shown(item.name)}
