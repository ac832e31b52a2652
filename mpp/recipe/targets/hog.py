"""Histograms of oriented gradients: which way the edges run in each cell of a patch (MaskFeat, arXiv 2112.09133, 3.2).

Of the paper: the gradients are those of the whole clean image, across patches; each channel has a histogram of its own; a pixel votes with its
gradient's length; each histogram is of unit length.  What the text leaves open is as in the authors' code (SlowFast, HOGLayerC): Sobel's
differences, mirrored borders, a vote for one bin of one cell, bins counted from the vertical, each cell's histogram normalised alone, neither
gamma nor a window.  Ours: a cell without a gradient is all zeros, and the mean of the loss is over all values of a patch.
Letters: B batch, M predicted patches, S image side and P patch side in pixels, c cell side, g = P / c cells a side, V = 3 x bins.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mpp.config.schema import Positive
from mpp.recipe.baselines import ValueBaselines
from mpp.recipe.distances import Distance
from mpp.recipe.patches import gather_patches, patchify
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import FixedTarget, Given, TargetSection
from mpp.recipe.teacher import Teacher


class HogTarget(TargetSection):
    name: Literal["hog"] = "hog"  # MaskFeat
    bins: Annotated[int, Field(ge=2)] = 9  # unsigned orientations, a channel (MaskFeat)
    cell: Positive = 8  # pixels a side (MaskFeat)

    def fits(self, patch_size: int, mask: str) -> None:
        if patch_size % self.cell:
            sides = ", ".join(str(side) for side in range(1, patch_size + 1) if patch_size % side == 0)
            raise ValueError(f"target.cell={self.cell} must divide model.patch_size={patch_size}; cells that fit have sides of {sides}")

    def build(self, given: Given) -> "Hog":
        return Hog(given.patch_size, self.bins, self.cell)


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """images [B, 3, S, S] -> how steeply they rise to the right, and downwards, each float32 [B, 3, S, S].

    Sums and not a convolution: whole numbers stay exact on every device.
    """
    around = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    columns = around[..., :-2, :] + 2 * around[..., 1:-1, :] + around[..., 2:, :]
    rows = around[..., :-2] + 2 * around[..., 1:-1] + around[..., 2:]
    return columns[..., 2:] - columns[..., :-2], rows[..., 2:, :] - rows[..., :-2, :]


def orientation(right: Tensor, down: Tensor, bins: int) -> Tensor:
    """Gradients -> int64 in [0, bins), alike for opposite ones: equal parts of the half turn from down over right to up."""
    turned = (right < 0) | ((right == 0) & (down < 0))
    angle = torch.atan2(right.abs(), torch.where(turned, -down, down))  # [0, pi): exactly 0 for a vertical one
    return (angle * (bins / math.pi)).long().clamp(max=bins - 1)


@dataclass(frozen=True)
class Hog(FixedTarget):
    """Goals are float32 [B, M, g, g, V], V channel by channel; the loss is the squared error."""

    patch_size: int
    bins: int
    cell: int  # pixels a side

    @property
    def grid(self) -> int:
        return self.patch_size // self.cell

    @property
    def outputs(self) -> int:
        return self.grid**2 * 3 * self.bins

    @property
    def baselines(self) -> ValueBaselines:
        return ValueBaselines(Distance())

    @property
    def caption(self) -> str:
        return f"histograms of {self.bins} orientations in cells of {self.cell}x{self.cell} pixels; strokes run along the edges, in the colour of their channel"

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None = None) -> Tensor:
        right, down = (gather_patches(patchify(slope, self.patch_size), masks.predicted) for slope in gradients(images))  # [B, M, 3, P, P]
        length, number = torch.hypot(right, down), orientation(right, down, self.bins)
        # Bin by bin: all at once would take `bins` times the memory, and a scatter adds in another order each time on a GPU.
        votes = torch.stack([self._sums(length.where(number == k, 0)) for k in range(self.bins)], dim=-1)
        return F.normalize(votes, dim=-1).permute(0, 1, 3, 4, 2, 5).flatten(-2)

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return (self.answer(prediction) - goal).square().mean(dim=(2, 3, 4))

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float().unflatten(-1, (self.grid, self.grid, 3 * self.bins))

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor | None = None) -> Tensor:
        """On black, a stroke for each bin across its cell, as bright as its value; where strokes cross, the brighter one."""
        values = goal.unflatten(-1, (3, self.bins)).clamp(0, 1)[..., None, None]
        shown = (values * strokes(self.bins, self.cell).to(goal.device)).amax(dim=-3)  # [B, M, g, g, 3, c, c]
        return 255 * shown.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def _sums(self, votes: Tensor) -> Tensor:
        """[B, M, 3, P, P] -> of each cell [B, M, 3, g, g]."""
        return votes.unflatten(-1, (self.grid, self.cell)).unflatten(-3, (self.grid, self.cell)).sum(dim=(-3, -1))


def strokes(bins: int, side: int) -> Tensor:
    """float32 [bins, side, side], 0..1: a line through the middle, at a right angle to the middle gradient of each bin."""
    angle = ((torch.arange(bins) + 0.5) * (math.pi / bins))[:, None, None]
    place = torch.arange(side) - (side - 1) / 2
    distance = (place * angle.sin() + place[:, None] * angle.cos()).abs()  # of pixels from the line
    return (1.25 - distance).clamp(0, 1)
