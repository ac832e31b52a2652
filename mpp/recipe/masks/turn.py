"""The whole image is turned by 0, 90, 180 or 270 degrees, and how far is to be told (RotNet, arXiv 1803.07728, 3.1).

Nothing is hidden, but nothing lies where it was: every patch counts as hidden, and one answer for the image is predicted, at the first place.
The source shows all four turns of an image in one batch; ours is one turn a view, each as likely as any other (data.views gives more).
Letters: B samples, N patches of a grid of rows x columns.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mpp.base.rng import Draws, below_of
from mpp.recipe.masks.base import Corruption, MaskSection, permutations
from mpp.recipe.places import TURNS, Grid, Places


class TurnMask(MaskSection):
    name: Literal["turn"] = "turn"

    @property
    def asks_for_upright(self) -> bool:
        return True

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        if corruption.name != "rotate":
            raise ValueError(
                f"mask.name=turn turns whole images, and corruption.name={corruption.name} does not; take corruption.name=rotate"
            )
        if grid[0] != grid[1] or grid[0] < 2:
            raise ValueError(
                f"mask.name=turn needs a square grid of 2 x 2 patches or more, not {grid[0]} x {grid[1]}: a turned one must have the same shape, "
                "and corners that differ; take square images of more patches"
            )

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        patches = np.arange(grid[0] * grid[1]).reshape(grid)
        turned = np.stack([np.rot90(patches, turn).flatten() for turn in range(TURNS)])  # counter-clockwise
        turn = below_of(np.concatenate([each.bits(1) for each in draws]), TURNS)
        return Places(permutations(patches.size, draws), np.zeros((len(draws), 1), np.int64), turned[turn])
