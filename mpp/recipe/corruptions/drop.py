"""The encoder sees the visible patches only (MAE)."""

import math
from typing import Literal

import torch
from torch import Tensor

from mpp.recipe.corruptions.base import CorruptionSection
from mpp.recipe.patches import patchify, unpatchify
from mpp.recipe.places import MASKED, Masks

HATCH = (165.0, 225.0)  # its lines and its ground, of 0..255, in pictures


class DropCorruption(CorruptionSection):
    name: Literal["drop"] = "drop"

    @property
    def drops(self) -> bool:
        return True

    @property
    def caption(self) -> str:
        return "hidden patches are dropped"

    @property
    def legend(self) -> dict[int, str]:
        return {MASKED: "dropped"}

    def hidden(self, patches: int, ratio: float) -> int:
        """floor(N (1 - ratio)) are kept, and one at least (MAE)."""
        return patches - max(1, math.floor(patches * (1 - ratio) + 1e-9))

    def places(self, masks: Masks[Tensor]) -> Tensor:
        return masks.visible

    def picture(self, images: Tensor, masks: Masks[Tensor], patch_size: int, mask_token: Tensor | None) -> Tensor:
        """Hatched where nothing is seen."""
        grid = images.shape[2] // patch_size, images.shape[3] // patch_size
        seen = torch.zeros_like(masks.kind, dtype=torch.bool).scatter(1, masks.visible, True)
        side = torch.arange(patch_size, device=images.device)
        hatch = torch.where((side[:, None] + side) % 4 == 0, images.new_tensor(HATCH[0]), images.new_tensor(HATCH[1]))
        return unpatchify(torch.where(seen[:, :, None, None, None], patchify(images, patch_size), hatch), grid)
