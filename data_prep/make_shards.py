"""PROGRAM: a pile of images -> WebDataset shards with a manifest and an index.

    python data_prep/make_shards.py SOURCE OUT [--labels] [--val 0.01] [--resize 256]

SOURCE is a folder tree, a .zip, .tar, .tar.gz or .tar.xz.  The images are listed by name, shuffled by the seed and numbered; then worker
processes read, decode, check and write them, each a whole shard at a time, so that the result does not depend on how many there are.
Killed at any instant, the same command goes on with the shards it lacks and ends with the same bytes.

    OUT/.work/plan.json           what this OUT is being made from; a different command is refused
    OUT/.work/source.tar          SOURCE unpacked, while it is needed (only for .tar.gz and .tar.xz)
    OUT/.work/train-000003.json   a finished shard's rows; written after the shard has its name
    OUT/rejects.jsonl             files with an image suffix that are no readable images
"""

import argparse
import errno
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

import mpp
from mpp.data.shards import INDEX_DTYPE, ShardSet, write_manifest
from mpp.errors import DataError, Parser, UserError, run_program
from mpp.files import TEMPORARY, lock_folder, write_atomically
from mpp.machine import usable_cores
from mpp.rng import PREP, Draws

if sys.flags.safe_path:  # PYTHONSAFEPATH=1, as our jobs set it, leaves out the folder of the script
    sys.path.append(str(Path(__file__).parent))
from shard_job import JPEG_QUALITY, ShardJob, build_shard, start_worker
from sources import PACKED, Listing, archive_stamp, describe, kind_of, list_source, unpack


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
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder tree, .zip, .tar, .tar.gz or .tar.xz of images")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder; gets train/ and, with --val, val/")
    parser.add_argument("--labels", action="store_true", help="take the first folder level as the class")
    parser.add_argument("--val", type=_val, default=0, metavar="X", help="images to keep apart in OUT/val: a share below 1 or a count")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the shuffle and the choice of OUT/val")
    parser.add_argument("--samples-per-shard", type=_at_least(1), default=2048, metavar="N", help="keys a shard")
    parser.add_argument("--resize", type=_at_least(8), metavar="S", help="shrink short sides above S pixels to S (JPEG quality 95)")
    parser.add_argument("--max-rejects", type=_share, default=0.0, metavar="SHARE", help="share of unreadable images to go on with")
    parser.add_argument(
        "--workers", type=_at_least(1), default=usable_cores(), metavar="N", help="processes; the result does not depend on it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def _at_least(lowest: int) -> Any:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return int(text)

    return whole_number


def _share(text: str) -> float:
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")


def _val(text: str) -> float | int:
    return int(text) if text.isdecimal() else _share(text)


def make(args: argparse.Namespace) -> int:
    """Plan, build what is missing, check the rejects, write the manifests."""
    started = time.monotonic()
    source, out, work = args.source.resolve(), args.out.resolve(), args.out.resolve() / ".work"
    kind = kind_of(source)
    if source == out:
        raise DataError(f"{args.out}: SOURCE and OUT are the same folder; choose another OUT")
    # Compressed archives are listed after unpacking; whatever can be found out before OUT is touched is.
    listing = None if kind in PACKED else list_source(source, kind, out)
    splits = plan_splits(listing, args) if listing else {}
    options = {
        "labels": args.labels,
        "val": args.val,
        "seed": args.seed,
        "samples_per_shard": args.samples_per_shard,
        "resize": args.resize,
    }
    origin = {"name": source.name, "kind": kind, **options}
    stamp = listing.stamp if listing and kind == "folder" else archive_stamp(source)
    plan = {**origin, "stamp": stamp, "mpp": mpp.__version__, "pillow": PIL.__version__}

    if not out.is_dir() and out.exists():
        raise DataError(f"{args.out}: is a file; choose another OUT")
    if out.is_dir() and not (work / "plan.json").exists() and {path.name for path in out.iterdir()} - {".work"}:
        raise DataError(f"{args.out}: is not empty and was not begun by make_shards.py; choose another OUT")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        lock_folder(lock, f"{args.out}: another make_shards.py is at work here; wait for it or stop it")
        complete = check_plan(work / "plan.json", plan, args.out)
        if complete:
            for split in complete:
                ShardSet.open(out / split)
            clean(work)
            print(f"{args.out} is already complete: {', '.join(complete)}; nothing to do")
            return 0
        if complete is None:
            clean(work)  # without its plan, whatever lies there is of no use
        for folder in (out, work, out / "train", out / "val"):
            for leftover in folder.glob(TEMPORARY):
                leftover.unlink()
        archive = source
        if listing is None:
            archive, kind = work / "source.tar", "tar"
            try:
                if not archive.exists():
                    size = source.stat().st_size
                    with tqdm(total=size, desc="unpacking", unit="B", unit_scale=True, **_bar(args)) as bar:
                        unpack(source, origin["kind"], archive, lambda position: bar.update(position - bar.n))
                listing = list_source(archive, kind, out)
                splits = plan_splits(listing, args)
            except DataError as error:  # nothing was begun, so leave nothing behind
                if complete is None:
                    shutil.rmtree(work)
                    if not any(out.iterdir()):
                        out.rmdir()
                raise DataError(str(error).replace(str(archive), str(args.source))) from error
        if complete is None:
            write_atomically(work / "plan.json", json.dumps({"plan": plan, "complete": []}).encode())

        classes = sorted({item.name.split("/")[0] for item in listing.items}) if args.labels else []
        if len(classes) == 1:
            print(f"warning: --labels finds a single class, {classes[0]!r}: the first folder level is the class", file=sys.stderr)
        records = build(make_jobs(listing, splits, classes, args, archive, kind, out, work), args)
        rejects = [reject for split in splits for record in records[split] for reject in record["rejects"]]
        report_rejects(rejects, len(listing.items), args, out)
        for split in reversed(splits):  # train last: whoever waits for it finds val
            good = records[split]
            if not any(record["entry"]["samples"] for record in good):
                raise DataError(f"{args.source}: no readable image is left for {split}; {out / 'rejects.jsonl'} lists why")
            write_manifest(
                out / split,
                split=split,
                shards=[record["entry"] for record in good],
                rows=[record["rows"] for record in good],
                classes=classes,
                colours=sum(np.array(record["colours"], np.int64) for record in good),  # type: ignore[arg-type]
                colour_images=sum(record["counts"]["colour_images"] for record in good),
                rejects=sum(len(record["rejects"]) for record in good),
                source=origin,
            )
        write_atomically(work / "plan.json", json.dumps({"plan": plan, "complete": list(splits)}).encode())
        clean(work)
    summarize(args, listing, classes, records, len(rejects), time.monotonic() - started)
    return 0


def plan_splits(listing: Listing, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Which items go where: int64 positions in the listing, in shuffled order, by split.

    Numbered before anything is rejected.  Val is the end of the order, so that train begins alike whatever --val is.
    """
    count = len(listing.items)
    if args.labels and (bare := next((item.name for item in listing.items if "/" not in item.name), None)):
        raise DataError(f"{args.source}: {bare} lies in no folder, so it has no class; move it into one, or leave out --labels")
    kept_apart = args.val if isinstance(args.val, int) else round(args.val * count)
    if (args.val and not kept_apart) or kept_apart >= count:
        raise UserError(
            f"--val {args.val} of {count} images is {kept_apart} for val and {count - kept_apart} for train; both need at least one"
        )
    order = Draws(args.seed, PREP).permutation(count)
    return {"train": order[: count - kept_apart]} | ({"val": order[count - kept_apart :]} if kept_apart else {})


def check_plan(path: Path, plan: dict, out: Path) -> list[str] | None:
    """None for a new OUT, otherwise the complete splits (empty while the run is unfinished).  Raises DataError for another plan."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}); remove {out} or choose another folder") from error
    if found["plan"] != plan:
        names = [name for name in plan if found["plan"].get(name) != plan[name]]
        changes = ", ".join(
            f"the files of {plan['name']} changed" if name == "stamp" else f"{name} was {found['plan'].get(name)}, is {plan[name]}"
            for name in names
        )
        state = "is complete" if found["complete"] else "is half done"
        raise DataError(f"{out}: {state}, but by another command ({changes}); repeat that command, remove {out} or choose another folder")
    return found["complete"]


def make_jobs(
    listing: Listing,
    splits: dict[str, np.ndarray],
    classes: list[str],
    args: argparse.Namespace,
    archive: Path,
    kind: str,
    out: Path,
    work: Path,
) -> dict[str, list[ShardJob]]:
    """One job a shard, by split."""
    number = {name: label for label, name in enumerate(classes)}
    jobs: dict[str, list[ShardJob]] = {}
    for split, order in splits.items():
        (out / split).mkdir(exist_ok=True)
        jobs[split] = []
        for first in range(0, len(order), args.samples_per_shard):
            items = [listing.items[position] for position in order[first : first + args.samples_per_shard]]
            labels = [number[item.name.split("/")[0]] if classes else -1 for item in items]
            name = f"{first // args.samples_per_shard:06d}"
            record = work / f"{split}-{name}.json"
            slot = 1 + sum(map(len, jobs.values()))
            jobs[split].append(ShardJob(out / split, f"{name}.tar", record, archive, kind, first, items, labels, args.resize, slot))
    return jobs


def build(jobs: dict[str, list[ShardJob]], args: argparse.Namespace) -> dict[str, list[dict]]:
    """Run all jobs in worker processes; their records by split, in order of the shards, rows as arrays."""
    total = sum(len(job.items) for split in jobs.values() for job in split)
    shards = sum(map(len, jobs.values()))
    shared = multiprocessing.RawArray("q", 1 + shards)  # no lock: a worker killed inside one would hang the rest
    pool = ProcessPoolExecutor(min(args.workers, shards), initializer=start_worker, initargs=(shared, os.getpid()))
    try:
        futures = {split: [pool.submit(build_shard, job) for job in todo] for split, todo in jobs.items()}
        waiting = {future for split in futures.values() for future in split}
        with tqdm(total=total, desc=f"{shards} shards", unit="img", **_bar(args)) as bar:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
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
    records = {split: [future.result() for future in done] for split, done in futures.items()}
    for split in records.values():
        for record in split:
            record["rows"] = np.array([tuple(row) for row in record["rows"]], INDEX_DTYPE)
    return records


def report_rejects(rejects: list[dict], count: int, args: argparse.Namespace, out: Path) -> None:
    """List the rejects in OUT/rejects.jsonl.  Raises DataError when there are more than --max-rejects allows."""
    path = out / "rejects.jsonl"
    if not rejects:
        return
    write_atomically(path, "".join(json.dumps(reject) + "\n" for reject in rejects).encode())
    if len(rejects) > args.max_rejects * count:
        enough = math.ceil(len(rejects) / count * 1000) / 1000
        raise DataError(
            f"{len(rejects)} of {count} files with an image suffix are not readable images, "
            f"first {rejects[0]['name']} ({rejects[0]['reason']}); "
            f"{path} lists them all; run again with --max-rejects {enough:g} to go on without them (finished shards are kept), "
            f"or mend them and remove {args.out}"
        )


def clean(work: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in work.iterdir():
        if path.name not in ("plan.json", "lock"):
            path.unlink()


def _bar(args: argparse.Namespace) -> dict[str, Any]:
    """A log file gets a line now and then instead of a moving bar."""
    return {"disable": args.quiet, "dynamic_ncols": True, "mininterval": 0.2 if sys.stderr.isatty() else 30.0}


def summarize(
    args: argparse.Namespace, listing: Listing, classes: list[str], records: dict[str, list[dict]], rejects: int, seconds: float
) -> None:
    counts: Counter = Counter()
    for split, done in records.items():
        entries = [record["entry"] for record in done if record["entry"]["samples"]]
        images, size = sum(entry["samples"] for entry in entries), sum(entry["bytes"] for entry in entries)
        print(f"{args.out / split}: {images:,} images in {len(entries):,} shards, {size / 1e6:,.1f} MB")
        for record in done:
            counts.update(record["counts"])
    print(f"rejected: {rejects:,}" + (f" ({args.out / 'rejects.jsonl'})" if rejects else ""))
    print(f"ignored:  {listing.ignored.total():,}" + (f" ({describe(listing.ignored)})" if listing.ignored else ""))
    if args.labels:
        print(f"classes:  {len(classes):,} ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})")
    if counts["converted"]:
        print(f"converted to PNG (first frame, without loss): {counts['converted']:,}")
    if counts["resized"]:
        print(f"shrunk to a short side of {args.resize} (JPEG quality {JPEG_QUALITY}): {counts['resized']:,}")
    every = [record for done in records.values() for record in done]
    fresh = [record for record in every if not record["kept"]]
    if len(fresh) < len(every):
        print(f"kept from an earlier run: {len(every) - len(fresh):,} of {len(every):,} shards")
    images = sum(len(record["rows"]) + len(record["rejects"]) for record in fresh)  # speed is of this run's own work
    megabytes = sum(record["counts"]["read_bytes"] for record in fresh) / 1e6
    workers = min(args.workers, len(every))
    print(f"took {seconds:,.1f} s: {images / seconds:,.0f} images/s, {megabytes / seconds:,.1f} MB/s with {workers} workers")
    print(f"next:     deepspeed mpp/pretrain.py --config configs/mpp_b16.yaml data.shards={args.out / 'train'}")


if __name__ == "__main__":
    run_program(main)
