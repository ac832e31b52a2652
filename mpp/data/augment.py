"""Where a training crop lies and whether it is flipped: pure functions of the sample's own bits."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mpp.rng import Draws

ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augment:
    """size: pixels a side of the crop; scale: share of the area, uniform; ratio: width / height, log-uniform; flip: horizontally, half of them."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool

    def box(self, width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the crop in pixels of the image.

        The distribution is that of torchvision's RandomResizedCrop: ten tries at an area and a ratio, then the largest centred box
        within the ratios.
        """
        area, ratio, left, top = draws.uniform(4 * ATTEMPTS).reshape(4, ATTEMPTS)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(ATTEMPTS):
            wanted = width * height * (self.scale[0] + area[attempt] * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + ratio[attempt] * (high - low))
            w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
            if 0 < w <= width and 0 < h <= height:
                x, y = int(left[attempt] * (width - w + 1)), int(top[attempt] * (height - h + 1))
                return x, y, x + w, y + h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        x, y = (width - w) // 2, (height - h) // 2
        return x, y, x + w, y + h

    def crop(self, image: Image.Image, draws: Draws) -> tuple[np.ndarray, bool]:
        """An RGB image -> uint8 [3, size, size] (antialiased bicubic) and whether the device is to flip it."""
        box = self.box(image.width, image.height, draws)
        flipped = self.flip and bool(draws.bits(1)[0] >> np.uint64(63))
        resized = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)), flipped
