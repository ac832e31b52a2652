"""Which centre of a codebook a patch is nearest to (BEiT, arXiv 2106.08254, with a codebook of one's own in place of DALL-E's tokeniser).

BEiT's tokens are of a discrete variational autoencoder; here they are of k-means on another target's goals of the user's own images
(mpp/fit_codebook.py), by default pixels that are normalised within each patch (ours).
Letters: B batch, M predicted patches, C centres.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mpp.base.errors import ConfigError
from mpp.recipe.baselines import ClassBaselines
from mpp.recipe.codes import Codebook, CodebookKnobs
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import FixedTarget, Given, TargetSection
from mpp.recipe.teacher import Teacher


class CodebookTarget(CodebookKnobs, TargetSection):
    name: Literal["codebook"] = "codebook"  # BEiT

    def build(self, given: Given) -> "Codes":
        """Raises ConfigError where no codebook was lent."""
        if given.lent.codebook is None:
            raise ConfigError(
                f"target.name=codebook learns the codes of target.path={self.path}, which was not read; build the model with it"
            )
        return Codes(given.lent.codebook)


@dataclass(frozen=True)
class Codes(FixedTarget):
    """Goals are numbers of centres int64 [B, M, 1, 1]; the loss is the cross-entropy."""

    codebook: Codebook

    @property
    def outputs(self) -> int:
        return len(self.codebook)

    @property
    def baselines(self) -> ClassBaselines:
        return ClassBaselines(len(self.codebook))

    @property
    def borrows(self) -> str | None:  # type: ignore[override]
        return self.codebook.of.borrows

    @property
    def looks_beyond(self) -> bool:  # type: ignore[override]
        return self.codebook.of.looks_beyond

    @property
    def caption(self) -> str:
        return f"likeliest of {len(self.codebook)} codes, drawn as its centre: {self.codebook.of.caption}"

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None = None) -> Tensor:
        return self.codebook.codes(self.codebook.of(images, masks, teacher))[:, :, None, None]

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(prediction.float().flatten(0, 1), goal.flatten(), reduction="none").view(goal.shape[:2])

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)[:, :, None, None]

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        centre, true_centre = (self.codebook.goals(codes[:, :, 0, 0]) for codes in (goal, truth))
        return self.codebook.of.picture(centre, patches, true_centre)
