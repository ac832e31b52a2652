"""The frozen encoder on labelled images, read anew each time: what probes that augment are given (probes/contract.py, Views).

Letters: n images, B batch, S pixels a side, P prefix tokens, N patches, D width, H heads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mpp.data.augment import Augment
from mpp.data.crop import cut
from mpp.data.handing_over import handed_over, settings
from mpp.data.labelled import LabelledImages
from mpp.errors import BadSample, ConfigError, DataError, UserError, of_this_rank
from mpp.rng import CROP, Draws
from mpp.transfer.extraction import Crops, as_it_is, crop_batches, loader_workers
from mpp.transfer.extractors import EncoderExtractor
from mpp.transfer.features import FeatureConfig
from mpp.transfer.probes.contract import Answers, Predict
from mpp.world import World

RATIO = (3 / 4, 4 / 3)  # of a crop's sides (torchvision's RandomResizedCrop, as MAE)


class RandomCrops(Dataset):
    """One augmented view of each image: a random resized crop, flipped half of the times, by (seed, epoch, id)."""

    def __init__(self, images: LabelledImages, samples: np.ndarray, augment: Augment, seed: int, epoch: int, max_pixels: int):
        self.images, self.samples, self.augment, self.seed, self.epoch, self.max_pixels = images, samples, augment, seed, epoch, max_pixels

    def __getitems__(self, rows: Sequence[int]) -> tuple[np.ndarray, Tensor] | UserError:
        """(rows, uint8 [B, 3, S, S]), or what is wrong."""
        try:
            return np.array(rows), torch.from_numpy(np.stack([self._one(int(self.samples[row])) for row in rows]))
        except UserError as error:
            return error

    def _one(self, sample: int) -> np.ndarray:
        view = self.augment.draw(Draws(self.seed, CROP, self.epoch, sample, 0))
        try:
            width, height = self.images.size_of(sample)
            image = cut(self.images.read(sample), width, height, [view.box(width, height)], self.augment.size, self.max_pixels)[0]
        except BadSample as error:
            raise of_this_rank(
                DataError(f"{self.images.where(sample)}: {error}; a probe leaves no image out, so copy or make the split again")
            ) from error
        return image[:, :, ::-1] if view.flip else image


@dataclass(frozen=True)
class ImageViews:
    """Collective: every process works through its share."""

    extractor: EncoderExtractor
    images: LabelledImages
    samples: np.ndarray  # int64 [n], ids: a row stands for one of them
    config: FeatureConfig
    seed: int
    world: World

    @property
    def prefix(self) -> int:
        return self.extractor.backbone.prefix

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def processes(self) -> int:
        return self.world.size

    def width_of(self, layer: int) -> int:
        return self.extractor.backbone.width_of(layer)

    def augmented(
        self, epoch: int, parts: Sequence[np.ndarray], layers: Sequence[int], crop_scale: tuple[float, float]
    ) -> Iterable[tuple[dict[int, Tensor], np.ndarray]]:
        augment = Augment(self.extractor.spec.resolution, crop_scale, RATIO, flip=True)
        crops = RandomCrops(self.images, self.samples, augment, self.seed, epoch, self.config.max_pixels)
        loader: DataLoader = DataLoader(
            crops,
            batch_sampler=[part.tolist() for part in parts],
            collate_fn=as_it_is,
            pin_memory=self.world.device.type == "cuda",
            generator=torch.Generator(),
            **settings(loader_workers(self.config, self.world)),
        )
        for item in handed_over(loader, "training a probe"):
            if isinstance(item, UserError):
                raise item
            yield self.extractor.tokens(item[1].to(self.world.device), layers), item[0]

    def answers(self, predict: Predict, layers: Sequence[int], rows: np.ndarray) -> list[Answers]:
        """Each image by one process, and counted.  Raises ConfigError where one is missing or came twice."""
        samples, world = self.samples[rows], self.world
        crops = Crops(self.images, samples, self.extractor.spec.resolution, self.extractor.spec.crop, self.config.max_pixels)
        own = range(len(samples) * world.rank // world.size, len(samples) * (world.rank + 1) // world.size)
        parts: list[tuple[np.ndarray, Tensor, Tensor]] = []
        for item in crop_batches(crops, own, self.config, world):
            if isinstance(item, UserError):
                raise item
            with torch.no_grad():
                predicted, sure = predict(self.extractor.tokens(item[1].to(world.device), layers))
            parts.append((item[0], predicted.cpu(), sure.float().cpu()))
        gathered: list[Any] = [parts]
        if world.size > 1:
            gathered = [None] * world.size
            dist.all_gather_object(gathered, parts)
        everything = [part for share in gathered for part in share]
        seen = np.concatenate([places for places, _, _ in everything])
        if not np.array_equal(np.sort(seen), np.arange(len(samples))):
            raise ConfigError(
                f"{len(np.unique(seen))} of {len(samples)} images were answered, {len(seen)} answers in all; no figure would be right"
            )
        order = torch.from_numpy(np.argsort(seen))
        classes = torch.cat([predicted for _, predicted, _ in everything], dim=1)[:, order]
        confidence = torch.cat([sure for _, _, sure in everything], dim=1)[:, order]
        return [Answers(*pair) for pair in zip(classes, confidence, strict=True)]
