"""The jobs run in worker processes, and what makes a finished data set of their records: rejects, manifests and indexes."""

import argparse
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
from plan import Split
from shard_job import Job, Record, Work, build_shard, read_record, start_worker
from stores import loop_runs
from summary import Summary, progress
from tqdm import tqdm

from mpp.data.shards import INDEX, MANIFEST, write_manifest
from mpp.errors import DataError, UserError

REJECTS = "rejects.jsonl"


def build(jobs: list[Job], work: Work, args: argparse.Namespace) -> int:
    """Run all jobs in worker processes; returns the number of images looked at."""
    if not jobs:
        return 0
    workers = min(args.workers, len(jobs))
    for split in {job.split for job in jobs}:
        work.target.folder(split).mkdir(parents=True, exist_ok=True)
    # fsspec's event loop is a thread, which a fork would leave behind
    context = multiprocessing.get_context("spawn" if loop_runs() else None)
    shared = context.RawArray("q", 1 + workers)  # no lock: a worker killed inside one would hang the rest
    slots = context.SimpleQueue()
    for slot in range(workers):
        slots.put(1 + slot)
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(work, shared, slots, os.getpid()))
    todo = iter(jobs)
    waiting: set[Future] = set()
    try:
        with tqdm(total=sum(job.count for job in jobs), desc=f"{len(jobs)} shards", unit="img", **progress(args)) as bar:
            while True:
                while len(waiting) < 2 * workers and (job := next(todo, None)):
                    with deaf_children():
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


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C: it reaches the whole group, and this process decides."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def records(jobs: Sequence[Job], work: Work) -> Iterator[Record]:
    """What is known of each finished shard, one after the other: all of them would not fit into memory."""
    for job in jobs:
        record = read_record(job, work)
        if record is None:
            raise DataError(f"{work.target.where(job.split, job.name)}: vanished or changed meanwhile; run the same command again")
        yield record


def report_rejects(jobs: Sequence[Job], work: Work, summary: Summary, args: argparse.Namespace) -> None:
    """List the rejects in OUT/rejects.jsonl.  Raises DataError when there are more than --max-rejects allows."""
    if not summary.rejects:
        return
    first: dict = {}

    def lines() -> Iterator[bytes]:
        for record in records(jobs, work):
            for reject in record.rejects:
                first.update(first or reject)
                yield json.dumps(reject).encode() + b"\n"

    work.target.put_stream(REJECTS, lines())
    count = summary.images + summary.rejects
    if summary.rejects > args.max_rejects * count:
        enough = math.ceil(summary.rejects / count * 1000) / 1000
        raise DataError(
            f"{summary.rejects} of {count} files with an image suffix are not readable images, "
            f"first {first['name']} ({first['reason']}); "
            f"{work.target.where(REJECTS)} lists them all; run again with --max-rejects {enough:g} to go on without them (finished shards are kept), "
            f"or mend them and remove {args.out}"
        )


def write_split(split: Split, jobs: list[Job], work: Work, classes: list[str], settings: dict) -> None:
    """Write the index and, last, the manifest of one split."""
    colours, colour_images, rejects, images = np.zeros((3, 256), np.int64), 0, 0, 0
    for record in records(jobs, work):
        colours += record.colours
        colour_images += record.counts["colour_images"]
        rejects += len(record.rejects)
        images += record.entry["samples"]
    if not images:
        raise DataError(f"{settings['name']}: no readable image is left for {split.name}; {work.target.where(REJECTS)} lists why")
    folder = work.target.folder(split.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(
        folder,
        split=split.name,
        shards=((record.entry, record.rows) for record in records(jobs, work)),
        classes=classes,
        colours=colours,
        colour_images=colour_images,
        rejects=rejects,
        source=settings,
    )
    for name in (INDEX, MANIFEST):
        work.target.publish(split.name, name)
