"""Masks of one sample."""

from dataclasses import astuple

from mpp.recipe.masking import Masking, Masks
from mpp.rng import Draws


def draw(masking: Masking, draws: Draws) -> Masks:
    """kind, source [N]; visible [K]; predicted [M]."""
    return Masks(*(part[0] for part in astuple(masking.draw_all([draws]))))
