"""What every target answers to.

Letters: B batch, N patches, M predicted, S image side and P patch side in pixels, O outputs a patch.
Goals have the form [B, M, ...], whatever suits the target; every loss is float32 and comes as one number a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mpp.config.schema import Section
from mpp.model.normalise import Triple
from mpp.recipe.baselines import Baselines
from mpp.recipe.codes import Codebook
from mpp.recipe.patches import gather_patches, patchify
from mpp.recipe.places import Masks
from mpp.recipe.teacher import Teacher


@dataclass(frozen=True)
class Across:
    """Sums and maxima over all processes, of tensors of the same shape in each; here of one process alone."""

    total: Callable[[Tensor], Tensor] = lambda part: part
    most: Callable[[Tensor], Tensor] = lambda part: part


@dataclass(frozen=True)
class Lent:
    """What a target's section asks for from outside of the recipe, and mpp/mains/pretrain.py brings."""

    teacher: Teacher | None = None  # of teacher.FrozenKnobs, and of a codebook of such a target's goals
    codebook: Codebook | None = None  # of codes.CodebookKnobs
    across: Across = Across()

    def to(self, device: torch.device) -> None:
        """In place: the model that has it lent finds it there."""
        if self.teacher:
            self.teacher.net.to(device)
        if self.codebook:
            self.codebook.to(device)


NOTHING = Lent()


@dataclass(frozen=True)
class Given:
    """What a target may depend on beside its own section."""

    patch_size: int  # pixels a side
    width: int  # of the encoder's tokens
    depth: int  # of the encoder, in blocks
    mean: Triple  # of the input normalisation, colours in 0..1
    std: Triple
    lent: Lent = NOTHING


class TargetSection(Section):
    """What every target's section answers to, beside build(given) -> Target."""

    name: str  # of the choice, and the first of its keys whatever else a section inherits

    def fits(self, patch_size: int, mask: str) -> None:
        """Raises ValueError where a patch of so many pixels a side has no such target, or it makes no sense beside a mask of this name."""


class Target(Protocol):
    @property
    def outputs(self) -> int:
        """O, the numbers that the decoder predicts for each patch."""

    @property
    def caption(self) -> str:
        """What stands under its pictures."""

    @property
    def borrows(self) -> str | None:
        """What its pictures take from the patches they are given, such as their brightness: no prediction; None: nothing."""

    @property
    def baselines(self) -> Baselines | None:
        """Trivial predictors of its goals, if these are cells [B, M, g, g(, V)]; None: there are none, and so no skill."""

    @property
    def looks_beyond(self) -> bool:
        """Whether a patch's goal tells of other patches, too: then trivial predictors, which read goals of visible patches, know more than the model."""

    @property
    def head(self) -> Callable[[int], nn.Module] | None:
        """Its own last layer of a decoder, by the width of what comes in; None: linear."""

    @property
    def own_scales(self) -> tuple[float, float] | None:
        """Of a target with parameters: their learning rate and their weight decay, in the model's."""

    def goals(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None) -> tuple[Tensor, Tensor | None]:
        """As a call, and beside it the loss, a number, by which a target that has parameters learns itself."""

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None) -> Tensor:
        """Clean images float [B, 3, S, S], 0..255, before normalisation, and masks -> goals [B, M, ...] of the predicted patches."""

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        """prediction [B, M, O], goals as above -> float32 [B, M]."""

    def answer(self, prediction: Tensor) -> Tensor:
        """prediction [B, M, O] -> the goals it stands for, such as the likeliest classes."""

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        """Goals, the clean patches [B, M, 3, P, P] they belong to, and the true goals there -> colours 0..255 [B, M, 3, P, P].

        A target that borrows a statistic is also given others than its own, [B, M, 3, P, any], to take it from.
        """


class FixedTarget:
    """A target without parameters: no gradient flows into what it asks for."""

    own_scales = None
    head = None
    borrows: str | None = None
    looks_beyond = True

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None = None) -> Tensor:
        raise NotImplementedError

    def goals(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None) -> tuple[Tensor, None]:
        with torch.no_grad():
            return self(images, masks, teacher), None


class PatchTarget(FixedTarget):
    """A target that looks at the predicted patches alone, at each for itself."""

    patch_size: int
    looks_beyond = False

    def cells(self, patches: Tensor) -> Tensor:
        """Clean patches float [B, M, 3, P, P], 0..255 -> goals [B, M, ...]."""
        raise NotImplementedError

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None = None) -> Tensor:
        return self.cells(gather_patches(patchify(images, self.patch_size), masks.predicted))


def everywhere(masks: Masks[Tensor]) -> Masks[Tensor]:
    """The same, with every patch predicted."""
    places = torch.arange(masks.kind.shape[1], device=masks.kind.device).expand(len(masks.kind), -1)
    return masks._replace(predicted=places)
