"""Mixup, cutmix and random erasing, drawn: whatever is random about them is a function of (seed, place) or (seed, epoch, sample).

A pair is the global positions 2j and 2j + 1, so it is the same on any cluster, and both halves have one share and one box (timm's mode "pair";
its mode "batch", which MAE used, has one share for a whole micro-batch and so depends on how large that is).
"""

import math
from dataclasses import dataclass

import numpy as np

from mpp.base.rng import ERASE, MIX, Draws
from mpp.data.crop import Box

NO_BOX: Box = (0, 0, 0, 0)
ERASED_AREA, ERASED_ASPECT, ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # Zhong et al. 2017, as timm


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: alpha of the beta distribution, 0 for none; mixed: share of the pairs; cut: share of the mixed pairs where both are on."""

    mixup: float
    cutmix: float
    mixed: float
    cut: float

    def draw(self, seed: int, pair: int, height: int, width: int) -> tuple[float, Box]:
        """The share that an image keeps of itself, and the box its partner is pasted into (mixup: NO_BOX, the partner is blended in)."""
        draws = Draws(seed, MIX, pair)
        mixed, kind, left, top = draws.uniform(4).tolist()
        if mixed >= self.mixed:
            return 1.0, NO_BOX
        cuts = bool(self.cutmix) and (not self.mixup or kind < self.cut)
        share = beta(draws, self.cutmix if cuts else self.mixup)
        if not cuts:
            return share, NO_BOX
        side = math.sqrt(1 - share)
        w, h, x, y = int(width * side), int(height * side), int(left * width), int(top * height)
        box = max(0, x - w // 2), max(0, y - h // 2), min(width, x + (w + 1) // 2), min(height, y + (h + 1) // 2)
        return 1 - (box[2] - box[0]) * (box[3] - box[1]) / (width * height), box  # of what lies inside


def beta(draws: Draws, alpha: float) -> float:
    """From the beta distribution (alpha, alpha) (Johnk 1964): U^(1/a) / (U^(1/a) + V^(1/a)), drawn until that sum is at most 1."""
    while True:
        powers = draws.uniform(64).reshape(-1, 2) ** (1 / alpha)
        total = powers.sum(axis=1)
        fits = np.flatnonzero((total > 0) & (total <= 1))
        if len(fits):
            return float(powers[fits[0], 0] / total[fits[0]])


def erased_box(share: float, seed: int, epoch: int, sample: int, height: int, width: int) -> Box:
    """The rectangle that becomes noise in `share` of the samples, NO_BOX in the others."""
    erased, *numbers = Draws(seed, ERASE, epoch, sample).uniform(1 + 4 * ATTEMPTS).tolist()
    if erased >= share:
        return NO_BOX
    low, high = (math.log(bound) for bound in ERASED_ASPECT)
    for area, aspect, left, top in zip(*(numbers[first::4] for first in range(4)), strict=True):
        wanted = height * width * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
        ratio = math.exp(low + aspect * (high - low))
        h, w = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if h < height and w < width:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    return NO_BOX
