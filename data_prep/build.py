"""The jobs run in worker processes, and what makes a finished data set of their records: rejects, manifests and indexes."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from plan import Split
from repeats import LISTED
from shard_job import Job, Noted, Record, Work, build_shard, read_record
from summary import Summary, progress
from tqdm import tqdm
from workers import run_jobs

from mpp.data.shard_format import INDEX, MANIFEST
from mpp.data.write_shards import write_manifest
from mpp.errors import DataError
from mpp.text import counted

REJECTS = "rejects.jsonl"


def build(jobs: list[Job], work: Work, args: argparse.Namespace, summary: Summary) -> None:
    """Make all shards, and tell the summary."""
    for split in {job.split for job in jobs}:
        work.target.folder(split).mkdir(parents=True, exist_ok=True)
    images = sum(job.count for job in jobs)
    with tqdm(total=images, desc=counted(len(jobs), "shard"), unit="img", **progress(args)) as bar:
        for _ in run_jobs(partial(build_shard, work), jobs, args.workers, bar.update):
            pass
    work.target.look()
    summary.built += images
    summary.built_shards += len(jobs)
    summary.read_bytes += sum(record.counts["read_bytes"] for record in records(jobs, work, args))


def records(jobs: Sequence[Noted], work: Work, args: argparse.Namespace) -> Iterator[Record]:
    """What is known of each finished shard, one after the other: all of them would not fit into memory."""
    for job in tqdm(jobs, desc="records", unit="shard", delay=2, **progress(args)):
        record = read_record(job, work)
        if record is None:
            raise DataError(f"{work.target.where(job.split, job.name)}: vanished or changed meanwhile; run the same command again")
        yield record


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

    work.target.put_stream(REJECTS, lines())
    count = images + rejects
    if rejects > args.max_rejects * count:
        if not images:
            raise DataError(
                f"none of {count} files is a readable image, first {first['name']!r} ({first['reason']}); {work.target.where(REJECTS)} lists "
                f"them all; {remedy}"
            )
        enough = math.ceil(rejects / count * 1000) / 1000
        raise DataError(
            f"{rejects:,} of {count:,} files are not readable images, "
            f"first {first['name']!r} ({first['reason']}); "
            f"{work.target.where(REJECTS)} lists them all; run again with --max-rejects {enough:g} to go on without them (finished shards are "
            f"kept), or {remedy}"
            + ("; a new OUT made with --max-pixels takes larger images" if "too many pixels" in first["reason"] else "")
        )


def write_split(split: Split, jobs: list[Job], work: Work, classes: list[str], settings: dict, args: argparse.Namespace) -> None:
    """Write the index and, last, the manifest of one split."""
    colours, colour_images, rejects, images = np.zeros((3, 256), np.int64), 0, 0, 0
    for record in records(jobs, work, args):
        colours += record.colours
        colour_images += record.counts["colour_images"]
        rejects += len(record.rejects)
        images += record.entry["samples"]
    if not images:
        why = work.target.where(LISTED if any(job.drop for job in jobs) else REJECTS)
        raise DataError(f"{settings['name']}: no readable image is left for {split.name}; {why} lists why")
    folder = work.target.folder(split.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(
        folder,
        split=split.name,
        shards=((record.entry, record.rows) for record in records(jobs, work, args)),
        classes=classes,
        colours=colours,
        colour_images=colour_images,
        rejects=rejects,
        source=settings,
        repeats=sum(len(job.drop) // 8 for job in jobs),
    )
    for name in (INDEX, MANIFEST):
        work.target.publish(split.name, name)
