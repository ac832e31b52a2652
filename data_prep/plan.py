"""What make_shards.py is to do: OUT held and looked at, the source listed and put in order, splits and jobs planned."""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from shard_job import Job
from shuffle import Listed, shuffle
from sources import other_format
from sources.base import FETCHED, IMAGE_SUFFIXES, MAX_CLASSES, Source, describe
from summary import progress
from target import PLAN, Target
from tqdm import tqdm

from mpp.errors import DataError, UserError
from mpp.files import lock_folder, write_atomically


@dataclass(frozen=True)
class Split:
    """A stretch of one order."""

    name: str
    order: str
    at: int  # position of its first item in that order
    count: int


@contextmanager
def opened(target: Target, args: argparse.Namespace) -> Iterator[ExitStack]:
    """Hold OUT for this run.  Yields the clean-up that leaves nothing behind when a new OUT comes to nothing; empty for an OUT begun before."""
    begun = target.begun()
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
            target.sweep()
        if not begun and not args.part:
            fresh.callback(lambda: None if (target.scratch / FETCHED).exists() else target.abandon())  # hours of fetching are kept
        yield fresh


def read_plan(target: Target, plan: dict, args: argparse.Namespace) -> dict | None:
    """The plan that OUT was begun with; None for a new OUT.  Raises DataError for another one."""
    data = target.get(PLAN)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{target.where(PLAN)}: is damaged ({error}); remove {args.out} or choose another folder") from error
    changes = [name for name in plan if found["plan"].get(name) != plan[name]]
    if changes:
        said = ", ".join(
            f"the files of {plan['name']} changed" if name == "identity" else f"{name} was {found['plan'].get(name)}, is {plan[name]}"
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


def list_once(source: Source, target: Target, args: argparse.Namespace) -> tuple[Source, str, Listed]:
    """The source, readable at random, its kind, and what it holds, its order written to the scratch folder.

    What an earlier run fetched, unpacked and listed is taken over.
    """
    scratch = target.scratch

    def bar(what: str, total: int | None) -> tqdm:
        return tqdm(desc=what, total=total, unit="B", unit_scale=True, **progress(args))

    with (scratch / "lock-plan").open("w") as lock:
        lock_folder(lock, f"{args.out}: another part is still listing the source; wait for it", seconds=math.inf)
        source = source.fetch(scratch, bar)
        kind = source.kind
        source = source.unpack(scratch, bar)
        if target.get(PLAN) is None:
            target.forget()
        try:
            return source, kind, Listed.from_json((scratch / "listing.json").read_bytes())
        except FileNotFoundError:
            pass
        with tqdm(desc="listing", unit="img", **progress(args)) as listing:
            listed = shuffle(source, args.seed, scratch, listing.update)
        if not listed.counts.total():
            seen = f" among {listed.ignored.total()} files ({describe(listed.ignored)})" if listed.ignored else ""
            remedy = other_format(source, listed.ignored) or f"image suffixes are {' '.join(IMAGE_SUFFIXES)}"
            raise DataError(f"{args.source}: holds no images{seen}; {remedy}")
        write_atomically(scratch / "listing.json", listed.to_json())
    return source, kind, listed


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
