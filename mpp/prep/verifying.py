"""verify_shards.py's work: a split against its manifest and index, file by file, row by row, and, in full, byte by byte."""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpp.base.errors import DataError
from mpp.base.progress import Progress
from mpp.base.text import counted, say, say_json, sized
from mpp.data.shard_faults import UNREADABLE, Fault, file_faults, most_pixels, row_faults
from mpp.data.shard_format import (
    INDEX_DTYPE,
    MANIFEST,
    Manifest,
    digest_of,
    read_manifest,
)
from mpp.data.shard_index import ShardIndex
from mpp.data.shard_table import ShardEntry
from mpp.prep.splits import spread
from mpp.prep.tiles import Cutting
from mpp.prep.verify_claims import claim_faults, colour_faults, colour_limit, colours_are_told, cutting_of, is_foreign
from mpp.prep.verify_places import Place, StorePlace, places_of
from mpp.prep.verify_shard import ShardCheck, Tally, images_to_index
from mpp.prep.workers import Tick, run_jobs
from mpp.remote.urls import Url


@dataclass
class Report:
    """What was found in one split."""

    folder: Path | Url
    tally: Tally = field(default_factory=Tally)
    samples: int = 0
    shards: int = 0
    bytes: int = 0  # read of shards
    unchecked: str = ""  # what --full could not work out anew

    @property
    def faults(self) -> int:
        return self.tally.counts.total()


class Job(NamedTuple):
    """One shard to check."""

    entry: ShardEntry
    first: int  # its first row in the index
    picks: list[int] | None  # rows to look at, counted in the shard; None: all, and every byte


def run(args: argparse.Namespace) -> int:
    """Returns 0 without faults, 1 with."""
    started = time.monotonic()
    reports = [verify(place, args) for folder in dict.fromkeys(args.folders) for place in places_of(folder, args)]
    show(reports, args, time.monotonic() - started)
    return int(any(report.faults for report in reports))


def verify(place: Place, args: argparse.Namespace) -> Report:
    """Check one split.  Raises nothing for what is wrong with it, and DataError for a store that does not answer."""
    folder = place.folder
    report = Report(place.shown)
    tally = report.tally
    if isinstance(place, StorePlace):
        place.fetch(MANIFEST, args.quiet)
    try:
        manifest, digest = read_manifest(folder)
    except DataError as error:
        said = str(error).removeprefix(f"{folder / MANIFEST}: ").removeprefix(f"{folder}: ")
        tally.add([Fault("manifest", folder / MANIFEST, f"{said} (the shards were not looked at)")])
        return report
    report.samples, report.shards = manifest.samples, len(manifest.shards)
    foreign = manifest.source if is_foreign(manifest) else None
    if isinstance(place, StorePlace):
        place.fetch(manifest.index.name, args.quiet)
    if digest != digest_of(manifest):
        tally.add([Fault("manifest", folder / MANIFEST, "is not laid out as it was written, so it was edited or damaged")])
    tally.add(file_faults(folder, manifest, place.elsewhere, place.sizes(manifest)))
    index = open_index(folder, manifest)
    if index is not None:
        tally.add(row_faults(folder, manifest, index))
        tally.add(claim_faults(folder, manifest, index))
    elif not report.faults:
        tally.add([Fault(UNREADABLE, folder / manifest.index.name, "cannot be read")])
    tally.add(unlisted_files(place, manifest))
    jobs, total = plan(manifest, index, args)
    with Progress(f"reading {place.shown}", total, "MB", scale=1e-6, quiet=args.quiet) as bar:

        def tick(count: int) -> None:
            report.bytes += count
            bar.update(count)

        index_name = None if index is None else manifest.index.name
        work = partial(check_shard, place, index_name, foreign, colour_limit(manifest), most_pixels(manifest.source), cutting_of(manifest))
        for found in run_jobs(work, jobs, args.workers, tick):
            tally.update(found)
    if args.full and not colours_are_told(manifest):
        report.unchecked = "mean and std (these tars held rejects, so which images they were taken from is not known)"
    elif args.full:
        tally.add(colour_faults(folder, manifest, tally))
    return report


def open_index(folder: Path, manifest: Manifest) -> ShardIndex | None:
    """None where it has not as many rows as the manifest's shards have samples, which is a fault found before."""
    samples = sum(manifest.shards.samples)
    try:
        if samples and (folder / manifest.index.name).stat().st_size == samples * INDEX_DTYPE.itemsize:
            return ShardIndex(folder / manifest.index.name, samples)
    except OSError:  # absent, or may not be read
        pass
    return None


@dataclass(frozen=True, eq=False)
class Jobs(Sequence[Job]):
    """A job for every shard to look at, made when it is asked for: all of a million at once would take hundreds of MB."""

    manifest: Manifest
    ends: np.ndarray  # int64 [shards]: samples up to the end of each
    chosen: np.ndarray | None = None  # int64, ascending: the samples to look at; None: every byte

    @cached_property
    def shards(self) -> Sequence[int] | np.ndarray:
        return range(len(self.ends)) if self.chosen is None else np.unique(np.searchsorted(self.ends, self.chosen, side="right"))

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: Any) -> Any:
        shard = int(self.shards[number])
        entry, end = self.manifest.shards[shard], int(self.ends[shard])
        first = end - entry.samples
        if self.chosen is None:
            return Job(entry, first, None)
        low, high = np.searchsorted(self.chosen, (first, end))
        return Job(entry, first, (self.chosen[low:high] - first).tolist())


def plan(manifest: Manifest, index: ShardIndex | None, args: argparse.Namespace) -> tuple[Sequence[Job], int]:
    """A job for every shard to look at, and the bytes that all of them will read."""
    ends = np.cumsum(manifest.shards.samples, dtype=np.int64)
    if args.full:
        return Jobs(manifest, ends), manifest.bytes
    if index is None:
        return [], 0
    chosen = np.array(spread(manifest.shards.samples, args.sample, args.seed, with_edges=True), np.int64)
    return Jobs(manifest, ends, chosen), int(index["size"][chosen].astype(np.int64).sum())


def unlisted_files(place: Place, manifest: Manifest) -> Iterator[Fault]:
    """Tars beside the shards.  Among tars from elsewhere one without an image is none of the set's business."""
    listed = {entry.name for entry in manifest.shards}
    for name, size in place.tars():
        path = place.folder / name
        if name in listed:
            continue
        if not is_foreign(manifest):
            yield Fault("unlisted file", path, "is not in the manifest, but readers of *.tar would take it for a shard", path.name)
        elif not name.startswith(".") and size:
            try:
                with place.whole(name, lambda count: None):
                    image = next(images_to_index(path, manifest.source, colour_limit(manifest)), None)
                said = f"is not in the manifest, and holds images, such as {image.member!r}; index the folder anew" if image else ""
            except (DataError, OSError) as error:
                said = f"is not in the manifest, and cannot be read ({str(error).removeprefix(f'{path}: ')})"
            if said:
                yield Fault("unlisted file", path, said, path.name)


def check_shard(
    place: Place,
    index_name: str | None,
    foreign: dict | None,
    colour_limit: int,
    max_pixels: int,
    cutting: Cutting | None,
    job: Job,
    tick: Tick,
) -> Tally:
    """One job's work.  index_name: None where the index is of no use."""
    tally = Tally()
    rows = None
    if index_name is not None:
        rows = ShardIndex(place.folder / index_name, job.first + job.entry.samples).rows(job.first, job.first + job.entry.samples)
    check = lambda told: ShardCheck(place.folder, job.entry, foreign, colour_limit, max_pixels, cutting, told, tally)
    if rows is not None and job.picks is not None:
        tally.add(check(tick).sampled(rows[job.picks], place))
        return tally
    with place.whole(job.entry.name, tick) as told:
        tally.add(check(told).whole(rows))
    return tally


def show(reports: list[Report], args: argparse.Namespace, seconds: float) -> None:
    read = sum(report.bytes for report in reports)
    if args.json:
        facts = {
            "full": args.full,
            "faults": sum(report.faults for report in reports),
            "seconds": round(seconds, 3),
            "megabytes_per_second": round(read / 1e6 / seconds, 1),
            "splits": [
                {
                    "folder": str(report.folder),
                    "samples": report.samples,
                    "shards": report.shards,
                    "images_checked": report.tally.images,
                    "bytes_read": report.bytes,
                    "faults": report.faults,
                    "unchecked": report.unchecked,
                    "kinds": report.tally.counts,
                    "listed": [
                        {"kind": fault.kind, "file": fault.path.name, "shard": fault.shard, "key": fault.key, "offset": fault.offset}
                        | {"message": fault.message}
                        for faults in report.tally.first.values()
                        for fault in faults
                    ],
                }
                for report in reports
            ],
        }
        say_json(facts)
        return
    for report in reports:
        images = report.tally.images
        looked = "none" if not images else "all" if images == report.samples else f"{images:,}"
        shards, found = counted(report.shards, "shard"), counted(report.faults, "fault")
        say(
            f"{report.folder}: {counted(report.samples, 'image')} in {shards}, {looked} looked at: {found if report.faults else 'no fault'}"
        )
        if report.unchecked:
            say(f"  not checked: {report.unchecked}")
        for kind, faults in report.tally.first.items():
            for fault in faults:
                say(f"  {kind}: {line(fault)}")
            if (more := report.tally.counts[kind] - len(faults)) > 0:
                say(f"  {kind}: and {more:,} more")
    how = "every byte" if args.full else f"a sample (seed {args.seed}); --full reads every byte"
    say(f"read {sized(read)} in {seconds:,.1f} s, {read / 1e6 / seconds:,.1f} MB/s: {how}")


def line(fault: Fault) -> str:
    """ "000003.tar: 000000001234 (offset 51712): CRC-32 is ..." """
    key = "" if fault.key is None else f" {fault.key:012d}"
    place = "" if fault.offset is None else f" (offset {fault.offset})"
    if fault.shard in ("", fault.path.name):
        return f"{fault.path.name}{':' if key else ''}{key}{place}: {fault.message}"
    return f"{fault.path.name}: {fault.message} [{fault.shard}:{key}{place}]"
