"""Patches chosen one by one, each as likely as any other."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mpp.config.schema import Section
from mpp.recipe.corruption import CorruptionConfig
from mpp.recipe.masks.base import Grid, Places, leaves_some
from mpp.rng import Draws, permutation_of


class RandomMask(Section):
    name: Literal["random"] = "random"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the patches, exact count (ViT B.1.2: 50 %; MAE: 75 %)

    def fits(self, grid: Grid, corruption: CorruptionConfig) -> None:
        leaves_some(self.ratio, grid)

    def draw(self, grid: Grid, corruption: CorruptionConfig, draws: Sequence[Draws]) -> Places:
        patches = grid[0] * grid[1]
        order = permutation_of(np.stack([each.bits(patches) for each in draws]))
        return Places(hidden=order[:, : corruption.hidden(patches, self.ratio)])
