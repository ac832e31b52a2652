"""What a teacher makes of the whole image at the hidden places: the running average of the encoder (data2vec, I-JEPA), or an encoder that was
trained before (SALT).

Sources: data2vec (arXiv 2202.03555, 3.3) for images and the authors' command for ViT-B, which says what the paper leaves open: the blocks' outputs
behind their residual sums, layer-normalised one by one, averaged, and layer-normalised once more.  I-JEPA (arXiv 2301.08243 and the authors' code):
the last block's output under the encoder's final norm, layer-normalised.  SALT (arXiv 2509.24317): the teacher is a frozen network.
Letters: B batch, N patches, M predicted, D the teacher's dimensions, P patch side in pixels.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, StrictBool
from torch import Tensor

from mpp.base.errors import ConfigError
from mpp.config.schema import Positive
from mpp.model.tokens import gather_tokens
from mpp.recipe.baselines import ValueBaselines
from mpp.recipe.distances import Distance, Kind
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import FixedTarget, Given, TargetSection
from mpp.recipe.teacher import FrozenKnobs, Teacher, TeacherKnobs

SPREAD = 2.0  # deviations of a component between mid-grey and full colour in pictures (ours)


class _Features(TargetSection):
    blocks: Positive = 6  # of the teacher, the last ones: their outputs are averaged (data2vec; I-JEPA: 1)
    norm_blocks: StrictBool = True  # each block's output is layer-normalised before that (data2vec)
    final_norm: StrictBool = False  # the teacher's own final norm comes before anything else (I-JEPA)
    norm: StrictBool = True  # the average is layer-normalised (data2vec, I-JEPA)
    loss: Kind = "smooth_l1"  # data2vec, I-JEPA
    beta: Annotated[float, Field(gt=0)] = 2.0  # of the smooth L1: quadratic below it, linear beyond (data2vec; I-JEPA: 1)

    def made(self, depth: int, width: int, moves: bool) -> "Features":
        """Raises ConfigError where the teacher has fewer blocks: how many an architecture has is known when it is built."""
        if self.blocks > depth:
            raise ConfigError(
                f"target.blocks={self.blocks} must not exceed the {'encoder' if moves else 'teacher'}'s {depth} blocks; "
                f"set target.blocks={depth} or less{', or a larger model.depth' if moves else ''}"
            )
        return Features(width, self.blocks, self.norm_blocks, self.final_norm, self.norm, Distance(self.loss, self.beta), moves)


class FeaturesTarget(TeacherKnobs, _Features):
    name: Literal["features"] = "features"  # data2vec, I-JEPA

    def build(self, given: Given) -> "Features":
        return self.made(given.depth, given.width, moves=True)


class FrozenTarget(FrozenKnobs, _Features):
    name: Literal["frozen"] = "frozen"  # SALT
    blocks: Positive = 1  # of the encoder, the last ones (SALT)

    def build(self, given: Given) -> "Features":
        """Raises ConfigError where no teacher was lent."""
        teacher = given.lent.teacher
        if teacher is None:
            raise ConfigError(f"target.name=frozen learns from target.encoder={self.encoder}, which was not read; build the model with it")
        return self.made(teacher.depth, teacher.width, moves=False)


@dataclass(frozen=True)
class Features(FixedTarget):
    """Goals are float32 [B, M, D], each of mean 0 and variance 1 where `norm` says so; of a teacher that stays as it is, cells [B, M, 1, 1, D]."""

    width: int
    blocks: int
    norm_blocks: bool
    final_norm: bool
    norm: bool
    distance: Distance
    moves: bool

    @property
    def outputs(self) -> int:
        return self.width

    @property
    def baselines(self) -> ValueBaselines | None:
        """Goals that move with the teacher have none: what is trivial today is not tomorrow."""
        return None if self.moves else ValueBaselines(self.distance)

    @property
    def caption(self) -> str:
        return "the teacher's features, drawn as three principal components of those of the target"

    def __call__(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None = None) -> Tensor:
        assert teacher is not None
        patches = [gather_tokens(tokens, masks.predicted).float() for tokens in teacher.patches(images, self.blocks, self.final_norm)]
        mean = torch.stack([self._normed(tokens) if self.norm_blocks else tokens for tokens in patches]).mean(0)
        goal = self._normed(mean) if self.norm else mean
        return goal if self.moves else goal[:, :, None, None]

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return self.distance(self.answer(prediction) - goal).flatten(2).mean(-1)

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float() if self.moves else prediction.float()[:, :, None, None]

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        """Red, green and blue are the first three principal components of the truth over the whole batch; mid-grey is its mean (ours)."""
        points = truth.flatten(0, -2).double()
        middle = points.mean(0)
        variances, components = torch.linalg.eigh((points - middle).T @ (points - middle) / len(points))  # ascending
        components, deviations = components[:, -3:].flip(-1), variances[-3:].flip(-1).clamp_min(1e-12).sqrt()
        # An eigenvector has no sign of its own: its largest coefficient is positive (ours).
        signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        colors = 127.5 * (1 + (goal.flatten(2).double() - middle) @ (components * signs) / (SPREAD * deviations))
        return colors.clamp(0, 255).float()[..., None, None].expand(*goal.shape[:2], 3, *patches.shape[-2:])

    def _normed(self, tokens: Tensor) -> Tensor:
        """Without parameters, and with torch's epsilon (the authors' code)."""
        return F.layer_norm(tokens, (self.width,))
