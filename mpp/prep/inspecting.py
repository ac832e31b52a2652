"""inspect_shards.py's work: the facts of a split, a page of text, and a picture (prep/inspect_sheet.py)."""

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpp.base.errors import BadSample, UserError
from mpp.base.progress import Progress, tracked
from mpp.base.text import counted, printable, say, say_json, sized
from mpp.data.class_folders import listed_names
from mpp.data.decode import format_of, is_deep, open_image
from mpp.data.shard_faults import ROWS, most_pixels
from mpp.data.shard_format import SHORT_SIDES, read_manifest
from mpp.data.shards import ShardSet
from mpp.data.write_shards import short_side_bins
from mpp.disk.files import make_folder, write_atomically
from mpp.prep.advice import config_for
from mpp.prep.inspect_sheet import Cell, can_be_drawn, draw_sheet, fitted, on_one_line
from mpp.prep.prepare import note_levels, say_small_range
from mpp.prep.splits import splits_in_store, splits_of, spread
from mpp.remote.urls import WEB, Url, is_url, split_url

FORMAT_IMAGES = 256  # looked at for their formats
NAMED = 3  # most and least frequent classes that are named
BAR_LETTERS = 40  # of a full bar


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

    folder: Path | Url
    manifest: dict[str, Any]  # without its shards
    shards: int
    per_shard: dict[str, list[int]]  # samples, bytes: least, median, most
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


def run(args: argparse.Namespace) -> int:
    """Returns 0.  Raises DataError for shards that cannot be opened."""
    if args.config:
        say(config_for(read_manifest(ShardSet.open(args.folder).folder if is_url(args.folder) else args.folder)[0]))
        return 0
    splits = splits_at(args.folder)
    if args.out is not None:
        make_folder(args.out, "--out")
    found = []
    for folder in splits:
        facts = look(folder, args)
        beside = folder.resolve().parent if isinstance(folder, Path) else Path.cwd()
        path = (args.out or beside) / f"inspect-{folder.resolve().name}.png"
        with Progress(f"drawing {path}", at_once=True, quiet=args.quiet):
            save(path, facts)
        if args.json:
            found.append(as_json(facts) | {"picture": str(path)})
        else:
            show(facts)
            say(f"picture:  {path}")
    if args.json:
        say_json({"splits": found})
    return 0


def splits_at(where: Path | Url) -> list[Path] | list[Url]:
    """As `splits_of`.  A web server cannot be asked what it has: it must be a split."""
    if isinstance(where, Path):
        return splits_of(where)
    return [where] if split_url(where)[0] in WEB else list(splits_in_store(where))


def look(folder: Path | Url, args: argparse.Namespace) -> Facts:
    """Open the split and gather the facts; shards of a URL come through the cache (shard_cache.py).  Raises DataError as ShardSet.open does."""
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
    looked = spread(shards.samples_per_shard.tolist(), FORMAT_IMAGES, args.seed)
    for sample in tracked(looked, f"formats of {folder}", len(looked), "images", quiet=args.quiet):
        try:
            formats[format_of(shards.read(sample), most)] += 1
        except BadSample as error:
            unreadable[sample] = str(error)
    cells = []
    shown = spread(shards.samples_per_shard.tolist(), args.images, args.seed)
    for sample in tracked(shown, f"images of {folder}", len(shown), "images", quiet=args.quiet):
        row = shards.index[sample]
        caption = drawn_name(shards.classes, int(row["label"])) if row["label"] >= 0 else f"{row['width']} x {row['height']}"
        try:
            data = shards.read(sample)
            image = open_image(data, most)
            if is_deep(data, most):
                note_levels(image, levels)
            cells.append(Cell(caption, fitted(image), ""))
        except BadSample as error:
            unreadable[sample] = str(error)
            cells.append(Cell(caption, None, str(error)))
    return Facts(
        folder,
        shards.manifest,
        len(shards.shard_names),
        {"samples": spread_of(shards.samples_per_shard.tolist()), "bytes": spread_of(shards.shard_bytes.tolist())},
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
        "shards": facts.shards,
        **{f"{what}_per_shard": spread for what, spread in facts.per_shard.items()},
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


def spread_of(counts: Sequence[int]) -> list[int]:
    """[least, median, most]."""
    values = sorted(counts)
    return [values[0], values[len(values) // 2], values[-1]]


def show(facts: Facts) -> None:
    manifest, classes = facts.manifest, facts.classes
    images = manifest["samples"]
    source = f" ({manifest['source']['name']})" if "name" in manifest["source"] else ""
    say(f"{facts.folder}: {size_of(facts)}{source}")
    samples = " / ".join(f"{value:,}" for value in facts.per_shard["samples"])
    size = " / ".join(f"{value / 1e6:,.1f}" for value in facts.per_shard["bytes"])
    say(f"a shard:  {samples} images, {size} MB (least / median / most)")
    say(
        f"an image: {sized(manifest['bytes'] / images)} on average, sides {facts.narrowest:,} to {facts.longest:,} pixels, "
        f"up to {facts.aspect:,.1f} times as long as wide"
    )
    formats = ", ".join(f"{name} {count}" for name, count in facts.formats.most_common())
    say(f"formats:  {formats or 'none'} (of {facts.looked_at:,} images looked at)")
    if tile := manifest["source"].get("tile"):
        say(
            f"cut:      tiles of {tile} (neighbours share {manifest['source']['overlap']} pixels); each .json names the scan and the place in it"
        )
    if window := manifest["source"].get("window"):
        say(f"windowed: raw levels {window[0]:,} to {window[1]:,} of grey deeper than 8 bits became 0 to 255")
    if facts.small_range:
        say(f"WARNING:  {facts.small_range}")
    say(f"rejected: {manifest['rejects']:,}")
    colours = (" ".join(f"{value:.3f}" for value in manifest[name]) for name in ("mean", "std"))
    say(f"colours:  red, green, blue: mean {next(colours)}, deviation {next(colours)}, from {manifest['mean_std_images']:,} images")
    bins = short_sides_between(facts.short_sides)
    most = max(count for _, count in bins)
    for name, count in bins:
        say(
            f"  short side {name:>9} {'#' * max(round(BAR_LETTERS * count / most), bool(count)):<{BAR_LETTERS}} {count:,} ({count / images:.1%})"
        )
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
    manifest = facts.manifest
    return f"{counted(manifest['samples'], 'image')} in {counted(facts.shards, 'shard')}, {sized(manifest['bytes'])}"


def save(path: Path, facts: Facts) -> None:
    """Draw the picture and write it.  Raises UserError where that is not possible."""
    manifest, classes = facts.manifest, facts.classes
    ranked = [(drawn_name(classes.names, number), classes.counts[number]) for number in classes.order]
    sheet = draw_sheet(
        f"{facts.folder.resolve().name}: {size_of(facts)}",
        facts.cells,
        short_sides_between(facts.short_sides),
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


def short_sides_between(short_sides: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """The bins from the first to the last that holds images, empty ones among them too: ("256-319", images)."""
    counts = dict(short_sides)
    edges = (*SHORT_SIDES, None)
    places = [place for place, low in enumerate(SHORT_SIDES) if low in counts]
    bins = []
    for place in range(places[0], places[-1] + 1):
        low, high = edges[place], edges[place + 1]
        bins.append((f"{low}+" if high is None else f"{low}-{high - 1}", counts.get(SHORT_SIDES[place], 0)))
    return bins
