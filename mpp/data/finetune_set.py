"""Which labelled images a fine-tuning run trains on, holds out and is tested on, opened and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from mpp.config.finetune import AugmentConfig, FinetuneConfig
from mpp.data.augment import Augment, Centre
from mpp.data.batch_plan import BatchPlan
from mpp.data.crop_dataset import CropDataset
from mpp.data.decode import require_codecs
from mpp.data.images import Images
from mpp.data.labelled import check_splits, open_labelled, remarks_on
from mpp.data.mixing import Mixing
from mpp.data.order import Order
from mpp.data.pixels import StoredPixels
from mpp.data.placement import placed
from mpp.data.recolour import rand_augment
from mpp.processes.peers import ALONE, Peers

Triple = tuple[float, float, float]


class Divide(Protocol):
    def __call__(self, labels: np.ndarray, *, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...


class Choose(Protocol):
    def __call__(self, labels: np.ndarray, *, classes: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class FinetuneSet:
    training: CropDataset
    holdout: CropDataset | None  # of train, never trained on
    test: CropDataset | None
    classes: list[str]
    identities: dict[str, str]  # split -> what it is
    remarks: list[str]  # what is unusual about the labels

    def source(self, split: str) -> Images:
        """All images of "train" or of "test"."""
        return (self.test if split == "test" and self.test else self.training).pixels.source

    @property
    def labels(self) -> np.ndarray:
        """integers [n]: of the images that are trained on."""
        assert self.training.labels is not None
        return self.training.labels[self.training.ids]

    def redrawn(self, seed: int, few_labels: Choose) -> "FinetuneSet":
        """The same hold-out and test images; of what is left another draw of labels, and crops, colours and pairs by another seed."""
        labels = self.training.labels
        assert labels is not None
        kept = np.setdiff1d(np.arange(len(labels)), self.holdout.ids if self.holdout else [])
        chosen = kept[few_labels(labels[kept], classes=self.classes)]
        return replace(self, training=replace(self.training, seed=seed, pool=chosen))

    def drawn(self, augment: AugmentConfig, size: tuple[int, int], mean: Triple) -> "FinetuneSet":
        """The same images, trained on with these crops, colours and pairs; size: (height, width); mean: of the input normalisation."""
        height, width = size
        ratio = (augment.crop_ratio[0] * width / height, augment.crop_ratio[1] * width / height)
        training = replace(
            self.training,
            augment=Augment(size, augment.crop_scale, ratio, augment.flip, augment.vertical_flip, augment.turns),
            recolour=rand_augment(augment.rand_augment, height, width, mean) if augment.rand_augment else None,
            erasing=augment.erasing,
            mixing=Mixing(augment.mixup, augment.cutmix, augment.mix_share, augment.cutmix_share) if augment.mixes else None,
        )
        return replace(self, training=training)

    def order(self, config: FinetuneConfig, plan: BatchPlan) -> Order:
        """Over the images that are trained on alone: its n-th sample is training.ids[n]."""
        edges = np.concatenate([[0], np.cumsum(self.training.pixels.source.samples_per_shard)])
        counts = np.diff(np.searchsorted(self.training.ids, edges))
        return Order(counts[counts > 0], config.data.global_batch, plan.streams, config.seed, config.data.block)

    def placed(self, config: FinetuneConfig, device: torch.device, local_world: int) -> CropDataset:
        """The training images where system.images wants them.  local_world: processes of this machine, each with a copy of its own."""
        return placed(self.training, config.system, device, local_world)


def open_finetune_set(
    config: FinetuneConfig,
    size: tuple[int, int],
    mean: Triple,
    hold_out: Divide,
    few_labels: Choose,
    peers: Peers = ALONE,
    download: bool = True,
) -> FinetuneSet:
    """size: (height, width) of the crops; mean: of the input normalisation.

    hold_out: labels [n] and the classes' names -> rows (kept, held); few_labels: the same -> rows that are used.  download: as of `open_labelled`.
    Raises ConfigError and DataError for anything that cannot be trained on.
    """
    require_codecs()
    train = open_labelled(config.train, "train", peers, download)
    test = open_labelled(config.test, "test", peers, download) if config.test else None
    check_splits(train, test)
    kept, held = np.arange(len(train)), np.arange(0)
    if config.data.holdout_fraction:
        kept, held = hold_out(train.labels, classes=train.classes)
    kept = kept[few_labels(train.labels[kept], classes=train.classes)]
    centred = lambda images, ids, leaves_none_out=True: CropDataset(
        StoredPixels(images, config.data.max_pixels),
        Centre(size, config.data.test_crop),
        config.seed,
        ids,
        leaves_none_out=leaves_none_out,
        labels=images.labels,
    )
    opened = FinetuneSet(
        centred(train, kept, leaves_none_out=False),
        centred(train, held) if len(held) else None,
        centred(test, np.arange(len(test))) if test is not None else None,
        train.classes,
        {"train": train.identity} | ({"test": test.identity} if test is not None else {}),
        remarks_on(train, test),
    )
    return opened.drawn(config.augment, size, mean)
