"""make_shards.py's work: plan, build what is missing in worker processes, check the rejects, write manifests and indexes, say what there is."""

import argparse
import hashlib
import json
import time
from functools import partial
from pathlib import Path

import PIL

import mpp
from mpp.base.errors import DataError, UserError
from mpp.base.progress import Progress, tracked
from mpp.base.text import counted, say, say_json
from mpp.data.decode import MAX_PIXELS
from mpp.data.shard_format import INDEX, MANIFEST
from mpp.data.write_shards import write_manifest
from mpp.prep.destination import PLAN, Destination, destination
from mpp.prep.layouts import laid_out
from mpp.prep.options import disk_errors
from mpp.prep.plan import Split, decide, opened, other_plan, plan_jobs, read_plan
from mpp.prep.prepare import Options
from mpp.prep.repeats import DROPS, LISTED, note_repeats, without
from mpp.prep.shard_job import REJECTS, Job, Work, build_shard, read_record, records, report_rejects, totals
from mpp.prep.shuffle import survey
from mpp.prep.source import Source, SourceOptions
from mpp.prep.sources import open_source
from mpp.prep.summary import Summary
from mpp.prep.workers import run_jobs

SETTINGS = (
    *("image_field", "label_field", "labels", "label_names", "class_level", "split_level", "val", "seed", "samples_per_shard"),
    *("check", "resize", "encode", "quality", "dedup"),
)


def run(args: argparse.Namespace) -> int:
    """Make the shards; returns 0.  Raises UserError, one line, for everything that can be mended."""
    with disk_errors(args.out, "check that SOURCE can be read and OUT written", "shards", smaller=", or fewer --samples-per-shard"):
        return make(args)


def make(args: argparse.Namespace) -> int:
    """List, plan, build what is missing, check the rejects, write the manifests."""
    started = time.monotonic()
    source = open_both(args)
    settings = settings_of(args, source)
    drawn = {"group": args.group.text if args.group else None, "val_by_class": True if args.val and args.labels else None}
    cut = {"tile": args.tile, "overlap": args.overlap if args.tile else None, "window": list(args.window) if args.window else None}
    wanted = {**settings, **drawn, **cut, "identity": source.identity(), "mpp": mpp.__version__, "pillow": PIL.__version__}
    out = destination(args.out, args.scratch, wanted)
    with opened(out, args) as fresh:
        if complete := look_at_complete(source, out, wanted, args):
            said = f"{args.out} is already complete: {', '.join(complete)}; nothing to do"
            say_json({"out": str(args.out), "complete": complete}) if args.json else say(said)
            return 0
        plan = decide(source, out, wanted, args)
        work = Work(
            plan.source,
            out,
            out.scratch,
            {name: number for number, name in enumerate(plan.classes)} if args.labels else None,
            Options(args.check, args.resize, args.encode, args.quality, args.max_pixels, args.window),
            hashlib.sha256(json.dumps(plan.noted["plan"]).encode()).hexdigest(),
        )
        fresh.pop_all()  # from here on what was done is kept
        part, parts = args.part or (0, 1)
        out.look()
        jobs = list(plan_jobs(plan.splits, args.samples_per_shard))
        if noted := out.get(DROPS):
            jobs, repeats = without(jobs, noted)
        jobs = jobs[part::parts]
        summary = Summary(args, out, plan.listed, [split.name for split in plan.splits])
        looked = tracked(jobs, f"looking at {args.out}", len(jobs), "shards", quiet=args.quiet)
        missing = [job for job in looked if read_record(job, work) is None]
        build(missing, work, args, summary)
        if not args.part and not noted:
            repeats, noted = note_repeats(jobs, records(jobs, work, args), work, leave_out=args.dedup)
            if repeats["left_out"]:
                out.put(DROPS, noted)
                jobs, repeats = without(jobs, noted)
                build([job for job in jobs if job.drop], work, args, summary)
        for job, record in zip(jobs, records(jobs, work, args), strict=True):
            summary.add(record, job.split)
        if not args.part:
            summary.repeats = repeats
            report_rejects(jobs, work, summary.total.images, summary.total.rejects, args, f"mend them and remove {args.out}")
            settings = {name: plan.noted["plan"].get(name) for name in settings}
            settings |= {name: value for name, value in (("group", drawn["group"]), *cut.items()) if value is not None}
            for split in reversed(plan.splits):  # train last: whoever waits for it finds val
                write_split(split, [job for job in jobs if job.split == split.name], work, plan.classes, settings, args)
            out.put(PLAN, json.dumps(plan.noted | {"complete": [split.name for split in plan.splits]}).encode())
            out.clean()
    summary.show(time.monotonic() - started, plan.classes)
    return 0


def open_both(args: argparse.Namespace) -> Source:
    """The source.  Raises UserError where it and OUT cannot be what they are said to be."""
    where, out = (place.resolve() if isinstance(place, Path) else place for place in (args.source, args.out))
    if args.scratch and isinstance(args.out, Path):
        raise UserError(f"--scratch {args.scratch}: is for an OUT that is a URL; {args.out} keeps its work in {args.out}/.work")
    group_field = args.group.field or None if args.group else None
    source = open_source(where, out, SourceOptions(args.format, args.checksum, args.image_field, args.label_field, group_field))
    if where == out or str(where).rstrip("/") == str(out).rstrip("/"):
        raise DataError(f"{args.out}: SOURCE and OUT are the same folder; choose another OUT")
    return source


def settings_of(args: argparse.Namespace, source: Source) -> dict:
    """What the shards depend on, as the plan and the manifest have it, in their order."""
    limit = None if args.max_pixels == MAX_PIXELS else args.max_pixels
    return {"name": source.name, "kind": source.kind} | {name: getattr(args, name) for name in SETTINGS} | {"max_pixels": limit}


def look_at_complete(source: Source, out: Destination, wanted: dict, args: argparse.Namespace) -> list[str]:
    """The splits of an OUT that this command has completed; empty for another.  Raises DataError where the source or the splits changed since."""
    found = read_plan(out, wanted, args)
    if not found or not found["complete"]:
        return []
    if not wanted["identity"] and found["plan"]["stamp"] != survey(laid_out(source, found["plan"]["levels"])).stamp:
        raise other_plan(args, found, f"the files of {source.name} changed")
    for split in found["complete"]:
        out.check(split)
    if not args.part:
        out.clean()  # the run that completed it may have been killed before it did so
    return found["complete"]


def build(jobs: list[Job], work: Work, args: argparse.Namespace, summary: Summary) -> None:
    """Make all shards, and tell the summary."""
    for split in {job.split for job in jobs}:
        work.out.folder(split).mkdir(parents=True, exist_ok=True)
    images = sum(job.count for job in jobs)
    with Progress(f"making {counted(len(jobs), 'shard')} of {args.out}", images, "images", quiet=args.quiet) as bar:
        for _ in run_jobs(partial(build_shard, work), jobs, args.workers, bar.update):
            pass
    work.out.look()
    summary.built += images
    summary.built_shards += len(jobs)
    summary.read_bytes += sum(record.counts["read_bytes"] for record in records(jobs, work, args))


def write_split(split: Split, jobs: list[Job], work: Work, classes: list[str], settings: dict, args: argparse.Namespace) -> None:
    """Write the index and, last, the manifest of one split."""
    found = totals(jobs, work, args)
    if not found.images:
        why = work.out.where(LISTED if any(job.drop for job in jobs) else REJECTS)
        raise DataError(f"{settings['name']}: no readable image is left for {split.name}; {why} lists why")
    folder = work.out.folder(split.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(
        folder,
        split=split.name,
        shards=((record.entry, record.rows) for record in records(jobs, work, args)),
        classes=classes,
        colours=found.colours,
        colour_images=found.counts["colour_images"],
        rejects=found.rejects,
        source=settings,
        repeats=sum(len(job.drop) // 8 for job in jobs),
    )
    for name in (INDEX, MANIFEST):
        work.out.publish(split.name, name)
