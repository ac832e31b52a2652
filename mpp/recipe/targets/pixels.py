"""Every pixel of a patch (ViT B.1.2, option 3), or what is left of it without the patch's own mean and deviation (MAE)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictBool
from torch import Tensor

from mpp.model.normalise import constant
from mpp.recipe.baselines import ValueBaselines
from mpp.recipe.distances import Distance, Kind
from mpp.recipe.targets.base import Given, PatchTarget, TargetSection, Triple


class PixelsTarget(TargetSection):
    name: Literal["pixels"] = "pixels"  # ViT B.1.2 (3); MAE with normalise
    loss: Kind = "l2"  # ViT B.1.2 (3), MAE; SimMIM: l1
    beta: Annotated[float, Field(gt=0)] = 1.0  # of loss=smooth_l1: quadratic below it, linear beyond
    normalise: StrictBool = False  # per patch: subtract its mean, divide by its standard deviation (MAE)

    def build(self, given: Given) -> "Pixels":
        return Pixels(given.patch_size, Distance(self.loss, self.beta), self.normalise, given.mean, given.std)


@dataclass(frozen=True)
class Pixels(PatchTarget):
    """Goals are float32 [B, M, P, P, 3] in the units the encoder sees, (colour / 255 - mean) / std, optionally normalised within each patch.

    Source: ViT B.1.2 option 3 (its units are ours); MAE with `normalise`: unbiased variance over the P x P x 3 values of a patch, eps 1e-6.
    """

    patch_size: int
    distance: Distance
    normalise: bool
    mean: Triple
    std: Triple

    @property
    def outputs(self) -> int:
        return self.patch_size**2 * 3

    @property
    def baselines(self) -> ValueBaselines:
        return ValueBaselines(self.distance)

    @property
    def borrows(self) -> str | None:  # type: ignore[override]
        return "mean and deviation" if self.normalise else None

    @property
    def caption(self) -> str:
        return "predicted pixels" + (", un-normalised with the true mean and deviation of each patch" if self.normalise else "")

    def cells(self, patches: Tensor) -> Tensor:
        values = self._seen(patches)
        if self.normalise:
            middle, spread = self._statistics(values)
            values = (values - middle) / spread
        return values

    def loss(self, prediction: Tensor, goal: Tensor) -> Tensor:
        return self.distance(self.answer(prediction) - goal).mean(dim=(2, 3, 4))

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float().unflatten(-1, (self.patch_size, self.patch_size, 3))  # the order of MAE's patchify

    def picture(self, goal: Tensor, patches: Tensor, truth: Tensor | None = None) -> Tensor:
        if self.normalise:
            middle, spread = self._statistics(self._seen(patches))
            goal = goal * spread + middle
        return ((goal * constant(self.std, goal.device) + constant(self.mean, goal.device)) * 255).clamp(0, 255).permute(0, 1, 4, 2, 3)

    def _seen(self, patches: Tensor) -> Tensor:
        values = patches.float().permute(0, 1, 3, 4, 2) / 255
        return (values - constant(self.mean, values.device)) / constant(self.std, values.device)

    @staticmethod
    def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
        middle = values.mean(dim=(2, 3, 4), keepdim=True)
        return middle, (values.var(dim=(2, 3, 4), keepdim=True, unbiased=True) + 1e-6).sqrt()
