"""By how many quarters the whole image was turned (RotNet, arXiv 1803.07728): one of the classic pretexts, to compare with.

Letters: B batch, M predicted places, P patch side in pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpp.recipe.baselines import ClassBaselines
from mpp.recipe.places import TURNS, Masks, turns
from mpp.recipe.targets.base import FixedTarget, Given, TargetSection
from mpp.recipe.teacher import Teacher

ORANGE = (255.0, 110.0, 0.0)  # in pictures


class RotationTarget(TargetSection):
    name: Literal["rotation"] = "rotation"

    def fits(self, patch_size: int, mask: str) -> None:
        if mask != "turn":
            raise ValueError(
                f"target.name=rotation tells how far an image was turned, and mask.name={mask} turns none; take mask.name=turn"
            )

    def build(self, given: Given) -> "Rotation":
        return Rotation()


@dataclass(frozen=True)
class Rotation(FixedTarget):
    """Goals are class numbers int64 [B, M, 1, 1], quarter turns counter-clockwise; the loss is the cross-entropy."""

    @property
    def outputs(self) -> int:
        return TURNS

    @property
    def baselines(self) -> ClassBaselines:
        return ClassBaselines(TURNS)

    @property
    def caption(self) -> str:
        return "the first patch is orange on the side where the top of the image went"

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None = None) -> Tensor:
        return turns(masks.source)[:, None, None, None].expand(-1, masks.predicted.shape[1], 1, 1)

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(prediction.float().flatten(0, 1), goal.flatten(), reduction="none").view(goal.shape[:2])

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)[:, :, None, None]

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        """Black, and orange on the side where the top of the image lies after the turn."""
        side = patches.shape[-1]
        upright = torch.zeros(3, side, side, device=patches.device)
        upright[:, : max(1, side // 2)] = upright.new_tensor(ORANGE)[:, None, None]
        return torch.stack([torch.rot90(upright, turn, (1, 2)) for turn in range(TURNS)])[goal[:, :, 0, 0]]
