"""Which patches are hidden, and what becomes of them.

A mask is drawn for one sample from the bits of its own key, so it does not depend on the batch, the worker or the rank; counts are exact,
so every shape is static.
Letters: B batch, N patches, K visible, M predicted, D embedding dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mpp.config.pretrain import DropCorruption, RandomMask, ReplaceCorruption
from mpp.rng import Draws, below_of, permutation_of

VISIBLE, MASKED, SWAPPED, KEPT = range(4)


@dataclass(frozen=True)
class Mask:
    """Of one sample.  kind, source: [N]; visible: [K]; predicted: [M].  All int64."""

    kind: np.ndarray  # VISIBLE, MASKED, SWAPPED or KEPT
    source: np.ndarray  # whose clean embedding a patch shows: another patch's where SWAPPED, else its own
    visible: np.ndarray  # what a dropping encoder sees, ascending
    predicted: np.ndarray  # the patches in the loss, ascending


@dataclass(frozen=True)
class Masking:
    """Draws masks of `patches` patches."""

    patches: int
    mask: RandomMask
    corruption: ReplaceCorruption | DropCorruption

    @cached_property
    def _parts(self) -> list[int]:
        """How many of the hidden patches are masked, swapped and kept."""
        assert isinstance(self.corruption, ReplaceCorruption)
        return largest_remainder(self.hidden, [self.corruption.mask, self.corruption.swap, self.corruption.keep])

    def draw(self, draws: Draws) -> Mask:
        masks = self.draw_all([draws])
        return Mask(masks.kind[0], masks.source[0], masks.visible[0], masks.predicted[0])

    def draw_all(self, draws: Sequence[Draws]) -> Mask:
        """Of B samples, each array with a dimension B before its own: the same masks as one by one, in less time."""
        count, patches = len(draws), self.patches
        masked, swaps = self._parts[:2] if isinstance(self.corruption, ReplaceCorruption) else (self.hidden, 0)
        bits = np.stack([each.bits(patches + swaps) for each in draws])
        hidden = permutation_of(bits[:, :patches])[:, : self.hidden]
        kind = np.zeros((count, patches), dtype=np.int64)  # VISIBLE
        source = np.tile(np.arange(patches, dtype=np.int64), (count, 1))
        sample = np.arange(count)[:, None]
        kind[sample, hidden] = KEPT
        kind[sample, hidden[:, :masked]] = MASKED
        swapped = hidden[:, masked : masked + swaps]
        kind[sample, swapped] = SWAPPED
        # Uniform over the other positions: N - 1 steps onwards at most, never back to itself.
        source[sample, swapped] = (swapped + 1 + below_of(bits[:, patches:], patches - 1)) % patches
        visible = (kind == VISIBLE).nonzero()[1].reshape(count, patches - self.hidden)
        return Mask(kind, source, visible, predicted=kind.nonzero()[1].reshape(count, self.hidden))

    @property
    def masked(self) -> int:
        """How many of the hidden patches show nothing of themselves or of another: what skill is measured on."""
        return self._parts[0] if isinstance(self.corruption, ReplaceCorruption) else self.hidden

    @cached_property
    def hidden(self) -> int:
        """How many patches are chosen.  A dropping encoder keeps floor(N (1 - ratio)) (MAE); a replacing one hides round(N ratio)."""
        if isinstance(self.corruption, DropCorruption):
            return self.patches - max(1, math.floor(self.patches * (1 - self.mask.ratio) + 1e-9))
        return min(self.patches - 1, max(1, math.floor(self.patches * self.mask.ratio + 0.5)))

    @property
    def drops(self) -> bool:
        return isinstance(self.corruption, DropCorruption)


def largest_remainder(total: int, shares: list[float]) -> list[int]:
    """Whole numbers that sum to `total`, as near to `total * shares` as can be (Hamilton's method; ties to the earlier share)."""
    exact = [total * share for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (round(counts[i] - exact[i], 9), i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def corrupt(embeddings: Tensor, kind: Tensor, source: Tensor, mask_token: Tensor) -> Tensor:
    """embeddings [B, N, D], kind [B, N], source [B, N], mask_token [D] -> corrupted embeddings [B, N, D] (ViT B.1.2).

    Swapped patches show the clean embedding of their source, whatever became of the source itself.
    """
    shown = embeddings.gather(1, source.unsqueeze(-1).expand_as(embeddings))
    return torch.where((kind == MASKED).unsqueeze(-1), mask_token.to(shown.dtype), shown)
