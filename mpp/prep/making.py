"""make_shards.py's work: plan, build what is missing in worker processes, check the rejects, write manifests and indexes, say what there is."""

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import PIL

import mpp
from mpp.data.class_folders import listed_names
from mpp.data.decode import MAX_PIXELS
from mpp.data.shard_format import INDEX, MANIFEST
from mpp.data.write_shards import write_manifest
from mpp.errors import DataError, UserError
from mpp.prep import holdout
from mpp.prep.advice import feeding_lines, next_line
from mpp.prep.destination import PLAN, Destination, destination
from mpp.prep.layouts import laid_out
from mpp.prep.options import disk_errors
from mpp.prep.plan import Split, decide, opened, other_plan, plan_jobs, read_plan
from mpp.prep.prepare import TRAINED_PIXELS, Options, say_small_range, say_windowed
from mpp.prep.repeats import DROPS, LISTED, note_repeats, without
from mpp.prep.shard_job import REJECTS, Job, Record, Totals, Work, build_shard, read_record, records, report_rejects, totals
from mpp.prep.shuffle import Listed, survey
from mpp.prep.source import Source, SourceOptions, describe
from mpp.prep.sources import open_source
from mpp.prep.workers import run_jobs
from mpp.progress import Progress, tracked
from mpp.text import counted, say, say_json

SETTINGS = (
    *("image_field", "label_field", "labels", "label_names", "class_level", "split_level", "val", "seed", "samples_per_shard"),
    *("check", "resize", "encode", "quality", "dedup"),
)


class Summary:
    """Adds up the shards of this run, kept ones too."""

    def __init__(self, args: argparse.Namespace, out: Destination, listed: Listed, splits: Iterable[str]):
        self.args = args
        self.out = out
        self.listed = listed
        self.splits = {split: Counter(images=0, shards=0, bytes=0) for split in splits}
        self.total = Totals()
        self.repeats: Counter = Counter()
        self.shards = 0
        self.built = self.built_shards = self.read_bytes = 0  # images looked at, shards and bytes: this run's own work

    def add(self, record: Record, split: str) -> None:
        found = self.splits[split]
        found["images"] += record.entry["samples"]
        found["shards"] += bool(record.entry["samples"])
        found["bytes"] += record.entry["bytes"]
        self.total.add(record)
        self.shards += 1

    def show(self, seconds: float, classes: list[str]) -> None:
        """classes: names in the order of their numbers."""
        args, ignored, rate = self.args, self.listed.ignored, self.built / seconds
        if args.json:
            facts = {
                "out": str(args.out),
                "part": args.part,
                "splits": self.splits,
                "classes": len(classes),
                "holdout": self.listed.holdout,
                "rejected": self.total.rejects,
                "cut": {name: self.listed.cut[name] for name in ("scans", "tiles", "rejected")} if self.listed.cut else {},
                "repeats": self.repeats,
                "ignored": ignored,
                **{name: self.total.counts[name] for name in ("converted", "resized", "encoded")},
                "windowed": self._windowed()["windowed"],
                "small_range": say_small_range(self.total.counts),
                "above_training_limit": self.total.counts["largest"],
                "built_shards": self.built_shards,
                "seconds": round(seconds, 3),
                "images_per_second": round(rate, 1),
            }
            say_json(facts)
            return
        for split, found in self.splits.items():
            say(
                f"{self.out.where(split)}: {counted(found['images'], 'image')} in {counted(found['shards'], 'shard')}, {found['bytes'] / 1e6:,.1f} MB"
            )
        if cut := self.listed.cut:
            left = f", {counted(cut['rejected'], 'scan')} rejected" if cut["rejected"] else ""
            shared = f", neighbours share {args.overlap} pixels" if args.overlap else ""
            say(f"cut:      {counted(cut['scans'], 'scan')} -> {counted(cut['tiles'], 'tile')} of {args.tile}{shared}{left}")
        if self.listed.holdout:
            say(f"kept apart: {holdout.describe(self.listed.holdout)}")
        listed = "" if args.part or not self.total.rejects else f" ({self.out.where('rejects.jsonl')})"
        say(f"rejected: {self.total.rejects:,}{listed}")
        say(f"ignored:  {ignored.total():,}" + (f" ({describe(ignored)})" if ignored else ""))
        if self.repeats["repeats"]:
            say(self._say_repeats())
        if args.labels:
            empty = [] if args.part else [name for number, name in enumerate(classes) if number not in self.total.labels]
            without = f", {len(empty):,} of them without images: {listed_names(empty)}" if empty else ""
            say(f"classes:  {len(classes):,} ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}){without}")
        if self.total.counts["converted"]:
            say(f"converted to PNG (first frame, without loss): {self.total.counts['converted']:,}")
        if args.window:
            say(say_windowed(self._windowed(), args.window, "scan" if self.listed.cut else "image"))
        if self.total.counts["resized"]:
            say(f"shrunk to a short side of {args.resize}: {self.total.counts['resized']:,}")
        if self.total.counts["encoded"]:
            say(f"encoded anew: {self.total.counts['encoded']:,}")
        if said := say_small_range(self.total.counts):
            say(f"WARNING:  {said}")
        if self.total.counts["largest"]:
            say(
                f"WARNING:  {self.total.counts['largest']:,} images have more than {TRAINED_PIXELS:,} pixels; training takes larger ones than "
                f"that for bad samples unless data.max_pixels={args.max_pixels} (features.max_pixels of probes)"
            )
        if self.built_shards < self.shards:
            say(f"kept from an earlier run: {self.shards - self.built_shards:,} of {self.shards:,} shards")
        megabytes = self.read_bytes / 1e6 / seconds
        say(
            f"took {seconds:,.1f} s: {rate:,.0f} images/s, {megabytes:,.1f} MB/s with {counted(min(args.workers, max(self.built_shards, 1)), 'worker')}"
        )
        if args.part:
            say(f"part {args.part[0]}/{args.part[1]} is done; when all are, the same command without --part finishes {args.out}")
            if isinstance(args.out, str):
                say(f"where this machine makes no other part, {self.out.scratch} can be removed")
        else:
            train = self.out.where("train")
            if "train" not in self.splits:
                return
            apart = f" data.holdout_shards={self.out.where('val')}" if self.listed.cut and "val" in self.splits else ""
            manifest = self.out.manifest("train")
            for line in feeding_lines(manifest):
                say(line)
            say(next_line(train, manifest, apart))

    def _windowed(self) -> Counter:
        """What a window did: to tiles it was done while they were cut."""
        return (
            Counter({name: value for name, value in self.listed.cut.items() if name != "folder"}) if self.listed.cut else self.total.counts
        )

    def _say_repeats(self) -> str:
        counts = self.repeats
        asides = [
            f"{counts[name]:,} {what}"
            for name, what in (("in_val", "of train also occur in val or test"), ("relabelled", "bear another label"))
            if counts[name]
        ]
        aside = f", {', '.join(asides)}" if asides else ""
        left = f"{counts['left_out']:,} left out" if self.args.dedup else "--dedup would leave them out"
        return f"repeats:  {counts['repeats']:,}, byte for byte{aside}; {left} ({self.out.where('duplicates.jsonl')})"


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
