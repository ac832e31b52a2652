"""The image is turned as mask.name=turn drew it: patches lie at other places, and their pixels with them (RotNet, arXiv 1803.07728)."""

from typing import Literal

import torch
from torch import Tensor

from mpp.recipe.corruptions.base import CorruptionSection
from mpp.recipe.places import TURNS, Masks, turns


class RotateCorruption(CorruptionSection):
    name: Literal["rotate"] = "rotate"

    @property
    def shows_all(self) -> bool:
        return True

    @property
    def caption(self) -> str:
        return "the whole image is turned"

    def fits(self, mask: str) -> None:
        if mask != "turn":
            raise ValueError(f"corruption.name=rotate turns images as mask.name=turn draws it, not mask.name={mask}; take mask.name=turn")

    def pixels(self, images: Tensor, masks: Masks[Tensor], mask_token: Tensor | None) -> Tensor:
        turned = torch.stack([torch.rot90(images, turn, (2, 3)) for turn in range(TURNS)])  # counter-clockwise
        return turned[turns(masks.source), torch.arange(len(images), device=images.device)]

    def picture(self, images: Tensor, masks: Masks[Tensor], patch_size: int, mask_token: Tensor | None) -> Tensor:
        return self.pixels(images, masks, mask_token)
