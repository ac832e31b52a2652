"""PROGRAM: are these shards what they were when they were made?

    python data_prep/verify_shards.py FOLDER [FOLDER ...] [--full]

FOLDER is a split (OUT/train) or OUT, for all its splits.  Without --full: the manifest, the index's hash and rows, the size of every shard,
and --sample images, spread over all shards by --seed (CRC-32, tar header, format, size in pixels).  With --full: every byte.  Each shard's
sha256, each tar walked by hand against the index, each image's CRC-32 and pixels, each label, and what the manifest says of all of them
worked out anew, so that one flipped bit anywhere is found.

Every fault is counted; the first of each kind are listed by shard, key and byte.  Exit status 0: none; 1: faults; 2: nothing could be checked.

Of tars that were indexed where they lie (index_shards.py) the images, their place, size and CRC-32 and each tar's sha256 are checked, and
--full names each image that the index does not list, also behind the end mark, and bytes there that are no tar; the images' names, other
members and what fills up blocks are their maker's affair.  An image that never could be decoded is a fault too: make_shards.py looks at
the headers only, unless --check decode.

What cannot be found: a manifest that was changed together with its `check` in what follows from nothing else (names of classes, `source`,
`mpp`, `split`, the number of rejects after the last key), or a whole set replaced by another one.  Keep the sha256 of manifest.json elsewhere
against that: run folders do.
"""

from mpp.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mpp.data.shard_faults import UNREADABLE, Fault, file_faults, most_pixels, row_faults
from mpp.data.shard_format import INDEX_DTYPE, MANIFEST, Manifest, ShardEntry, manifest_bytes, read_manifest
from mpp.errors import DataError, Parser, run_program
from mpp.machine import usable_cores
from mpp.text import counted, printable, say, say_json

if sys.flags.safe_path:  # PYTHONSAFEPATH=1, as our jobs set it, leaves out the folder of the script
    sys.path.append(str(Path(__file__).parent))
from claims import claim_faults, colour_faults, colour_limit, colours_are_told, is_foreign
from options import at_least
from shard_check import ShardCheck, Tally, images_to_index
from splits import splits_of
from spread import spread
from summary import progress
from workers import Tick, run_jobs


@dataclass
class Report:
    """What was found in one split."""

    folder: Path
    tally: Tally = field(default_factory=Tally)
    samples: int = 0
    shards: int = 0
    images: int = 0  # looked at
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


class Done(NamedTuple):
    tally: Tally
    images: int
    colours: np.ndarray
    colour_images: int


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 without faults, 1 with."""
    args = parse(argv)
    tqdm.monitor_interval = 0  # no monitor thread: this process forks
    started = time.monotonic()
    reports = [verify(folder, args) for folder in dict.fromkeys(split for folder in args.folders for split in splits_of(folder))]
    show(reports, args, time.monotonic() - started)
    return int(any(report.faults for report in reports))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="verify_shards.py", description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a split, such as OUT/train, or OUT for all its splits")
    parser.add_argument("--full", action="store_true", help="read every byte and decode every image")
    parser.add_argument("--sample", type=at_least(0), default=1000, metavar="N", help="images a split to look at without --full")
    parser.add_argument("--seed", type=at_least(0), default=0, help="which images those are")
    parser.add_argument("--workers", type=at_least(1), default=usable_cores(), metavar="N", help="processes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="the findings as one JSON object")
    return parser.parse_args(argv)


def verify(folder: Path, args: argparse.Namespace) -> Report:
    """Check one split.  Raises nothing for what is wrong with it."""
    report = Report(folder)
    tally = report.tally
    try:
        manifest, data = read_manifest(folder)
    except DataError as error:
        said = str(error).removeprefix(f"{folder / MANIFEST}: ").removeprefix(f"{folder}: ")
        tally.add(Fault("manifest", folder / MANIFEST, f"{said} (the shards were not looked at)"))
        return report
    report.samples, report.shards = manifest.samples, len(manifest.shards)
    foreign = manifest.source if is_foreign(manifest) else None
    if data != manifest_bytes(manifest):
        tally.add(Fault("manifest", folder / MANIFEST, "is not laid out as it was written, so it was edited or damaged"))
    for fault in file_faults(folder, manifest):
        tally.add(fault)
    index = open_index(folder, manifest)
    if index is not None:
        for fault in row_faults(folder, manifest, index):
            tally.add(fault)
        for fault in claim_faults(folder, manifest, index):
            tally.add(fault)
    elif not report.faults:
        tally.add(Fault(UNREADABLE, folder / manifest.index.name, "cannot be read"))
    for fault in unlisted_files(folder, manifest):
        tally.add(fault)
    jobs, total = plan(manifest, index, args)
    colours, colour_images = np.zeros((3, 256), np.int64), 0
    with tqdm(total=total, desc=printable(folder), unit="B", unit_scale=True, **progress(args)) as bar:

        def tick(count: int) -> None:
            report.bytes += count
            bar.update(count)

        index_name = None if index is None else manifest.index.name
        work = functools.partial(check_shard, folder, index_name, foreign, colour_limit(manifest), most_pixels(manifest.source))
        for done in run_jobs(work, jobs, args.workers, tick):
            tally.update(done.tally)
            report.images += done.images
            colours += done.colours
            colour_images += done.colour_images
    if args.full and not colours_are_told(manifest):
        report.unchecked = "mean and std (these tars held rejects, so which images they were taken from is not known)"
    elif args.full:
        for fault in colour_faults(folder, manifest, colours, colour_images):
            tally.add(fault)
    return report


def open_index(folder: Path, manifest: Manifest) -> np.ndarray | None:
    """The index, mapped; None where it has not as many rows as the manifest's shards have samples, which is a fault found before."""
    try:
        index = np.memmap(folder / manifest.index.name, INDEX_DTYPE, mode="r")
    except (OSError, ValueError):  # absent, empty or cut inside a row
        return None
    return index if len(index) == sum(entry.samples for entry in manifest.shards) else None


def plan(manifest: Manifest, index: np.ndarray | None, args: argparse.Namespace) -> tuple[list[Job], int]:
    """A job for every shard to look at, and the bytes that all of them will read."""
    if index is None and not args.full:
        return [], 0
    counts = [entry.samples for entry in manifest.shards]
    ends = np.cumsum(counts)
    jobs = [Job(entry, int(end) - entry.samples, None) for entry, end in zip(manifest.shards, ends, strict=True)]
    if args.full:
        return jobs, manifest.bytes
    assert index is not None
    chosen = np.array(spread(counts, args.sample, args.seed, with_edges=True), np.int64)
    total = int(index["size"][chosen].astype(np.int64).sum())
    parts = np.split(chosen, np.searchsorted(chosen, ends)[:-1])
    return [job._replace(picks=(part - job.first).tolist()) for job, part in zip(jobs, parts, strict=True) if len(part)], total


def unlisted_files(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """Tars beside the shards.  Among tars from elsewhere one without an image is none of the set's business."""
    listed = {entry.name for entry in manifest.shards}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.name not in listed):
        if not is_foreign(manifest):
            yield Fault("unlisted file", path, "is not in the manifest, but readers of *.tar would take it for a shard", path.name)
        elif not path.name.startswith(".") and path.stat().st_size:
            try:
                image = next(images_to_index(path, manifest.source, colour_limit(manifest)), None)
                said = f"is not in the manifest, and holds images, such as {image.member!r}; index the folder anew" if image else ""
            except (DataError, OSError) as error:
                said = f"is not in the manifest, and cannot be read ({str(error).removeprefix(f'{path}: ')})"
            if said:
                yield Fault("unlisted file", path, said, path.name)


def check_shard(
    folder: Path, index_name: str | None, foreign: dict | None, colour_limit: int, max_pixels: int, job: Job, tick: Tick
) -> Done:
    """One job's work.  index_name: None where the index is of no use."""
    check, tally = ShardCheck(folder, job.entry, foreign, colour_limit, max_pixels, tick), Tally()
    if index_name is None:
        faults = check.whole(None)
    else:
        rows = np.memmap(folder / index_name, INDEX_DTYPE, mode="r")[job.first : job.first + job.entry.samples]
        faults = check.whole(rows) if job.picks is None else check.sampled(rows[job.picks])
    for fault in faults:
        tally.add(fault)
    return Done(tally, check.images, check.colours, check.colour_images)


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
                    "images_checked": report.images,
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
        looked = "all" if report.images == report.samples else f"{report.images:,}"
        looked = looked if report.images else "none"
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


if __name__ == "__main__":
    run_program(main)
