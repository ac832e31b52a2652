"""The picture of docs/recipes.md: every mask that hides a part of an image, as mpp/recipe/masks/ draws it for the first samples of seed 0.

    python benchmarks/draw_masks.py docs/masks.png

The same on every machine with the Pillow of constraints.txt, as masks depend on nothing but their keys.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mpp.base.rng import MASK, Draws
from mpp.recipe.corruptions import DropCorruption, ReplaceCorruption
from mpp.recipe.masking import Masking
from mpp.recipe.masks import BlockMask, InverseBlockMask, MultiBlockMask, RandomMask
from mpp.recipe.places import KEPT, SWAPPED, VISIBLE, Masks

MIX, ALL, DROP = ReplaceCorruption(), ReplaceCorruption(mask=1, swap=0, keep=0), DropCorruption()
ROWS: list[tuple[str, str, Masking]] = [
    ("random, 50 %", "ViT B.1.2: 80 / 10 / 10", Masking((14, 14), RandomMask(), MIX)),
    ("random, 75 %", "MAE", Masking((14, 14), RandomMask(ratio=0.75), DROP)),
    ("random, 75 %, predicted: 0.25", "CrossMAE", Masking((14, 14), RandomMask(ratio=0.75, predicted=0.25), DROP)),
    ("random, 60 %, unit: 2", "SimMIM: 32 pixels", Masking((14, 14), RandomMask(ratio=0.6122, unit=2), ALL)),
    ("random, 75 %, unit: 4", "Pixio, on 16 x 16", Masking((16, 16), RandomMask(ratio=0.75, unit=4), DROP)),
    ("block, 40 %", "BEiT, MaskFeat", Masking((14, 14), BlockMask(), ALL)),
    ("multi_block", "I-JEPA: 4 blocks, a context", Masking((14, 14), MultiBlockMask(), DROP)),
    ("inverse_block, predicted: 0.03125", "CAPI, on 16 x 16", Masking((16, 16), InverseBlockMask(predicted=0.03125), DROP)),
    ("block, 50 %, on 8 x 20", "any grid, any mix", Masking((8, 20), BlockMask(ratio=0.5, min_patches=6), MIX)),
]  # fmt: skip
STATES = {  # of a patch, in the order of the legend
    "seen": (255, 243, 205),
    "hidden, predicted": (47, 72, 120),
    "swapped, predicted": (230, 126, 34),
    "kept, predicted": (39, 155, 106),
    "in several target blocks": (20, 26, 58),
    "hidden, not predicted": (178, 186, 200),
}
SAMPLES = 6
SIDE, GAP, LEFT, WORDS = 112, 10, 250, 66  # pixels: of a tile, between tiles, left of them, three lines high


def states_of(masks: Masks[np.ndarray]) -> np.ndarray:
    """Of each patch its number in STATES, [B, N]."""
    times = np.stack([np.bincount(predicted, minlength=masks.kind.shape[1]) for predicted in masks.predicted])
    found = np.where(masks.kind == VISIBLE, 0, np.where(times == 0, 5, np.where(times > 1, 4, 1)))
    return np.where((times > 0) & (masks.kind == SWAPPED), 2, np.where((times > 0) & (masks.kind == KEPT), 3, found))


def tile(states: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """One sample: a square for each patch, with a line between."""
    step = max(1, SIDE // max(grid))
    picture = Image.new("RGB", (grid[1] * step + 1, grid[0] * step + 1), "white")
    pen, colours = ImageDraw.Draw(picture), list(STATES.values())
    for place, state in enumerate(states):
        top, left = place // grid[1] * step, place % grid[1] * step
        pen.rectangle((left, top, left + step, top + step), fill=colours[state], outline=(255, 255, 255))
    pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=(120, 120, 120))
    return picture


def sheet() -> Image.Image:
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    drawn = [masking.draw_all([Draws(0, MASK, 0, sample) for sample in range(SAMPLES)]) for _, _, masking in ROWS]
    rows = [[tile(states, masking.grid) for states in states_of(masks)] for (_, _, masking), masks in zip(ROWS, drawn, strict=True)]
    top = 34
    picture = Image.new("RGB", (LEFT + SAMPLES * (SIDE + 2 + GAP), top + sum(max(row[0].height, WORDS) + GAP for row in rows)), "white")
    pen, left = ImageDraw.Draw(picture), GAP
    for words, colour in STATES.items():
        pen.rectangle((left, 10, left + 13, 23), fill=colour, outline=(120, 120, 120))
        pen.text((left + 18, 9), words, fill="black", font=small)
        left += 18 + int(small.getlength(words)) + 16
    for (words, source, masking), row in zip(ROWS, rows, strict=True):
        counts = masking.counts
        predicted = f"{groups} x {counts.predicted // groups}" if (groups := masking.mask.groups) > 1 else counts.predicted
        parts = f"{counts.visible} seen, {counts.hidden} hidden, {predicted} predicted"
        for line, (text, kind) in enumerate(((words, font), (source, small), (parts, small))):
            pen.text((GAP, top + 6 + 20 * line), text, fill="black" if line == 0 else (80, 80, 80), font=kind)
        for sample, each in enumerate(row):
            picture.paste(each, (LEFT + sample * (SIDE + 2 + GAP), top))
        top += max(row[0].height, WORDS) + GAP
    return picture.quantize(64, dither=Image.Dither.NONE)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw every mask.")
    parser.add_argument("picture", type=Path, help="a PNG file")
    sheet().save(parser.parse_args(argv).picture, optimize=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
