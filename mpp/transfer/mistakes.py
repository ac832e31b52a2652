"""A contact sheet of the answers that were surest and wrong, each image as the classifier saw it."""

import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mpp.data.crop_dataset import CropDataset
from mpp.data.order import Parts
from mpp.transfer.plots import FONT, clipped

MOST = 24  # images of a sheet
ACROSS = 6
SIDE = 192  # pixels into which each image is fitted
LINE, GAP, TEXT = 17, 12, 13  # pixels: a line of a caption, between images, size of the letters
GREY, RED = "#666666", "#B00000"


def worst(predicted: Tensor, confidence: Tensor, truth: np.ndarray, most: int = MOST) -> np.ndarray:
    """Rows of the surest wrong answers, surest first, int64 [<= most]; of equally sure ones the first.

    predicted: int64 [m]; confidence: float [m]; truth: integers [m].
    """
    wrong = np.flatnonzero(predicted.numpy() != truth)
    return wrong[np.argsort(-confidence.numpy()[wrong], kind="stable")][:most]


def sheet(images: Sequence[np.ndarray], captions: Sequence[Sequence[tuple[str, str]]], title: Sequence[str]) -> Image.Image:
    """images: uint8 [3, H, W], any size: small ones enlarged by whole pixels, large ones shrunk.

    captions: of each its three lines (text, end): truth, answer, place; the text is clipped to the width of a tile, its end stays.  title: lines.
    """
    smallest, small, large = (ImageFont.truetype(str(FONT), size) for size in (TEXT - 3, TEXT, TEXT + 3))
    across = min(ACROSS, max(len(images), 3))  # a title needs room
    down = -(-len(images) // across)
    width = GAP + across * (SIDE + GAP)
    top = GAP + len(title) * (LINE + 5) + GAP
    pictures = [fitted(pixels) for pixels in images]
    high = max((picture.height for picture in pictures), default=0)
    tile = high + 3 * LINE + 2 * GAP
    made = Image.new("RGB", (width, top + down * tile + (0 if images else GAP)), "white")
    draw = ImageDraw.Draw(made)
    for i, line in enumerate(title):
        fits = functools.partial(_fits, large, width - 2 * GAP)
        draw.text((GAP, GAP + i * (LINE + 5)), clipped(line, fits), fill="black" if i == 0 else GREY, font=large if i == 0 else small)
    for i, (picture, words) in enumerate(zip(pictures, captions, strict=True)):
        left, upper = GAP + i % across * (SIDE + GAP), top + i // across * tile
        made.paste(picture, (left + (SIDE - picture.width) // 2, upper + (high - picture.height) // 2))
        for j, (text, end) in enumerate(words):
            font, colour = ((small, "black"), (small, RED), (smallest, GREY))[j]
            fits = functools.partial(_fits, font, SIDE - font.getlength(end))
            draw.text((left, upper + high + 2 + j * LINE), clipped(text, fits) + end, fill=colour, font=font)
    return made


def _fits(font: ImageFont.FreeTypeFont, room: float, text: str) -> bool:
    return font.getlength(text) <= room


def fitted(pixels: np.ndarray) -> Image.Image:
    """uint8 [3, H, W] within SIDE x SIDE, its shape kept."""
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    longer = max(picture.size)
    if longer <= SIDE:
        times = SIDE // longer
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * SIDE / longer)), max(1, round(picture.height * SIDE / longer)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_mistakes(
    crops: CropDataset,
    predicted: Tensor,
    confidence: Tensor,
    truth: np.ndarray,
    classes: Sequence[str],
    title: str,
) -> bytes:
    """A PNG.  crops: of the m images answered, in that order.  A sheet even where nothing is wrong, which then says so.

    predicted, confidence: [m]; truth: integers [m].  Raises DataError for an image that cannot be read.
    """
    rows = worst(predicted, confidence, truth)
    wrong, count = int((predicted.numpy() != truth).sum()), len(truth)
    images: list[np.ndarray] = []
    for keys in Parts(crops.ids, [rows] if len(rows) else []):
        images += list(crops.completed(crops.batch(keys))["image"].numpy())
    captions = [
        [
            (f"truth {classes[int(truth[row])]}", ""),
            (f"said {classes[int(predicted[row])]}", f", {percent(float(confidence[row]))}"),
            (crops.pixels.source.name_of(int(crops.ids[row])), ""),
        ]
        for row in rows
    ]
    said = f"{wrong:,} of {count:,} answers are wrong ({100 * wrong / count:.1f} %)"
    if wrong > len(rows):
        said += f"; here are the {len(rows)} surest of them"
    data = io.BytesIO()
    sheet(images, captions, [title, said if wrong else f"none of {count:,} answers is wrong"]).save(data, "PNG")
    return data.getvalue()


def percent(share: float) -> str:
    """Never 100 % of what is less: it was wrong."""
    return f"{100 * share:.0f} %" if share < 0.995 or share >= 1 else f"{min(100 * share, 99.99):.2f} %"
