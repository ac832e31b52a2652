"""What a mask says of its samples."""

import math
from typing import NamedTuple

import numpy as np

Grid = tuple[int, int]  # rows, columns


class Places(NamedTuple):
    """Patch numbers, row by row, int64.  H, K and M follow from the config alone, so every shape is static."""

    hidden: np.ndarray  # [B, H], in random order: the corruption deals its parts out along it
    visible: np.ndarray | None = None  # [B, K] that a dropping encoder sees; None: all that are not hidden
    predicted: np.ndarray | None = None  # [B, M] that are in the loss; None: all that are hidden


def leaves_some(ratio: float, grid: Grid) -> int:
    """N.  ValueError where a share of them is none or all."""
    patches = grid[0] * grid[1]
    if not 0 < math.floor(patches * ratio + 0.5) < patches:
        raise ValueError(
            f"mask.ratio={ratio} of {patches} patches must leave some visible and some hidden; take one between {1 / patches:.2g} and {1 - 1 / patches:.2g}"
        )
    return patches
