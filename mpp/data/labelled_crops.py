"""Labelled crops for fine-tuning and for measuring it, as the loader wants them.

Beside what every batch holds (loader.py):
    label int64 [B], of the image that is shown
    erase int64 [B, 4] (a box that becomes noise, or zeros)   noise int64 [B] (the seed of that noise)      where erasing is on
    share float32 [B] (what an image keeps of itself)   paste int64 [B, 4] (cutmix's box, zeros for mixup)   where pairs are mixed
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform

from mpp.data.augment import Crop
from mpp.data.images import Images
from mpp.data.loader import Batch, KeyedCrops
from mpp.data.mixing import Mixing, erased_box
from mpp.errors import ConfigError
from mpp.rng import ERASE, RAND_AUGMENT, seed_of

Recolour = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class LabelledCrops(KeyedCrops):
    images: Images
    augment: Crop
    labels: np.ndarray  # int32, of every image of the set
    seed: int
    ids: np.ndarray  # int64, ascending: those that are used, and may stand in for each other
    recolour: Recolour | None = None
    erasing: float = 0.0  # share of the samples
    mixing: Mixing | None = None
    views: int = 1
    differ_in: Literal["crop", "mask"] = "crop"

    def stand_in(self, sample: int, step: int) -> int:
        """The next of the ids, cyclic."""
        return int(self.ids[(int(np.searchsorted(self.ids, sample)) + step) % len(self.ids)])

    def others(self) -> int:
        return len(self.ids)

    def columns(self, keys: list[tuple[int, int, int]], shown: torch.Tensor) -> Batch:
        height, width = self.augment.size if isinstance(self.augment.size, tuple) else (self.augment.size,) * 2
        found: Batch = {"label": torch.from_numpy(self.labels[shown.numpy()].astype(np.int64))}
        if self.erasing:
            boxes = [erased_box(self.erasing, self.seed, epoch, sample, height, width) for epoch, sample, _ in keys]
            found |= {"erase": torch.tensor(boxes), "noise": torch.tensor([seed_of(self.seed, ERASE, e, s, 1) for e, s, _ in keys])}
        if self.mixing:
            pairs = [self.mixing.draw(self.seed, position // 2, height, width) for _, _, position in keys]
            found |= {"share": torch.tensor([share for share, _ in pairs]), "paste": torch.tensor([box for _, box in pairs])}
        return found

    def repaint(self, crop: np.ndarray, epoch: int, sample: int) -> np.ndarray:
        if self.recolour is None:
            return crop
        with global_generators(seed_of(self.seed, RAND_AUGMENT, epoch, sample)):
            painted = self.recolour(Image.fromarray(np.ascontiguousarray(crop.transpose(1, 2, 0))))
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
