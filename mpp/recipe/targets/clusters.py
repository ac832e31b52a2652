"""Which of many clusters a patch belongs to, by a head that clusters a teacher's features while it learns (CAPI, arXiv 2502.08769, 3.2 and 3.3).

The teacher's last normed features of the whole image are scaled to unit length and mapped to one number a cluster.  Sinkhorn-Knopp makes of these
soft assignments in which every cluster is used equally often, by each place on its own, so that clusters cannot come to code the place.  They are
what the student predicts, and what the head itself is trained to predict, by a loss of its own: nothing flows from it into teacher or student.
The authors give the head an optimiser of its own (AdamW, the same betas, its rate half of the student's and on the same curve, decay 0.01); here it
is a group of the run's AdamW with those numbers, which is the same update while no gradient is clipped.
Ours: the assignments are of all processes' micro-batches taken together, so with accumulation of a part of the global batch.
Letters: B batch, N patches, M predicted, C clusters, W width of what comes in, P patch side in pixels.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, StrictBool
from torch import Tensor, nn

from mpp.config.schema import Positive
from mpp.model.tokens import gather_tokens
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Across, Given, TargetSection
from mpp.recipe.teacher import Teacher, TeacherKnobs

Above0 = Annotated[float, Field(gt=0)]


class ClustersTarget(TeacherKnobs, TargetSection):
    name: Literal["clusters"] = "clusters"  # CAPI
    clusters: Annotated[int, Field(ge=2)] = 16384  # CAPI
    temperature: Above0 = 0.12  # of the predictions, the student's and the head's (CAPI)
    target_temperature: Above0 = 0.06  # of the assignments (CAPI)
    iterations: Positive = 3  # of Sinkhorn-Knopp (CAPI)
    by_place: StrictBool = True  # each place's assignments on their own (CAPI)
    head_lr_scale: Above0 = 0.5  # the head's learning rate, in the student's (CAPI: 5e-4 and 1e-3)
    head_decay_scale: Annotated[float, Field(ge=0)] = 0.1  # its weight decay, in the student's (CAPI's code: torch's default .01, and .1)

    def build(self, given: Given) -> "Clusters":
        return Clusters(self, given.width, given.lent.across)


class Clusters(nn.Module):
    """Goals are shares float32 [B, M, C] that sum to 1, the loss is the cross-entropy."""

    def __init__(self, knobs: ClustersTarget, width: int, across: Across):
        super().__init__()
        self.knobs, self.across = knobs, across
        self.clusters = nn.Linear(width, knobs.clusters)
        nn.init.normal_(self.clusters.weight, std=1.0)  # CAPI's code
        nn.init.zeros_(self.clusters.bias)

    @property
    def outputs(self) -> int:
        return self.knobs.clusters

    borrows = None
    looks_beyond = True

    @property
    def baselines(self) -> None:
        """The clusters move."""
        return None

    @property
    def caption(self) -> str:
        return "the likeliest cluster of each patch, in a colour of its own"

    def head(self, width: int) -> nn.Module:
        """The student's."""
        return UnitLinear(width, self.knobs.clusters)

    @property
    def own_scales(self) -> tuple[float, float]:
        return self.knobs.head_lr_scale, self.knobs.head_decay_scale

    def goals(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None) -> tuple[Tensor, Tensor]:
        """[B, M, C], and the head's own loss over all patches, a number."""
        assert teacher is not None
        features = F.normalize(teacher.patches(images, normed=True)[0].float(), dim=-1)
        logits = self.clusters(features)  # [B, N, C]
        with torch.no_grad():
            assigned = self._assigned(logits)
        own = -(assigned * F.log_softmax(logits / self.knobs.temperature, dim=-1)).sum(-1).mean()
        return gather_tokens(assigned, masks.predicted), own

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Masks[Tensor], teacher: Teacher | None) -> Tensor:
        return self.goals(images, masks, teacher)[0]

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return -(goal * F.log_softmax(prediction.float() / self.knobs.temperature, dim=-1)).sum(-1)

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float().softmax(-1)

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor) -> Tensor:
        """Colours go round the circle by steps of the golden angle, so that neighbouring numbers look unlike (ours)."""
        turn = goal.argmax(-1).float() * 0.618034 % 1
        waves = torch.stack([(turn + shift) * 2 * torch.pi for shift in (0, 1 / 3, 2 / 3)], dim=-1)
        return (127.5 * (1 + waves.cos()))[..., None, None].expand(*goal.shape[:2], 3, *patches.shape[-2:])

    def _assigned(self, logits: Tensor) -> Tensor:
        scores = logits.float() / self.knobs.target_temperature
        flat = scores if self.knobs.by_place else scores.flatten(0, 1)[:, None]
        return sinkhorn(flat, self.knobs.iterations, self.across).view_as(scores)


class UnitLinear(nn.Module):
    """A linear map of vectors scaled to unit length, whose rows have a direction and a learned length, 1 at first (CAPI's student head)."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.direction = nn.Parameter(nn.init.trunc_normal_(torch.empty(outputs, width), std=0.02))
        self.length = nn.Parameter(torch.ones(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., W] -> [..., C]."""
        return F.linear(F.normalize(tokens, dim=-1), F.normalize(self.direction, dim=-1) * self.length[:, None])


def sinkhorn(scores: Tensor, iterations: int, across: Across) -> Tensor:
    """Logarithms [B, N, C] of how well each of B samples fits each cluster -> shares [B, N, C] that sum to 1 over clusters, and over the samples of
    all processes to the same for each cluster, as nearly as so many rounds bring it about; for each of N places on its own.

    Source: SwAV (arXiv 2006.09882, 3.1), here with logarithms, so that nothing overflows.
    """
    for _ in range(iterations):
        most = across.most(scores.amax(0, keepdim=True))
        scores = scores - most - across.total((scores - most).exp().sum(0, keepdim=True)).log()
        scores = scores.log_softmax(-1)
    return scores.exp()
