"""Which labelled images a fine-tuning run trains on, holds out and is tested on, opened and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from mpp.config.finetune import FinetuneConfig
from mpp.data.augment import Augment, Centre
from mpp.data.decode import require_codecs
from mpp.data.device_jpegs import DeviceJpegs
from mpp.data.images import DeviceImages, MemoryImages, ShardImages
from mpp.data.labelled import check_splits, open_labelled, remarks_on
from mpp.data.labelled_crops import LabelledCrops, rand_augment
from mpp.data.mixing import Mixing
from mpp.data.order import BatchPlan, Order
from mpp.data.shards import ShardSet
from mpp.errors import ConfigError
from mpp.machine import usable_cores

Triple = tuple[float, float, float]


class Divide(Protocol):
    def __call__(self, labels: np.ndarray, *, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...


class Choose(Protocol):
    def __call__(self, labels: np.ndarray, *, classes: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class FinetuneSet:
    training: LabelledCrops
    holdout: LabelledCrops | None  # of train, never trained on
    test: LabelledCrops | None
    classes: list[str]
    identities: dict[str, str]  # split -> what it is
    remarks: list[str]  # what is unusual about the labels

    def order(self, config: FinetuneConfig, plan: BatchPlan) -> Order:
        """Over the images that are trained on alone: its n-th sample is training.ids[n]."""
        edges = np.concatenate([[0], np.cumsum(self.training.images.shards.samples_per_shard)])
        counts = np.diff(np.searchsorted(self.training.ids, edges))
        return Order(tuple(counts[counts > 0].tolist()), config.data.global_batch, plan.streams, config.seed, config.data.block)

    def placed(self, config: FinetuneConfig, device: torch.device, local_world: int) -> LabelledCrops:
        """The training images where system.images wants them.  local_world: processes of this machine, each with a copy of its own."""
        source, where, size = self.training.images.shards, config.system.images, self.training.augment.size
        if where == "shards":
            if config.system.decode == "cpu" or device.type != "cuda":
                return self.training
            if not isinstance(source, ShardSet):
                raise ConfigError(
                    f"system.decode=device reads shards; train={config.train} is none: make shards, or leave system.decode out"
                )
            return replace(self.training, images=DeviceJpegs(source, config.data.max_pixels, device, size))
        threads = max(1, usable_cores() // local_world)
        decoded = MemoryImages(source, range(len(source)), config.data.max_pixels, threads, local_world)
        return replace(self.training, images=decoded if where == "ram" else DeviceImages(decoded, device, size))


def open_finetune_set(config: FinetuneConfig, size: tuple[int, int], mean: Triple, hold_out: Divide, few_labels: Choose) -> FinetuneSet:
    """size: (height, width) of the crops; mean: of the input normalisation.

    hold_out: labels [n] and the classes' names -> rows (kept, held); few_labels: the same -> rows that are used.  Raises ConfigError and DataError for anything that cannot be trained on.
    """
    require_codecs()
    train = open_labelled(config.train, "train")
    test = open_labelled(config.test, "test") if config.test else None
    check_splits(train, test)
    kept, held = np.arange(len(train)), np.arange(0)
    if config.data.holdout_fraction:
        kept, held = hold_out(train.labels, classes=train.classes)
    kept = kept[few_labels(train.labels[kept], classes=train.classes)]
    augment, (height, width) = config.augment, size
    ratio = (augment.crop_ratio[0] * width / height, augment.crop_ratio[1] * width / height)
    training = LabelledCrops(
        ShardImages(train, config.data.max_pixels),
        Augment(size, augment.crop_scale, ratio, augment.flip),
        train.labels,
        config.seed,
        kept,
        recolour=rand_augment(augment.rand_augment, height, width, mean) if augment.rand_augment else None,
        erasing=augment.erasing,
        mixing=Mixing(augment.mixup, augment.cutmix, augment.mix_share, augment.cutmix_share) if augment.mixes else None,
    )
    measured = lambda images, ids: LabelledCrops(
        ShardImages(images, config.data.max_pixels), Centre(size, config.data.test_crop), images.labels, config.seed, ids
    )
    return FinetuneSet(
        training,
        measured(train, held) if len(held) else None,
        measured(test, np.arange(len(test))) if test is not None else None,
        train.classes,
        {"train": train.identity} | ({"test": test.identity} if test is not None else {}),
        remarks_on(train, test),
    )
