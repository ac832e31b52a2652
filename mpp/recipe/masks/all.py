"""Every patch is to be predicted: for corruptions that still show something of each, such as its grey levels."""

from collections.abc import Sequence
from typing import Literal

from mpp.base.rng import Draws
from mpp.recipe.masks.base import Corruption, ThinnedMask, between, permutations
from mpp.recipe.places import Grid, Places


class AllMask(ThinnedMask):
    name: Literal["all"] = "all"

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        if not corruption.shows_all:
            raise ValueError(
                f"mask.name=all hides every patch, and corruption.name={corruption.name} shows nothing of some; take corruption.name=grey, "
                "which shows how bright they are, or mask.name=random"
            )
        patches = grid[0] * grid[1]
        if self.predicted is not None and not self._count(patches):
            raise ValueError(
                f"mask.predicted={self.predicted} of {patches} patches is none; {between(1, patches, patches)}, or null for all of them"
            )

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        hidden = permutations(grid[0] * grid[1], draws)
        return Places(hidden, self.thinned(hidden, grid[0] * grid[1], draws))
