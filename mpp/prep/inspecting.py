"""inspect_shards.py's work: the facts of a split, a page of text, and a picture.

Pillow draws it: it writes what a class is called as it is, and the images keep their pixels; a plotting library would read $ as mathematics.
"""

import argparse
import bisect
import functools
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mpp.base.errors import BadSample, UserError
from mpp.base.progress import Progress, tracked
from mpp.base.text import counted, font_file, printable, say, say_json, sized
from mpp.data.class_folders import listed_names
from mpp.data.decode import format_of, is_deep, open_image
from mpp.data.shard_faults import ROWS, most_pixels
from mpp.data.shard_format import SHORT_SIDES, read_manifest
from mpp.data.shards import ShardSet
from mpp.data.write_shards import short_side_bins
from mpp.disk.files import make_folder, write_atomically
from mpp.prep.advice import config_for
from mpp.prep.prepare import note_levels, say_small_range
from mpp.prep.splits import splits_in_store, splits_of, spread
from mpp.remote.urls import WEB, Url, is_url, split_url

FORMAT_IMAGES = 256  # looked at for their formats
NAMED = 3  # most and least frequent classes that are named
BAR_LETTERS = 40  # of a full bar


WIDTH, MARGIN, GAP = 1280, 28, 10  # pixels
COLUMNS = 8
CELL = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
CAPTION = 22  # below each cell
PANEL = (WIDTH - 2 * MARGIN - 40) // 2  # width of one of two panels
PANEL_HEIGHT = 330
NAMED_CLASSES = 12  # up to so many get a bar with their name
INK, GREY, PALE, BAR = (35, 35, 35), (110, 110, 110), (236, 236, 236), (76, 114, 176)
CHANNELS = (("red", (200, 60, 60)), ("green", (60, 150, 70)), ("blue", (60, 90, 200)))


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


class Cell(NamedTuple):
    """One image of the contact sheet."""

    caption: str
    image: Image.Image | None  # RGB, as `fitted` makes it
    reason: str  # why there is none


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


# ---------------------------------------------------------------- the picture


def fitted(image: Image.Image) -> Image.Image:
    """As large as its place on the sheet, so that the images shown take little memory, whatever their size."""
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


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


def draw_sheet(
    title: str,
    cells: Sequence[Cell],
    short_sides: Sequence[tuple[int, int]],
    classes: Sequence[tuple[str, int]],
    balance: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """short_sides: as in the manifest; classes: (name, images), the most frequent first; mean, std: RGB, 0..1."""
    rows = -(-len(cells) // COLUMNS)
    panels = MARGIN + 50 + rows * (CELL + CAPTION + GAP) + 16
    height = panels + PANEL_HEIGHT + 40 + 150 + MARGIN
    sheet = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), fit(title, font(26), WIDTH - 2 * MARGIN), INK, font(26))
    for number, cell in enumerate(cells):
        left = MARGIN + number % COLUMNS * (CELL + GAP)
        draw_cell(sheet, draw, left, MARGIN + 50 + number // COLUMNS * (CELL + CAPTION + GAP), cell)
    draw_sizes(draw, MARGIN, panels, short_sides_between(short_sides))
    draw_classes(draw, MARGIN + PANEL + 40, panels, classes, balance)
    draw_colours(draw, MARGIN, panels + PANEL_HEIGHT + 40, mean, std)
    return sheet


def draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, cell: Cell) -> None:
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), PALE)
    if cell.image is not None:
        sheet.paste(cell.image, (left + (CELL - cell.image.width) // 2, top + (CELL - cell.image.height) // 2))
    else:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), None, CHANNELS[0][1], 2)
        for line, text in enumerate(wrap(f"unreadable: {cell.reason}", font(13), CELL - 16, CELL // 17 - 1)):
            draw.text((left + 8, top + 8 + 17 * line), text, CHANNELS[0][1], font(13))
    draw.text((left + CELL // 2, top + CELL + 3), fit(cell.caption, font(13), CELL), INK, font(13), anchor="ma")


def draw_sizes(draw: ImageDraw.ImageDraw, left: int, top: int, bins: Sequence[tuple[str, int]]) -> None:
    """A bar a bin; below it what it takes, or where it begins."""
    draw.text((left, top), "images by short side, in pixels", INK, font(17))
    most = max(count for _, count in bins)
    step = min(PANEL / len(bins), 90)
    roomy = all(font(12).getlength(name) < step - 6 for name, _ in bins)
    base, tall = top + PANEL_HEIGHT - 24, PANEL_HEIGHT - 24 - 60
    draw.line((left, base, left + PANEL, base), GREY)
    for number, (name, count) in enumerate(bins):
        middle = left + step * (number + 0.5)
        high = max(round(tall * count / most), bool(count))
        if count:
            draw.rectangle((middle - step * 0.4, base - high, middle + step * 0.4, base - 1), BAR)
            draw.text((middle, base - high - 4), short(count), GREY, font(12), anchor="md")
        draw.text((middle, base + 6), name if roomy else name.partition("-")[0], INK, font(12), anchor="ma")


def draw_classes(draw: ImageDraw.ImageDraw, left: int, top: int, classes: Sequence[tuple[str, int]], balance: str) -> None:
    """Few classes: a named bar each.  Many: all of them side by side, the most frequent first."""
    draw.text((left, top), f"images by class ({len(classes):,})" if classes else "no classes", INK, font(17))
    draw.text((left, top + 24), fit(balance, font(13), PANEL), GREY, font(13))
    if not classes:
        return
    most = max(classes[0][1], 1)
    if len(classes) <= NAMED_CLASSES:
        step, names, numbers = min((PANEL_HEIGHT - 50) / len(classes), 40), 170, 60
        for number, (name, count) in enumerate(classes):
            middle = top + 50 + step * (number + 0.5)
            draw.text((left + names - 10, middle), fit(name, font(14), names - 10), INK, font(14), anchor="rm")
            long = max(round((PANEL - names - numbers) * count / most), bool(count))
            if count:
                draw.rectangle((left + names, middle - step * 0.35, left + names + long - 1, middle + step * 0.35), BAR)
            draw.text((left + names + long + 6, middle), short(count), GREY, font(12), anchor="lm")
        return
    base, tall = top + PANEL_HEIGHT - 24, PANEL_HEIGHT - 24 - 64
    draw.line((left, base, left + PANEL, base), GREY)
    for column in range(PANEL):
        count = classes[column * len(classes) // PANEL][1]
        if count:
            draw.line((left + column, base - max(round(tall * count / most), 1), left + column, base - 1), BAR)
    for (name, count), place, anchor in ((classes[0], left, "l"), (classes[-1], left + PANEL, "r")):
        draw.text((place, base + 6), fit(f"{name} {count:,}", font(13), PANEL // 2 - 10), INK, font(13), anchor=f"{anchor}a")
    draw.text((left, base - tall - 6), f"{most:,} images", GREY, font(12), anchor="ld")


def draw_colours(draw: ImageDraw.ImageDraw, left: int, top: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """The mean colour, and each channel's mean with one deviation to both sides on a line from 0 to 1."""
    draw.text((left, top), "colours: mean, and one standard deviation to both sides", INK, font(17))
    draw.rectangle((left, top + 36, left + CELL - 1, top + 36 + 100), tuple(round(255 * min(max(value, 0), 1)) for value in mean), GREY)
    start, long = left + CELL + 90, WIDTH - 2 * MARGIN - CELL - 90 - 160
    for number, (name, colour) in enumerate(CHANNELS):
        middle = top + 52 + 34 * number
        low, high = (min(max(mean[number] + sign * std[number], 0), 1) for sign in (-1, 1))
        draw.text((start - 12, middle), name, INK, font(14), anchor="rm")
        draw.line((start, middle, start + long, middle), PALE, 3)
        draw.rectangle((start + long * low, middle - 5, start + long * high, middle + 5), colour)
        at = start + long * min(max(mean[number], 0), 1)
        draw.rectangle((at - 2, middle - 11, at + 2, middle + 11), INK)
        draw.text((start + long + 16, middle), f"{mean[number]:.3f} ± {std[number]:.3f}", INK, font(14), anchor="lm")


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_file()), size)


def on_one_line(text: str) -> str:
    """Without line feeds and whatever else does not print, and not endless."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:500]).split())


def can_be_drawn(text: str) -> bool:
    """Whether the font has a shape for every letter; nothing at all cannot be drawn."""
    return bool(text) and all(letter == " " or _shape(letter) != _shape("\U0010ffff") for letter in text)


@functools.cache
def _shape(letter: str) -> bytes:
    return bytes(font(13).getmask(letter))


def fit(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """The text on one line, cut with an ellipsis where it is wider than so many pixels."""
    text = on_one_line(text)
    if face.getlength(text) <= width:
        return text
    text = text[: bisect.bisect(range(1, len(text)), width, key=lambda letters: face.getlength(text[:letters] + "…"))]
    while text and face.getlength(text + "…") > width:  # two letters side by side may be narrower than apart
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """The text on at most so many lines, the last of them cut where it does not end there."""
    words = text.split()
    wrapped: list[str] = []
    while words and len(wrapped) < lines - 1:
        taken = 1
        while taken < len(words) and face.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        wrapped.append(fit(" ".join(words[:taken]), face, width))
        words = words[taken:]
    return wrapped + ([fit(" ".join(words), face, width)] if words else [])


def short(count: int) -> str:
    """At most four or five letters: 987, 9.9k, 123k, 1.2M, 12G."""
    thousands = 0
    while count >= 999.5 * 1000**thousands:
        thousands += 1
    value, unit = count / 1000**thousands, ("", "k", "M", "G", "T", "P", "E")[thousands]
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
