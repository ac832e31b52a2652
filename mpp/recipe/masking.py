"""A mask and a corruption together: what is drawn for a sample before anybody looks at it.

It is drawn from the bits of the sample's own key, so it does not depend on the batch, the worker or the rank; counts are exact, so every
shape is static.
Letters: B samples, N patches, K visible, M predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mpp.base.rng import Draws, below_of
from mpp.recipe.corruptions import CorruptionConfig
from mpp.recipe.masks import MaskConfig
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE, Grid, Masks


class Counts(NamedTuple):
    """Patches of every sample."""

    hidden: int
    masked: int  # those that show nothing of themselves or of another, on which skill is measured
    visible: int
    predicted: int


@dataclass(frozen=True)
class Masking:
    grid: Grid  # rows, columns
    mask: MaskConfig
    corruption: CorruptionConfig

    def draw_all(self, draws: Sequence[Draws]) -> Masks[np.ndarray]:
        """Of B samples: the same masks as one by one, in less time."""
        places = self.mask.draw(self.grid, self.corruption, draws)
        hidden, patches, sample = places.hidden, self.patches, np.arange(len(draws))[:, None]
        masked, swaps, _ = self.corruption.parts(hidden.shape[1])
        kind = np.full((len(draws), patches), VISIBLE, dtype=np.int64)
        kind[sample, hidden] = KEPT
        kind[sample, hidden[:, :masked]] = MASKED
        source = np.tile(np.arange(patches, dtype=np.int64), (len(draws), 1)) if places.source is None else places.source
        if swaps:
            swapped = hidden[:, masked : masked + swaps]
            kind[sample, swapped] = SWAPPED
            # Uniform over the other positions: N - 1 steps onwards at most, never back to itself.
            steps = below_of(np.stack([each.bits(swaps) for each in draws]), patches - 1)
            source[sample, swapped] = (swapped + 1 + steps) % patches
        visible = (kind == VISIBLE).nonzero()[1].reshape(len(draws), -1)
        predicted = hidden if places.predicted is None else places.predicted
        return Masks(kind, source, visible, predicted if self.mask.groups > 1 else np.sort(predicted))

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @cached_property
    def counts(self) -> Counts:
        masks = self.draw_all([Draws(0, 0, 0)])
        return Counts(
            int((masks.kind != VISIBLE).sum()),
            int((masks.kind == MASKED).sum()),
            masks.visible.shape[1],
            masks.predicted.shape[1],
        )
