"""From shards to micro-batches: read, decode, crop and mask each sample by its own key, in workers of the plain torch DataLoader.

A batch is a dict of tensors.  B samples, N patches, K visible, M predicted, S pixels a side:
    image uint8 [B, 3, S, S]   flip bool [B]   kind, source int64 [B, N]   visible int64 [B, K]   predicted int64 [B, M]
    sample int64 [B] (the id the order asked for)   replaced bool [B]   bad: one record for each unreadable sample met
"""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mpp.data.augment import Augment
from mpp.data.decode import open_image
from mpp.data.order import OrderSampler
from mpp.data.shards import ShardSet
from mpp.errors import BadSample, DataError, UserError, of_this_rank
from mpp.machine import usable_cores
from mpp.masking import Masking
from mpp.rng import CROP, MASK, Draws

Batch = dict[str, Any]
FIXED = 2**62  # the "epoch" of draws that never change: hold-out and the baselines' sample
BAD_IN_A_ROW = 100


@dataclass(frozen=True)
class MaskedImages(Dataset):
    """Map-style: keys are (epoch, sample id, position)."""

    shards: ShardSet
    augment: Augment
    masking: Masking
    seed: int
    max_pixels: int
    pool: range  # the ids a replacement may have: training and hold-out samples never stand in for each other

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> Batch:
        # An exception would reach the main process as a printed traceback; a value stays what it is.
        try:
            return self.batch(keys)
        except UserError as error:
            return {"error": error}

    def batch(self, keys: list[tuple[int, int, int]]) -> Batch:
        rows: dict[str, list] = {name: [] for name in ("image", "flip", "kind", "source", "visible", "predicted", "sample", "replaced")}
        bad: list[dict] = []
        for epoch, sample, position in keys:
            image, faults = self._open(sample, position)
            pixels, flip = self.augment.crop(image, Draws(self.seed, CROP, epoch, sample, 0))
            mask = self.masking.draw(Draws(self.seed, MASK, epoch, sample, 0))
            values = (pixels, flip, mask.kind, mask.source, mask.visible, mask.predicted, sample, bool(faults))
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            bad += faults
        return {name: torch.from_numpy(np.stack(values)) for name, values in rows.items()} | {"bad": bad}

    def _open(self, sample: int, position: int) -> tuple[Any, list[dict]]:
        """The image, or that of the next readable sample in manifest order (cyclic within the pool) with a record of every fault on the way."""
        faults: list[dict] = []
        for step in range(BAD_IN_A_ROW):
            candidate = self.pool.start + (sample - self.pool.start + step) % len(self.pool)
            try:
                return open_image(self.shards.read(candidate), self.max_pixels), faults
            except BadSample as reason:
                faults.append(
                    {"position": position, "sample": sample, "bad": candidate, "where": self.shards.where(candidate), "reason": str(reason)}
                )
        raise of_this_rank(
            DataError(
                f"{BAD_IN_A_ROW} samples in a row are unreadable, from {self.shards.where(sample)} on ({faults[0]['reason']}); "
                f"make the shards again with data_prep/make_shards.py"
            )
        )


def default_workers(local_world: int) -> int:
    """A rank's share of this machine's cores less one for its own process, between 1 and 16."""
    return max(1, min(16, usable_cores() // local_world - 1))


def batches(dataset: MaskedImages, sampler: OrderSampler, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The sampler's micro-batches in its order, whatever the number of workers.  Raises DataError, also for a worker that died."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the loader's own draws must not shift the model's noise
        worker_init_fn=_ignore_signals,
        multiprocessing_context="fork" if workers else None,  # workers touch neither CUDA nor torch's thread pool
    )
    iterator = None
    while True:
        try:
            if iterator is None:
                iterator = iter(loader)
                if workers:
                    # torch would raise wherever this process is when a worker dies; the next look at the queue tells of it in the right place.
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    atexit.register(_kill_workers)  # before torch's and Python's own farewells, which would wait for them
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise of_this_rank(
                DataError(f"a loader process died ({' '.join(str(error).split())}); if memory ran out, lower system.workers={workers}")
            ) from error
        if "error" in batch:
            raise batch["error"]
        yield batch


def _ignore_signals(worker: int) -> None:
    """A scheduler's request to stop reaches the whole group; this process's parent decides, and still needs samples for the step in hand."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _as_it_is(batch: Any) -> Batch:
    return batch


def training_shards(samples_per_shard: list[int], holdout: int) -> tuple[int, ...]:
    """samples_per_shard without the last `holdout` samples of the set, which are then never trained on."""
    left = list(samples_per_shard)
    while holdout and left:
        taken = min(holdout, left[-1])
        left[-1] -= taken
        holdout -= taken
        if not left[-1]:
            left.pop()
    return tuple(left)


def fixed_batches(
    dataset: MaskedImages, ids: np.ndarray, batch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's share of `ids` with crops, flips and masks that never change, and a weight [B] of 1, or 0 for padding.

    Every rank yields the same number of batches of the same size, so collective calls inside the loop match.
    """
    rounds = -(-len(ids) // (batch * world))
    for number in range(rounds):
        places = (number * world + rank) * batch + np.arange(batch)
        weight = torch.from_numpy((places < len(ids)).astype(np.float32))
        chosen = ids[np.minimum(places, len(ids) - 1)]
        rows = dataset.batch([(FIXED, int(sample), int(place)) for sample, place in zip(chosen, places, strict=True)])
        rows["bad"] = [fault for fault in rows["bad"] if fault["position"] < len(ids)]  # padding repeats a sample, not its fault
        yield rows, weight
