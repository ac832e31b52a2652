"""index_shards.py's work: tars from elsewhere read once, each by a worker process, and a manifest and an index written beside them.

On a file system, or in an object store: then each tar is fetched into the scratch folder first, and is there for as long as it is read.
"""

import argparse
import hashlib
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL

import mpp
from mpp.base.errors import BadSample, DataError, UserError
from mpp.base.progress import Progress, tracked
from mpp.base.text import counted, say, sized
from mpp.data.class_folders import MAX_CLASSES, describe, listed_names, too_sparse
from mpp.data.decode import MAX_PIXELS
from mpp.data.shard_format import INDEX, INDEX_DTYPE, MANIFEST, MEAN_STD_IMAGES, Manifest, manifest_in
from mpp.data.shards import ShardSet
from mpp.data.write_shards import write_manifest
from mpp.disk.locks import hold_folder
from mpp.prep.advice import feeding_lines, next_line
from mpp.prep.destination import LOCK, PLAN, WORK, Destination, remove_scratch, scratch_of
from mpp.prep.fetching import WORKERS_LOCK, TarsInStore, refuse_small_scratch, sweep
from mpp.prep.multi_label import said_of, several_in
from mpp.prep.options import disk_errors
from mpp.prep.plan import refuse_odd_names
from mpp.prep.prepare import Options, Prepared, prepare, say_small_range
from mpp.prep.shard_job import REJECTS, Record, Work, note_down, read_record, records, report_rejects, totals
from mpp.prep.source import FOREIGN, Item, SourceOptions, check_size
from mpp.prep.sources.archives import CHUNK, PlainReader
from mpp.prep.sources.webdataset import TarImage, WebDataset, is_our_manifest, is_ours, open_webdataset, with_fields
from mpp.prep.workers import Tick, run_jobs
from mpp.remote.urls import Url

MADE = {"plan.json", "begun.json", "listing.json"}  # in a work folder of make_shards.py


@dataclass(frozen=True)
class TarJob:
    """One tar to index."""

    name: str
    bytes: int
    colour_images: int  # so many of its first images are decoded for the mean and the standard deviation
    tag: str = ""  # of an object, as it was listed
    split = "."  # the tars lie in the folder itself
    drop = b""  # no image is left out for being a repeat

    @property
    def record(self) -> str:
        return f"{WORK}/{self.name}.done"


def run(args: argparse.Namespace) -> int:
    """Index the tars; returns 0.  Raises UserError, one line, for everything that can be mended."""
    with disk_errors(args.out, "check that FOLDER can be read and written and that its disk has space", "tars"):
        return index(args)


def index(args: argparse.Namespace) -> int:
    """Index the missing tars, check the rejects, write the manifest."""
    started = time.monotonic()
    in_store = isinstance(args.out, Url)
    with held_in_store(args) if in_store else held(args) as out:
        if (written := out.get(MANIFEST)) is not None:  # while this run waited, or the run that wrote it was killed while it cleaned up
            images = manifest_in(written, args.out / MANIFEST).samples if in_store else len(ShardSet.open(out.folder_of_all))
            say(f"{args.out} is already complete: {images:,} images; nothing to do")
            return 0
        source = source_of(out, SourceOptions(None, None, args.image_field, args.label_field))
        tars = tars_of(out, source)
        refuse_odd_names(out.name, [job.name for job in tars])
        settings = {name: getattr(args, name) for name in ("labels", "image_field", "label_field", "check")}
        settings["max_pixels"] = None if args.max_pixels == MAX_PIXELS else args.max_pixels
        # From every tar, because tars from elsewhere may be sorted; by powers of two, so that a tar more or less seldom undoes the others.
        colour_images = 2 ** max(0, math.ceil(math.log2(MEAN_STD_IMAGES / len(tars))))
        plan = {**settings, "colour_images": colour_images, "mpp": mpp.__version__, "pillow": PIL.__version__}
        work = Work(
            source,
            out,
            out.scratch,
            {} if args.labels else None,  # classes have no names here
            Options(args.check, max_pixels=args.max_pixels),
            hashlib.sha256(json.dumps(plan).encode()).hexdigest(),
        )
        jobs = [replace(tar, colour_images=colour_images) for tar in tars]
        looked = tracked(jobs, f"looking at {args.out}", len(jobs), "tars", quiet=args.quiet)
        missing = [job for job in looked if read_record(job, work) is None]
        read_bytes = sum(job.bytes for job in missing)
        if isinstance(out, TarsInStore):
            out.refuse_read_only()
            sweep(out.folder_of_all, [job.name for job in missing[: args.workers]])
            refuse_small_scratch(out.folder_of_all, [job.bytes for job in missing], args.workers)
        work_on = index_fetched if in_store else index_tar
        with Progress(f"indexing {counted(len(missing), 'tar')} of {args.out}", read_bytes, "MB", scale=1e-6, quiet=args.quiet) as bar:
            for _ in run_jobs(partial(work_on, work), missing, args.workers, bar.update):
                pass
        out.look()  # what changed since shows now
        manifest = write_index(jobs, work, {"name": out.name, "kind": FOREIGN, **settings, "colour_images": colour_images}, args)
    seconds = time.monotonic() - started
    if len(missing) < len(jobs):
        say(f"kept from an earlier run: {len(jobs) - len(missing):,} of {len(jobs):,} tars")
    say(f"took {seconds:,.1f} s: {read_bytes / 1e6 / seconds:,.1f} MB/s with {counted(min(args.workers, max(len(missing), 1)), 'worker')}")
    for line in feeding_lines(manifest):
        say(line)
    say(next_line(args.out, manifest))
    return 0


def source_of(out: Destination, options: SourceOptions) -> WebDataset:
    """What reads the tars.  Raises DataError where there are none."""
    if not isinstance(out, TarsInStore):
        return open_webdataset(out.folder_of_all, options)
    if not out.tars:
        raise DataError(
            f"{out.shown}: holds no .tar at its top level; give the prefix of the tars (compressed ones must be unpacked to .tar)"
        )
    return with_fields(out.folder_of_all, options)


def tars_of(out: Destination, source: WebDataset) -> list[TarJob]:
    """The tars in their order."""
    if isinstance(out, TarsInStore):
        return [TarJob(name, info.size, 0, info.tag) for name, info in out.tars.items()]
    return [TarJob(tar.name, tar.stat().st_size, 0) for tar in source.tars()]


@contextmanager
def held(args: argparse.Namespace) -> Iterator[Destination]:
    """FOLDER, held for this run; without anything done nothing stays behind.  Raises UserError for one with a manifest."""
    folder = args.out.resolve()
    out = Destination(folder)
    if args.scratch:
        raise UserError(f"--scratch {args.scratch}: is for tars of a URL; those of {args.out} are read where they lie")
    if not folder.is_dir():
        raise DataError(f"{args.out}: is no folder; give the folder that holds the tars")
    for made in (folder, folder.parent):
        if (made / WORK).exists() and {path.name for path in (made / WORK).iterdir()} & MADE:
            raise DataError(_made(args))
    if (folder / MANIFEST).exists() and not out.scratch.exists():
        raise DataError(_has_a_manifest(args, is_ours(folder)))
    with hold_folder(out.scratch / LOCK, f"{args.out}: another index_shards.py is at work here; wait for it or stop it"):
        for place, names in ((folder, (MANIFEST, INDEX, "rejects.jsonl")), (out.scratch, ("*",))):
            for name in names:
                for leftover in place.glob(f".{name}.tmp-*"):
                    leftover.unlink()
        try:
            yield out
        except BaseException:
            if {path.name for path in out.scratch.iterdir()} <= {LOCK, f"{LOCK}.owner"}:
                remove_scratch(out.scratch)
            raise
        remove_scratch(out.scratch)


@contextmanager
def held_in_store(args: argparse.Namespace) -> Iterator[Destination]:
    """As `held`, of a prefix: this machine's scratch folder is held, as a store has no locks.  Another machine that does the same writes the same."""
    out = TarsInStore(args.out, scratch_of("tars", args.out, args.scratch, {}))
    out.look()
    if out.get(PLAN) is not None or out.is_part_of_made():
        raise DataError(_made(args))
    if (written := out.get(MANIFEST)) is not None and not out.notes:
        raise DataError(_has_a_manifest(args, is_our_manifest(written)))
    with hold_folder(out.scratch / LOCK, f"{args.out}: another index_shards.py is at work on it; wait for it or stop it"):
        out.sweep()
        out.look()
        try:
            yield out
        except BaseException:
            if not any(path.is_file() and path.name not in (LOCK, f"{LOCK}.owner", WORKERS_LOCK) for path in out.scratch.rglob("*")):
                remove_scratch(out.scratch)
            raise
        out.clean()
        remove_scratch(out.scratch)


def _made(args: argparse.Namespace) -> str:
    return f"{args.out}: is made by make_shards.py, which writes the manifest itself; repeat its command to finish it"


def _has_a_manifest(args: argparse.Namespace, ours: bool) -> str:
    as_it_is = f", so it can be trained on as it is (data.shards={args.out}); to index it anew, first remove" if ours else "; remove"
    return f"{args.out}: has a {MANIFEST} already{as_it_is} {MANIFEST} and {INDEX}"


def index_fetched(work: Work, job: TarJob, tick: Tick) -> None:
    """`index_tar` of a tar in a store, fetched for it.  tick: is told of bytes as they come; reading them here is quick beside that."""
    assert isinstance(work.out, TarsInStore)
    with work.out.fetched(job.name, job.bytes, job.tag, tick) as path:
        try:
            index_tar(work, job, lambda count: tick(0))
        except DataError as error:
            raise DataError(str(error).replace(str(path), work.out.where(job.name))) from error


def index_tar(work: Work, job: TarJob, tick: Tick) -> None:
    """Read one tar and note down its rows; their keys count its images from 0, before any is rejected."""
    assert isinstance(work.source, WebDataset)
    path = work.out.folder(job.split) / job.name
    rows: list[tuple] = []
    rejects: list[dict] = []
    colours = np.zeros((3, 256), np.int64)
    counts: Counter = Counter(images=0, colour_images=0)
    before = work.out.state(job.split, job.name)
    reader, digest, hashed = PlainReader(path), hashlib.sha256(), 0

    def read_up_to(end: int) -> None:
        """The tar's bytes in their order, so that the disk is read once: what an image needs is then in the page cache."""
        nonlocal hashed
        while hashed < end and (chunk := reader.pread(CHUNK, hashed)):
            digest.update(chunk)
            hashed += len(chunk)
            tick(len(chunk))

    try:
        for key, image in enumerate(work.source.images(path, counts)):
            counts["images"] += 1
            read_up_to(image.offset + image.size)
            try:
                read = partial(reader.pread, image.size, image.offset)
                done = read_in_place(image, read, work.options, counts, need_pixels=key < job.colour_images)
            except BadSample as error:
                rejects.append({"name": f"{job.name}/{image.member}", "reason": str(error)})
                continue
            if key < job.colour_images:
                assert done.image
                np.add(colours, np.array(done.image.histogram()).reshape(3, 256), out=colours)
                counts["colour_images"] += 1
            label = -1 if work.classes is None else class_number(path, image.member, image.label)
            rows.append((0, image.offset, image.size, zlib.crc32(done.data), done.width, done.height, label, key))
        read_up_to(job.bytes + 1)
    finally:
        reader.close()
    if before != work.out.state(job.split, job.name) or hashed != job.bytes:
        raise DataError(f"{path}: changed while it was read; leave the tars alone and run the same command again")
    entry = {"name": job.name, "bytes": hashed, "sha256": digest.hexdigest(), "samples": len(rows)}
    note_down(job, work, Record(entry, rejects, colours, counts, np.array(rows, INDEX_DTYPE)))


def read_in_place(image: TarImage, read: Callable[[], bytes], options: Options, counts: Counter, *, need_pixels: bool) -> Prepared:
    """An image of a tar from elsewhere, checked.  Raises BadSample where it cannot be indexed where it lies.  read: gives its bytes."""
    if image.is_link:
        raise BadSample("a link to another member, so its bytes have a row already; make_shards.py can take it")
    check_size(Item(image.member, image.size))
    data = read()
    done = prepare(data, options, counts, need_pixels=need_pixels)
    if done.data is not data:
        raise BadSample("of a format that must be converted, so it cannot stay where it is; make_shards.py can take it")
    return done


def class_number(tar: Path, member: str, label: str) -> int:
    if label.isdecimal() and int(label) < MAX_CLASSES:
        return int(label)
    if several_in([label]):
        raise DataError(f"{tar}: {member} has {said_of(label)}")
    raise DataError(
        f"{tar}: {member} has {f'the label {label!r}' if label else 'no label'}, and only class numbers from 0 to {MAX_CLASSES - 1} can be "
        "indexed in place; leave out --labels, or make new shards: python data_prep/make_shards.py FOLDER OUT --labels"
    )


def write_index(jobs: list[TarJob], work: Work, source: dict, args: argparse.Namespace) -> Manifest:
    """Rejects, index and manifest; says what there is.  source: the manifest's entry of that name."""
    found = totals(jobs, work, args)
    images, rejects, counts, used = found.images, found.rejects, found.counts, found.labels - {-1}
    classes = max(used, default=-1) + 1
    empty = [str(number) for number in range(classes) if number not in used]
    ignored = Counter({kind: count for kind, count in counts.items() if kind[0] in ".("})
    report_rejects(jobs, work, images, rejects, args, "make new shards of what is good: python data_prep/make_shards.py FOLDER OUT")
    if not images:
        raise DataError(f"{args.out}: its {len(jobs)} tars hold no readable images" + (f" ({describe(ignored)})" if ignored else ""))

    if reason := used and too_sparse(len(used), max(used)):
        raise DataError(
            f"{args.out}: {reason}; leave out --labels, or make new shards: python data_prep/make_shards.py FOLDER OUT --labels --label-names"
        )

    def numbered() -> Iterator[tuple[dict, np.ndarray]]:
        first = 0
        for record in records(jobs, work, args):
            rows = record.rows.copy()
            rows["key"] += np.uint64(first)
            first += record.counts["images"]
            yield record.entry, rows

    folder = work.out.folder(".")
    manifest = write_manifest(
        folder,
        split=work.out.name,
        shards=numbered(),
        classes=[str(number) for number in range(classes)],
        colours=found.colours,
        colour_images=counts["colour_images"],
        rejects=rejects,
        source=source,
    )
    for name in (INDEX, MANIFEST):
        work.out.publish(".", name)
    say(f"{args.out}: {counted(images, 'image')} in {counted(len(manifest.shards), 'tar')}, {sized(manifest.bytes)}")
    say(f"rejected: {rejects:,}" + (f" ({work.out.where(REJECTS)})" if rejects else ""))
    say(f"ignored:  {ignored.total():,}" + (f" ({describe(ignored)})" if ignored else ""))
    if said := say_small_range(counts):
        say(f"WARNING:  {said}")
    if len(manifest.shards) < len(jobs):
        say(f"without a readable image: {len(jobs) - len(manifest.shards):,} tars")
    if args.labels:
        say(f"classes:  {classes:,}" + (f", {len(empty):,} of them without images: {listed_names(empty)}" if empty else ""))
    return manifest
