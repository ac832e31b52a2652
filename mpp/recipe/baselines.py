"""Trivial predictors of a target's cells, the yardstick of skill (monitor/skill.py fits and chooses them).

They see no more than the model does: the colour histogram, or mean value, of the data; the same of the image's visible patches; the nearest
cell of the nearest visible patch.  A target whose goals are cells on a patch's own grid names one of the two kinds here; one without, such as
a teacher's features, has no baseline, and so no skill.
Letters: B batch, N patches, m patches measured, g cells a side, C classes, V values a cell.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mpp.recipe.distances import Distance


class Baselines(Protocol):
    def constant(self, parts: Iterable[Tensor]) -> Tensor:
        """Cells [m, g, g(, V)], part by part -> what is predicted without looking."""

    def visible(self, cells: Tensor, shown: Tensor) -> Tensor:
        """Cells [B, N, g, g(, V)] and shown bool [B, N] -> a guess for each cell from the image's shown patches, as `loss` takes it."""

    def loss(self, constant: Tensor, guess: Tensor | None, weight: float, truth: Tensor) -> float:
        """Of (1 - weight) x constant + weight x guess, summed over patches; truth [m, g, g(, V)]; guess likewise (None: constant alone)."""


@dataclass(frozen=True)
class ClassBaselines:
    """Cells are class numbers int64 [..., g, g]; the loss is the cross-entropy of a histogram."""

    classes: int

    def constant(self, parts: Iterable[Tensor]) -> Tensor:
        """Probabilities [C], add-one smoothed."""
        counts = sum((torch.bincount(part.flatten(), minlength=self.classes) for part in parts), torch.zeros(self.classes))
        return (counts + 1) / (counts + 1).sum()

    def visible(self, cells: Tensor, shown: Tensor) -> Tensor:
        """The share [B, N, g, g] of each cell's true class among the image's shown cells."""
        counts = torch.zeros(len(cells), self.classes)
        inside = shown.view(*shown.shape, 1, 1).expand_as(cells)
        counts.scatter_add_(1, cells.flatten(1), inside.flatten(1).float())
        return (counts / counts.sum(1, keepdim=True).clamp_min(1)).gather(1, cells.flatten(1)).view(cells.shape)

    def loss(self, constant: Tensor, guess: Tensor | None, weight: float, truth: Tensor) -> float:
        """guess: the probability of the true class, or a class."""
        probability = constant[truth]
        if guess is not None:
            right = guess if guess.is_floating_point() else (guess == truth).float()
            probability = (1 - weight) * probability + weight * right
        return float(-probability.clamp_min(1e-12).log().flatten(1).mean(1).sum())


@dataclass(frozen=True)
class ValueBaselines:
    """Cells are values float [..., g, g, V]; the loss is the mean of their distances."""

    distance: Distance

    def constant(self, parts: Iterable[Tensor]) -> Tensor:
        """The mean [V]."""
        total, count = torch.zeros(1, dtype=torch.float64), 0
        for part in parts:
            values = part.flatten(0, -2)
            total, count = total + values.double().sum(0), count + len(values)
        return (total / max(1, count)).float()

    def visible(self, cells: Tensor, shown: Tensor) -> Tensor:
        """The mean over the image's shown cells, for every cell."""
        inside = shown.view(*shown.shape, 1, 1, 1)
        count = inside.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1) * cells.shape[2] * cells.shape[3]
        return ((cells * inside).sum(dim=(1, 2, 3), keepdim=True) / count).expand_as(cells)

    def loss(self, constant: Tensor, guess: Tensor | None, weight: float, truth: Tensor) -> float:
        value = constant.expand_as(truth) if guess is None else (1 - weight) * constant + weight * guess
        return float(self.distance(value - truth).flatten(1).mean(1).sum())
