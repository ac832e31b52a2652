"""Images that occur more than once, byte for byte: found in the finished shards' rows, named in OUT/duplicates.jsonl, left out if asked.

Nothing is read a second time to find them: rows of equal size and CRC-32 are brought together in bounded memory, and only those few images
are read back and compared by their SHA-256.  Which one is kept does not depend on how the work was divided: the first in OUT's numbering,
but before all an image of val or test, so that what a model is measured on does not leak into what it is trained on.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpp.files import temporary
from mpp.prep.destination import WORK, Destination
from mpp.prep.retries import shown
from mpp.prep.shard_job import Job, Record, Work
from mpp.prep.shuffle import read_order

DROPS = f"{WORK}/drops"  # a line of JSON with the counts, then what to leave out: DROP rows sorted by job and key
LISTED = "duplicates.jsonl"
ROWS_AT_ONCE = 1 << 20  # candidates in memory, 30 MB
CANDIDATE = np.dtype(
    [
        ("crc32", "<u4"),
        ("size", "<u4"),
        ("rank", "u1"),  # KEPT_WHOLE, MADE_BY_US or TRAIN: the least is kept
        ("key", "<u8"),
        ("job", "<u4"),
        ("offset", "<u8"),
        ("label", "<i4"),
    ]
)
DROP = np.dtype([("job", "<u4"), ("key", "<u8")])
KEPT_WHOLE, MADE_BY_US, TRAIN = range(3)


def rank_of(job: Job) -> int:
    """Whose images are kept before whose.  A val or test split that the source itself made is never changed."""
    if job.split == "train":
        return TRAIN
    return KEPT_WHOLE if job.order == job.split else MADE_BY_US


def note_repeats(jobs: Sequence[Job], records: Iterable[Record], work: Work, *, leave_out: bool) -> tuple[Counter, bytes]:
    """Write OUT/duplicates.jsonl, if there is anything to say, and return its counts and what `without` needs.

    jobs: of all splits, without anything left out yet.  Counts: repeats, of them in_val (train images that occur in val or test),
    relabelled (under another label than the one kept) and left_out.  Memory: 12 bytes for each image to leave out, and 41 for each of the
    images that share one checksum.
    """
    counts: Counter = Counter(repeats=0, in_val=0, relabelled=0, left_out=0)
    drop_jobs, drop_keys = array("I"), array("Q")

    def lines() -> Iterator[bytes]:
        for kept, repeat in _equal(_candidates(jobs, records), sum(job.count for job in jobs), work.orders, jobs, work.out):
            drop = leave_out and int(repeat["rank"]) != KEPT_WHOLE
            if drop:
                drop_jobs.append(int(repeat["job"]))
                drop_keys.append(int(repeat["key"]))
            counts["repeats"] += 1
            counts["in_val"] += bool(repeat["rank"] == TRAIN != kept["rank"])
            counts["relabelled"] += bool(repeat["label"] != kept["label"])
            counts["left_out"] += drop
            original = _describe(jobs[kept["job"]], kept, work)
            line = {**_describe(jobs[repeat["job"]], repeat, work), "same_as": original, "left_out": drop}
            yield json.dumps(line).encode() + b"\n"

    found = lines()
    first = next(found, None)
    if first is not None:
        work.out.put_stream(LISTED, _again(first, found))
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


def read_drops(out: Destination) -> bytes | None:
    """What an earlier run found, None where none did."""
    return out.get(DROPS)


def _again(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _candidates(jobs: Sequence[Job], records: Iterable[Record]) -> Iterator[np.ndarray]:
    for number, (job, record) in enumerate(zip(jobs, records, strict=True)):
        table = np.empty(len(record.rows), CANDIDATE)
        for name in ("crc32", "size", "key", "offset", "label"):
            table[name] = record.rows[name]
        table["rank"], table["job"] = rank_of(job), number
        yield table


def _equal(
    tables: Iterable[np.ndarray], total: int, scratch: Path, jobs: Sequence[Job], out: Destination
) -> Iterator[tuple[np.void, np.void]]:
    """(the row to keep, another row) for every two rows whose images are equal byte for byte."""
    for rows in _dealt(tables, 1 + total // ROWS_AT_ONCE, scratch):
        code = rows["crc32"].astype(np.uint64) << np.uint64(32) | rows["size"]
        order = np.argsort(code)
        same = np.flatnonzero(code[order][1:] == code[order][:-1])
        for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1):
            if not len(run):
                continue
            alike = order[run[0] : run[-1] + 2]
            alike = alike[np.lexsort((rows["job"][alike], rows["key"][alike], rows["rank"][alike]))]
            kept: dict[bytes, np.void] = {}  # by content; one, but for two images with the same checksum
            for place in alike.tolist():
                row = rows[place]
                job = jobs[row["job"]]
                digest = hashlib.sha256(out.read(job.split, job.name, int(row["offset"]), int(row["size"]))).digest()
                if digest in kept:
                    yield kept[digest], row
                else:
                    kept[digest] = row


def _dealt(tables: Iterable[np.ndarray], buckets: int, scratch: Path) -> Iterator[np.ndarray]:
    """All rows, dealt out to so many arrays by their CRC-32; through files where there is more than one."""
    if buckets == 1:
        yield np.concatenate([np.empty(0, CANDIDATE), *tables])
        return
    paths = [temporary(scratch / f"repeats-{bucket:06d}") for bucket in range(buckets)]
    waiting: list[np.ndarray] = []

    def deal() -> None:
        rows = np.concatenate(waiting)
        waiting.clear()
        bucket = rows["crc32"].astype(np.uint64) * np.uint64(buckets) >> np.uint64(32)
        rows = rows[np.argsort(bucket, kind="stable")]
        for path, part in zip(paths, np.split(rows, np.searchsorted(np.sort(bucket), np.arange(1, buckets))), strict=True):
            if len(part):
                with path.open("ab") as file:
                    file.write(part.tobytes())

    try:
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) > ROWS_AT_ONCE:
                deal()
        if waiting:
            deal()
        for path in paths:
            if path.exists():
                yield np.fromfile(path, CANDIDATE)
                path.unlink()
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _describe(job: Job, row: np.void, work: Work) -> dict:
    """An image for people: its split, its key, and what its source calls it."""
    (item,) = read_order(work.orders, job.order, job.at + int(row["key"]) - job.first, 1)
    return {"split": job.split, "key": int(row["key"]), "name": shown(item.name)}
