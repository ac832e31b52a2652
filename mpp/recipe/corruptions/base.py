"""What every corruption answers to.  Letters: B samples, N patches, K visible, D embedding dimensions, S image side and P patch side in pixels."""

import math

import torch
from torch import Tensor

from mpp.config.schema import Section
from mpp.recipe.patches import gather_patches, patchify, unpatchify
from mpp.recipe.places import MASKED, Masks

GREY = 128.0  # of 0..255, in pictures


class CorruptionSection(Section):
    """The knobs of one, and what it does; the defaults here are those of a corruption that changes nothing."""

    name: str  # of the choice, and the first of its keys

    @property
    def drops(self) -> bool:
        """Whether the encoder sees the visible patches only."""
        return False

    @property
    def shows_all(self) -> bool:
        """Whether something of every hidden patch is still seen, so that all may be hidden."""
        return False

    @property
    def caption(self) -> str:
        """What a picture of it says."""
        raise NotImplementedError

    @property
    def legend(self) -> dict[int, str]:
        """What became of hidden patches, in words, by their kind (recipe/places.py), where a picture tells them apart."""
        return {}

    def fits(self, mask: str) -> None:
        """Raises ValueError where it does not go with a mask of this name."""
        if mask == "turn":
            raise ValueError(f"mask.name=turn turns whole images, and corruption.name={self.name} does not; take corruption.name=rotate")

    def hidden(self, patches: int, ratio: float) -> int:
        """How many patches a share of them is: the nearest whole number, and neither none nor all."""
        return min(patches - 1, max(1, math.floor(patches * ratio + 0.5)))

    def parts(self, hidden: int) -> tuple[int, int, int]:
        """How many of the hidden ones are masked, swapped and kept."""
        return hidden, 0, 0

    def token(self, width: int, patch_size: int) -> tuple[int, ...] | None:
        """The shape of the mask token that it needs; None: it needs none."""
        return None

    # What a recipe's forward pass does with it, in this order (recipe/model.py).

    def pixels(self, images: Tensor, masks: Masks[Tensor], mask_token: Tensor | None) -> Tensor:
        """Clean images float [B, 3, S, S], 0..255 -> what the patch embedding is given, likewise."""
        return images

    def embeddings(self, embeddings: Tensor, masks: Masks[Tensor], mask_token: Tensor | None) -> Tensor:
        """Patch embeddings without positions [B, N, D] -> what the encoder's blocks are given."""
        return embeddings

    def places(self, masks: Masks[Tensor]) -> Tensor | None:
        """The patches [B, K] whose tokens the encoder has; None: all, in order."""
        return None

    def picture(self, images: Tensor, masks: Masks[Tensor], patch_size: int, mask_token: Tensor | None) -> Tensor:
        """What the encoder sees, as far as it can be drawn: images like those given."""
        grid = images.shape[2] // patch_size, images.shape[3] // patch_size
        shown = gather_patches(patchify(images, patch_size), masks.source)
        return unpatchify(torch.where((masks.kind == MASKED)[:, :, None, None, None], GREY, shown), grid)
