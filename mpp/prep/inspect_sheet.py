"""The picture of a split that inspect_shards.py writes: a contact sheet, sizes, classes, colours.

Pillow draws it: it writes what a class is called as it is, and the images keep their pixels; a plotting library would read $ as mathematics.
"""

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mpp.base.text import font_file

WIDTH, MARGIN, GAP = 1280, 28, 10  # pixels
COLUMNS = 8
CELL = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
CAPTION = 22  # below each cell
PANEL = (WIDTH - 2 * MARGIN - 40) // 2  # width of one of two panels
PANEL_HEIGHT = 330
NAMED_CLASSES = 12  # up to so many get a bar with their name
INK, GREY, PALE, BAR = (35, 35, 35), (110, 110, 110), (236, 236, 236), (76, 114, 176)
CHANNELS = (("red", (200, 60, 60)), ("green", (60, 150, 70)), ("blue", (60, 90, 200)))


class Cell(NamedTuple):
    """One image of the contact sheet."""

    caption: str
    image: Image.Image | None  # RGB, as `fitted` makes it
    reason: str  # why there is none


def fitted(image: Image.Image) -> Image.Image:
    """As large as its place on the sheet, so that the images shown take little memory, whatever their size."""
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def draw_sheet(
    title: str,
    cells: Sequence[Cell],
    bins: Sequence[tuple[str, int]],
    classes: Sequence[tuple[str, int]],
    balance: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """bins: ("256-319", images) of the short side; classes: (name, images), the most frequent first; mean, std: RGB, 0..1."""
    rows = -(-len(cells) // COLUMNS)
    panels = MARGIN + 50 + rows * (CELL + CAPTION + GAP) + 16
    height = panels + PANEL_HEIGHT + 40 + 150 + MARGIN
    sheet = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), fit(title, font(26), WIDTH - 2 * MARGIN), INK, font(26))
    for number, cell in enumerate(cells):
        left = MARGIN + number % COLUMNS * (CELL + GAP)
        draw_cell(sheet, draw, left, MARGIN + 50 + number // COLUMNS * (CELL + CAPTION + GAP), cell)
    draw_sizes(draw, MARGIN, panels, bins)
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
