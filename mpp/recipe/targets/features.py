"""What a teacher, the running average of the encoder, makes of the whole image at the hidden places (data2vec, arXiv 2202.03555, for images).

Source: section 3.3 and the authors' command for ViT-B, which says what the paper leaves open: the blocks' outputs behind their residual sums,
layer-normalised one by one, averaged, and layer-normalised once more; the teacher's decay is constant.
Letters: B batch, N patches, M predicted, D encoder dimensions, P patch side in pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mpp.config.schema import Positive
from mpp.errors import ConfigError
from mpp.model.normalise import normalise
from mpp.model.tokens import gather_tokens
from mpp.recipe.targets.base import Given, TargetSection, Triple
from mpp.recipe.teacher import TeacherKnobs

if TYPE_CHECKING:
    from mpp.model.encoder import Encoder

SPREAD = 2.0  # deviations of a component between mid-grey and full colour in pictures (ours)


class FeaturesTarget(TeacherKnobs, TargetSection):
    name: Literal["features"] = "features"  # data2vec
    blocks: Positive = 6  # of the teacher, the last ones: their outputs are averaged (data2vec)
    beta: Annotated[float, Field(gt=0)] = 2.0  # of the smooth L1 loss: quadratic below it, linear beyond (data2vec)

    def build(self, given: Given) -> "Features":
        """Raises ConfigError where the encoder has fewer blocks: how many an architecture has is known when it is built."""
        if self.blocks > given.depth:
            raise ConfigError(
                f"target.blocks={self.blocks} must not exceed the encoder's {given.depth} blocks; "
                f"set target.blocks={given.depth} or less, or a larger model.depth"
            )
        return Features(given.width, self.blocks, self.beta, given.mean, given.std)


@dataclass(frozen=True)
class Features:
    """Goals are float32 [B, M, D], each of mean 0 and variance 1; the loss is the smooth L1, averaged over D."""

    width: int
    blocks: int
    beta: float
    mean: Triple
    std: Triple

    @property
    def outputs(self) -> int:
        return self.width

    @property
    def baselines(self) -> None:
        """Goals move with the teacher: what is trivial today is not tomorrow."""
        return None

    @property
    def caption(self) -> str:
        return "the teacher's features, drawn as three principal components of those in the fourth column"

    def __call__(self, images: Tensor, predicted: Tensor, teacher: "Encoder | None") -> Tensor:
        assert teacher is not None
        with torch.no_grad():
            outputs = teacher.behind_blocks(teacher.embed(normalise(images, self.mean, self.std)), self.blocks)
            patches = [gather_tokens(tokens[:, teacher.prefix :], predicted) for tokens in outputs]
            return self._normed(torch.stack([self._normed(tokens) for tokens in patches]).mean(0))

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction.float(), goal, beta=self.beta, reduction="none").mean(-1)

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float()

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        """Red, green and blue are the first three principal components of the truth over the whole batch; mid-grey is its mean (ours)."""
        points = truth.flatten(0, 1).double()
        middle = points.mean(0)
        variances, components = torch.linalg.eigh((points - middle).T @ (points - middle) / len(points))  # ascending
        components, deviations = components[:, -3:].flip(-1), variances[-3:].flip(-1).clamp_min(1e-12).sqrt()
        # An eigenvector has no sign of its own: its largest coefficient is positive (ours).
        signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        colors = 127.5 * (1 + (goal.double() - middle) @ (components * signs) / (SPREAD * deviations))
        return colors.clamp(0, 255).float()[..., None, None].expand(*goal.shape[:2], 3, *patches.shape[-2:])

    def _normed(self, tokens: Tensor) -> Tensor:
        """Without parameters, and with torch's epsilon (the authors' code)."""
        return F.layer_norm(tokens.float(), (self.width,))
