"""The encoder sees the visible patches only (MAE)."""

import math
from typing import Literal

from torch import Tensor

from mpp.recipe.corruptions.base import CorruptionSection
from mpp.recipe.places import Masks


class DropCorruption(CorruptionSection):
    name: Literal["drop"] = "drop"

    @property
    def drops(self) -> bool:
        return True

    @property
    def caption(self) -> str:
        return "hidden patches are dropped"

    def hidden(self, patches: int, ratio: float) -> int:
        """floor(N (1 - ratio)) are kept, and one at least (MAE)."""
        return patches - max(1, math.floor(patches * (1 - ratio) + 1e-9))

    def places(self, masks: Masks[Tensor]) -> Tensor:
        return masks.visible
