"""What every mask answers to, and what several share.  Letters: B samples, N patches of a grid of rows x columns, H hidden, M predicted."""

import math
from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
from pydantic import AfterValidator, Field

from mpp.base.rng import Draws, permutation_of
from mpp.config.schema import Pair, Section
from mpp.recipe.places import Grid, Places


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    low, high = pair
    if not 0 < low <= high:
        raise ValueError(f"{list(pair)} must be two numbers 0 < low <= high, such as [0.5, 2]")
    return pair


def _shares(pair: tuple[float, float]) -> tuple[float, float]:
    if _ascending(pair)[1] > 1:
        raise ValueError(f"{list(pair)} must be two shares 0 < low <= high <= 1, such as [0.85, 1]")
    return pair


Sides = Annotated[Pair, AfterValidator(_ascending)]  # height / width, from least to most
Shares = Annotated[Pair, AfterValidator(_shares)]  # from least to most


class Corruption(Protocol):
    """What a mask must know of what becomes of the hidden patches."""

    @property
    def name(self) -> str:
        """Of the choice."""

    @property
    def shows_all(self) -> bool:
        """Whether something of every hidden patch is still seen, so that all may be hidden."""

    def hidden(self, patches: int, ratio: float) -> int:
        """How many patches a share of them is."""


class MaskSection(Section):
    """What every mask's section answers to."""

    name: str  # of the choice, and the first of its keys

    @property
    def groups(self) -> int:
        """Of how many sets of equal size the predicted patches consist; a decoder whose mask tokens see each other keeps the sets apart."""
        return 1

    @property
    def asks_for_upright(self) -> bool:
        """Whether what is predicted cannot be told of images that lie any way."""
        return False

    def fits(self, grid: Grid, corruption: Corruption) -> None:
        """Raises ValueError where such a mask does not exist on this grid, leaves nothing visible, or nothing to predict."""
        raise NotImplementedError

    def draw(self, grid: Grid, corruption: Corruption, draws: Sequence[Draws]) -> Places:
        """Of B samples, each a pure function of its own key."""
        raise NotImplementedError


class ThinnedMask(MaskSection):
    """Of whose hidden patches a part may be predicted."""

    predicted: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # share of all patches in the loss, drawn from the hidden ones (CrossMAE: 0.25); null: all that are hidden
    )

    def leaves_some(self, ratio: float, of: int, hidden: int, patches: int, what: str = "patches") -> None:
        """Raises ValueError where a share of so many is none or all of them, or the hidden patches are fewer than are to be predicted."""
        if of < 2:
            raise ValueError(
                f"mask.name={self.name} must leave one of the {what} visible and hide another, and there is only one; "
                "take a smaller model.patch_size, a larger model.image_size or, of a mask in units, a smaller mask.unit"
            )
        if not 0 < math.floor(of * ratio + 0.5) < of:
            raise ValueError(f"mask.ratio={ratio} of {of} {what} must leave some visible and some hidden; {between(1, of - 1, of)}")
        if self.predicted is not None and not 0 < self._count(patches) <= hidden:
            raise ValueError(
                f"mask.predicted={self.predicted} of {patches} patches must be at least one of the {hidden} hidden ones and no more than those; "
                f"{between(1, hidden, patches)}, or null for all of them"
            )

    def thinned(self, hidden: np.ndarray, patches: int, draws: Sequence[Draws]) -> np.ndarray | None:
        """[B, H] -> [B, M] of them; None for all."""
        if self.predicted is None:
            return None
        order = permutations(hidden.shape[1], draws)
        return np.take_along_axis(hidden, order[:, : self._count(patches)], axis=1)

    def _count(self, patches: int) -> int:
        return math.floor(patches * (self.predicted or 0.0) + 0.5)


def permutations(count: int, draws: Sequence[Draws]) -> np.ndarray:
    """int64 [B, count]: a permutation of range(count) for each sample."""
    return permutation_of(np.stack([each.bits(count) for each in draws]))


def in_order(order: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """order [B, N], chosen bool [B, N] of equally many in each row -> their numbers [B, H] in this order."""
    return order[np.take_along_axis(chosen, order, axis=1)].reshape(len(chosen), -1)


def between(least: int, most: int, of: int) -> str:
    """Which shares of so many make these counts: the rest of a refusal."""
    low, high = math.ceil(1e4 * least / of) / 1e4, math.floor(1e4 * most / of) / 1e4
    return f"take {low:g}" if low >= high else f"take one between {low:g} and {high:g}"


def rectangle(count: int, width: int, grid: Grid) -> tuple[int, int]:
    """Rows and columns of a block that holds so many patches, the last row perhaps in part, as wide as wanted, or as nearly as the grid allows."""
    rows, columns = grid
    width = min(columns, max(1, -(-count // rows), width))
    return -(-count // width), width


def block_at(count: int, size: tuple[int, int], top: int, start: int, grid: Grid) -> np.ndarray:
    """int64 [count]: the first so many patches of a block, row by row; rows and columns beyond the grid come in again on the other side."""
    row, column = np.divmod(np.arange(count), size[1])
    return (top + row) % grid[0] * grid[1] + (start + column) % grid[1]
