"""Patches chosen one by one, or in square units of them, each as likely as any other."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mpp.base.rng import Draws
from mpp.config.schema import Positive
from mpp.recipe.masks.base import Corruption, ThinnedMask, in_order, permutations
from mpp.recipe.places import Grid, Places


class RandomMask(ThinnedMask):
    name: Literal["random"] = "random"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the units, exact count (ViT B.1.2: 50 %; MAE: 75 %)
    unit: Positive = 1  # patches a side that are hidden together (SimMIM: 32 pixels; Pixio: 2 or 4 patches)

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        if grid[0] % self.unit or grid[1] % self.unit:
            sides = ", ".join(str(side) for side in range(1, min(grid) + 1) if grid[0] % side == 0 and grid[1] % side == 0)
            raise ValueError(
                f"mask.unit={self.unit} must divide the {grid[0]} x {grid[1]} grid of patches; units that fit have sides of {sides}"
            )
        units = self._units(grid)
        hidden = corruption.hidden(units, self.ratio) * self.unit**2
        self.leaves_some(
            self.ratio, units, hidden, units * self.unit**2, f"units of {self.unit} x {self.unit} patches" if self.unit > 1 else "patches"
        )

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        patches, units = grid[0] * grid[1], self._units(grid)
        hidden = permutations(units, draws)[:, : corruption.hidden(units, self.ratio)]
        if self.unit > 1:
            chosen = np.zeros((len(draws), units), bool)
            np.put_along_axis(chosen, hidden, True, axis=1)
            squares = chosen.reshape(len(draws), grid[0] // self.unit, grid[1] // self.unit)
            chosen = squares.repeat(self.unit, 1).repeat(self.unit, 2).reshape(len(draws), patches)
            hidden = in_order(permutations(patches, draws), chosen)
        return Places(hidden, self.thinned(hidden, patches, draws))

    def _units(self, grid: Grid) -> int:
        return grid[0] * grid[1] // self.unit**2
