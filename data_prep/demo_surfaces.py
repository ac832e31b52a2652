"""Drawn pictures of brushed surfaces, whole and with defects, as class folders of images: OUT/{good,scratch,spot,dent}/NNNN.png.

    python data_prep/demo_surfaces.py OUT [--images 2000]

Drawn, not photographed: a stand-in for one's own images to try docs/tutorial.md with.  96 x 96 pixels in colour; four tenths are good, two tenths
have each kind of defect.  Grain, its direction, tone and lighting differ from image to image, in all classes alike; a defect lies anywhere.
The same images on every machine, but for rounding.
"""

from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mpp.base.errors import Parser, run_program
from mpp.base.rng import PREP, Draws
from mpp.base.text import say

SIDE = 96  # pixels
TENTH = ("good", "scratch", "good", "spot", "dent", "good", "scratch", "good", "spot", "dent")  # of ten images in a row
GRAIN, SHAPE = range(2)  # what a key's bits are for


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="how many (2000); a smaller draw is the beginning of a larger one"
    )
    options = parser.parse_args(argv)
    out, images = options.out, options.images
    if images < len(TENTH):
        parser.error(f"--images {images} is too few for four classes; give at least {len(TENTH)}")
    if out.exists():
        say(f"{out} is there already")
        return 0
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in set(TENTH):
        (temporary / name).mkdir(parents=True)
    for number in range(images):
        kind = TENTH[number % len(TENTH)]
        Image.fromarray(draw(number, kind)).save(temporary / kind / f"{number:04d}.png")
    temporary.rename(out)
    say(f"{out}: {images} drawn images of surfaces, {images // 10 * 2} and more of each kind of defect")
    return 0


def draw(number: int, kind: str) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3].  The surface belongs to the number alone, the defect to the number and its kind."""
    grain, shape = Draws(0, PREP, number, GRAIN), Draws(0, PREP, number, SHAPE)
    base, tint, light = surface(grain)
    defect = DEFECTS[kind](shape, light) if kind in DEFECTS else np.zeros((SIDE, SIDE, 3))
    noise = normal(grain, 3 * SIDE * SIDE).reshape(SIDE, SIDE, 3) * 1.2
    return np.clip(np.rint((base[..., None] + defect) * tint + noise), 0, 255).astype(np.uint8)


def surface(draws: Draws) -> tuple[np.ndarray, np.ndarray, float]:
    """Grey levels [SIDE, SIDE], the tone [3] they are multiplied with, and the angle from which the light comes."""
    level, slope, light, strength, along, across, blotches, *tone = between(
        draws, (100, 170), (0, 30), (0, 2 * np.pi), (1, 5), (20, 60), (1.0, 2.4), (2, 7), (0.9, 1.1), (0.92, 1.05), (0.85, 1.1)
    )
    (angle,) = between(draws, (-0.15, 0.15))
    white = normal(draws, SIDE * SIDE).reshape(SIDE, SIDE), normal(draws, SIDE * SIDE).reshape(SIDE, SIDE)
    brushed, coarse = smoothed(white[0], angle, along, across), smoothed(white[1], 0, 12, 12)
    rows, columns = grid()
    ramp = (np.cos(light) * columns + np.sin(light) * rows) / SIDE
    return level + slope * ramp + strength * brushed + blotches * coarse, np.array(tone), light


def scratch(draws: Draws, light: float) -> np.ndarray:
    """A thin bent line, dark with a bright flank on the side that the light does not come from."""
    angle, length, bend, width, depth = between(draws, (0, np.pi), (40, 84), (-10, 10), (0.8, 1.4), (28, 50))
    row, column = place(draws, 14)
    steps = np.linspace(-0.5, 0.5, 121)
    along, aside = steps * length, bend * (1 - 4 * steps**2)
    line_rows = row + along * np.sin(angle) + aside * np.cos(angle)
    line_columns = column + along * np.cos(angle) - aside * np.sin(angle)
    rows, columns = grid()
    near = lambda shift: np.exp(
        -np.min(
            (rows[..., None] - line_rows - shift * np.sin(light)) ** 2 + (columns[..., None] - line_columns - shift * np.cos(light)) ** 2,
            axis=-1,
        )
        / (2 * width**2)
    )
    return (depth * (0.6 * near(1.5) - near(0.0)))[..., None] * np.ones(3)


def spot(draws: Draws, light: float) -> np.ndarray:
    """One to three stains with ragged edges and a colour of their own."""
    (many,) = between(draws, (2, 6))
    found = np.zeros((SIDE, SIDE, 3))
    for _ in range(int(many)):
        radius, ragged, turned, depth, red, blue = between(draws, (4, 8), (0.05, 0.3), (0, 2 * np.pi), (20, 40), (0.5, 1.0), (0.9, 1.3))
        row, column = place(draws, 8)
        rows, columns = grid()
        edge = radius * (1 + ragged * np.cos(3 * np.arctan2(rows - row, columns - column) + turned))
        inside = 1 / (1 + np.exp((np.hypot(rows - row, columns - column) - edge) / 0.6))
        found -= (depth * inside)[..., None] * np.array([red, 1.0, blue])
    return found


def dent(draws: Draws, light: float) -> np.ndarray:
    """A hollow: its near side in shadow, its far side lit, by the light that falls on the whole surface."""
    radius, depth = between(draws, (8, 14), (32, 56))
    row, column = place(draws, 12)
    rows, columns = grid()
    down, right = (rows - row) / radius, (columns - column) / radius
    slope = (np.cos(light) * right + np.sin(light) * down) * np.exp(-(down**2 + right**2) / 2)
    return (depth * -slope)[..., None] * np.ones(3)


DEFECTS: dict[str, Callable[[Draws, float], np.ndarray]] = {"scratch": scratch, "spot": spot, "dent": dent}


def between(draws: Draws, *bounds: tuple[float, float]) -> list[float]:
    """One number for each (least, most), evenly."""
    return [low + (high - low) * each for each, (low, high) in zip(draws.uniform(len(bounds)), bounds, strict=True)]


def place(draws: Draws, margin: int) -> list[float]:
    """(row, column), not nearer than that to the border."""
    return between(draws, (margin, SIDE - margin), (margin, SIDE - margin))


def normal(draws: Draws, count: int) -> np.ndarray:
    """float64 [count], mean 0 and deviation 1 (Box and Muller)."""
    first, second = draws.uniform(count), draws.uniform(count)
    return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)


def smoothed(white: np.ndarray, angle: float, along: float, across: float) -> np.ndarray:
    """White noise [SIDE, SIDE] under a Gaussian of these deviations in pixels, turned by the angle; mean 0 and deviation 1."""
    down, right = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
    first, second = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    kept = np.fft.fft2(white) * np.exp(-2 * np.pi**2 * ((along * first) ** 2 + (across * second) ** 2))
    field = np.fft.ifft2(kept).real
    return (field - field.mean()) / field.std()


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel, [SIDE, SIDE] each."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    return rows, columns


if __name__ == "__main__":
    run_program(main)
