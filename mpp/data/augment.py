"""Where a training crop lies and in which pose it is shown: pure functions of the sample's own bits."""

import math
from dataclasses import dataclass
from typing import Protocol

from mpp.base.rng import Draws
from mpp.data.poses import pose_of

ATTEMPTS = 10  # as torchvision's RandomResizedCrop


class View(Protocol):
    """One crop of one image."""

    @property
    def pose(self) -> int:
        """One of the eight of poses.py; for the device to do."""
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
    log-uniform; flip: left to right, half of them; vertical_flip: upside down, half; turns: by 0, 90, 180 or 270 degrees, a quarter each."""

    size: int | tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    vertical_flip: bool = False
    turns: bool = False

    def draw(self, draws: Draws) -> "RandomView":
        """One view's random numbers, which are the same whatever image they are applied to."""
        *boxes, flip, vertical, turn = draws.uniform(4 * ATTEMPTS + 3).tolist()
        numbers = [boxes[first : first + ATTEMPTS] for first in range(0, 4 * ATTEMPTS, ATTEMPTS)]
        pose = pose_of(flip >= 0.5 and self.flip, vertical >= 0.5 and self.vertical_flip, int(4 * turn) if self.turns else 0)
        return RandomView(self, numbers, pose)


@dataclass(frozen=True)
class RandomView:
    augment: Augment
    numbers: list[list[float]]  # [4, ATTEMPTS] in [0, 1): area, ratio, left, top
    pose: int  # for the device to do

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
    """The largest centred box of the shape (height, width), drawn in by `share`, as it lies: what probes and fine-tuning are measured on.

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
    pose: int = 0

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        return self.centre.box(width, height)
