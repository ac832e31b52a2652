"""Colours of training crops: timm's RandAugment, with draws that belong to the sample."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform

from mpp.base.errors import ConfigError

Recolour = Callable[[Image.Image], Image.Image]


def recoloured(recolour: Recolour, crop: np.ndarray, seed: int) -> np.ndarray:
    """uint8 [3, H, W] -> the same in other colours, which are this seed's."""
    with global_generators(seed):
        painted = recolour(Image.fromarray(np.ascontiguousarray(crop.transpose(1, 2, 0))))
    return np.asarray(painted).transpose(2, 0, 1)


def rand_augment(words: str, height: int, width: int, mean: tuple[float, float, float]) -> Recolour:
    """timm's RandAugment as its own training uses it: bicubic, filled with the mean colour.  Raises ConfigError for words it does not know."""
    settings = {
        "translate_const": int(min(height, width) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        augment = rand_augment_transform(words, settings)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"augment.rand_augment={words} is not what timm calls a RandAugment; such as rand-m9-mstd0.5-inc1") from error
    for op in augment.ops:
        if op.aug_fn is posterize:
            op.aug_fn = posterize_to_black
    return augment


def posterize_to_black(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm asks for 0 bits at the highest magnitude: black, as older Pillows gave; newer ones raise ValueError."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """timm draws from the global generators of Python and numpy: they are set to this seed, and given back as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
