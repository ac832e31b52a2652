"""The jobs run in worker processes, and what makes a finished data set of their records: rejects, manifests and indexes."""

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from plan import Split
from shard_job import Job, Noted, Record, Work, build_shard, read_record, start_worker
from summary import Summary, progress
from tqdm import tqdm

from mpp.data.shards import write_manifest
from mpp.errors import DataError, UserError
from mpp.files import write_stream


def build(jobs: list[Job], work: Work, args: argparse.Namespace, summary: Summary) -> None:
    """Make all shards, and tell the summary."""
    for split in {job.split for job in jobs}:
        work.target.folder(split).mkdir(exist_ok=True)
    bar = {"total": sum(job.count for job in jobs), "desc": f"{len(jobs)} shards", "unit": "img"}
    summary.built += run_jobs(build_shard, jobs, work, args, bar)
    summary.built_shards += len(jobs)
    summary.read_bytes += sum(record.counts["read_bytes"] for record in records(jobs, work))


def run_jobs(task: Callable[[Any], None], jobs: Sequence[Noted], work: Work, args: argparse.Namespace, bar_options: dict[str, Any]) -> int:
    """Run `task` on every job in worker processes; returns how much progress they have shown with `tick`."""
    if not jobs:
        return 0
    workers = min(args.workers, len(jobs))
    shared = multiprocessing.RawArray("q", 1 + workers)  # no lock: a worker killed inside one would hang the rest
    slots: multiprocessing.SimpleQueue[int] = multiprocessing.SimpleQueue()
    for slot in range(workers):
        slots.put(1 + slot)
    pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(work, shared, slots, os.getpid()))
    todo = iter(jobs)
    waiting: set[Future] = set()
    try:
        with tqdm(**bar_options, **progress(args)) as bar:
            while True:
                while len(waiting) < 2 * workers and (job := next(todo, None)):
                    waiting.add(pool.submit(task, job))
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


def records(jobs: Sequence[Noted], work: Work) -> Iterator[Record]:
    """What is known of each finished shard, one after the other: all of them would not fit into memory."""
    for job in jobs:
        record = read_record(job, work)
        if record is None:
            raise DataError(f"{work.target.folder(job.split) / job.name}: vanished or changed meanwhile; run the same command again")
        yield record


def report_rejects(jobs: Sequence[Noted], work: Work, images: int, rejects: int, args: argparse.Namespace, remedy: str) -> None:
    """List the rejects in OUT/rejects.jsonl.  Raises DataError when there are more than --max-rejects allows."""
    path = args.out / "rejects.jsonl"
    if not rejects:
        return
    write_stream(path, (json.dumps(reject).encode() + b"\n" for record in records(jobs, work) for reject in record.rejects))
    count = images + rejects
    if rejects > args.max_rejects * count:
        enough = math.ceil(rejects / count * 1000) / 1000
        with path.open() as file:
            first = json.loads(file.readline())
        raise DataError(
            f"{rejects} of {count} files with an image suffix are not readable images, "
            f"first {first['name']} ({first['reason']}); "
            f"{path} lists them all; run again with --max-rejects {enough:g} to go on without them (finished shards are kept), "
            f"or {remedy}"
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
