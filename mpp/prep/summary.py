"""What make_shards.py says at its end: how much there is, what became of images on the way, and what comes next."""

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable

from mpp.base.text import counted, say, say_json, sized
from mpp.data.class_folders import describe, listed_names
from mpp.prep import holdout
from mpp.prep.advice import feeding_lines, next_line
from mpp.prep.destination import Destination
from mpp.prep.prepare import TRAINED_PIXELS, say_small_range, say_windowed
from mpp.prep.shard_job import Record, Totals
from mpp.prep.shuffle import Listed


class Summary:
    """Adds up the shards of this run, kept ones too."""

    def __init__(self, args: argparse.Namespace, out: Destination, listed: Listed, splits: Iterable[str]):
        self.args = args
        self.out = out
        self.listed = listed
        self.splits = {split: Counter(images=0, shards=0, bytes=0) for split in splits}
        self.total = Totals()
        self.repeats: Counter = Counter()
        self.of_class: Counter[int] = Counter()  # images of train, by the number of their class
        self.shards = 0
        self.built = self.built_shards = self.read_bytes = 0  # images looked at, shards and bytes: this run's own work

    def add(self, record: Record, split: str) -> None:
        found = self.splits[split]
        found["images"] += record.entry["samples"]
        found["shards"] += bool(record.entry["samples"])
        found["bytes"] += record.entry["bytes"]
        self.total.add(record)
        if split == "train":
            self.of_class.update(record.rows["label"].tolist())
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
                f"{self.out.where(split)}: {counted(found['images'], 'image')} in {counted(found['shards'], 'shard')}, {sized(found['bytes'])}"
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
            single = [] if args.part else [name for number, name in enumerate(classes) if self.of_class[number] == 1]
            if single:
                say(
                    f"WARNING:  {counted(len(single), 'class has', 'classes have')} one image in train: {listed_names(single)}; probes and fine-tuning "
                    "refuse that, as they learn from some images of each class and choose on others"
                )
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
            apart = " " + shlex.quote(f"data.holdout_shards={self.out.where('val')}") if self.listed.cut and "val" in self.splits else ""
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
