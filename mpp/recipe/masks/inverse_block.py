"""One block that stays visible, everything around it hidden (CAPI, arXiv 2502.08769, and the authors' code).

The visible rectangle holds an exact count, its last row cut short, and has a shape that fits into the grid; then the mask is rolled with
wrap-around, so that the block may lie across the border and all places are hidden equally often.
Letters: B samples, N patches of a grid of rows x columns, K visible.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StrictBool

from mpp.base.rng import Draws
from mpp.recipe.masks.base import Corruption, Sides, ThinnedMask, block_at, in_order, permutations, rectangle
from mpp.recipe.places import Grid, Places


class InverseBlockMask(ThinnedMask):
    name: Literal["inverse_block"] = "inverse_block"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 166 / 256  # of the patches hidden, exact count (CAPI: 65 %, rounded down)
    aspect: Sides = (0.5, 2.0)  # height / width of the visible block, log-uniform (CAPI); of these, what fits into the grid
    roll: StrictBool = True  # with wrap-around (CAPI); without it the block lies inside of the grid

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        patches = grid[0] * grid[1]
        self.leaves_some(self.ratio, patches, corruption.hidden(patches, self.ratio), patches)

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        patches = grid[0] * grid[1]
        count = patches - corruption.hidden(patches, self.ratio)
        order = permutations(patches, draws)
        chosen = np.ones((len(draws), patches), bool)
        for sample, each in enumerate(draws):
            chosen[sample, self._block(grid, count, *each.uniform(3))] = False
        hidden = in_order(order, chosen)
        return Places(hidden, self.thinned(hidden, patches, draws))

    def _block(self, grid: Grid, count: int, shape: float, down: float, across: float) -> np.ndarray:
        """int64 [K]."""
        rows, columns = grid
        low, high = (math.log(min(max(aspect, count / columns**2), rows**2 / count)) for aspect in self.aspect)  # such as fit
        height, width = rectangle(count, math.ceil(math.sqrt(count / math.exp(low + (high - low) * shape)) - 1e-9), grid)
        free = (rows, columns) if self.roll else (rows - height + 1, columns - width + 1)
        return block_at(count, (height, width), int(down * free[0]), int(across * free[1]), grid)
