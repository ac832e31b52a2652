"""PROGRAM: what is in these shards?  A page of text, and a picture of it.

    python data_prep/inspect_shards.py FOLDER [--out DIR] [--images 64]

FOLDER is a split (OUT/train) or OUT, for all its splits.  The text: images, bytes, shards, sizes, formats, colours, balance of the classes.
The picture, inspect-<split>.png beside the split or in DIR: images chosen by --seed, evenly over the shards, each with its class, above the
sizes, the classes and the colours.  Nothing is verified beyond what opening a set checks and the CRC-32 of the images shown.
"""

from mpp.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mpp.data.class_folders import listed_names
from mpp.data.decode import format_of, is_16_bit, open_image
from mpp.data.shard_faults import ROWS, most_pixels
from mpp.data.shard_format import SHORT_SIDES
from mpp.data.shards import ShardSet
from mpp.data.write_shards import short_side_bins
from mpp.errors import BadSample, Parser, UserError, run_program
from mpp.files import make_folder, write_atomically
from mpp.text import printable, say, say_json

if sys.flags.safe_path:  # PYTHONSAFEPATH=1, as our jobs set it, leaves out the folder of the script
    sys.path.append(str(Path(__file__).parent))
from inspect_sheet import Cell, can_be_drawn, draw_sheet, fitted, on_one_line, short_sides_between
from prepare import note_levels, say_small_range
from splits import splits_of
from spread import spread
from summary import progress

FORMAT_IMAGES = 256  # looked at for their formats
NAMED = 3  # most and least frequent classes that are named
BAR = 40  # characters of a full bar
MOST_IMAGES = 1024


class Classes(NamedTuple):
    """How the images are spread over the classes."""

    names: list[str]
    counts: list[int]
    unlabelled: int

    @property
    def order(self) -> list[int]:
        """Class numbers, the most frequent first."""
        return sorted(range(len(self.names)), key=lambda number: (-self.counts[number], number))

    @property
    def gini(self) -> float:
        """0: all classes are equally frequent; towards 1: one has nearly everything."""
        counts = sorted(self.counts)
        total = sum(counts)
        if not total:
            return 0.0
        weighted = sum(place * count for place, count in enumerate(counts, start=1))
        return 2 * weighted / (len(counts) * total) - (len(counts) + 1) / len(counts)


class Facts(NamedTuple):
    """What is known of one split."""

    folder: Path
    manifest: dict[str, Any]
    classes: Classes
    formats: Counter
    unreadable: list[str]  # one line each, of the images looked at
    looked_at: int
    short_sides: list[tuple[int, int]]  # as in the manifest
    narrowest: int  # pixels of the shortest side
    longest: int  # pixels of the longest side
    aspect: float  # of the most oblong image, at least 1
    small_range: str  # what is the matter with those of 16 bits, if anything
    cells: list[Cell]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0.  Raises DataError for shards that cannot be opened."""
    args = parse(argv)
    splits = splits_of(args.folder)
    if args.out is not None:
        make_folder(args.out, "--out")
    found = []
    for folder in splits:
        facts = look(folder, args)
        path = (args.out or folder.resolve().parent) / f"inspect-{folder.resolve().name}.png"
        save(path, facts)
        if args.json:
            found.append(as_json(facts) | {"picture": str(path)})
        else:
            show(facts)
            say(f"picture:  {path}")
    if args.json:
        say_json({"splits": found})
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    def whole_number(most: int) -> Any:
        def read(text: str) -> int:
            if not text.isdecimal() or int(text) > most:
                raise argparse.ArgumentTypeError(f"{text!r} is not a whole number up to {most}")
            return int(text)

        return read

    parser = Parser(
        prog="inspect_shards.py", description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a split, such as OUT/train, or OUT for all its splits")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the picture goes (default: beside the split)")
    parser.add_argument("--images", type=whole_number(MOST_IMAGES), default=64, metavar="N", help="images to show")
    parser.add_argument("--seed", type=whole_number(2**63 - 1), default=0, help="which images those are")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="the facts as one JSON object instead of text")
    return parser.parse_args(argv)


def look(folder: Path, args: argparse.Namespace) -> Facts:
    """Open the split and gather the facts.  Raises DataError as ShardSet.open does."""
    shards = ShardSet.open(folder)
    counts = np.zeros(len(shards.classes), np.int64)
    bins = np.zeros(len(SHORT_SIDES), np.int64)
    narrowest, longest, aspect = 2**32, 0, 1.0
    for first in range(0, len(shards), ROWS):
        labels = shards.labels[first : first + ROWS]
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
        rows = shards.index[first : first + ROWS]
        bins += short_side_bins(rows)
        sides = np.sort(np.stack([rows["width"], rows["height"]]), axis=0)
        narrowest, longest = min(narrowest, int(sides[0].min())), max(longest, int(sides[1].max()))
        aspect = max(aspect, float((sides[1] / sides[0]).max()))
    formats: Counter = Counter()
    unreadable = {}
    levels: Counter = Counter()
    most = most_pixels(shards.manifest["source"])
    looked = spread(shards.samples_per_shard, FORMAT_IMAGES, args.seed)
    for sample in tqdm(looked, desc=printable(folder), unit="img", delay=2, **progress(args)):
        try:
            formats[format_of(shards.read(sample), most)] += 1
        except BadSample as error:
            unreadable[sample] = str(error)
    cells = []
    for sample in spread(shards.samples_per_shard, args.images, args.seed):
        row = shards.index[sample]
        caption = drawn_name(shards.classes, int(row["label"])) if row["label"] >= 0 else f"{row['width']} x {row['height']}"
        try:
            data = shards.read(sample)
            image = open_image(data, most)
            if is_16_bit(data, most):
                note_levels(image, levels)
            cells.append(Cell(caption, fitted(image), ""))
        except BadSample as error:
            unreadable[sample] = str(error)
            cells.append(Cell(caption, None, str(error)))
    return Facts(
        folder,
        shards.manifest,
        Classes(shards.classes, counts.tolist(), int((shards.labels < 0).sum())),
        formats,
        [f"{shards.where(sample)}: {reason}" for sample, reason in sorted(unreadable.items())],
        len(looked),
        [(low, count) for low, count in zip(SHORT_SIDES, bins.tolist(), strict=True) if count],
        narrowest,
        longest,
        aspect,
        say_small_range(levels),
        cells,
    )


def as_json(facts: Facts) -> dict[str, Any]:
    manifest, classes = facts.manifest, facts.classes
    return {
        "folder": str(facts.folder),
        "images": manifest["samples"],
        "bytes": manifest["bytes"],
        "shards": len(manifest["shards"]),
        **{f"{what}_per_shard": spread_of(manifest, what) for what in ("samples", "bytes")},
        "narrowest_side": facts.narrowest,
        "longest_side": facts.longest,
        "most_oblong": round(facts.aspect, 2),
        "short_sides": facts.short_sides,
        "formats": facts.formats,
        "images_looked_at": facts.looked_at,
        "unreadable": facts.unreadable,
        "small_range": facts.small_range,
        "rejects": manifest["rejects"],
        "mean": manifest["mean"],
        "std": manifest["std"],
        "classes": len(classes.names),
        "classes_without_images": classes.counts.count(0),
        "unlabelled": classes.unlabelled,
        "most_frequent": [(classes.names[number], classes.counts[number]) for number in classes.order[:NAMED]],
        "least_frequent": [(classes.names[number], classes.counts[number]) for number in classes.order[-NAMED:]],
        "gini": round(classes.gini, 4),
        "source": manifest["source"],
        "mpp": manifest["mpp"],
    }


def spread_of(manifest: dict[str, Any], what: str) -> list[int]:
    """[least, median, most] of the shards' samples or bytes."""
    values = sorted(entry[what] for entry in manifest["shards"])
    return [values[0], values[len(values) // 2], values[-1]]


def show(facts: Facts) -> None:
    manifest, classes = facts.manifest, facts.classes
    images = manifest["samples"]
    source = f" ({manifest['source']['name']})" if "name" in manifest["source"] else ""
    say(f"{facts.folder}: {size_of(facts)}{source}")
    samples = " / ".join(f"{value:,}" for value in spread_of(manifest, "samples"))
    size = " / ".join(f"{value / 1e6:,.1f}" for value in spread_of(manifest, "bytes"))
    say(f"a shard:  {samples} images, {size} MB (least / median / most)")
    say(
        f"an image: {manifest['bytes'] / images / 1e3:,.1f} kB on average, sides {facts.narrowest:,} to {facts.longest:,} pixels, "
        f"up to {facts.aspect:,.1f} times as long as wide"
    )
    formats = ", ".join(f"{name} {count}" for name, count in facts.formats.most_common())
    say(f"formats:  {formats or 'none'} (of {facts.looked_at:,} images looked at)")
    if facts.small_range:
        say(f"WARNING:  {facts.small_range}")
    say(f"rejected: {manifest['rejects']:,}")
    colours = (" ".join(f"{value:.3f}" for value in manifest[name]) for name in ("mean", "std"))
    say(f"colours:  red, green, blue: mean {next(colours)}, deviation {next(colours)}, from {manifest['mean_std_images']:,} images")
    bins = short_sides_between(facts.short_sides)
    most = max(count for _, count in bins)
    for name, count in bins:
        say(f"  short side {name:>9} {'#' * max(round(BAR * count / most), bool(count)):<{BAR}} {count:,} ({count / images:.1%})")
    if not classes.names:
        say("classes:  none, the images have no labels")
    else:
        say(f"classes:  {len(classes.names):,}, {balance(classes)}")
        for what, numbers in (("most", classes.order[:NAMED]), ("least", classes.order[-NAMED:])):
            say(f"  {what:<5} " + ", ".join(f"{shortened(classes.names[number])} {classes.counts[number]:,}" for number in numbers))
    if facts.unreadable:
        say(
            f"UNREADABLE: {len(facts.unreadable):,} of the images looked at; python data_prep/verify_shards.py {facts.folder} --full finds all"
        )
        for text in facts.unreadable[:NAMED]:
            say(f"  {text}")
        if len(facts.unreadable) > NAMED:
            say(f"  and {len(facts.unreadable) - NAMED:,} more")


def balance(classes: Classes) -> str:
    """ "the most frequent has 1.8 times as many images as the least, Gini 0.06" """
    most, least = max(classes.counts), min(classes.counts)
    if not least:
        empty = [on_one_line(name) for name, count in zip(classes.names, classes.counts, strict=True) if not count]
        said = f"{len(empty):,} of them without images ({listed_names(empty)}), "
    else:
        said = (
            f"the most frequent has {most / least:,.1f} times as many images as the least, " if most > least else "all equally frequent, "
        )
    said += f"{classes.unlabelled:,} images without a label, " if classes.unlabelled else ""
    return f"{said}Gini {classes.gini:.2f}"


def shortened(name: str) -> str:
    """Printable, not endless, and seen even where it is empty or blank."""
    name = printable(name[:500])
    return name if name.strip() else repr(name)


def drawn_name(names: list[str], number: int) -> str:
    """A class's name, or its number where the font lacks a letter."""
    name = on_one_line(names[number])
    return name if can_be_drawn(name) else f"class {number}"


def size_of(facts: Facts) -> str:
    """ "300 images in 1 shard, 32.7 MB" """
    images, shards = facts.manifest["samples"], len(facts.manifest["shards"])
    megabytes = facts.manifest["bytes"] / 1e6
    return f"{images:,} {'image' if images == 1 else 'images'} in {shards:,} {'shard' if shards == 1 else 'shards'}, {megabytes:,.1f} MB"


def save(path: Path, facts: Facts) -> None:
    """Draw the picture and write it.  Raises UserError where that is not possible."""
    manifest, classes = facts.manifest, facts.classes
    ranked = [(drawn_name(classes.names, number), classes.counts[number]) for number in classes.order]
    sheet = draw_sheet(
        f"{facts.folder.resolve().name}: {size_of(facts)}",
        facts.cells,
        facts.short_sides,
        ranked,
        balance(classes) if ranked else "the images have no labels",
        manifest["mean"],
        manifest["std"],
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give --out DIR, a folder that can") from error


if __name__ == "__main__":
    run_program(main)
