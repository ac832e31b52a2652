"""What probes share that are trained with the encoder in the loop, because they augment or look at every token: nothing here comes from cached features.

Several heads are trained side by side on one forward pass of the frozen encoder.  With torch.distributed set up each process sees its share of
every step; sums over the step are taken over all processes, so the heads are the same in every process and, up to rounding, for every number of them.

Letters: n images, B batch, P prefix tokens, N patches, D width, H heads.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed

from mpp.base.errors import ConfigError, DataError
from mpp.base.progress import Progress
from mpp.base.rng import PROBE, Draws
from mpp.base.text import counted
from mpp.config.schema import Count, Pair, Positive
from mpp.processes.watch import meeting
from mpp.transfer.probes.contract import LAST, Answers, Fitted, Measured, Probe, Train, scores_by_place
from mpp.transfer.split import BATCHES

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)]
Batches = Callable[[int, Sequence[np.ndarray]], Iterable[tuple[dict[int, Tensor], Tensor]]]
"""(epoch, rows of each micro-batch) -> (tokens [B, P + N, D] by layer, labels int64 [B]) of each, in that order; augments by (seed, epoch, row)."""


class Heads(Protocol):
    """Several heads in training."""

    heads: list[str]  # what each one is, in words for a table

    def see(self, tokens: dict[int, Tensor], labels: Tensor) -> None:
        """One micro-batch of a step: tokens [B, P + N, D] by layer, labels int64 [B]."""

    def step(self, factor: float) -> None:
        """Update every head with what all processes have seen; factor: of the learning rates, 0..1."""

    def predict(self, tokens: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Classes int64 [H, B] and the probabilities given to them, float32 [H, B]."""


class OnlineProbe(Probe, ABC):
    """A probe with the encoder in the loop: it augments, so it uses no cached features, and costs epochs x images forward passes."""

    in_the_loop = True
    chooses_layers: ClassVar[bool] = False
    """Whether the hold-out chooses among the encoder's layers, too."""

    epochs: Positive
    warmup_epochs: Count
    batch: Positive  # images a step over all processes
    micro_batch_max: Positive = 512  # images a process takes at once
    learning_rates: Rates  # x batch / 256
    crop_scale: Pair = (0.08, 1.0)  # share of the area (torchvision's RandomResizedCrop, as MAE)
    crop: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # share of the short side that the centre crop keeps when it answers; null: features.crop
    )

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}, or the learning rate never reaches its peak; "
                f"set warmup_epochs={self.epochs // 10}"
            )
        return self

    @abstractmethod
    def heads(self, train: Train, widths: dict[int, int], prefix: int, images_per_step: float) -> Heads:
        """A head for every layer of `widths` and learning rate, untrained; widths: D of each layer.  prefix: P."""

    @property
    def pools_tokens(self) -> bool:
        return True

    def layers(self, train: Train) -> tuple[int, ...]:
        """Those that heads are trained on."""
        return train.own.layers

    def fit(self, train: Train) -> "FittedOnline":
        """Collective.  A single head is trained on fit and choose; of several, trained on fit alone, the hold-out chooses."""
        assert train.views is not None
        began, views, layers = time.perf_counter(), train.views, self.layers(train)
        several = len(self.learning_rates) * len(layers) > 1
        rows = train.split.fit if several else train.split.both
        steps = Steps(rows, self.batch, self.micro_batch_max, train.seed, views.rank, views.processes)
        heads = self.heads(train, {layer: views.width_of(layer) for layer in layers}, views.prefix, steps.images_per_step)

        def batches(epoch: int, parts: Sequence[np.ndarray]) -> Iterable[tuple[dict[int, Tensor], Tensor]]:
            for tokens, seen in views.augmented(epoch, parts, layers, self.crop_scale):
                yield tokens, train.truth(seen).to(train.device)

        train_online(heads, batches, steps, epochs=self.epochs, warmup_epochs=self.warmup_epochs)
        accuracy: list[float] = []
        if several:
            accuracy = [
                float(train.on_holdout(given.predicted)) for given in views.answers(heads.predict, layers, train.split.choose, self.crop)
            ]
        seconds = round(time.perf_counter() - began, 1)
        of_layer = {layer: range(i * len(self.learning_rates), (i + 1) * len(self.learning_rates)) for i, layer in enumerate(layers)}

        def chosen(able: Sequence[int]) -> tuple[int, dict[str, Any]]:
            head = max(able, key=lambda i: accuracy[i]) if accuracy else 0
            rate = sorted(range(len(self.learning_rates)), key=lambda i: self.learning_rates[i]).index(head % len(self.learning_rates))
            place = layers[head // len(self.learning_rates)]
            return head, ({"place": f"layer {place}"} if self.chooses_layers else {}) | {
                "chosen": {"head": heads.heads[head]},
                "holdout_score": accuracy[head] if accuracy else None,
                "edge": ["learning rate"] if several and len(self.learning_rates) > 1 and rate in (0, len(self.learning_rates) - 1) else [],
                "labels": len(rows),
                "cached_features": False,
                "augmentation": f"random resized crops, area {self.crop_scale[0]:g} to {self.crop_scale[1]:g}, flips",
                "crop": self.crop,
                "images_per_step": steps.images_per_step,
                "seconds": seconds,
            }

        head, about = chosen(range(len(heads.heads)))
        about["grid"] = [{"head": words, "holdout_score": share} for words, share in zip(heads.heads, accuracy, strict=False)]
        parts = {"": (head, about)}
        if self.chooses_layers:
            about["by_layer"] = scores_by_place(
                (layer, self.key, accuracy[i]) for layer, able in of_layer.items() for i in able if accuracy
            )
            if train.last in of_layer:
                parts[LAST] = chosen(of_layer[train.last])
        return FittedOnline(about, self.key, heads, layers, self.crop, parts)


@dataclass(frozen=True)
class FittedOnline(Fitted):
    about: dict[str, Any]
    key: str
    heads: Heads
    layers: tuple[int, ...]
    crop: float | None
    chosen: dict[str, tuple[int, dict[str, Any]]]  # by part: which head, and what is known of it

    def summary(self) -> str:
        place = f" on {self.about['place']}" if "place" in self.about else ""
        return f"{self.key}{place}, {self.about['augmentation']}: no cached features, {self.about['seconds']:.0f} s"

    def answer(self, images: Measured) -> Answers:
        return self.parts(images)[""][1]

    def parts(self, images: Measured) -> dict[str, tuple[dict[str, Any], Answers]]:
        assert images.views is not None
        given = images.views.answers(self.heads.predict, self.layers, images.rows, self.crop)
        return {part: (about, given[head]) for part, (head, about) in self.chosen.items()}


@dataclass(frozen=True)
class Steps:
    """Which rows each step of an epoch sees: a pure function of (seed, epoch), every row once.

    The n rows are permuted and cut into ceil(n / batch) steps whose sizes differ by one at most; MAE instead drops the last, incomplete batch.
    Process `rank` of `world` takes every world-th row of a step, `micro` at a time.  Raises ConfigError where a step has fewer rows than processes.
    """

    rows: np.ndarray  # int64 [n]
    batch: int  # images a step at most, over all processes
    micro: int  # images a forward pass at most
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if len(self.rows) // self.per_epoch < self.world:
            raise ConfigError(
                f"a step of {len(self.rows) // self.per_epoch} images cannot be shared by {self.world} processes; "
                "give a larger batch, more images or fewer processes"
            )

    @property
    def per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch)

    @property
    def images_per_step(self) -> float:
        """The mean over an epoch: what a learning rate given for 256 images is scaled by."""
        return len(self.rows) / self.per_epoch

    def epoch(self, epoch: int) -> list[list[np.ndarray]]:
        """Steps of micro-batches of rows, this process's."""
        order = self.rows[Draws(self.seed, PROBE, BATCHES, epoch).permutation(len(self.rows))]
        shares = (step[self.rank :: self.world] for step in np.array_split(order, self.per_epoch))
        return [np.array_split(share, -(-len(share) // self.micro)) for share in shares]


def train_online(heads: Heads, batches: Batches, steps: Steps, *, epochs: int, warmup_epochs: float) -> None:
    """Linear warm-up from zero, then half a cosine to zero, the rate set at the start of each step (MAE's util/lr_sched.py).

    Raises DataError when `batches` gives other than the images asked for.
    """
    with Progress(counted(len(heads.heads), "head"), epochs * steps.per_epoch, "steps", at_once=True) as bar:
        for epoch in range(epochs):
            plan = steps.epoch(epoch)
            stream = iter(batches(epoch, [rows for step in plan for rows in step]))
            for number, step in enumerate(plan):
                for rows in step:
                    tokens, labels = next(stream, ({}, torch.empty(0)))
                    if len(labels) != len(rows):
                        raise DataError(
                            f"epoch {epoch}, step {number}: {len(labels)} images came and {len(rows)} were asked for; every image counts once an epoch"
                        )
                    heads.see(tokens, labels)
                heads.step(cosine(epoch + number / steps.per_epoch, epochs, warmup_epochs))
                bar.update()


def cosine(epoch: float, epochs: int, warmup_epochs: float) -> float:
    """The share of the peak rate at so many epochs, whole or not."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def sum_over_processes(parts: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, in one exchange."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return list(parts)
    flat = torch.cat([part.flatten() for part in parts])
    with meeting():
        distributed.all_reduce(flat)
    return [part.view_as(like) for part, like in zip(flat.split([like.numel() for like in parts]), parts, strict=True)]
