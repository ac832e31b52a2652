"""Codebooks: centres of a target's goals, of which the nearest one's number is a class to be predicted (as BEiT's visual tokens are).

A target's section that inherits `CodebookKnobs` beside TargetSection has a codebook that mpp/fit_codebook.py has fitted; mpp/mains/pretrain.py reads it.
Letters: B batch, M predicted patches, C centres, V values of a patch, n points.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from mpp.config.schema import Section
from mpp.recipe.places import Masks
from mpp.recipe.teacher import Teacher

SCORES = 2**25  # points x centres at once: 128 MB


class CodebookKnobs(Section):
    path: str  # of a codebook that mpp/fit_codebook.py has fitted on these shards


class Values(Protocol):
    """What a codebook asks of the target (targets/base.py) whose goals, V values a patch, it has centres of."""

    @property
    def caption(self) -> str: ...
    @property
    def borrows(self) -> str | None: ...
    @property
    def looks_beyond(self) -> bool: ...
    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None) -> Tensor: ...
    def answer(self, prediction: Tensor) -> Tensor: ...
    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor: ...


class Codebook(nn.Module):
    """`of` is the target whose goals the centres are of, as it was when they were fitted.  No parameter, and no part of a model."""

    centres: Tensor

    def __init__(self, centres: Tensor, of: Values):
        """centres: float32 [C, V]."""
        super().__init__()
        self.register_buffer("centres", centres)
        self.of = of

    def __len__(self) -> int:
        return len(self.centres)

    def codes(self, goals: Tensor) -> Tensor:
        """Goals of `of`, [B, M, ...] -> int64 [B, M]."""
        return nearest(goals.flatten(2).flatten(0, 1), self.centres).view(goals.shape[:2])

    def goals(self, codes: Tensor) -> Tensor:
        """int64 [B, M] -> the goals of `of` that they stand for, [B, M, ...]."""
        return self.of.answer(self.centres[codes])


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """float32 [n, V] and [C, V] -> the number of each one's nearest centre (Euclidean), int64 [n]."""
    half_squares = centres.square().sum(1) / 2  # |x - c|^2 / 2, less what all centres share, is |c|^2 / 2 - x c
    parts = points.float().split(max(1, SCORES // len(centres)))
    return torch.cat([torch.addmm(half_squares, part, centres.T, alpha=-1).argmin(1) for part in parts])
