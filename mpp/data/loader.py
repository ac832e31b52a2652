"""Micro-batches in the order of a sampler, made by processes of the plain torch DataLoader; crop_dataset.py says what a batch holds.

Workers are forked once and live as long as the run: a micro-batch is one worker's, the next is another's.  Each uses one thread, as many
cores do better with a process each; a rank has `default_workers` of them unless system.workers, or
features.workers of a probe, says otherwise.
"""

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mpp.base.errors import ConfigError, of_this_rank
from mpp.base.machine import usable_cores
from mpp.base.text import sized
from mpp.data.crop_dataset import Batch, CropDataset, Key
from mpp.data.handing_over import PREFETCHED, as_it_is, begun, handed_over, settings, unpacked
from mpp.data.order import EveryOnce, OrderSampler, Parts

SHARED_MEMORY = Path("/dev/shm")  # through which workers hand over their batches


def default_workers(local_world: int) -> int:
    """A rank's share of this machine's cores less one for its own process, between 1 and 16."""
    return max(1, min(16, usable_cores() // local_world - 1))


def batches(
    dataset: CropDataset,
    sampler: OrderSampler | EveryOnce | Parts,
    workers: int,
    pin_memory: bool,
    local_world: int = 1,
    phase: str = "training",
    hand: int = 0,
) -> Iterator[Batch]:
    """The sampler's micro-batches in its order, whatever the number of workers, which begin at once.

    local_world: processes of this machine that load as this one does.  phase: what is done with them, in words.  hand: bytes of the shards that this
    process reads from at a time, at most, where they are fetched first.
    Raises DataError, also for a worker that died, and ConfigError where shared memory is too small.
    """
    done = dataset.pixels.expects(sampler, hand)
    if workers:
        refuse_small_shared_memory(shared_bytes(dataset, sampler, workers, local_world), workers)
    loader = _loader(dataset, sampler, workers, pin_memory)
    return _completed(handed_over(loader, phase, begun(loader)), dataset, bool(workers) and not pin_memory, done)


class LoaderProcesses:
    """Loader processes that begin at once and stay.  They read one of their data sets after the other, as often as asked, and nothing before that."""

    def __init__(self, datasets: Sequence[CropDataset], workers: int, pin_memory: bool, local_world: int = 1):
        """local_world: as of `batches`."""
        self.datasets, self.workers, self.pin_memory, self.local_world = datasets, workers, pin_memory, local_world
        self._asked = _Asked()
        self._loader = _loader(_Several(datasets), self._asked, workers, pin_memory, stays=bool(workers))
        if workers:
            begun(self._loader)

    def batches(self, dataset: CropDataset, sampler: OrderSampler | EveryOnce, phase: str, hand: int = 0) -> Iterator[Batch]:
        """As the function of this name; dataset: one of them.  What was asked before and has not been taken is forgotten."""
        if self.workers:
            refuse_small_shared_memory(shared_bytes(dataset, sampler, self.workers, self.local_world), self.workers)
        self._asked.number = next(number for number, each in enumerate(self.datasets) if each is dataset)
        self._asked.sampler = sampler
        done = dataset.pixels.expects(sampler, hand)
        items = handed_over(self._loader, phase, begun(self._loader))
        return _completed(items, dataset, bool(self.workers) and not self.pin_memory, done)


class _Asked:
    """Micro-batches of keys, with the number of their data set; none until there is a sampler."""

    def __init__(self) -> None:
        self.number = 0
        self.sampler: OrderSampler | EveryOnce | None = None

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        number = self.number
        return ((number, keys) for keys in self.sampler or ())


@dataclass(frozen=True)
class _Several(Dataset):
    datasets: Sequence[CropDataset]

    def __getitems__(self, asked: tuple[int, list[Key]]) -> Batch:
        number, keys = asked
        return self.datasets[number].__getitems__(keys)


def _loader(dataset: Dataset, sampler: Any, workers: int, pin_memory: bool, stays: bool = False) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED if workers else None,
        in_order=True,
        persistent_workers=stays,
        generator=torch.Generator(),  # the loader's own draws must not shift the model's noise
        **settings(workers),
    )


def _completed(items: Generator[Any], dataset: CropDataset, copies: bool, done: Callable[[int], None]) -> Iterator[Batch]:
    """copies: images out of the memory that is shared with loader processes, where pinning does not copy them.  done: is told how many have come."""
    for number, batch in enumerate(items):
        done(number)
        if "error" in batch:
            items.close()  # its processes end now: a garbage collection would wait 10 s for them, after it has closed their queues
            raise batch["error"]
        batch = unpacked(batch)
        if copies and "image" in batch:
            batch["image"] = torch.from_numpy(batch["image"].numpy().copy())
        yield dataset.completed(batch)
    done(-1)


def shared_bytes(dataset: CropDataset, sampler: OrderSampler | EveryOnce | Parts, workers: int, local_world: int) -> int:
    """What the loader processes of a machine hold in SHARED_MEMORY at their fullest."""
    in_flight = min((PREFETCHED + 1) * workers, len(sampler)) * local_world
    return dataset.bytes_of(sampler.micro_batch) * in_flight


def refuse_small_shared_memory(needed: int, workers: int) -> None:
    """needed: bytes.  Raises ConfigError."""
    if SHARED_MEMORY.is_dir() and needed > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise of_this_rank(
            ConfigError(
                f"{workers} loader processes a rank hand over batches through {SHARED_MEMORY}, up to {sized(needed)}, and {sized(free)} "
                "are free; lower system.workers or system.micro_batch_max (of a probe features.workers or features.batch), or make it larger "
                "(docker run --shm-size, --ipc=host)"
            )
        )


def fixed_batches(dataset: CropDataset, ids: np.ndarray, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's share of `ids`, one view each, with crops, poses and masks that never change, and a weight [B] of 1, or 0 for padding.

    Every rank yields the same number of batches of the same size, so collective calls inside the loop match.
    """
    dataset = replace(dataset, views=1)
    sampler = EveryOnce(ids, batch, rank, world)
    done = dataset.pixels.expects(sampler)
    for number, keys in enumerate(sampler):
        done(number)
        rows = dataset.completed(dataset.batch(keys))
        counted = [fault for fault in rows["bad"] if fault["position"] < len(ids)]  # padding repeats a sample, not its fault
        rows["bad"] = [fault | {"position": None} for fault in counted]  # of no place in training
        yield rows, (rows["position"] < len(ids)).float()
    done(-1)
