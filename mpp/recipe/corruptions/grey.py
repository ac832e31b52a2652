"""Hidden patches lose their colour and keep their brightness: what is to be found out is the colour (arXiv 1603.08511).

The source gives the lightness of L*a*b* to its network; ours is the brightness of a black-and-white picture, in three equal channels.
"""

from typing import Literal

import torch
from torch import Tensor

from mpp.recipe.corruptions.base import CorruptionSection
from mpp.recipe.patches import patchify, unpatchify
from mpp.recipe.places import MASKED, Masks

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601, as Pillow's convert("L"))


class GreyCorruption(CorruptionSection):
    name: Literal["grey"] = "grey"

    @property
    def shows_all(self) -> bool:
        return True

    @property
    def caption(self) -> str:
        return "hidden patches are grey"

    @property
    def legend(self) -> dict[int, str]:
        return {MASKED: "without colour"}

    def pixels(self, images: Tensor, masks: Masks[Tensor], mask_token: Tensor | None) -> Tensor:
        side = round((images.shape[2] * images.shape[3] / masks.kind.shape[1]) ** 0.5)
        patches = patchify(images, side)
        grey = sum(weight * patches[:, :, channel : channel + 1] for channel, weight in enumerate(LUMA))
        shown = torch.where((masks.kind == MASKED)[:, :, None, None, None], grey, patches)
        return unpatchify(shown, (images.shape[2] // side, images.shape[3] // side))

    def picture(self, images: Tensor, masks: Masks[Tensor], patch_size: int, mask_token: Tensor | None) -> Tensor:
        return self.pixels(images, masks, mask_token)
