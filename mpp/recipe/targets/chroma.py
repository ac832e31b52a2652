"""The colour of each pixel without its brightness: a and b of CIE L*a*b* (colourisation, arXiv 1603.08511): one of the classic pretexts.

The source predicts one of 313 classes of colour; the regression is ours.  For classes of colours see mean_color with corruption.name=grey.
Letters: B batch, M predicted patches, P patch side in pixels.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mpp.recipe.baselines import ValueBaselines
from mpp.recipe.distances import Distance, Kind
from mpp.recipe.targets.base import Given, PatchTarget, TargetSection

SCALE = 10.0  # goals are a and b in tens, so that those of photographs deviate by about one; of a screen, a is -8.6..9.8 and b -10.8..9.4
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)  # of linear sRGB (ITU-R BT.709's primaries)
WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees
LINEAR = (6 / 29) ** 3  # below it L*a*b*'s cube root is a line (CIE 15)


class ChromaTarget(TargetSection):
    name: Literal["chroma"] = "chroma"
    loss: Kind = "l2"  # ours
    beta: Annotated[float, Field(gt=0)] = 1.0  # of loss=smooth_l1: quadratic below it, linear beyond; in tens of a* and b*

    def build(self, given: Given) -> "Chroma":
        return Chroma(given.patch_size, Distance(self.loss, self.beta))


@dataclass(frozen=True)
class Chroma(PatchTarget):
    """Goals are float32 [B, M, P, P, 2]."""

    patch_size: int
    distance: Distance

    @property
    def outputs(self) -> int:
        return self.patch_size**2 * 2

    @property
    def baselines(self) -> ValueBaselines:
        return ValueBaselines(self.distance)

    @property
    def caption(self) -> str:
        return "predicted colour, with the true brightness"

    def cells(self, patches: Tensor) -> Tensor:
        return to_lab(patches.float().permute(0, 1, 3, 4, 2))[..., 1:] / SCALE

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return self.distance(self.answer(prediction) - goal).mean(dim=(2, 3, 4))

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float().unflatten(-1, (self.patch_size, self.patch_size, 2))

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor | None = None) -> Tensor:
        bright = to_lab(patches.float().permute(0, 1, 3, 4, 2))[..., :1]
        return from_lab(torch.cat([bright, goal * SCALE], dim=-1)).permute(0, 1, 4, 2, 3)


def to_lab(colors: Tensor) -> Tensor:
    """sRGB float [..., 3], 0..255 -> L* 0..100, a*, b*."""
    share = colors.clamp(0, 255) / 255
    linear = torch.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    ratio = linear @ colors.new_tensor(TO_XYZ).T / colors.new_tensor(WHITE)
    x, y, z = torch.where(ratio > LINEAR, ratio.clamp_min(LINEAR) ** (1 / 3), ratio * (841 / 108) + 4 / 29).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def from_lab(lab: Tensor) -> Tensor:
    """L* 0..100, a*, b*, float [..., 3] -> sRGB 0..255, cut to what a screen can show."""
    bright, a, b = lab.unbind(-1)
    y = (bright + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], dim=-1)
    ratio = torch.where(root > 6 / 29, root**3, (root - 4 / 29) * (108 / 841))
    linear = ((ratio * lab.new_tensor(WHITE)) @ torch.linalg.inv(lab.new_tensor(TO_XYZ)).T).clamp(0, 1)
    share = torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return share.clamp(0, 1) * 255
