"""Colours as classes: the mean colour of a patch, or of each of g x g cells of it (ViT B.1.2, options 1 and 2).

Letters: B batch, M patches, P patch side in pixels, g cells a side.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mpp.config.schema import Positive
from mpp.recipe.baselines import ClassBaselines
from mpp.recipe.targets.base import Given, PatchTarget, TargetSection


class MeanColorTarget(TargetSection):
    name: Literal["mean_color"] = "mean_color"  # ViT B.1.2 (1)
    bits: Annotated[int, Field(ge=1, le=8)] = 3  # a channel: 2 ** (3 * bits) classes

    def build(self, given: Given) -> "ColorClasses":
        return ColorClasses(given.patch_size, grid=1, bits=self.bits)


class ColorGridTarget(TargetSection):
    name: Literal["color_grid"] = "color_grid"  # ViT B.1.2 (2)
    bits: Annotated[int, Field(ge=1, le=8)] = 3  # a channel
    grid: Positive = 4  # cells a side

    def fits(self, patch_size: int, mask: str) -> None:
        if self.grid > patch_size:
            raise ValueError(f"target.grid={self.grid} must not exceed model.patch_size={patch_size}")

    def build(self, given: Given) -> "ColorClasses":
        return ColorClasses(given.patch_size, grid=self.grid, bits=self.bits)


def color_class(colors: Tensor, bits: int) -> Tensor:
    """colors float [..., 3], 0..255 -> class int64 [...], `bits` a channel, red highest.

    Source: ViT B.1.2; equal bins of 256 / 2^bits levels are ours.
    """
    level = (colors.clamp(0, 255) / 2 ** (8 - bits)).long().clamp(max=2**bits - 1)
    red, green, blue = level.unbind(-1)
    return (red << 2 * bits) | (green << bits) | blue


def class_color(classes: Tensor, bits: int) -> Tensor:
    """class int64 [...] -> the colour in the middle of its bin, float [..., 3], 0..255."""
    level = torch.stack([(classes >> shift) & (2**bits - 1) for shift in (2 * bits, bits, 0)], dim=-1)
    return (level.float() + 0.5) * 2 ** (8 - bits)


@dataclass(frozen=True)
class ColorClasses(PatchTarget):
    """Goals are class numbers int64 [B, M, g, g], the loss is the cross-entropy, averaged over cells.

    Where g does not divide P, cells are the windows of adaptive average pooling, which then overlap by a pixel (ours).
    """

    patch_size: int
    grid: int
    bits: int

    @property
    def outputs(self) -> int:
        return self.grid**2 * self.classes

    @property
    def classes(self) -> int:
        return 2 ** (3 * self.bits)

    @property
    def baselines(self) -> ClassBaselines:
        return ClassBaselines(self.classes)

    @property
    def caption(self) -> str:
        return f"likeliest of {self.classes} colours for each {'patch' if self.grid == 1 else f'of {self.grid}x{self.grid} cells'}, drawn as the middle of its bin"

    def cells(self, patches: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(patches.flatten(0, 1).float(), self.grid)
        return color_class(means.permute(0, 2, 3, 1), self.bits).unflatten(0, patches.shape[:2])

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        logits = self._logits(prediction).float()
        return F.cross_entropy(logits.flatten(0, -2), goal.flatten(), reduction="none").view(goal.shape).mean(dim=(2, 3))

    def answer(self, prediction: Tensor) -> Tensor:
        return self._logits(prediction).argmax(dim=-1)

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor | None = None) -> Tensor:
        colors = class_color(goal, self.bits).permute(0, 1, 4, 2, 3).flatten(0, 1)
        return F.interpolate(colors, size=patches.shape[-2:], mode="nearest").unflatten(0, goal.shape[:2])

    def _logits(self, prediction: Tensor) -> Tensor:
        return prediction.unflatten(-1, (self.grid, self.grid, self.classes))
