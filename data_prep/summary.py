"""What make_shards.py says: progress while it works, a summary at the end."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import holdout
import numpy as np
from prepare import TRAINED_PIXELS, say_small_range
from shard_job import Record
from shuffle import Listed
from sources.base import describe
from target import Target

from mpp.data.class_folders import listed_names
from mpp.text import counted, say, say_json


def progress(args: argparse.Namespace) -> dict[str, Any]:
    """A log file gets a line now and then instead of a moving bar."""
    return {"disable": args.quiet, "dynamic_ncols": True, "mininterval": 0.2 if sys.stderr.isatty() else 30.0}


class Summary:
    """Adds up the shards of this run, kept ones too."""

    def __init__(self, args: argparse.Namespace, target: Target, listed: Listed, splits: Iterable[str]):
        self.args = args
        self.target = target
        self.listed = listed
        self.splits = {split: Counter(images=0, shards=0, bytes=0) for split in splits}
        self.counts: Counter = Counter()
        self.repeats: Counter = Counter()
        self.used: set[int] = set()  # class numbers of the images
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
        self.used |= set(np.unique(record.rows["label"]).tolist())
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
                "rejected": self.rejects,
                "repeats": self.repeats,
                "ignored": ignored,
                **{name: self.counts[name] for name in ("converted", "resized", "encoded")},
                "small_range": say_small_range(self.counts),
                "above_training_limit": self.counts["largest"],
                "built_shards": self.built_shards,
                "seconds": round(seconds, 3),
                "images_per_second": round(rate, 1),
            }
            say_json(facts)
            return
        for split, found in self.splits.items():
            say(
                f"{self.target.where(split)}: {counted(found['images'], 'image')} in {counted(found['shards'], 'shard')}, {found['bytes'] / 1e6:,.1f} MB"
            )
        if self.listed.holdout:
            say(f"kept apart: {holdout.describe(self.listed.holdout)}")
        listed = "" if args.part or not self.rejects else f" ({self.target.where('rejects.jsonl')})"
        say(f"rejected: {self.rejects:,}{listed}")
        say(f"ignored:  {ignored.total():,}" + (f" ({describe(ignored)})" if ignored else ""))
        if self.repeats["repeats"]:
            say(self._say_repeats())
        if args.labels:
            empty = [] if args.part else [name for number, name in enumerate(classes) if number not in self.used]
            without = f", {len(empty):,} of them without images: {listed_names(empty)}" if empty else ""
            say(f"classes:  {len(classes):,} ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}){without}")
        if self.counts["converted"]:
            say(f"converted to PNG (first frame, without loss): {self.counts['converted']:,}")
        if self.counts["resized"]:
            say(f"shrunk to a short side of {args.resize}: {self.counts['resized']:,}")
        if self.counts["encoded"]:
            say(f"encoded anew: {self.counts['encoded']:,}")
        if said := say_small_range(self.counts):
            say(f"WARNING:  {said}")
        if self.counts["largest"]:
            say(
                f"WARNING:  {self.counts['largest']:,} images have more than {TRAINED_PIXELS:,} pixels; training takes larger ones than "
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
                say(f"where this machine makes no other part, {self.target.scratch} can be removed")
        else:
            train = self.target.where("train")
            if "train" not in self.splits:
                return
            if isinstance(args.out, str):
                say(f"next:     copy {train} to a disk of the machines that train")
            else:
                say(f"next:     deepspeed mpp/pretrain.py --config configs/mpp_b16.yaml data.shards={train}")

    def _say_repeats(self) -> str:
        counts = self.repeats
        asides = [
            f"{counts[name]:,} {what}"
            for name, what in (("in_val", "of train also occur in val or test"), ("relabelled", "bear another label"))
            if counts[name]
        ]
        aside = f", {', '.join(asides)}" if asides else ""
        left = f"{counts['left_out']:,} left out" if self.args.dedup else "--dedup would leave them out"
        return f"repeats:  {counts['repeats']:,}, byte for byte{aside}; {left} ({self.target.where('duplicates.jsonl')})"
