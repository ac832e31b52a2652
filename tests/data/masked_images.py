"""The masked images that the tests of loader, crops and bad samples share, and what they compare."""

import numpy as np
import torch

from mpp.base.rng import CROP, Draws
from mpp.data.augment import Augment
from mpp.data.batch_plan import plan_batch
from mpp.data.crop import cut
from mpp.data.crop_dataset import CropDataset
from mpp.data.order import Order, OrderSampler
from mpp.data.pixels import StoredPixels
from mpp.data.shards import ShardSet
from mpp.recipe.corruptions.replace import ReplaceCorruption
from mpp.recipe.masking import Masking
from mpp.recipe.masks import RandomMask

SIZE = 16
AUGMENT = Augment(SIZE, (0.2, 1.0), (0.75, 4 / 3), flip=True)
MASKING = Masking((4, 4), RandomMask(ratio=0.5), ReplaceCorruption())


def dataset(folder, samples: int | None = None, seed: int = 5, max_pixels: int = 10**6) -> CropDataset:
    shards = ShardSet.open(folder)
    return CropDataset(StoredPixels(shards, max_pixels), AUGMENT, seed, range(samples or len(shards)), masking=MASKING)


def crop_of(data: CropDataset, image: int, epoch: int, sample: int, view: int = 0) -> np.ndarray:
    """uint8 [3, S, S]: what the image looks like under the draws of (epoch, sample, view)."""
    width, height = data.pixels.source.size_of(image)
    box = data.augment.draw(Draws(data.seed, CROP, epoch, sample, view)).box(width, height)
    return cut(data.pixels.source.read(image), width, height, [box], data.augment.size)[0]


def sampler(data: CropDataset, step: int = 0, last: int = 5, rank: int = 0, world: int = 1) -> OrderSampler:
    order = Order(tuple(data.pixels.source.samples_per_shard), 12, 6, data.seed)
    return OrderSampler(order, plan_batch(12, 6, world, 4), rank, world, step, last)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) if name != "bad" else a["bad"] == b["bad"] for name in a)
