"""Where a training crop lies and whether it is flipped: pure functions of the sample's own bits."""

import math
from dataclasses import dataclass
from typing import Protocol

from mpp.rng import Draws

ATTEMPTS = 10  # as torchvision's RandomResizedCrop


class View(Protocol):
    """One crop of one image."""

    @property
    def flip(self) -> bool:
        """Left to right; for the device to do."""
        ...

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the crop in pixels of an image of this size."""
        ...


class Crop(Protocol):
    """A rule that says where crops lie."""

    @property
    def size(self) -> int | tuple[int, int]:
        """Of what it cuts out, once resized: pixels a side, or (height, width)."""
        ...

    def draw(self, draws: Draws) -> View: ...


@dataclass(frozen=True)
class Augment:
    """size: pixels a side of the crop, or (height, width); scale: share of the area, uniform; ratio: width / height before it is resized,
    log-uniform; flip: left to right, half of them."""

    size: int | tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool

    def draw(self, draws: Draws) -> "RandomView":
        """One view's random numbers, which are the same whatever image they are applied to."""
        *boxes, flip = draws.uniform(4 * ATTEMPTS + 1).tolist()
        numbers = [boxes[first : first + ATTEMPTS] for first in range(0, 4 * ATTEMPTS, ATTEMPTS)]
        return RandomView(self, numbers, flip=flip >= 0.5 and self.flip)


@dataclass(frozen=True)
class RandomView:
    augment: Augment
    numbers: list[list[float]]  # [4, ATTEMPTS] in [0, 1): area, ratio, left, top
    flip: bool  # for the device to do

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the crop in pixels of an image of this size.

        The distribution is that of torchvision's RandomResizedCrop: ten tries at an area and a ratio, then the largest centred box
        within the ratios.
        """
        scale, ratios = self.augment.scale, self.augment.ratio
        low, high = math.log(ratios[0]), math.log(ratios[1])
        for area, ratio, left, top in zip(*self.numbers, strict=True):
            wanted = width * height * (scale[0] + area * (scale[1] - scale[0]))
            aspect = math.exp(low + ratio * (high - low))
            w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
            if 0 < w <= width and 0 < h <= height:
                x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
                return x, y, x + w, y + h
        w, h = width, height
        if width / height < ratios[0]:
            h = round(width / ratios[0])
        elif width / height > ratios[1]:
            w = round(height * ratios[1])
        x, y = (width - w) // 2, (height - h) // 2
        return x, y, x + w, y + h


@dataclass(frozen=True)
class Centre:
    """The largest centred box of the shape (height, width), drawn in by `share`; never flipped: what probes and fine-tuning are measured on.

    Rounded as torchvision's Resize and CenterCrop round: sides to the nearest pixel, and so the rims, halves to the even number.
    """

    size: int | tuple[int, int]
    share: float = 1.0  # of 1: 224 / 256 is the usual resizing of the short side to 256 before 224 are cut

    def draw(self, draws: Draws) -> "CentreView":
        return CentreView(self)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        rows, columns = (self.size, self.size) if isinstance(self.size, int) else self.size
        limit = min(
            width * rows, height * columns
        )  # whole numbers, and of a square the short side times a side of it: nothing is rounded twice
        w = max(1, min(width, round(self.share * (limit / rows))))
        h = max(1, min(height, round(self.share * (limit / columns))))
        left, top = round((width - w) / 2), round((height - h) / 2)
        return left, top, left + w, top + h


@dataclass(frozen=True)
class CentreView:
    centre: Centre
    flip: bool = False

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        return self.centre.box(width, height)
