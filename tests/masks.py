"""Masks of one sample."""

import numpy as np

from mpp.base.rng import Draws
from mpp.recipe.masking import Masking
from mpp.recipe.places import Masks


def draw(masking: Masking, draws: Draws) -> Masks[np.ndarray]:
    """kind, source [N]; visible [K]; predicted [M]."""
    return Masks(*(part[0] for part in masking.draw_all([draws])))
