"""How far a predicted value is from the true one: the losses of regression, value by value."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Kind = Literal["l1", "l2", "smooth_l1"]


@dataclass(frozen=True)
class Distance:
    kind: Kind = "l2"
    beta: float = 1.0  # of the smooth L1: quadratic below it, linear beyond

    def __call__(self, difference: Tensor) -> Tensor:
        """|d|, d^2, or torch's smooth L1 (d^2 / 2 beta, beyond beta |d| - beta / 2), elementwise."""
        if self.kind == "l1":
            return difference.abs()
        if self.kind == "l2":
            return difference.square()
        return F.smooth_l1_loss(difference, difference.new_zeros(()).expand_as(difference), beta=self.beta, reduction="none")
