"""The probes that augment, on labelled images: MAE's linear protocol and the attentive probe.

They read every image anew in every epoch, so they use no cached features; see online.py for the training itself.
Letters: n images, B batch, S pixels a side, H heads.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mpp.config.probe import AttentiveConfig, FeatureConfig, ProbeConfig
from mpp.data.augment import Augment
from mpp.data.crop import cut
from mpp.data.handing_over import handed_over, settings
from mpp.data.labelled import LabelledImages
from mpp.errors import BadSample, ConfigError, DataError, UserError, of_this_rank
from mpp.rng import CROP, Draws
from mpp.transfer.attentive import AttentiveProbe
from mpp.transfer.extraction import Crops, as_it_is, crop_batches, loader_workers
from mpp.transfer.extractors import EncoderExtractor
from mpp.transfer.features import Variant
from mpp.transfer.mae_probe import MaeProbe
from mpp.transfer.online import Probe, Steps, train
from mpp.transfer.protocol import Answers
from mpp.transfer.split import Split
from mpp.world import World

RATIO = (3 / 4, 4 / 3)  # of a crop's sides (torchvision's RandomResizedCrop, as MAE)


@dataclass(frozen=True)
class Online:
    """A trained probe and the head of it that was chosen."""

    probe: Probe
    head: int
    about: dict[str, Any]  # for results.json
    layers: tuple[int, ...]


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


def train_online(
    name: Literal["mae", "attentive"],
    extractor: EncoderExtractor,
    images: LabelledImages,
    samples: np.ndarray,
    labels: np.ndarray,
    classes: int,
    split: Split,
    own: Variant,
    config: ProbeConfig,
    world: World,
) -> Online:
    """Collective.

    samples (int64 [n], ids), labels (integers [n]): of train; own: the features of MAE's head, whose layers the attention looks at.
    A single head is trained on fit and choose; of several, trained on fit alone, the hold-out chooses.
    """
    knobs, began = config.mae if name == "mae" else config.attentive, time.perf_counter()
    widths = {layer: extractor.backbone.width_of(layer) for layer in own.layers}
    several = len(knobs.learning_rates) * len(widths) > 1
    rows = split.fit if several else split.both
    steps = Steps(rows, knobs.batch, knobs.micro_batch_max, config.seed, world.rank, world.size)
    prefix, scale, rates = extractor.backbone.prefix, steps.images_per_step, knobs.learning_rates
    probe: Probe
    if isinstance(knobs, AttentiveConfig):
        probe = AttentiveProbe(
            widths,
            prefix,
            classes,
            learning_rates=rates,
            weight_decay=knobs.weight_decay,
            images_per_step=scale,
            seed=config.seed,
            device=world.device,
        )
    else:
        pooled = [(layer, own.pooling) for layer in own.layers]
        probe = MaeProbe(
            pooled, widths, prefix, classes, learning_rates=rates, images_per_step=scale, seed=config.seed, device=world.device
        )
    augment = Augment(extractor.spec.resolution, knobs.crop_scale, RATIO, flip=True)

    def batches(epoch: int, parts: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        crops = RandomCrops(images, samples, augment, config.seed, epoch, config.features.max_pixels)
        for item in _random_batches(crops, parts, config.features, world):
            if isinstance(item, UserError):
                raise item
            yield item[1].to(world.device), torch.from_numpy(labels[item[0]].astype(np.int64)).to(world.device)

    encode = lambda pixels: extractor.tokens(pixels, own.layers)
    train(probe, encode, batches, steps, epochs=knobs.epochs, warmup_epochs=knobs.warmup_epochs)
    accuracy: list[float] = []
    if several:
        held = answers(probe, extractor, own.layers, images, samples[split.choose], config.features, world)
        truth = torch.from_numpy(labels[split.choose].astype(np.int64))
        accuracy = [float((given.predicted == truth).double().mean()) for given in held]
    head = accuracy.index(max(accuracy)) if accuracy else 0
    about = {
        "chosen": {"head": probe.heads[head]},
        "grid": [{"head": words, "holdout_accuracy": share} for words, share in zip(probe.heads, accuracy, strict=False)],
        "holdout_accuracy": accuracy[head] if accuracy else None,
        "trained_on": len(rows),
        "cached_features": False,
        "augmentation": f"random resized crops, area {knobs.crop_scale[0]:g} to {knobs.crop_scale[1]:g}, flips",
        "images_per_step": steps.images_per_step,
        "seconds": round(time.perf_counter() - began, 1),
    }
    return Online(probe, head, about, own.layers)


def answer(
    online: Online, extractor: EncoderExtractor, images: LabelledImages, samples: np.ndarray, config: FeatureConfig, world: World
) -> Answers:
    """Collective: the chosen head's answers to the images of these ids, int64 [m]."""
    return answers(online.probe, extractor, online.layers, images, samples, config, world)[online.head]


def answers(
    probe: Probe,
    extractor: EncoderExtractor,
    layers: Sequence[int],
    images: LabelledImages,
    samples: np.ndarray,
    config: FeatureConfig,
    world: World,
) -> list[Answers]:
    """Collective: every head's answers, each image by one process, and counted.  Raises ConfigError where one is missing or came twice."""
    crops = Crops(images, samples, extractor.spec.resolution, extractor.spec.crop, config.max_pixels)
    own = range(len(samples) * world.rank // world.size, len(samples) * (world.rank + 1) // world.size)
    parts: list[tuple[np.ndarray, Tensor, Tensor]] = []
    for item in crop_batches(crops, own, config, world):
        if isinstance(item, UserError):
            raise item
        with torch.no_grad():
            predicted, sure = probe.predict(extractor.tokens(item[1].to(world.device), layers))
        parts.append((item[0], predicted.cpu(), sure.float().cpu()))
    gathered: list[Any] = [parts]
    if world.size > 1:
        gathered = [None] * world.size
        dist.all_gather_object(gathered, parts)
    everything = [part for share in gathered for part in share]
    rows = np.concatenate([rows for rows, _, _ in everything])
    if not np.array_equal(np.sort(rows), np.arange(len(samples))):
        raise ConfigError(
            f"{len(np.unique(rows))} of {len(samples)} images were answered, {len(rows)} answers in all; no figure would be right"
        )
    place = torch.from_numpy(np.argsort(rows))
    classes = torch.cat([predicted for _, predicted, _ in everything], dim=1)[:, place]
    confidence = torch.cat([sure for _, _, sure in everything], dim=1)[:, place]
    return [Answers(*pair) for pair in zip(classes, confidence, strict=True)]


def _random_batches(crops: RandomCrops, parts: Sequence[np.ndarray], config: FeatureConfig, world: World) -> Iterable[Any]:
    loader: DataLoader = DataLoader(
        crops,
        batch_sampler=[part.tolist() for part in parts],
        collate_fn=as_it_is,
        pin_memory=world.device.type == "cuda",
        generator=torch.Generator(),
        **settings(loader_workers(config, world)),
    )
    return handed_over(loader, "training a probe")
