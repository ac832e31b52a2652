"""verify_shards.py's work: a split against its manifest and index, file by file, row by row, and, in full, byte by byte.

Of a split in an object store the manifest and the index are fetched first, sizes are those of a listing, chosen images come one by one, and whole
shards through the scratch folder.

Tars are walked by hand: tarfile stops at an end mark, takes a damaged header for one, and never shows what fills up blocks, and that is where
things hide.
"""

import argparse
import hashlib
import json
import math
import os
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mpp.data.decode import check_header, open_image
from mpp.data.shard_faults import ROWS, UNREADABLE, Fault, file_faults, most_pixels, row_faults
from mpp.data.shard_format import (
    BLOCK,
    FIELDS,
    INDEX_DTYPE,
    MANIFEST,
    MEAN_STD_IMAGES,
    SHORT_SIDES,
    Manifest,
    digest_of,
    member_header,
    read_manifest,
)
from mpp.data.shard_index import Row, ShardIndex
from mpp.data.shard_table import ShardEntry
from mpp.data.write_shards import mean_and_std, short_side_bins
from mpp.errors import BadSample, DataError, UserError
from mpp.files import writing
from mpp.locks import hold_folder
from mpp.prep.destination import LOCK, remove_scratch, scratch_of
from mpp.prep.fetching import fetched, is_tar, refuse_small_scratch, store_root, sweep
from mpp.prep.indexing import read_in_place
from mpp.prep.prepare import Options
from mpp.prep.source import FOREIGN
from mpp.prep.sources.webdataset import TarImage, WebDataset
from mpp.prep.splits import splits_in_store, splits_of, spread
from mpp.prep.tiles import Cutting, Tile
from mpp.prep.workers import Tick, run_jobs
from mpp.progress import Progress
from mpp.remote.retries import Refused
from mpp.remote.stores import Info, store_for
from mpp.remote.urls import Url, download
from mpp.text import counted, say, say_json

TOLERANCE = 1e-4  # of mean and std: another build of a JPEG decoder may round a pixel otherwise
PIECE = 1 << 20  # bytes read together of what belongs to no sample
KEPT = 20  # faults of a kind that are told one by one


class Tally:
    """What was found in a split or shard.  Faults: all counted, the first of each kind kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[Fault]] = {}
        self.images = 0  # looked at
        self.colours = np.zeros((3, 256), np.int64)  # of the images that mean and std are taken from
        self.colour_images = 0

    def add(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.counts[fault.kind] += 1 + fault.more
            kept = self.first.setdefault(fault.kind, [])
            if len(kept) < KEPT:
                kept.append(fault)

    def update(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        for kind, faults in other.first.items():
            kept = self.first.setdefault(kind, [])
            kept.extend(faults[: KEPT - len(kept)])
        self.images += other.images
        self.colours += other.colours
        self.colour_images += other.colour_images


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


class Place:
    """A split in a folder, where its files are read."""

    def __init__(self, folder: Path):
        self.shown: Path | Url = folder
        self.folder = folder  # of the manifest, the index, and shards that are read whole
        self.elsewhere: Url | None = None

    def sizes(self, manifest: Manifest) -> dict[str, int] | None:
        """Bytes of shards that are not in `folder`, where they are not as many as the manifest says; -1: is not there."""
        return None

    def tars(self) -> list[tuple[str, int]]:
        """(name, bytes) of all that readers of *.tar would take for shards, hidden ones, too."""
        return [(path.name, path.stat().st_size) for path in sorted(self.folder.iterdir()) if path.suffix.lower() == ".tar"]

    def whole(self, name: str, tick: Tick) -> AbstractContextManager[Tick]:
        """A shard lies in `folder` meanwhile, if it is there at all.  Gives what is to be told of bytes that are read of it."""
        return nullcontext(tick)

    @contextmanager
    def reader(self, name: str) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
        """(bytes, read(size, offset)) of a shard.  Raises FileNotFoundError."""
        with (self.folder / name).open("rb") as file:
            yield os.fstat(file.fileno()).st_size, partial(os.pread, file.fileno())


class StorePlace(Place):
    """A split in a store.  Small enough to be sent to the worker processes: a line a shard."""

    def __init__(self, url: Url, objects: dict[str, Info], scratch: Path):
        """objects: of the split, by name."""
        self.shown = self.elsewhere = url
        self.folder, self.objects = scratch, objects
        self.protocol, _ = store_root(url, "")

    def fetch(self, name: str, quiet: bool) -> None:
        """A file that is small, or the index, to `folder`, if it is there at all."""
        if info := self.objects.get(name):
            bar = lambda what, total: Progress(what, total, "MB", scale=1e-6, quiet=quiet)
            with writing(self.folder / name):
                download(f"{self.shown}/{name}", info, self.folder / name, bar)

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        size_of = lambda name: self.objects[name].size if name in self.objects else -1
        return {entry.name: size for entry in manifest.shards if (size := size_of(entry.name)) != entry.bytes}

    def tars(self) -> list[tuple[str, int]]:
        return [(name, info.size) for name, info in sorted(self.objects.items()) if name.lower().endswith(".tar")]

    @contextmanager
    def whole(self, name: str, tick: Tick) -> Iterator[Tick]:
        if name not in self.objects:
            yield tick
            return
        with fetched(f"{self.shown}/{name}", self.objects[name], self.folder, tick):
            yield lambda count: tick(0)  # they were counted as they came

    @contextmanager
    def reader(self, name: str) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
        if (info := self.objects.get(name)) is None:
            raise FileNotFoundError(name)

        def read(size: int, offset: int) -> bytes:
            end = min(offset + size, info.size)
            try:
                return store_for(self.protocol).read(info.path, offset, end) if offset < end else b""
            except Refused as error:
                raise DataError(f"{self.shown}/{name}: {error}; check your access to it, then run the same command again") from error

        yield info.size, read


def places_of(where: Path | Url, args: argparse.Namespace) -> Iterator[Place]:
    """The splits at a path or URL, one after the other: what was fetched of one is gone before the next.  Raises DataError where there is none."""
    if not isinstance(where, Url):
        if args.scratch:
            raise UserError(f"--scratch {args.scratch}: is for shards of a URL; those of {where} are read where they lie")
        yield from (Place(folder) for folder in splits_of(where))
        return
    for url, objects in splits_in_store(where).items():
        scratch = scratch_of("verify", url, args.scratch, {})
        with hold_folder(scratch / LOCK, f"{url}: another verify_shards.py is at work on it; wait for it or stop it"):
            try:
                files = scratch / "files"
                sweep(files)
                refuse_small_scratch(
                    files, [info.size for name, info in objects.items() if is_tar(name)] if args.full else [], args.workers
                )
                yield StorePlace(url, objects, files)
            finally:
                remove_scratch(scratch)


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


def plan(manifest: Manifest, index: ShardIndex | None, args: argparse.Namespace) -> tuple[list[Job], int]:
    """A job for every shard to look at, and the bytes that all of them will read."""
    if index is None and not args.full:
        return [], 0
    counts = manifest.shards.samples
    ends = np.cumsum(counts)
    jobs = [Job(entry, int(end) - entry.samples, None) for entry, end in zip(manifest.shards, ends, strict=True)]
    if args.full:
        return jobs, manifest.bytes
    assert index is not None
    chosen = np.array(spread(counts, args.sample, args.seed, with_edges=True), np.int64)
    total = int(index["size"][chosen].astype(np.int64).sum())
    parts = np.split(chosen, np.searchsorted(chosen, ends)[:-1])
    return [job._replace(picks=(part - job.first).tolist()) for job, part in zip(jobs, parts, strict=True) if len(part)], total


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
    say(f"read {read / 1e6:,.1f} MB in {seconds:,.1f} s, {read / 1e6 / seconds:,.1f} MB/s: {how}")


def line(fault: Fault) -> str:
    """ "000003.tar: 000000001234 (offset 51712): CRC-32 is ..." """
    key = "" if fault.key is None else f" {fault.key:012d}"
    place = "" if fault.offset is None else f" (offset {fault.offset})"
    if fault.shard in ("", fault.path.name):
        return f"{fault.path.name}{':' if key else ''}{key}{place}: {fault.message}"
    return f"{fault.path.name}: {fault.message} [{fault.shard}:{key}{place}]"


# ---------------------------------------------------------------- what the manifest says of its images


def is_foreign(manifest: Manifest) -> bool:
    return manifest.source.get("kind") == FOREIGN


def cutting_of(manifest: Manifest) -> Cutting | None:
    """How scans were cut into the images of the set; None where they were not."""
    tile, overlap = (manifest.source.get(name) for name in ("tile", "overlap"))
    if is_foreign(manifest) or not isinstance(tile, int) or not isinstance(overlap, int) or not 0 <= overlap < tile:
        return None
    return Cutting(tile, overlap)


def colour_limit(manifest: Manifest) -> int:
    """Which images mean and std are taken from: as `ShardCheck.colour_limit`."""
    told = manifest.source.get("colour_images") if is_foreign(manifest) else None
    return told if isinstance(told, int) else MEAN_STD_IMAGES


def claim_faults(folder: Path, manifest: Manifest, index: ShardIndex) -> Iterator[Fault]:
    """What the manifest says of the images and the index knows."""
    bins, early, limit = np.zeros(len(SHORT_SIDES), np.int64), 0, colour_limit(manifest)
    for first in range(0, len(index), ROWS):
        rows = np.asarray(index[first : first + ROWS])
        bins += short_side_bins(rows)
        early += int((rows["key"] < limit).sum())
    path = folder / MANIFEST
    found = [(low, count) for low, count in zip(SHORT_SIDES, bins.tolist(), strict=True) if count]
    if found != manifest.short_sides:
        yield Fault("manifest's claims", path, f"says short_sides {manifest.short_sides}, the index {found}")
    if is_foreign(manifest):
        early = sum(min(samples, limit) for samples in manifest.shards.samples)
    if early != manifest.mean_std_images and colours_are_told(manifest):
        said = f"says mean and std are of {manifest.mean_std_images} images, but the index has {early} such images"
        yield Fault("manifest's claims", path, said)
    gaps = int(index["key"][-1]) + 1 - len(index) if len(index) else 0
    if gaps > manifest.rejects + manifest.repeats:
        said = f"says {manifest.rejects} rejects and {manifest.repeats} repeats, the index lacks {gaps} keys"
        yield Fault("manifest's claims", path, said)


def colours_are_told(manifest: Manifest) -> bool:
    """Whether the index tells which images mean and std were taken from: not where tars from elsewhere held rejects, which it leaves out."""
    return not (is_foreign(manifest) and manifest.rejects)


def colour_faults(folder: Path, manifest: Manifest, seen: Tally) -> Iterator[Fault]:
    path = folder / MANIFEST
    if seen.colour_images != manifest.mean_std_images or not seen.colours.any():
        said = (
            f"says mean and std are of {manifest.mean_std_images} images, {seen.colour_images} could be decoded, so they were not compared"
        )
        yield Fault("manifest's claims", path, said)
        return
    for name, claimed, found in zip(("mean", "std"), (manifest.mean, manifest.std), mean_and_std(seen.colours), strict=True):
        if not all(math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE) for one, other in zip(claimed, found, strict=True)):
            yield Fault("manifest's claims", path, f"says {name} {claimed}, the images have {found}")


# ---------------------------------------------------------------- one shard


class Cut(Exception):
    """The shard ends before it should."""


@dataclass
class ShardCheck:
    """The check of one shard.

    colour_limit: mean and std are taken from the images with a key below it; in a foreign shard, from so many first ones of each shard.
    """

    folder: Path
    entry: ShardEntry
    foreign: dict[str, Any] | None  # the manifest's `source` of a shard from elsewhere
    colour_limit: int
    max_pixels: int  # of an image
    cutting: Cutting | None  # of scans into the tiles that are here, where they are tiles
    tick: Tick
    seen: Tally  # its images and colours
    key: int | None = None  # of the image at which the check is

    def sampled(self, rows: np.ndarray, place: Place) -> Iterator[Fault]:
        """Header, CRC-32, format and size in pixels of the images of these rows, INDEX_DTYPE [n], and their labels."""
        try:
            with place.reader(self.entry.name) as (size, read):
                for row in map(Row._make, rows.tolist()):
                    yield from self._sample(size, read, row)
        except FileNotFoundError:
            return  # reported with the sizes
        except OSError as error:
            yield self._fault(UNREADABLE, f"cannot be read ({error.strerror})")

    def whole(self, rows: np.ndarray | None) -> Iterator[Fault]:
        """Every byte, against rows, INDEX_DTYPE [samples]; None where there is no index: then only the sha256 is told."""
        try:
            with (self.folder / self.entry.name).open("rb") as file:
                if hasattr(os, "posix_fadvise"):  # read from the disk, not from what the system remembers of it
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                stream = _Stream(file, self.tick)
                try:
                    if rows is not None:
                        yield from self._walk(stream, rows)
                except Cut:
                    said = f"ends at byte {stream.at}, {self.seen.images} of its {self.entry.samples} images came before that"
                    yield self._fault("cut", said, stream.at, self.key)
                stream.rest()
            if self.foreign is not None and rows is not None:
                yield from self._unlisted_images(frozenset(rows["offset"].tolist()))
        except FileNotFoundError:
            return  # reported with the sizes
        except OSError as error:
            yield self._fault(UNREADABLE, f"cannot be read ({error.strerror})")
            return
        if (found := stream.digest.hexdigest()) != self.entry.sha256:
            yield self._fault("shard sha256", f"sha256 is {found[:12]}…, the manifest says {self.entry.sha256[:12]}…")

    def _unlisted_images(self, listed: frozenset[int]) -> Iterator[Fault]:
        assert self.foreign is not None
        path = self.folder / self.entry.name
        try:
            for image in images_to_index(path, self.foreign, self.colour_limit):
                if image.offset not in listed:
                    said = f"holds the image {image.member!r} ({image.size} bytes) at byte {image.offset}, which the index does not list"
                    yield self._fault("unlisted image", said, image.offset)
        except DataError as error:
            yield self._fault("tar", str(error).removeprefix(f"{path}: "))

    def _sample(self, size: int, read: Callable[[int, int], bytes], row: Row) -> Iterator[Fault]:
        """size: of the shard in bytes; read: (size, offset) -> bytes of it."""
        start = row.offset - BLOCK
        if start < 0 or row.offset + row.size > self.entry.bytes:
            return  # a fault of the index, reported with its rows
        padded = BLOCK + _padded(row.size)
        data = read(padded + 2 * BLOCK, start)
        self.tick(row.size)
        header, payload, label = data[:BLOCK], data[BLOCK : BLOCK + row.size], data[padded:]
        if len(payload) < row.size:
            yield self._fault("cut", f"ends at byte {size}, before the end of this image", row.offset, row.key)
            return
        yield from self._image(header, payload, row, decode=False)
        if not self.foreign and row.label >= 0:
            yield from self._label_faults(label, start + padded, row)

    def _walk(self, stream: "_Stream", rows: np.ndarray) -> Iterator[Fault]:
        size = os.fstat(stream.file.fileno()).st_size
        most, offsets = max(size, self.entry.bytes), rows["offset"]
        for first in range(0, len(rows), 1024):  # Python's own numbers take more room than the index
            for number, row in enumerate(map(Row._make, rows[first : first + 1024].tolist()), start=first):
                self.key = row.key
                follows = int(offsets[number + 1]) - BLOCK if number + 1 < len(rows) else most
                if not stream.at <= row.offset - BLOCK < follows or row.offset + row.size > most:
                    yield self._fault("row out of place", f"the index says byte {row.offset}, where it cannot begin", row.offset, row.key)
                    continue
                yield from self._between(stream, row.offset - BLOCK)
                yield from self._member(stream, row, (number if self.foreign else row.key) < self.colour_limit)
                if not self.foreign and row.label >= 0:
                    if follows - stream.at < 2 * BLOCK:
                        yield self._fault("label", f"has no .cls, the index says class {row.label}", stream.at, row.key)
                    else:
                        yield from self._label_faults(stream.take(2 * BLOCK), stream.at - 2 * BLOCK, row)
                if self.cutting:
                    yield from self._place_faults(stream, row, follows - stream.at, self.cutting)
        if not self.foreign:
            end = stream.at
            yield from self._between(stream, size, end_mark=True)
            right = end + 2 * BLOCK + -(end + 2 * BLOCK) % tarfile.RECORDSIZE
            if size < right:
                raise Cut
            if size > right:
                yield self._fault("end mark", f"has {size} bytes; after its samples it should end at {right}", right)

    def _member(self, stream: "_Stream", row: Row, count_colours: bool) -> Iterator[Fault]:
        """Header, payload and padding of an image."""
        header, payload = stream.take(BLOCK), stream.take(row.size)
        yield from self._image(header, payload, row, count_colours=count_colours)
        padding = stream.take(_padded(row.size) - row.size)
        if not self.foreign and any(padding):
            place = stream.at - len(padding.lstrip(b"\0"))
            yield self._fault("padding", f"the bytes that fill up its last block are not zero (byte {place})", row.offset, row.key)

    def _image(self, header: bytes, payload: bytes, row: Row, *, decode: bool = True, count_colours: bool = False) -> Iterator[Fault]:
        self.seen.images += 1
        yield from self._header_faults(header, row)
        found = zlib.crc32(payload)
        if found != row.crc32:
            yield self._fault("CRC-32", f"CRC-32 is {found:08x}, the index says {row.crc32:08x}", row.offset, row.key)
            return
        try:
            image = open_image(payload, self.max_pixels) if decode else None
            width, height = image.size if image else check_header(payload, self.max_pixels)[1:]
        except BadSample as error:
            yield self._fault("image", f"cannot be decoded: {error}", row.offset, row.key)
            return
        if (width, height) != (row.width, row.height):
            said = f"has {width}x{height} pixels, the index says {row.width}x{row.height}"
            yield self._fault("size in pixels", said, row.offset, row.key)
        form = "JPEG" if payload[:2] == b"\xff\xd8" else "WEBP" if payload[:4] == b"RIFF" else "PNG"  # it has been decoded as one of them
        name = header[:100].rstrip(b"\0")
        if not self.foreign and not name.endswith(f".{FIELDS[form]}".encode()):
            yield self._fault("format", f"is a {form}, its name is {name.decode(errors='replace')!r}", row.offset, row.key)
        if image and count_colours:
            self.seen.colours += np.array(image.histogram()).reshape(3, 256)
            self.seen.colour_images += 1

    def _header_faults(self, header: bytes, row: Row) -> Iterator[Fault]:
        if not self.foreign and header in (member_header(row.key, field, row.size) for field in _likely_first(header)):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            yield self._fault("header", f"the tar header before it is damaged ({error})", row.offset - BLOCK, row.key)
            return
        said = []
        if not self.foreign and info.name not in (f"{row.key:012d}.{known}" for known in FIELDS.values()):
            said.append(f"the name {info.name!r}")
        if info.size != row.size:
            said.append(f"{info.size} bytes")
        if not info.isreg():
            said.append(f"a {_type(info)}")
        if not said and not self.foreign:
            said.append("an owner, time, mode or link that make_shards.py does not write")
        if said:
            claim = f"{' and '.join(said)}, the index says key {row.key:012d} and {row.size} bytes"
            yield self._fault("header", f"the tar header before it says {claim}", row.offset - BLOCK, row.key)

    def _label_faults(self, blocks: bytes, start: int, row: Row) -> Iterator[Fault]:
        """blocks: the two that hold the .cls member."""
        text = b"%d" % row.label
        if blocks[:BLOCK] != member_header(row.key, "cls", len(text)):
            said = f"no .cls of {len(text)} bytes with make_shards.py's header follows the image, the index says class {row.label}"
            yield self._fault("label", said, start, row.key)
        elif blocks[BLOCK:] != text.ljust(BLOCK, b"\0"):
            found = blocks[BLOCK : BLOCK + len(text)].decode(errors="replace")
            said = f"class {found}" if found != str(row.label) else "bytes after the number"
            yield self._fault("label", f".cls holds {said!r}, the index says class {row.label}", start + BLOCK, row.key)

    def _place_faults(self, stream: "_Stream", row: Row, room: int, cutting: Cutting) -> Iterator[Fault]:
        """The .json member that says where a tile was cut.  room: bytes before the next sample."""
        start, size = stream.at, 0
        header = stream.take(BLOCK) if room >= 2 * BLOCK else b""
        with suppress(tarfile.HeaderError):
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        if not 0 < size <= room - BLOCK or header != member_header(row.key, "json", size):
            yield self._fault("place", "no .json with make_shards.py's header says where this tile was cut", start, row.key)
            return
        data = stream.take(_padded(size))
        try:
            told = json.loads(data[:size])
            place = Tile(*(told[name] for name in Tile._fields))
            right = set(told) == {"scan", *Tile._fields} and data[size:] == bytes(len(data) - size) and cutting.can_be(place)
        except (ValueError, LookupError, TypeError):
            right = False
        if not right:
            said = f".json holds {data[:size].decode(errors='replace')!r}, which is no place of a tile of {cutting.tile}"
            yield self._fault("place", said, start + BLOCK, row.key)

    def _between(self, stream: "_Stream", until: int, *, end_mark: bool = False) -> Iterator[Fault]:
        """Read up to a place that should be the next (in a foreign shard: between two images, nothing is foretold)."""
        if self.foreign:
            stream.skip(until - stream.at)
            return
        while stream.at < until:
            at = stream.at
            block = stream.take(min(BLOCK, until - at))
            if not any(block):
                if not end_mark:
                    yield self._fault("unlisted bytes", f"an empty block lies between two samples at byte {at}", at)
                continue
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                yield self._fault("unlisted bytes", f"holds bytes from {at} on that belong to no sample", at)
                stream.skip(until - stream.at)
            else:
                said = f"holds {info.name!r} ({_type(info)}, {info.size} bytes) at byte {at}, which the index does not list"
                yield self._fault("unlisted member", said, at)
                stream.skip(min(_padded(max(info.size, 0)), until - stream.at))

    def _fault(self, kind: str, message: str, offset: int | None = None, key: int | None = None) -> Fault:
        return Fault(kind, self.folder / self.entry.name, message, self.entry.name, key, offset)


def images_to_index(path: Path, source: dict[str, Any], colour_limit: int) -> Iterator[TarImage]:
    """The images in a tar that index_shards.py would list; source: what a manifest notes of how it did.  Raises DataError for a damaged tar."""
    field = source.get("image_field")
    options = Options("decode" if source.get("check") == "decode" else "header", max_pixels=most_pixels(source))
    tar = WebDataset(path, field.lower().lstrip(".") if isinstance(field, str) else None)
    with path.open("rb") as file:
        for number, image in enumerate(tar.images(path, Counter())):
            read = partial(os.pread, file.fileno(), image.size, image.offset)
            try:
                read_in_place(image, read, options, Counter(), need_pixels=number < colour_limit)
            except BadSample:
                continue  # a reject
            yield image


class _Stream:
    """A file read once from its beginning to its end, hashed on the way."""

    def __init__(self, file: BinaryIO, tick: Tick):
        self.file, self.tick, self.at, self.digest = file, tick, 0, hashlib.sha256()

    def take(self, size: int) -> bytes:
        """Exactly so many bytes.  Raises Cut where there are fewer."""
        data = self.file.read(size)
        self.at += len(data)
        self.digest.update(data)
        self.tick(len(data))
        if len(data) < size:
            raise Cut
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, PIECE)))

    def rest(self) -> None:
        while data := self.file.read(PIECE):
            self.at += len(data)
            self.digest.update(data)
            self.tick(len(data))


def _likely_first(header: bytes) -> list[str]:
    """FIELDS' values, that of this header first: making a header takes time."""
    return sorted(FIELDS.values(), key=lambda field: f".{field}\0".encode() not in header[:100])


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _type(info: tarfile.TarInfo) -> str:
    kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.DIRTYPE: "folder", tarfile.XHDTYPE: "pax header"}
    kinds |= {tarfile.XGLTYPE: "global pax header", tarfile.GNUTYPE_LONGNAME: "long name", tarfile.GNUTYPE_LONGLINK: "long link"}
    return "file" if info.isreg() else kinds.get(info.type, f"member of type {info.type!r}")
