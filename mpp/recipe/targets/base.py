"""What every target answers to.

Letters: B batch, N patches, M predicted, S image side and P patch side in pixels, O outputs a patch.
Goals have the form [B, M, ...], whatever suits the target; every loss is float32 and comes as one number a patch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mpp.config.schema import Section
from mpp.recipe.baselines import Baselines
from mpp.recipe.patches import gather_patches, patchify

if TYPE_CHECKING:
    from mpp.model.encoder import Encoder

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Given:
    """What a target may depend on beside its own section."""

    patch_size: int  # pixels a side
    width: int  # of the encoder's tokens
    depth: int  # of the encoder, in blocks
    mean: Triple  # of the input normalisation, colours in 0..1
    std: Triple


class TargetSection(Section):
    """What every target's section answers to, beside build(given) -> Target."""

    name: str  # of the choice, and the first of its keys whatever else a section inherits

    def fits(self, patch_size: int) -> None:
        """Raises ValueError where a patch of so many pixels a side has no such target."""


class Target(Protocol):
    @property
    def outputs(self) -> int:
        """O, the numbers that the decoder predicts for each patch."""

    @property
    def caption(self) -> str:
        """What stands under its pictures."""

    @property
    def baselines(self) -> Baselines | None:
        """Trivial predictors of its goals, if these are cells [B, M, g, g(, V)]; None: there are none, and so no skill."""

    def __call__(self, images: Tensor, predicted: Tensor, teacher: "Encoder | None") -> Tensor:
        """Clean images float [B, 3, S, S], 0..255, before normalisation, and predicted int64 [B, M] -> goals [B, M, ...]."""

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        """prediction [B, M, O], goals as above -> float32 [B, M]."""

    def answer(self, prediction: Tensor) -> Tensor:
        """prediction [B, M, O] -> the goals it stands for, such as the likeliest classes."""

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        """Goals, the clean patches [B, M, 3, P, P] they belong to, and the true goals there -> colours 0..255, like patches."""


class PatchTarget:
    """A target that looks at the predicted patches alone."""

    patch_size: int

    def cells(self, patches: Tensor) -> Tensor:
        """Clean patches float [B, M, 3, P, P], 0..255 -> goals [B, M, ...]."""
        raise NotImplementedError

    def __call__(self, images: Tensor, predicted: Tensor, teacher: "Encoder | None" = None) -> Tensor:
        return self.cells(gather_patches(patchify(images, self.patch_size), predicted))


def every_patch(images: Tensor, patch_size: int) -> Tensor:
    """int64 [B, N]: all patches of images [B, 3, H, W]."""
    count = (images.shape[2] // patch_size) * (images.shape[3] // patch_size)
    return torch.arange(count, device=images.device).expand(len(images), -1)
