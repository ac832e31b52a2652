"""Every patch is to be predicted: for corruptions that still show something of each, such as its grey levels."""

from collections.abc import Sequence
from typing import Literal

from mpp.recipe.masks.base import Corruption, ThinnedMask, permutations
from mpp.recipe.places import Grid, Places
from mpp.rng import Draws


class AllMask(ThinnedMask):
    name: Literal["all"] = "all"

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        if not corruption.shows_all:
            raise ValueError(
                "mask.name=all hides every patch; it goes with a corruption that shows something of each: corruption.name=grey"
            )
        if self.predicted is not None and not self._count(grid[0] * grid[1]):
            raise ValueError(
                f"mask.predicted={self.predicted} of {grid[0] * grid[1]} patches is none; raise it, or set it to null for all of them"
            )

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        hidden = permutations(grid[0] * grid[1], draws)
        return Places(hidden, self.thinned(hidden, grid[0] * grid[1], draws))
