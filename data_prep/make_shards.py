"""PROGRAM: a pile of images -> WebDataset shards with a manifest and an index.

    python data_prep/make_shards.py SOURCE OUT [--labels] [--val 0.01] [--resize 256]

The images are listed as a stream, shuffled by the seed in bounded memory (shuffle.py) and numbered; then worker processes read, check and
write them, each a whole shard at a time, so that the result does not depend on how many there are.  Killed at any instant, the same command
goes on with the shards it lacks and ends with the same bytes.

On many machines: run the command with --part 0/8 ... 7/8, in any order and at any time, then once without --part: that makes whatever is
still missing and writes the manifest, and the result is the same as one process would have made.

    OUT/.work/plan.json           what this OUT is being made from; a different command is refused
    OUT/.work/listing.json        what the source holds, once listed; beside it the shuffled order (*.items, *.offsets)
    OUT/.work/source.tar          SOURCE unpacked, while it is needed (only for compressed tars)
    OUT/.work/train-000003.done   a finished shard's rows; written after the shard has its name
    OUT/rejects.jsonl             files with an image suffix that are no readable images
"""

import argparse
import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

import mpp
from mpp.data.shards import ShardSet, write_manifest
from mpp.errors import DataError, Parser, UserError, run_program
from mpp.files import TEMPORARY, lock_folder, write_atomically, write_stream
from mpp.machine import usable_cores

if sys.flags.safe_path:  # PYTHONSAFEPATH=1, as our jobs set it, leaves out the folder of the script
    sys.path.append(str(Path(__file__).parent))
from prepare import QUALITY, Options
from shard_job import Job, Record, Work, build_shard, read_record, start_worker
from shuffle import Listed, shuffle, survey
from sources import FORMATS, open_source
from sources.base import IMAGE_SUFFIXES, MAX_CLASSES, Source, describe
from target import WORK, LocalTarget, Target

PLAN = f"{WORK}/plan.json"


class Split(NamedTuple):
    """A stretch of one order."""

    name: str
    order: str
    at: int  # position of its first item in that order
    count: int


def main(argv: Sequence[str] | None = None) -> int:
    """Make the shards; returns 0.  Raises UserError, one line, for everything that can be mended."""
    args = parse(argv)
    tqdm.monitor_interval = 0  # no monitor thread: this process forks
    try:
        return make(args)
    except OSError as error:
        if error.errno is None:
            raise
        remedy = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "raise the quota or free some space",
            errno.EFBIG: "choose a file system or a limit that allows larger files, or fewer --samples-per-shard",
        }.get(error.errno, "check that SOURCE can be read and OUT written")
        raise UserError(
            f"{error.filename or args.out}: {error.strerror}; {remedy}, then run the same command again: finished shards are kept"
        ) from error


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="make_shards.py", description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help=f"of images: {', '.join(FORMATS)}")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder; gets train/ and, with --val, val/")
    parser.add_argument("--labels", action="store_true", help="store class labels; in a tree the first folder level is the class")
    parser.add_argument("--val", type=_val, default=0, metavar="X", help="images to keep apart in OUT/val: a share below 1 or a count")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the shuffle and the choice of OUT/val")
    parser.add_argument("--samples-per-shard", type=_at_least(1), default=2048, metavar="N", help="keys a shard")
    parser.add_argument("--check", choices=("header", "decode"), default="header", help="how an image that is copied is checked")
    parser.add_argument("--resize", type=_at_least(8), metavar="S", help="shrink short sides above S pixels to S")
    parser.add_argument("--encode", choices=("keep", "jpeg", "webp"), default="keep", help="what to store; keep: shrunk images as JPEG")
    parser.add_argument(
        "--quality", type=_quality, metavar="Q", help=f"of encoded images (default: JPEG {QUALITY['JPEG']}, WebP {QUALITY['WEBP']})"
    )
    parser.add_argument("--max-rejects", type=_share, default=0.0, metavar="SHARE", help="share of unreadable images to go on with")
    parser.add_argument(
        "--part", type=_part, metavar="I/N", help="make only every N-th shard from the I-th on, I from 0; finish without it"
    )
    parser.add_argument(
        "--workers", type=_at_least(1), default=usable_cores(), metavar="N", help="processes; the result does not depend on it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="the closing summary as one JSON object")
    return parser.parse_args(argv)


def _at_least(lowest: int) -> Any:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return int(text)

    return whole_number


def _quality(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 100:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a quality from 1 to 100")


def _share(text: str) -> float:
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")


def _val(text: str) -> float | int:
    return int(text) if text.isdecimal() else _share(text)


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if part.isdecimal() and parts.isdecimal() and int(part) < int(parts):
        return int(part), int(parts)
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N-1, such as 0/8 ... 7/8")


def make(args: argparse.Namespace) -> int:
    """List, plan, build what is missing, check the rejects, write the manifests."""
    started = time.monotonic()
    out = args.out.resolve()
    source = open_source(args.source.resolve(), leave_out=out)
    if source.path == out:
        raise DataError(f"{args.out}: SOURCE and OUT are the same folder; choose another OUT")
    target = LocalTarget(out)
    settings = {
        "name": source.name,
        "kind": source.kind,
        "labels": args.labels,
        "val": args.val,
        "seed": args.seed,
        "samples_per_shard": args.samples_per_shard,
        "check": args.check,
        "resize": args.resize,
        "encode": args.encode,
        "quality": args.quality,
    }
    plan = {**settings, "identity": source.identity(), "mpp": mpp.__version__, "pillow": PIL.__version__}
    with opened(out, target, args) as fresh:
        found = read_plan(target, plan, args.out)
        if found and found["complete"]:
            if found["plan"]["stamp"] != (found["plan"]["stamp"] if plan["identity"] else survey(source).stamp):
                raise _other_plan(args.out, "complete", f"the files of {source.name} changed")
            for split in found["complete"]:
                ShardSet.open(out / split)
            print(f"{args.out} is already complete: {', '.join(found['complete'])}; nothing to do")
            return 0
        source, listed = list_once(source, target, args)
        splits = plan_splits(source, listed, args)
        names = source.class_names(listed.labels) if args.labels else []
        if len(names) == 1:
            print(f"warning: --labels finds a single class, {names[0]!r}: the first folder level is the class", file=sys.stderr)
        if found is None:
            found = {"plan": plan | {"stamp": listed.stamp}, "complete": []}
            target.put(PLAN, json.dumps(found).encode())
        work = Work(
            source,
            target,
            target.scratch,
            {name: number for number, name in enumerate(names)} if args.labels else None,
            Options(args.check, args.resize, args.encode, args.quality),
            hashlib.sha256(json.dumps(found["plan"]).encode()).hexdigest(),
        )
        fresh.pop_all()  # from here on what was done is kept
        part, parts = args.part or (0, 1)
        jobs = [job for number, job in enumerate(plan_jobs(splits, args.samples_per_shard)) if number % parts == part]
        summary = Summary(args, listed, splits)
        missing = [job for job in jobs if read_record(job, work) is None]
        summary.built, summary.built_shards = build(missing, work, args), len(missing)
        for job, record in zip(jobs, records(jobs, work), strict=True):
            summary.add(record, job.split)
        summary.read_bytes = sum(record.counts["read_bytes"] for record in records(missing, work))
        if not args.part:
            report_rejects(jobs, work, summary, args)
            for split in reversed(splits):  # train last: whoever waits for it finds val
                write_split(split, [job for job in jobs if job.split == split.name], work, names, settings, out)
            target.put(PLAN, json.dumps(found | {"complete": [split.name for split in splits]}).encode())
            clean(target.scratch)
    summary.show(time.monotonic() - started, len(names))
    return 0


# ---------------------------------------------------------------- what is to be done


@contextmanager
def opened(out: Path, target: Target, args: argparse.Namespace) -> Iterator[ExitStack]:
    """Hold OUT for this run.  Yields the clean-up that leaves nothing behind when a new OUT comes to nothing; empty for an OUT begun before."""
    if not out.is_dir() and out.exists():
        raise DataError(f"{args.out}: is a file; choose another OUT")
    begun = target.get(PLAN) is not None
    if out.is_dir() and not begun and {path.name for path in out.iterdir()} - {WORK}:
        raise DataError(f"{args.out}: is not empty and was not begun by make_shards.py; choose another OUT")
    target.scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks, ExitStack() as fresh:

        def hold(name: str, busy: str, **options: Any) -> None:
            lock_folder(locks.enter_context((target.scratch / name).open("w")), f"{args.out}: {busy}", **options)

        if args.part:
            part, parts = args.part
            hold("lock", "a run without --part is at work here; wait for it or stop it", shared=True)
            hold(f"lock-{part}-of-{parts}", f"another run of part {part}/{parts} is at work here; wait for it or stop it")
        else:
            hold("lock", "another make_shards.py is at work here; wait for it or stop it")
            for folder in (out, *out.glob("*/")):
                for leftover in folder.glob(TEMPORARY):
                    leftover.unlink()
        if not begun and not args.part:
            fresh.callback(leave_nothing, out)
        yield fresh


def leave_nothing(out: Path) -> None:
    shutil.rmtree(out / WORK)
    if not any(out.iterdir()):
        out.rmdir()


def read_plan(target: Target, plan: dict, out: Path) -> dict | None:
    """The plan that OUT was begun with; None for a new OUT.  Raises DataError for another one."""
    data = target.get(PLAN)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{out}/{PLAN}: is damaged ({error}); remove {out} or choose another folder") from error
    changes = [name for name in plan if found["plan"].get(name) != plan[name]]
    if changes:
        said = ", ".join(
            f"the files of {plan['name']} changed" if name == "identity" else f"{name} was {found['plan'].get(name)}, is {plan[name]}"
            for name in changes
        )
        raise _other_plan(out, "complete" if found["complete"] else "half done", said)
    return found


def _other_plan(out: Path, state: str, changes: str) -> DataError:
    return DataError(f"{out}: is {state}, but by another command ({changes}); repeat that command, remove {out} or choose another folder")


def list_once(source: Source, target: Target, args: argparse.Namespace) -> tuple[Source, Listed]:
    """The source, readable at random, and what it holds, its order written to the scratch folder; an earlier run's listing is taken over."""
    scratch = target.scratch
    with (scratch / "lock-plan").open("w") as lock:
        lock_folder(lock, f"{args.out}: another part is still listing the source; wait for it", seconds=math.inf)
        source = source.unpack(scratch, lambda what, total: tqdm(desc=what, total=total, unit="B", unit_scale=True, **_bar(args)))
        try:
            return source, Listed.from_json((scratch / "listing.json").read_bytes())
        except FileNotFoundError:
            pass
        with tqdm(desc="listing", unit="img", **_bar(args)) as bar:
            listed = shuffle(source, args.seed, scratch, bar.update)
        if not listed.counts.total():
            seen = f" among {listed.ignored.total()} files ({describe(listed.ignored)})" if listed.ignored else ""
            raise DataError(f"{args.source}: holds no images{seen}; image suffixes are {' '.join(IMAGE_SUFFIXES)}")
        write_atomically(scratch / "listing.json", listed.to_json())
    return source, listed


def plan_splits(source: Source, listed: Listed, args: argparse.Namespace) -> list[Split]:
    """Which stretch of which order goes where.

    Numbered before anything is rejected.  Val is the end of the order, so that train begins alike whatever --val is.
    """
    if args.labels and listed.unlabelled:
        raise DataError(f"{args.source}: {listed.unlabelled} {source.unlabelled}, so it has no class; mend that, or leave out --labels")
    if args.labels and len(listed.labels) > MAX_CLASSES:
        raise DataError(f"{args.source}: has more than {MAX_CLASSES} classes; leave out --labels")
    counts = dict(listed.counts)
    whole = {name: Split(name, name, 0, count) for name, count in counts.items()}
    if not args.val:
        return sorted(whole.values(), key=lambda split: split.name != "train")
    if set(whole) != {"train"}:
        raise UserError(f"--val {args.val}: the source has its own splits ({', '.join(sorted(whole))}); leave out --val")
    count = counts["train"]
    kept_apart = args.val if isinstance(args.val, int) else round(args.val * count)
    if not 0 < kept_apart < count:
        raise UserError(
            f"--val {args.val} of {count} images is {kept_apart} for val and {count - kept_apart} for train; both need at least one"
        )
    return [Split("train", "train", 0, count - kept_apart), Split("val", "train", count - kept_apart, kept_apart)]


def plan_jobs(splits: list[Split], samples_per_shard: int) -> Iterator[Job]:
    for split in splits:
        for shard, first in enumerate(range(0, split.count, samples_per_shard)):
            yield Job(split.name, shard, split.order, split.at + first, first, min(samples_per_shard, split.count - first))


# ---------------------------------------------------------------- doing it


def build(jobs: list[Job], work: Work, args: argparse.Namespace) -> int:
    """Run all jobs in worker processes; returns the number of images looked at."""
    if not jobs:
        return 0
    workers = min(args.workers, len(jobs))
    for split in {job.split for job in jobs}:
        work.target.folder(split).mkdir(exist_ok=True)
    shared = multiprocessing.RawArray("q", 1 + workers)  # no lock: a worker killed inside one would hang the rest
    slots = multiprocessing.SimpleQueue()
    for slot in range(workers):
        slots.put(1 + slot)
    pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(work, shared, slots, os.getpid()))
    todo, waiting = iter(jobs), set()
    try:
        with tqdm(total=sum(job.count for job in jobs), desc=f"{len(jobs)} shards", unit="img", **_bar(args)) as bar:
            while True:
                while len(waiting) < 2 * workers and (job := next(todo, None)):
                    waiting.add(pool.submit(build_shard, job))
                if not waiting:
                    break
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                bar.update(sum(shared[1:]) - bar.n)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (killed, perhaps for lack of memory); run the same command again, perhaps with fewer --workers: "
            "finished shards are kept"
        ) from error
    finally:
        shared[0] = 1  # after an error or Ctrl-C the others give up their shards
        pool.shutdown(cancel_futures=True)
    return sum(shared[1:])


def records(jobs: Sequence[Job], work: Work) -> Iterator[Record]:
    """What is known of each finished shard, one after the other: all of them would not fit into memory."""
    for job in jobs:
        record = read_record(job, work)
        if record is None:
            raise DataError(f"{work.target.folder(job.split) / job.name}: vanished or changed meanwhile; run the same command again")
        yield record


def report_rejects(jobs: Sequence[Job], work: Work, summary: "Summary", args: argparse.Namespace) -> None:
    """List the rejects in OUT/rejects.jsonl.  Raises DataError when there are more than --max-rejects allows."""
    path = args.out / "rejects.jsonl"
    if not summary.rejects:
        return
    write_stream(path, (json.dumps(reject).encode() + b"\n" for record in records(jobs, work) for reject in record.rejects))
    count = summary.images + summary.rejects
    if summary.rejects > args.max_rejects * count:
        enough = math.ceil(summary.rejects / count * 1000) / 1000
        with path.open() as file:
            first = json.loads(file.readline())
        raise DataError(
            f"{summary.rejects} of {count} files with an image suffix are not readable images, "
            f"first {first['name']} ({first['reason']}); "
            f"{path} lists them all; run again with --max-rejects {enough:g} to go on without them (finished shards are kept), "
            f"or mend them and remove {args.out}"
        )


def write_split(split: Split, jobs: list[Job], work: Work, classes: list[str], settings: dict, out: Path) -> None:
    """Write the manifest and the index of one split."""
    colours, colour_images, rejects, images = np.zeros((3, 256), np.int64), 0, 0, 0
    for record in records(jobs, work):
        colours += record.colours
        colour_images += record.counts["colour_images"]
        rejects += len(record.rejects)
        images += record.entry["samples"]
    if not images:
        raise DataError(f"{settings['name']}: no readable image is left for {split.name}; {out / 'rejects.jsonl'} lists why")
    write_manifest(
        out / split.name,
        split=split.name,
        shards=((record.entry, record.rows) for record in records(jobs, work)),
        classes=classes,
        colours=colours,
        colour_images=colour_images,
        rejects=rejects,
        source=settings,
    )


def clean(scratch: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in scratch.iterdir():
        if path.name != "plan.json" and not path.name.startswith("lock"):
            path.unlink()


def _bar(args: argparse.Namespace) -> dict[str, Any]:
    """A log file gets a line now and then instead of a moving bar."""
    return {"disable": args.quiet, "dynamic_ncols": True, "mininterval": 0.2 if sys.stderr.isatty() else 30.0}


# ---------------------------------------------------------------- saying it


class Summary:
    """Adds up the shards of this run, kept ones too."""

    def __init__(self, args: argparse.Namespace, listed: Listed, splits: list[Split]):
        self.args = args
        self.listed = listed
        self.splits = {split.name: Counter(images=0, shards=0, bytes=0) for split in splits}
        self.counts: Counter = Counter()
        self.rejects = self.shards = 0
        self.built = self.built_shards = self.read_bytes = 0  # images looked at, shards and bytes: this run's own work

    @property
    def images(self) -> int:
        return sum(split["images"] for split in self.splits.values())

    def add(self, record: Record, split: str) -> None:
        found = self.splits[split]
        found["images"] += record.entry["samples"]
        found["shards"] += bool(record.entry["samples"])
        found["bytes"] += record.entry["bytes"]
        self.counts.update(record.counts)
        self.rejects += len(record.rejects)
        self.shards += 1

    def show(self, seconds: float, classes: int) -> None:
        args, ignored, rate = self.args, self.listed.ignored, self.built / seconds
        if args.json:
            facts = {
                "out": str(args.out),
                "part": args.part,
                "splits": self.splits,
                "classes": classes,
                "rejected": self.rejects,
                "ignored": ignored,
                **{name: self.counts[name] for name in ("converted", "resized", "encoded")},
                "built_shards": self.built_shards,
                "seconds": round(seconds, 3),
                "images_per_second": round(rate, 1),
            }
            print(json.dumps(facts))
            return
        for split, found in self.splits.items():
            print(f"{args.out / split}: {found['images']:,} images in {found['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB")
        listed = "" if args.part or not self.rejects else f" ({args.out / 'rejects.jsonl'})"
        print(f"rejected: {self.rejects:,}{listed}")
        print(f"ignored:  {ignored.total():,}" + (f" ({describe(ignored)})" if ignored else ""))
        if args.labels:
            names = sorted(self.listed.labels)
            print(f"classes:  {classes:,} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        if self.counts["converted"]:
            print(f"converted to PNG (first frame, without loss): {self.counts['converted']:,}")
        if self.counts["resized"]:
            print(f"shrunk to a short side of {args.resize}: {self.counts['resized']:,}")
        if self.counts["encoded"]:
            print(f"encoded anew: {self.counts['encoded']:,}")
        if self.built_shards < self.shards:
            print(f"kept from an earlier run: {self.shards - self.built_shards:,} of {self.shards:,} shards")
        megabytes = self.read_bytes / 1e6 / seconds
        print(
            f"took {seconds:,.1f} s: {rate:,.0f} images/s, {megabytes:,.1f} MB/s with {min(args.workers, max(self.built_shards, 1))} workers"
        )
        if args.part:
            print(f"part {args.part[0]}/{args.part[1]} is done; when all are, the same command without --part finishes {args.out}")
        else:
            print(f"next:     deepspeed mpp/pretrain.py --config configs/mpp_b16.yaml data.shards={args.out / 'train'}")


if __name__ == "__main__":
    run_program(main)
