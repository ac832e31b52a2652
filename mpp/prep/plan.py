"""What make_shards.py is to do: OUT held and looked at, the source listed and put in order, splits and jobs planned."""

import argparse
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError, UserError
from mpp.base.progress import Progress
from mpp.base.text import counted, say
from mpp.data.class_folders import IMAGE_SUFFIXES, MAX_CLASSES, describe
from mpp.disk.files import write_atomically
from mpp.disk.locks import hold_folder, lock_folder
from mpp.prep.destination import LOCK, PLAN, Destination
from mpp.prep.holdout import SCAN, Grouping, asked, divide
from mpp.prep.layouts import as_laid_out, laid_out, other_format, remarks_on_labels
from mpp.prep.multi_label import said_of, several_in
from mpp.prep.prepare import Options
from mpp.prep.shard_job import Job
from mpp.prep.shuffle import Listed, order_lines, shuffle
from mpp.prep.source import FETCHED, Item, Source
from mpp.prep.sources import EITHER
from mpp.prep.sources.lists import ROWS
from mpp.prep.tiles import FOLDER as TILES
from mpp.prep.tiles import Cutting, Tiles, counts_of, cut_all, folder_of
from mpp.prep.tiles import Work as CutWork

SCANS = "scans"  # the folder of the scratch folder with the order of what is cut into tiles
BUCKET = ".*-[0-9][0-9][0-9][0-9].tmp-*"  # what a listing in memory too small for it spills


@dataclass(frozen=True)
class Split:
    """A stretch of one order."""

    name: str
    order: str
    at: int  # position of its first item in that order
    count: int


@contextmanager
def opened(out: Destination, args: argparse.Namespace) -> Iterator[ExitStack]:
    """Hold OUT for this run.  Yields the clean-up that leaves nothing behind when a new OUT comes to nothing; empty for an OUT begun before."""
    out.begun()  # before anything is made in a place that is none of ours
    with ExitStack() as locks, ExitStack() as fresh:

        def hold(name: str, busy: str, **options: Any) -> None:
            locks.enter_context(hold_folder(out.scratch / name, f"{args.out}: {busy}", **options))

        if args.part:
            part, parts = args.part
            hold(LOCK, "a run without --part is at work here; wait for it or stop it", shared=True)
            hold(f"lock-{part}-of-{parts}", f"another run of part {part}/{parts} is at work here; wait for it or stop it")
        else:
            hold(LOCK, "another make_shards.py is at work here; wait for it or stop it")
            out.sweep()
        # under the lock: whoever held it before may have begun OUT, or finished it
        if not out.begun() and not args.part:
            hours = (FETCHED, TILES)  # of work, which are kept
            fresh.callback(lambda: None if any((out.scratch / name).exists() for name in hours) else out.abandon())
        yield fresh


def read_plan(out: Destination, wanted: dict, args: argparse.Namespace) -> dict | None:
    """What plan.json holds; None for a new OUT.  wanted: this command's plan.  Raises DataError where OUT was begun with another one."""
    data = out.get(PLAN)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{out.where(PLAN)}: is damaged ({error}); remove {args.out} or choose another folder") from error
    was = found["plan"]
    # what a URL holds has no kind before it is fetched
    changes = [name for name, value in wanted.items() if was.get(name) != value and (name != "kind" or value)]
    if changes:
        said = ", ".join(
            f"the files of {wanted['name']} changed" if name == "identity" else f"{name} was {was.get(name)}, is {wanted[name]}"
            for name in changes
        )
        raise other_plan(args, found, said)
    return found


def other_plan(args: argparse.Namespace, found: dict, changes: str) -> DataError:
    """found: OUT's plan, which is not the one of this command."""
    state = "complete" if found["complete"] else "half done"
    return DataError(
        f"{args.out}: is {state}, but by another command ({changes}); repeat that command, remove {args.out} or choose another folder"
    )


@dataclass(frozen=True)
class Plan:
    """What is decided before the first shard is made."""

    source: Source  # readable at random
    listed: Listed
    splits: list[Split]
    classes: list[str]  # empty without labels
    noted: dict  # plan.json's content


def decide(source: Source, out: Destination, wanted: dict, args: argparse.Namespace) -> Plan:
    """List the source, plan the splits, and note the plan down; one run at a time does so, and the others take it over.

    wanted: this command's plan.  Raises DataError where OUT was begun with another one.
    """
    with (out.scratch / "lock-plan").open("w") as lock:
        lock_folder(lock, f"{args.out}: another part is still listing the source; wait for it", seconds=math.inf)
        found = read_plan(out, wanted, args)
        if found is None:
            clear(out, wanted)
        try:
            source, kind, listed = list_once(source, out, wanted, args)
            if found and found["plan"]["stamp"] != listed.stamp:  # listed on another machine
                raise other_plan(args, found, f"the files of {wanted['name']} changed")
            splits = plan_splits(source, listed, args)
            classes = source.class_names(listed.labels) if args.labels else []
            refuse_odd_names(wanted["name"], classes)
            remarks = [*listed.remarks, *remarks_on_labels(source, classes, listed.labels)]
        except UserError:
            if found is None:
                out.forget()  # the source may be mended
            raise
        if found is None:
            found = {"plan": wanted | {"kind": kind, "levels": listed.levels, "stamp": listed.stamp}, "complete": []}
            out.put(PLAN, json.dumps(found).encode())
    if advice := other_format(source, listed.ignored):
        say(f"warning: {args.source} is read as a folder of images; {advice}", error=True)
    for remark in remarks:
        say(f"warning: {remark}", error=True)
    return Plan(source, listed, splits, classes, found)


def clear(out: Destination, wanted: dict) -> None:
    """OUT has no plan yet: what a run that came to nothing left is of use only to the same command, and its listing to none."""
    out.forget()
    note, content = out.scratch / "begun.json", json.dumps(wanted).encode()
    if not note.exists() or note.read_bytes() != content:
        if (out.scratch / TILES).exists():
            shutil.rmtree(out.scratch / TILES)
        for path in out.scratch.iterdir():
            if path.is_file() and not path.name.startswith("lock"):
                path.unlink()
        write_atomically(note, content)


def refuse_odd_names(source: str, others: list[str]) -> None:
    """Raises DataError for a name that is no UTF-8, which a manifest cannot hold."""
    for name in (source, *others):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{name!r}: this name is no UTF-8, so the manifest cannot hold it; rename it") from None


def list_once(source: Source, out: Destination, wanted: dict, args: argparse.Namespace) -> tuple[Source, str, Listed]:
    """The source, readable at random, its kind, and what it holds, its order written to the scratch folder; of scans to be cut their tiles.

    What an earlier run fetched, unpacked, listed and cut is taken over.
    """
    scratch = out.scratch

    def bar(what: str, total: int | None) -> Progress:
        return Progress(what, total, "MB", scale=1e-6, quiet=args.quiet)

    orders = scratch / SCANS if args.tile else scratch  # of what is listed first
    orders.mkdir(exist_ok=True)
    for leftover in (*scratch.glob(BUCKET), *orders.glob(BUCKET)):  # of a killed listing
        leftover.unlink(missing_ok=True)
    source = source.fetch(scratch, bar)
    kind = source.kind
    source = source.unpack(scratch, bar)
    try:
        listed = Listed.from_json((scratch / "listing.json").read_bytes())
        source = laid_out(source, listed.levels, args.label_names)
        return Tiles(source, scratch / listed.cut["folder"]) if listed.cut else source, kind, listed
    except FileNotFoundError:
        pass

    def put_in_order(source: Source) -> Listed:
        with Progress(f"listing {args.source}", None, "images", quiet=args.quiet) as listing:
            return shuffle(source, args.seed, orders, listing.update)

    source, listed = as_laid_out(source, args, put_in_order)
    if not listed.counts.total():
        files = sum(count for kind, count in listed.ignored.items() if "folders" not in kind)
        seen = f" among {counted(files, 'file')} ({describe(listed.ignored)})" if listed.ignored else ""
        remedy = other_format(source, listed.ignored) or f"image suffixes are {' '.join(IMAGE_SUFFIXES)}"
        raise DataError(f"{args.source}: holds no images{seen}; {remedy}")
    grouping = args.group
    if args.tile:
        refuse(source, listed, args)
        source, listed = cut_into_tiles(source, listed, orders, out, wanted, args)
        grouping = args.group.of_tiles() if args.group else Grouping("", field=SCAN)
    if args.val and (args.labels or grouping):
        plan_splits(source, listed, args)  # what cannot be is told before it is attempted
        classes = source.class_names(listed.labels) if args.labels else []
        numbers = {name: number for number, name in enumerate(classes)}
        known: dict[str, int] = {}  # label -> number

        def class_of(item: Item) -> int:
            if item.label not in known:
                known[item.label] = source.class_number(item.label, numbers)
            return known[item.label]

        listed.holdout = divide(scratch, "train", args.val, args.seed, class_of if args.labels else None, grouping, classes)
    write_atomically(scratch / "listing.json", listed.to_json())
    return source, kind, listed


def cut_into_tiles(
    scans: Source, listed: Listed, orders: Path, out: Destination, wanted: dict, args: argparse.Namespace
) -> tuple[Source, Listed]:
    """The tiles of the scans, shuffled like any images, and what is known of them: what was learnt of the scans holds for them too."""
    if args.labels:
        scans.class_names(listed.labels)  # what cannot be is told before anything is cut
    for item in (Item(*json.loads(line)) for split in listed.counts for line in order_lines(orders, split)) if args.group else ():
        args.group.thing(item)
    folder = folder_of(out.scratch, wanted, listed)
    options = Options(resize=args.resize, encode=args.encode, quality=args.quality, max_pixels=args.max_pixels, window=args.window)
    with Progress("cutting", listed.counts.total(), "scans", at_once=True, quiet=args.quiet) as bar:
        cut_all(CutWork(scans, orders, folder, options, Cutting(args.tile, args.overlap), args.group), listed, args.workers, bar.update)
    source = Tiles(scans, folder)
    with Progress("listing", None, "tiles", quiet=args.quiet) as bar:
        tiles = shuffle(source, args.seed, out.scratch, bar.update)
    for name in ("stamp", "levels", "remarks", "ignored"):
        setattr(tiles, name, getattr(listed, name))
    tiles.cut = {"folder": str(folder.relative_to(out.scratch)), **counts_of(folder)}
    return source, tiles


def refuse(source: Source, listed: Listed, args: argparse.Namespace) -> None:
    """Raises UserError for labels, and for splits beside --val, that cannot be."""
    if args.labels and (several := several_in(listed.labels, digits_are_names=args.label_names)) and source.kind in (*EITHER, *ROWS):
        name = next(item.name for item in source.items(Counter()) if item.label == several)
        raise DataError(f"{args.source}: {name!r} has {said_of(several, names=source.digits_are_numbers)}")
    if args.labels and listed.unlabelled:
        raise DataError(f"{args.source}: {listed.unlabelled!r} {source.unlabelled}, so it has no class; mend that, or leave out --labels")
    if args.labels and len(listed.labels) > MAX_CLASSES:
        raise DataError(f"{args.source}: has more than {MAX_CLASSES} classes; leave out --labels")
    if args.val and set(listed.counts) != {"train"}:
        raise UserError(f"--val {args.val}: the source has its own splits ({', '.join(sorted(listed.counts))}); leave out --val")


def plan_splits(source: Source, listed: Listed, args: argparse.Namespace) -> list[Split]:
    """Which stretch of which order goes where.

    Numbered before anything is rejected.  Val is the end of the order (holdout.py has brought it there, where labels or groups matter).
    """
    refuse(source, listed, args)
    counts = dict(listed.counts)
    whole = {name: Split(name, name, 0, count) for name, count in counts.items()}
    if not args.val:
        return sorted(whole.values(), key=lambda split: split.name != "train")
    count = counts["train"]
    kept_apart = listed.holdout["images"] if listed.holdout else asked(args.val, count)
    return [Split("train", "train", 0, count - kept_apart), Split("val", "train", count - kept_apart, kept_apart)]


def plan_jobs(splits: list[Split], samples_per_shard: int) -> Iterator[Job]:
    for split in splits:
        for shard, first in enumerate(range(0, split.count, samples_per_shard)):
            yield Job(split.name, shard, split.order, split.at + first, first, min(samples_per_shard, split.count - first))
