"""Several blocks to predict, and a context without them (I-JEPA, arXiv 2301.08243, 3 and appendix A.1).

Each target block is a rectangle at a random place, blocks may overlap; the context is one large rectangle less all of them; what is neither in
the context nor in a target is seen by nobody.  The authors draw one size and shape of target blocks for a batch, and then cut all contexts to the
smallest in it.  Ours, so that counts follow from the config alone: the size is the middle of the authors' range, each block has a shape of its
own, and its last row is cut short; of the context a random part is kept, and where too little of it is left, patches from outside of it are added.
Letters: B samples, N patches of a grid of rows x columns.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mpp.base.rng import Draws
from mpp.config.schema import Positive
from mpp.recipe.masks.base import Corruption, MaskSection, Shares, Sides, block_at, in_order, permutations, rectangle
from mpp.recipe.places import Grid, Places


class MultiBlockMask(MaskSection):
    name: Literal["multi_block"] = "multi_block"
    blocks: Positive = 4  # to predict (I-JEPA)
    block: Annotated[float, Field(gt=0, lt=1)] = 0.175  # share of the patches in each (I-JEPA: 0.15 to 0.2)
    aspect: Sides = (0.75, 1.5)  # height / width of a block, uniform (I-JEPA, the authors' code)
    context: Shares = (0.85, 1.0)  # share of the patches in the rectangle that the context is cut from, of the grid's own shape (I-JEPA)
    visible: Annotated[float, Field(gt=0, lt=1)] = (
        0.3  # share of the patches that the encoder sees (ours: what four blocks that do not overlap leave)
    )

    @property
    def groups(self) -> int:
        return self.blocks

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        patches, count, seen = self._counts(grid)
        if not count or not seen:
            raise ValueError(
                f"mask.block={self.block} and mask.visible={self.visible} of {patches} patches must be at least one each; "
                f"take {math.ceil(1e4 / patches) / 1e4:g} or more"
            )
        if seen + self.blocks * count > patches:
            raise ValueError(
                f"mask.visible={self.visible} and mask.blocks={self.blocks} blocks of mask.block={self.block} must fit beside each other on "
                f"{patches} patches: {seen} + {self.blocks} x {count} are {seen + self.blocks * count - patches} too many; lower one of them"
            )

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        patches, count, seen = self._counts(grid)
        order = permutations(patches, draws)
        targets = np.empty((len(draws), self.blocks, count), np.int64)
        wanted = np.zeros((len(draws), patches), np.int64)  # 0: in the context; 1: outside of it; 2: to be predicted
        for sample, each in enumerate(draws):
            numbers = each.uniform(3 * self.blocks + 3)
            wanted[sample] = 1
            wanted[sample, self._context(grid, *numbers[-3:])] = 0
            for block in range(self.blocks):
                targets[sample, block] = self._block(grid, count, *numbers[3 * block : 3 * block + 3])
            wanted[sample, targets[sample]] = 2
        # The context's own patches first, each part in random order.
        first = np.argsort(np.take_along_axis(wanted, order, axis=1), axis=1, kind="stable")
        by_rank = np.take_along_axis(order, first, axis=1)
        hidden = np.zeros((len(draws), patches), bool)
        np.put_along_axis(hidden, by_rank[:, seen:], True, axis=1)
        return Places(in_order(order, hidden), targets.reshape(len(draws), -1))

    def _counts(self, grid: Grid) -> tuple[int, int, int]:
        """Patches of the grid, of a block, and that are seen."""
        patches = grid[0] * grid[1]
        return patches, math.floor(patches * self.block + 0.5), math.floor(patches * self.visible + 0.5)

    def _block(self, grid: Grid, count: int, shape: float, down: float, across: float) -> np.ndarray:
        low, high = self.aspect
        height, width = rectangle(count, round(math.sqrt(count / (low + (high - low) * shape))), grid)
        top, start = int(down * (grid[0] - height + 1)), int(across * (grid[1] - width + 1))
        return block_at(count, (height, width), top, start, grid)

    def _context(self, grid: Grid, size: float, down: float, across: float) -> np.ndarray:
        (rows, columns), (low, high) = grid, self.context
        side = math.sqrt(low + (high - low) * size)
        height, width = max(1, round(rows * side)), max(1, round(columns * side))
        top, start = int(down * (rows - height + 1)), int(across * (columns - width + 1))
        return block_at(height * width, (height, width), top, start, grid)
