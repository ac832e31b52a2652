"""Patches chosen block by block: rectangles of random size, shape and place, until so many are hidden (BEiT; MaskFeat 3.1).

After BEiT's code: each try draws an area between `min_patches` and what is left to hide, a shape and a place; it counts if the rectangle is
smaller than the grid both ways and hides something new, but no more than is left.  After 10 tries in vain BEiT stops, short of its count
(75 of 14 x 14: a third of the masks, by 1.6 patches on average).
Ours, for an exact count: what is then left is one more block that grows about a random visible patch, the nearest visible ones first.  On a
grid too narrow for any such rectangle, of one row say, that block is the whole mask.
Letters: B samples, N patches of a grid of rows x columns, H hidden.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mpp.base.rng import Draws
from mpp.config.schema import Positive
from mpp.recipe.masks.base import Corruption, Sides, ThinnedMask, in_order, permutations
from mpp.recipe.places import Grid, Places

TRIES = 10  # for each block (BEiT's code)
AHEAD = 16  # tries whose bits are taken at a time: most masks need fewer


class BlockMask(ThinnedMask):
    name: Literal["block"] = "block"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4  # of the patches, exact count (BEiT algorithm 1, MaskFeat; BEiT's code: 75 of 196)
    min_patches: Positive = 16  # of a block, overlaps included (BEiT; MaskFeat: 15); less where less is left to hide
    aspect: Sides = (0.3, 1 / 0.3)  # height / width of a block, log-uniform (BEiT's code)

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        patches = grid[0] * grid[1]
        hidden = corruption.hidden(patches, self.ratio)
        self.leaves_some(self.ratio, patches, hidden, patches)
        if self.min_patches > hidden:
            raise ValueError(
                f"mask.min_patches={self.min_patches} must not exceed the {hidden} of {patches} patches that mask.ratio={self.ratio} hides; "
                f"take mask.min_patches={max(1, hidden // 4)}, or a larger ratio"
            )

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        patches = grid[0] * grid[1]
        count = corruption.hidden(patches, self.ratio)
        order = permutations(patches, draws)
        hidden = in_order(order, np.stack([self.blocks(grid, count, each) for each in draws]))
        return Places(hidden, self.thinned(hidden, patches, draws))

    def blocks(self, grid: Grid, count: int, draws: Draws) -> np.ndarray:
        """bool [N]: the `count` hidden patches of one sample."""
        (rows, columns), shapes = grid, rectangles(grid)
        low, high = map(math.log, self.aspect)
        numbers = _uniform(draws)
        hidden, left, tries = 0, count, TRIES  # hidden: bit i is patch i
        while left and tries:
            tries -= 1
            area = self.min_patches + (left - self.min_patches) * next(numbers)  # below the minimum where less is left
            aspect = math.exp(low + (high - low) * next(numbers))
            down, across = next(numbers), next(numbers)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < height < rows and 0 < width < columns):
                continue
            top, start = int(down * (rows - height + 1)), int(across * (columns - width + 1))
            new = (shapes[height][width] << (top * columns + start)) & ~hidden
            if 0 < new.bit_count() <= left:
                hidden, left, tries = hidden | new, left - new.bit_count(), TRIES
        chosen = np.unpackbits(np.frombuffer(hidden.to_bytes(rows * columns // 8 + 1, "little"), np.uint8), bitorder="little")
        chosen = chosen[: rows * columns].astype(bool)
        if left:
            visible = np.flatnonzero(~chosen)
            row, column = np.divmod(visible, columns)
            middle = int(next(numbers) * len(visible))
            far = (row - row[middle]) ** 2 + (column - column[middle]) ** 2
            chosen[visible[np.argsort(far, kind="stable")[:left]]] = True
        return chosen


@cache
def rectangles(grid: Grid) -> list[list[int]]:
    """[height][width] -> the bits of such a rectangle in the upper left corner; all are smaller than the grid both ways."""
    rows, columns = grid
    return [[sum(((1 << width) - 1) << (row * columns) for row in range(height)) for width in range(columns)] for height in range(rows)]


def _uniform(draws: Draws) -> Iterator[float]:
    """In [0, 1), four for each try."""
    while True:
        yield from draws.uniform(4 * AHEAD).tolist()
