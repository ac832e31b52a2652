"""Which patches are hidden, and what becomes of each of them: the words that masks, corruptions, decoders and targets share.

Letters: B samples, N patches of a grid of rows x columns, H hidden, K visible, M predicted.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int]  # rows, columns
Array = TypeVar("Array")
VISIBLE, MASKED, SWAPPED, KEPT = range(4)  # the kind of a patch
TURNS = 4  # of a whole image, by quarters, counter-clockwise


class Places(NamedTuple):
    """What a mask draws.  Patch numbers, row by row, int64.  H and M follow from the config alone, so every shape is static."""

    hidden: np.ndarray  # [B, H], in random order: the corruption deals its parts out along it
    predicted: np.ndarray | None = None  # [B, M] of them that are in the loss; None: all
    source: np.ndarray | None = None  # [B, N]: the patch that lies at each place, of a mask that moves patches; None: its own


class Masks(NamedTuple, Generic[Array]):
    """Of B samples, all int64: arrays where they are drawn, tensors where they are used."""

    kind: Array  # [B, N]: VISIBLE, MASKED, SWAPPED or KEPT
    source: Array  # [B, N]: whose clean embedding a patch shows: another patch's where SWAPPED, or where all are moved; else its own
    visible: Array  # [B, K]: what a dropping encoder sees, ascending
    predicted: Array  # [B, M]: the patches in the loss, hidden ones; ascending, or one group behind the other (masks/base.py)


def turns(source: Tensor) -> Tensor:
    """source [B, N] of square grids that were turned as wholes -> by how many quarters, int64 [B]: told by the corner that came first."""
    patches = source.shape[1]
    side = round(patches**0.5)
    corners = (0, side - 1, patches - 1, patches - side)
    return torch.stack([source[:, 0] == corner for corner in corners], dim=1).long().argmax(1)
