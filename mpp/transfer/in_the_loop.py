"""The frozen encoder on labelled images, read anew each time: what probes that augment are given (probes/contract.py, Views).

Letters: n images, B batch, S pixels a side, P prefix tokens, N patches, D width, H heads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mpp.base.errors import ConfigError
from mpp.base.progress import Progress
from mpp.data.augment import Augment
from mpp.data.images import LabelledImages
from mpp.processes.world import World
from mpp.train.step import images_on_device
from mpp.transfer.extraction import centre_crops, own_rows, read
from mpp.transfer.extractors import EncoderExtractor
from mpp.transfer.features import FeatureConfig
from mpp.transfer.probes.contract import Answers, Predict

RATIO = (3 / 4, 4 / 3)  # of a crop's sides (torchvision's RandomResizedCrop, as MAE)


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
    def class_tokens(self) -> int:
        return self.extractor.backbone.class_tokens

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
        crops = replace(centre_crops(self.images, self.samples, self.extractor.spec, self.config), augment=augment, seed=self.seed)
        for batch in read(crops, parts, self.config, self.world, "training a probe", epoch):
            yield self.extractor.tokens(images_on_device(batch, self.world.device), layers), batch["position"].numpy()

    def answers(self, predict: Predict, layers: Sequence[int], rows: np.ndarray, crop: float | None = None) -> list[Answers]:
        """Each image by one process, and counted.  Raises ConfigError where one is missing or came twice."""
        samples, world = self.samples[rows], self.world
        spec = self.extractor.spec if crop is None else replace(self.extractor.spec, crop=crop)
        crops = centre_crops(self.images, samples, spec, self.config)
        parts: list[tuple[np.ndarray, Tensor, Tensor]] = []
        mine = own_rows(len(samples), self.config.batch, world)
        with Progress(f"answering for {self.images.path}", sum(map(len, mine)), "images", at_once=True) as bar:
            for batch in read(crops, mine, self.config, world):
                with torch.no_grad():
                    predicted, sure = predict(self.extractor.tokens(batch["image"].to(world.device), layers))
                parts.append((batch["position"].numpy(), predicted.cpu(), sure.float().cpu()))
                bar.update(len(predicted[0]))
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
