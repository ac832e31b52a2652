"""Probes that are trained with the encoder in the loop, because they augment or look at every token: nothing here comes from cached features.

A probe trains several heads side by side on one forward pass of the frozen encoder.  With torch.distributed set up each process sees its share of
every step; sums over the step are taken over all processes, so the heads are the same in every process and, up to rounding, for every number of them.

Letters: n images, B batch, S pixels a side, P prefix tokens, N patches, D width, H heads.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, distributed

from mpp.errors import ConfigError, DataError
from mpp.rng import PROBE, Draws
from mpp.transfer.split import BATCHES
from mpp.watch import meeting

Encode = Callable[[Tensor], dict[int, Tensor]]  # uint8 [B, 3, S, S] -> tokens [B, P + N, D] of each layer
Batches = Callable[[int, Sequence[np.ndarray]], Iterable[tuple[Tensor, Tensor]]]
"""(epoch, rows of each micro-batch) -> (uint8 [B, 3, S, S] on the device, labels int64 [B]) of each, in that order; augments by (seed, epoch, row)."""


class Probe(Protocol):
    """Several heads in training."""

    heads: list[str]  # what each one is, in words for a table

    def see(self, tokens: dict[int, Tensor], labels: Tensor) -> None:
        """One micro-batch of a step: tokens [B, P + N, D] by layer, labels int64 [B]."""

    def step(self, factor: float) -> None:
        """Update every head with what all processes have seen; factor: of the learning rates, 0..1."""

    def predict(self, tokens: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Classes int64 [H, B] and the probabilities given to them, float32 [H, B]."""


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


def train(probe: Probe, encode: Encode, batches: Batches, steps: Steps, *, epochs: int, warmup_epochs: float) -> None:
    """Linear warm-up from zero, then half a cosine to zero, the rate set at the start of each step (MAE's util/lr_sched.py).

    Raises DataError when `batches` gives other than the images asked for.
    """
    for epoch in range(epochs):
        plan = steps.epoch(epoch)
        stream = iter(batches(epoch, [rows for step in plan for rows in step]))
        for number, step in enumerate(plan):
            for rows in step:
                images, labels = next(stream, (torch.empty(0), torch.empty(0)))
                if len(images) != len(rows) or len(labels) != len(rows):
                    raise DataError(
                        f"epoch {epoch}, step {number}: {len(images)} images came and {len(rows)} were asked for; every image counts once an epoch"
                    )
                with torch.no_grad():
                    tokens = encode(images)
                probe.see(tokens, labels)
            probe.step(cosine(epoch + number / steps.per_epoch, epochs, warmup_epochs))


def cosine(epoch: float, epochs: int, warmup_epochs: float) -> float:
    """The share of the peak rate at so many epochs, whole or not."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


@torch.no_grad()
def predict(probe: Probe, encode: Encode, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Classes int64 [H, m] and their probabilities float32 [H, m] for uint8 images [B, 3, S, S], m in all."""
    found = [tuple(part.cpu() for part in probe.predict(encode(images))) for images in batches]
    return torch.cat([classes for classes, _ in found], dim=1), torch.cat([confidence for _, confidence in found], dim=1)


def sum_over_processes(parts: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, in one exchange."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return list(parts)
    flat = torch.cat([part.flatten() for part in parts])
    with meeting():
        distributed.all_reduce(flat)
    return [part.view_as(like) for part, like in zip(flat.split([like.numel() for like in parts]), parts, strict=True)]
