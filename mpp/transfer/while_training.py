"""What the features are worth while an encoder is still being pretrained: on fixed images, with the probes of mpp/linear_probe.py.

Looked at are held-out images, which nothing is trained on, and, where there are labels, a bank of training images by which their classes are told.
No test split has a part in it.  Crops are cut once and kept in memory, so a look costs a forward pass of all their patches.

    features/rank, features/mean_cosine, features/deviation    of the asked images' features (monitor/rank.py)
    features/knn, features/linear       share of the asked images given their own class by k-NN, and by least squares in closed form (few_shot.py)

Letters: n images, B batch, S pixels a side, D width.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mpp.base.errors import ConfigError, DataError
from mpp.config.pretrain import PretrainConfig
from mpp.data.augment import Centre
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.images import LabelledImages
from mpp.data.labelled import open_labelled
from mpp.data.order import FIXED
from mpp.data.pixels import StoredPixels
from mpp.data.streams import Stream
from mpp.data.training_set import TrainingSet
from mpp.monitor.rank import spread
from mpp.processes.peers import ALONE, Peers
from mpp.processes.world import World
from mpp.transfer.features import Features, FeatureSpec, Layout, Variant
from mpp.transfer.grid import Axis, search
from mpp.transfer.probes.contract import Measured, Train
from mpp.transfer.probes.few_shot import LIMITS, FewShotProbe, fit
from mpp.transfer.probes.knn import KnnProbe
from mpp.transfer.split import Split, subset

SHARE = 0.01  # of the samples that are trained on, so many may be looked at in the course of a run: at most twice that share of its time
LEAST_LOOKS, MOST_LOOKS = 5, 20
LEAST_IMAGES = 64  # asked about; below, a figure means nothing
LEAST_BANK = 10  # labelled images: some to choose on
ASKED = 0.25  # of the images of a look where there are labels; the others are the bank
CHOOSING = 0.2  # of the bank: what neighbours and regularisation are chosen on
BATCH = 64  # images at a time
OWN = Variant((0,), "mean")  # the one choice of columns
Encode = Callable[[Tensor], Tensor]
"""Colours 0..255, [B, 3, S, S] -> [B, D]."""


def cadence(config: PretrainConfig) -> tuple[int, int]:
    """(every so many steps, images a look): what was asked for, else what SHARE allows; (0, 0): never.

    Raises ConfigError where `evaluate.train` was given and would never be looked at.
    """
    asked, steps = config.evaluate, config.optim.total_samples // config.data.global_batch
    affordable = SHARE * config.optim.total_samples
    if asked.images == 0:
        return 0, 0
    if asked.every_steps is not None:
        return asked.every_steps, asked.images
    images = int(min(asked.images, affordable / LEAST_LOOKS))
    if images < LEAST_IMAGES:
        if asked.train is not None:
            raise ConfigError(f"evaluate.train={asked.train} would never be looked at: {_too_short(config)}, or leave it out")
        return 0, 0
    return max(1, steps // min(MOST_LOOKS, int(affordable / images))), images


def unlooked_words(config: PretrainConfig) -> list[str]:
    """Why there are no looks, where nobody asked for none."""
    return [] if config.evaluate.images == 0 or cadence(config)[0] else [f"features are not looked at: {_too_short(config)}"]


def _too_short(config: PretrainConfig) -> str:
    every = max(1, config.optim.total_samples // config.data.global_batch // LEAST_LOOKS)
    return (
        f"a hundredth of optim.total_samples={config.optim.total_samples} is less than {LEAST_LOOKS} looks at {LEAST_IMAGES} images; say how often with "
        f"evaluate.every_steps, such as {every}"
    )


@dataclass(frozen=True)
class Chosen:
    """Images by id: asked about, and the bank (none without labels)."""

    of_asked: LabelledImages
    asked: np.ndarray  # int64
    of_bank: LabelledImages
    bank: np.ndarray  # int64


def choose(config: PretrainConfig, sets: TrainingSet, images: int, peers: Peers = ALONE) -> Chosen:
    """peers: who chooses together; collective.  Raises DataError for `evaluate.train` without labels."""
    held, training = sets.held_out, sets.trained_on
    ids_of = lambda data, count, key: data.ids_at(subset(len(data.pool), count, config.seed, key))
    if config.evaluate.train is not None:
        given = open_labelled(config.evaluate.train, "train", peers)
        if not given.labelled:
            raise DataError(
                f"evaluate.train={config.evaluate.train} holds no labels; make them with data_prep/make_shards.py SOURCE OUT --labels, or leave it out"
            )
        drawn = subset(len(given), images, config.seed, 1)
        cut = round(ASKED * len(drawn))
        mixed = np.random.Generator(np.random.Philox(config.seed)).permutation(drawn)
        return Chosen(given, np.sort(mixed[:cut]), given, np.sort(mixed[cut:]))
    if isinstance(training, Stream) or not (
        training.labelled and held.labelled and training.classes == held.classes and len(training.classes) > 1
    ):
        return Chosen(held, ids_of(sets.holdout, images, 1), held, np.arange(0))
    asked = ids_of(sets.holdout, round(ASKED * images), 1)
    return Chosen(held, asked, training, ids_of(sets.training, images - len(asked), 2))


class FeatureLooks:
    """Collective: all processes look in the same steps, and each encodes its share of the images."""

    def __init__(self, config: PretrainConfig, chosen: Chosen, world: World):
        self.world, self.chosen, self.seed = world, chosen, config.seed
        self._seconds = 0.0  # of all looks so far
        self.config = config
        parts, self.ids = [], []
        self._asked: tuple[np.ndarray, Tensor] | None = None  # of the last look, in rank 0
        for images, ids in ((chosen.of_bank, chosen.bank), (chosen.of_asked, chosen.asked)):
            own = ids[world.rank :: world.size]
            batch = self._read(images, ids, own) if len(own) else None
            readable = ~batch["replaced"] if batch else torch.zeros(0, dtype=torch.bool)  # a stand-in would be looked at twice
            parts += [batch["image"][readable]] if batch else []
            self.ids.append(own[readable.numpy()])
        # As often as the process that has most calls the encoder: images are dealt out one by one, and unreadable ones are left out.
        self._calls = -(-sum(-(-len(ids) // world.size) for ids in (chosen.bank, chosen.asked)) // BATCH)
        self.crops = torch.cat(parts)  # uint8 [n, 3, S, S], this process's: of the bank, then those asked about
        self._began = time.perf_counter()

    def _read(self, images: LabelledImages, known: np.ndarray, ids: np.ndarray) -> Batch:
        """known: the images of which a stand-in for one that cannot be read is taken."""
        centre = Centre((self.config.model.image_size, self.config.model.image_size), 1.0)
        crops = CropDataset(StoredPixels(images, self.config.data.max_pixels), centre, 0, np.unique(known))
        return crops.batch([(FIXED, int(sample), place) for place, sample in enumerate(ids)])

    @property
    def labelled(self) -> bool:
        """Whether there is a bank that tells classes."""
        return len(self.chosen.bank) >= LEAST_BANK

    @property
    def words(self) -> str:
        told = f", told by {len(self.chosen.bank):,} labelled ones" if self.labelled else "; without labels their rank and deviation alone"
        return f"{len(self.chosen.asked):,} images that are not trained on{told}"

    @property
    def share(self) -> float:
        """Of the time since the first look, what looks have taken."""
        return self._seconds / (time.perf_counter() - self._began)

    def said(self, found: Mapping[str, float]) -> str:
        """What `look` gives, in words."""
        shares = [
            f"{title} {found[name]:.1%}" for title, name in (("k-NN", "features/knn"), ("linear", "features/linear")) if name in found
        ]
        return "  ".join([f"features: rank {found['features/rank']:.1f}  deviation {found['features/deviation']:.2f}", *shares])

    @torch.no_grad()
    def look(self, encode: Encode) -> dict[str, float]:
        """In rank 0 the figures, the same for any number of processes; elsewhere none."""
        own = torch.cat([encode(crops.to(self.world.device).float()).float().cpu() for crops in self.crops.split(BATCH)])
        for _ in range(self._calls - -(-len(self.crops) // BATCH)):  # at ZeRO-3 a forward pass needs all processes
            encode(self.crops.new_zeros(1, *self.crops.shape[1:]).to(self.world.device).float())
        mine = tuple(zip(self.ids, own.split([len(ids) for ids in self.ids]), strict=True))
        parts: list[Any] = [mine]
        if self.world.size > 1:
            parts = [None] * self.world.size
            dist.all_gather_object(parts, mine)
        if not self.world.first:
            return {}
        bank, self._asked = (_joined([part[place] for part in parts]) for place in range(2))
        return self._figures(bank, self._asked)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What lies inside counts as looking."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def projection(self, most: int) -> tuple[np.ndarray, list[str], Tensor] | None:
        """In rank 0, of the last look: features float32 [n, D] of the images asked about, `most` at most, the class of each (else its number), and
        the images uint8 [n, 3, S, S]; None where nobody has looked."""
        if self._asked is None:
            return None
        (ids, values), images = self._asked, self.chosen.of_asked
        rows = subset(len(ids), min(most, len(ids)), self.seed, 4)
        known = images.labels_of(ids[rows]) if images.labelled else None
        words = [images.classes[label] for label in known] if known is not None else [str(sample) for sample in ids[rows]]
        return values[torch.from_numpy(rows)].numpy(), words, self._read(images, ids, ids[rows])["image"]

    def _figures(self, bank: tuple[np.ndarray, Tensor], asked: tuple[np.ndarray, Tensor]) -> dict[str, float]:
        """bank, asked: ids int64 [n], and float32 [n, D]."""
        (bank_ids, known), (asked_ids, new) = bank, asked
        found = {f"features/{name}": value for name, value in spread(new).items() if name != "rank_uncentred"}
        if len(known) < LEAST_BANK:
            return found
        values = torch.cat([known, new])
        labels = np.concatenate([self.chosen.of_bank.labels_of(bank_ids), self.chosen.of_asked.labels_of(asked_ids)])
        features = Features(_spec(values.shape[1]), Layout({("mean", 0): 0}, {("mean", 0): values.shape[1]}), values)
        choosing = subset(len(known), max(1, round(CHOOSING * len(known))), self.seed, 3)
        split = Split(np.setdiff1d(np.arange(len(known)), choosing), choosing)
        train = Train(features, OWN, labels, self.chosen.of_bank.classes, split, self.seed, torch.device("cpu"))
        truth = torch.from_numpy(labels[len(known) :].astype(np.int64))
        neighbours = KnnProbe(curve=False).fit(train).answer(Measured(features, np.arange(len(known), len(values)))).predicted
        return found | {
            "features/knn": float((neighbours == truth).double().mean()),
            "features/linear": float((least_squares(train, new) == truth).double().mean()),
        }


def least_squares(train: Train, asked: Tensor) -> Tensor:
    """float32 [m, D] -> int64 [m]: by few-shot's formula on all of the bank, at the l2 that is best on `choose`."""
    own, classes = train.features.of(train.own), len(train.classes)
    on = lambda rows, grid: fit(own[rows], train.truth(rows), classes, grid, train.device)
    evaluate = lambda values: train.on_holdout(on(train.split.fit, values[0]).predict(own[train.split.choose])[0]).numpy()
    l2 = search([Axis("l2", sorted(FewShotProbe().l2), 10, *LIMITS)], evaluate).chosen(0)
    return on(train.split.both, [l2]).predict(asked)[0][0]


def _joined(parts: Sequence[tuple[np.ndarray, Tensor]]) -> tuple[np.ndarray, Tensor]:
    """Of all processes, in the order of the ids."""
    ids, values = np.concatenate([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    order = np.argsort(ids)
    return ids[order], values[torch.from_numpy(order)]


def _spec(width: int) -> FeatureSpec:
    half = (0.5, 0.5, 0.5)  # probes look at values alone
    return FeatureSpec(f"in training, {width} wide", (0,), ("mean",), 0, 1.0, half, half, "fp32")
