"""One shard's work, as a worker process of make_shards.py does it: read, check, perhaps re-encode, write, note down; and what was noted."""

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mpp.base.errors import BadSample, DataError
from mpp.base.progress import tracked
from mpp.data.shard_format import INDEX_DTYPE, MEAN_STD_IMAGES
from mpp.data.write_shards import Sample, write_shard
from mpp.prep.destination import WORK, Destination
from mpp.prep.prepare import Options, prepare
from mpp.prep.shuffle import read_order
from mpp.prep.source import Source
from mpp.prep.workers import Tick
from mpp.remote.retries import shown

REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class Job:
    """One shard to make."""

    split: str
    shard: int  # its number in the split
    order: str  # whose order the items are taken from: val may be the end of train's
    at: int  # position of the first item in that order
    first: int  # its ordinal in the split, hence its key
    count: int  # items
    drop: bytes = b""  # keys to leave out as repeats: uint64, sorted

    @property
    def name(self) -> str:
        return f"{self.shard:06d}.tar"

    @property
    def record(self) -> str:
        """The record's file below OUT: a line of JSON, then the rows."""
        return f"{WORK}/{self.split}-{self.shard:06d}.done"


@dataclass(frozen=True)
class Work:
    """What all jobs of a run share."""

    source: Source
    out: Destination
    orders: Path  # the folder with the orders
    classes: dict[str, int] | None  # number by name; None without labels
    options: Options
    plan: str  # hash of the plan: a record made under another one is of no use


class Record(NamedTuple):
    """What is known of a finished shard."""

    entry: dict  # for the manifest
    rejects: list[dict]
    colours: np.ndarray  # int64 [3, 256]
    counts: Counter
    rows: np.ndarray  # INDEX_DTYPE


class Totals:
    """Records added up, so that no two of them need be in memory."""

    def __init__(self) -> None:
        self.images = self.rejects = 0
        self.colours = np.zeros((3, 256), np.int64)
        self.counts: Counter[str] = Counter()
        self.labels: set[int] = set()  # class numbers of the images; -1 where one has none

    def add(self, record: Record) -> None:
        self.images += record.entry["samples"]
        self.rejects += len(record.rejects)
        self.colours += record.colours
        self.counts.update(record.counts)
        self.labels |= set(np.unique(record.rows["label"]).tolist())


class Noted(Protocol):
    """A job whose shard can be noted down."""

    @property
    def split(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def record(self) -> str: ...

    @property
    def drop(self) -> bytes: ...


def build_shard(work: Work, job: Job, tick: Tick) -> None:
    """Make one shard and note it down: the note is a pure function of the plan, but for `state`."""
    rejects: list[dict] = []
    colours = np.zeros((3, 256), np.int64)
    counts: Counter = Counter(colour_images=0, read_bytes=0, converted=0, resized=0, encoded=0, windowed=0)
    reader = work.source.reader()
    drop = set(np.frombuffer(job.drop, "<u8").tolist())

    def samples() -> Iterator[Sample]:
        for key, item in enumerate(read_order(work.orders, job.order, job.at, job.count), start=job.first):
            tick(1)
            if key in drop:
                continue
            try:
                data = reader.read(item)
                done = prepare(data, work.options, counts, need_pixels=key < MEAN_STD_IMAGES)
            except BadSample as error:
                rejects.append({"split": job.split, "key": key, "name": shown(item.name), "reason": str(error)})
                continue
            counts["read_bytes"] += len(data)
            if key < MEAN_STD_IMAGES:
                assert done.image
                np.add(colours, np.array(done.image.histogram()).reshape(3, 256), out=colours)
                counts["colour_images"] += 1
            label = -1 if work.classes is None else work.source.class_number(item.label, work.classes)
            yield Sample(key, done.field, done.data, done.width, done.height, label, work.source.told(item))

    try:
        entry, rows = write_shard(work.out.folder(job.split), job.name, samples())
    finally:
        reader.close()
    if entry["samples"]:
        work.out.publish(job.split, job.name)
    else:
        work.out.discard(job.split, job.name)  # made before its images were found to be repeats
    note_down(job, work, Record(entry, rejects, colours, counts, rows))


def note_down(job: Noted, work: Work, done: Record) -> None:
    """Remember a finished shard for `read_record`."""
    record = {
        "plan": work.plan,
        "drop": _hash(job.drop),
        "state": work.out.state(job.split, job.name),
        "entry": done.entry,
        "rejects": done.rejects,
        "colours": done.colours.tolist() if done.counts["colour_images"] else None,
        "counts": done.counts,
    }
    work.out.put(job.record, json.dumps(record).encode() + b"\n" + done.rows.tobytes())


def _hash(drop: bytes) -> str:
    return hashlib.sha256(drop).hexdigest() if drop else ""


def read_record(job: Noted, work: Work) -> Record | None:
    """What `build_shard` noted down; None where it did not, or for another plan, or where the shard was touched since."""
    noted, _, rows = (work.out.get(job.record) or b"").partition(b"\n")
    try:
        record = json.loads(noted)
        changed = record["state"] != work.out.state(job.split, job.name)
        if changed or (record["plan"], record["drop"]) != (work.plan, _hash(job.drop)):
            return None
        colours = np.array(record["colours"] or np.zeros((3, 256)), np.int64)
        return Record(record["entry"], record["rejects"], colours, Counter(record["counts"]), np.frombuffer(rows, INDEX_DTYPE))
    except (ValueError, KeyError):
        return None


def records(jobs: Sequence[Noted], work: Work, args: argparse.Namespace) -> Iterator[Record]:
    """What is known of each finished shard, one after the other: all of them would not fit into memory."""
    for job in tracked(jobs, "collecting", len(jobs), "shards", quiet=args.quiet):
        record = read_record(job, work)
        if record is None:
            raise DataError(f"{work.out.where(job.split, job.name)}: vanished or changed meanwhile; run the same command again")
        yield record


def totals(jobs: Sequence[Noted], work: Work, args: argparse.Namespace) -> Totals:
    found = Totals()
    for record in records(jobs, work, args):
        found.add(record)
    return found


def report_rejects(jobs: Sequence[Noted], work: Work, images: int, rejects: int, args: argparse.Namespace, remedy: str) -> None:
    """List the rejects in OUT/rejects.jsonl.  Raises DataError when there are more than --max-rejects allows."""
    if not rejects:
        return
    first: dict = {}

    def lines() -> Iterator[bytes]:
        for record in records(jobs, work, args):
            for reject in record.rejects:
                first.update(first or reject)
                yield json.dumps(reject).encode() + b"\n"

    work.out.put_stream(REJECTS, lines())
    count = images + rejects
    if rejects > args.max_rejects * count:
        if not images:
            raise DataError(
                f"none of {count} files is a readable image, first {first['name']!r} ({first['reason']}); {work.out.where(REJECTS)} lists "
                f"them all; {remedy}"
            )
        enough = math.ceil(rejects / count * 1000) / 1000
        raise DataError(
            f"{rejects:,} of {count:,} files are not readable images, "
            f"first {first['name']!r} ({first['reason']}); "
            f"{work.out.where(REJECTS)} lists them all; run again with --max-rejects {enough:g} to go on without them (finished shards are "
            f"kept), or {remedy}"
            + ("; a new OUT made with --max-pixels takes larger images" if "too many pixels" in first["reason"] else "")
        )
