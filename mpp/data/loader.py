"""From images to micro-batches: read, decode, crop (and mask) each sample by its own key, in workers of the plain torch DataLoader.

A batch is a dict of tensors.  B views (`data.views` of each sample, side by side), N patches, K visible, M predicted:
    image uint8 [B, 3, H, W]   flip bool [B]
    kind, source int64 [B, N]   visible int64 [B, K]   predicted int64 [B, M]
    position int64 [B]   sample int64 [B] (the id the order asked for)   shown int64 [B] (the id whose image it is)   replaced bool [B] (another's)
    box int64 [B, 4] (left, top, right, bottom of the crop, in pixels)   bad: one record for each unreadable sample met

Workers are forked once and live as long as the run: a micro-batch is one worker's, the next is another's.  Each uses one thread, as many
cores do better with a process each; a rank has `default_workers` of them unless system.workers says otherwise.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mpp.data.augment import Augment, Crop, View
from mpp.data.crop import Box, both
from mpp.data.device_jpegs import joined
from mpp.data.handing_over import PREFETCHED, handed_over, settings
from mpp.data.images import Crops, Images
from mpp.data.order import FIXED, EveryOnce, OrderSampler
from mpp.errors import BadSample, ConfigError, DataError, UserError, of_this_rank
from mpp.machine import usable_cores
from mpp.recipe.masking import Masking
from mpp.rng import CROP, MASK, Draws

Batch = dict[str, Any]
BAD_IN_A_ROW = 100
SHARED_MEMORY = Path("/dev/shm")  # through which workers hand over their batches


class KeyedCrops(Dataset):
    """Map-style: keys are (epoch, sample id, position of its first view).  What all data sets of crops share."""

    images: Images
    augment: Crop
    seed: int
    views: int  # of each sample
    differ_in: Literal["crop", "mask"]  # mask: the views of a sample share crop and flip

    def stand_in(self, sample: int, step: int) -> int:
        """The id that is tried in place of `sample` after `step` unreadable ones; at step 0 itself."""
        raise NotImplementedError

    def others(self) -> int:
        """How many ids there are to try."""
        raise NotImplementedError

    def columns(self, keys: list[tuple[int, int, int]], shown: torch.Tensor) -> Batch:
        """What a batch holds beside its crops and where they come from; `shown` int64 [B] are the ids whose images they are."""
        raise NotImplementedError

    def repaint(self, crop: np.ndarray, epoch: int, sample: int) -> np.ndarray:
        """uint8 [3, H, W] -> the same, or otherwise coloured."""
        return crop

    @property
    def bytes_beside(self) -> int:
        """Of a view, beside its pixels and encoded bytes."""
        return 100

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> Batch:
        """As `batch`, ready to be handed over by a loader process: `unpacked` undoes it."""
        # An exception would reach the main process as a printed traceback; a value stays what it is.
        try:
            return packed(self.batch(keys))
        except UserError as error:
            return {"error": error}
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch has no MemoryError
                raise
            lower = "lower system.workers, data.max_pixels or system.micro_batch_max"
            return {"error": of_this_rank(DataError(f"a loader process ran out of memory among samples {keys[0][1]}, ...; {lower}"))}

    def batch(self, keys: list[tuple[int, int, int]]) -> Batch:
        (height, width), count = both(self.augment.size), len(keys) * self.views
        rows: dict[str, list] = {name: [] for name in ("flip", "position", "sample", "shown", "box")}
        crops = self.views if self.differ_in == "crop" else 1
        image: torch.Tensor | None = None
        encoded: list[tuple[int, bytes]] = []
        bad: list[dict] = []
        for number, (epoch, sample, position) in enumerate(keys):
            views = [self.augment.draw(Draws(self.seed, CROP, epoch, sample, view)) for view in range(crops)]
            shown, boxes, pixels, faults = self._open(sample, position, views)
            for view in range(self.views):
                crop = view % crops
                for name, value in zip(rows, (views[crop].flip, position + view, sample, shown, boxes[crop]), strict=True):
                    rows[name].append(value)
                if isinstance(pixels, list):
                    if image is None:
                        image = _room_for_images(count, 3, height, width)
                    image.numpy()[number * self.views + view] = self.repaint(pixels[crop], epoch, sample)
            if isinstance(pixels, bytes):
                encoded.append((number * self.views, pixels))
            bad += faults
        batch: Batch = {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}
        batch |= self.columns(keys, batch["shown"])
        batch |= {"replaced": batch["shown"] != batch["sample"], "bad": bad}
        if encoded:
            batch |= joined(encoded) | {"keys": keys}
        return batch if image is None else batch | {"image": image}

    def _open(self, sample: int, position: int, views: list[View]) -> tuple[int, list[Box], Crops, list[dict]]:
        """The crops of the sample, or of the next readable one that may stand in for it, and which it is; a record of every
        fault on the way."""
        faults: list[dict] = []
        tried = min(BAD_IN_A_ROW, self.others())
        for step in range(tried):
            candidate = self.stand_in(sample, step)
            try:
                return candidate, *self.images.boxes_and_crops(candidate, views, self.augment.size), faults
            except BadSample as reason:
                where = self.images.shards.where(candidate)
                faults.append({"position": position, "sample": sample, "bad": candidate, "where": where, "reason": str(reason)})
        raise of_this_rank(
            DataError(
                f"{tried} samples in a row are unreadable, from {self.images.shards.where(sample)} on ({faults[0]['reason']}); "
                f"make the shards again with data_prep/make_shards.py"
            )
        )

    def bytes_of(self, views: int) -> int:
        """Of a batch of so many views; at most, but for the spread of encoded sizes."""
        height, width = both(self.augment.size)
        return views * (3 * height * width + self.bytes_beside + self.images.encoded_bytes // self.views)


@dataclass(frozen=True)
class MaskedImages(KeyedCrops):
    """For masked pretraining."""

    images: Images
    augment: Augment
    masking: Masking
    seed: int
    pool: range  # the ids a replacement may have: training and hold-out samples never stand in for each other
    views: int = 1
    differ_in: Literal["crop", "mask"] = "crop"

    def stand_in(self, sample: int, step: int) -> int:
        """The next in manifest order, cyclic within the pool."""
        return self.pool.start + (sample - self.pool.start + step) % len(self.pool)

    def others(self) -> int:
        return len(self.pool)

    def columns(self, keys: list[tuple[int, int, int]], shown: torch.Tensor) -> Batch:
        masks = self.masking.draw_all(
            [Draws(self.seed, MASK, epoch, sample, view) for epoch, sample, _ in keys for view in range(self.views)]
        )
        return {name: torch.from_numpy(getattr(masks, name)) for name in ("kind", "source", "visible", "predicted")}

    @property
    def bytes_beside(self) -> int:
        return 32 * self.masking.patches + 100


def packed(batch: Batch) -> Batch:
    """All whole numbers but images and bytes as one tensor, since each that a process hands over costs a file."""
    small = {
        name: value
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and value.dtype != torch.uint8 and not value.is_floating_point()
    }
    layout = [(name, tuple(value.shape), value.dtype) for name, value in small.items()]
    numbers = torch.cat([value.reshape(-1).long() for value in small.values()])
    return {name: value for name, value in batch.items() if name not in small} | {"numbers": numbers, "layout": layout}


def unpacked(batch: Batch) -> Batch:
    numbers, layout = batch.pop("numbers"), batch.pop("layout")
    parts = numbers.split([math.prod(shape) for _, shape, _ in layout])
    return batch | {name: part.view(*shape).to(dtype) for part, (name, shape, dtype) in zip(parts, layout, strict=True)}


_slots: list[torch.Tensor] = []  # a loader process's own: shared memory for the images of its batches in flight


def _room_for_images(*shape: int) -> torch.Tensor:
    """uint8, not initialised; in a loader process the next of PREFETCHED + 1 slots in shared memory.

    Slots are used again and again, as new shared memory costs more than the copy out of it in `batches`: the first touch of every 4 kB is a
    page fault.  A worker has at most PREFETCHED batches to make and one more that is being taken, so none is overwritten.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, dtype=np.uint8))  # numpy asks for huge pages, torch.empty does not
    if len(_slots) > PREFETCHED and _slots[0].shape == shape:
        slot = _slots.pop(0)
    else:
        storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))  # as torch's own default_collate
        slot = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
    _slots.append(slot)
    return slot


def default_workers(local_world: int) -> int:
    """A rank's share of this machine's cores less one for its own process, between 1 and 16."""
    return max(1, min(16, usable_cores() // local_world - 1))


def batches(
    dataset: KeyedCrops, sampler: OrderSampler | EveryOnce, workers: int, pin_memory: bool, local_world: int = 1, phase: str = "training"
) -> Iterator[Batch]:
    """The sampler's micro-batches in its order, whatever the number of workers.

    local_world: processes of this machine that load as this one does.  phase: what is done with them, in words.
    Raises DataError, also for a worker that died, and ConfigError where shared memory is too small.
    """
    if workers:
        _refuse_small_shared_memory(dataset.bytes_of(sampler.micro_batch) * (PREFETCHED + 1) * workers * local_world, workers)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED if workers else None,
        in_order=True,
        generator=torch.Generator(),  # the loader's own draws must not shift the model's noise
        **settings(workers),
    )
    for batch in handed_over(loader, phase):
        if "error" in batch:
            raise batch["error"]
        batch = unpacked(batch)
        if workers and not pin_memory and "image" in batch:  # pinning copies too
            batch["image"] = torch.from_numpy(batch["image"].numpy().copy())
        yield dataset.images.complete(batch, dataset)


def _refuse_small_shared_memory(needed: int, workers: int) -> None:
    if SHARED_MEMORY.is_dir() and needed > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise of_this_rank(
            ConfigError(
                f"system.workers={workers}: loader processes hand over batches through {SHARED_MEMORY}, up to {needed / 1e6:.0f} MB, and "
                f"{free / 1e6:.0f} MB are free; lower system.workers or system.micro_batch_max, or make it larger (docker run --shm-size, --ipc=host)"
            )
        )


def _as_it_is(batch: Any) -> Batch:
    return batch


def fixed_batches(
    dataset: MaskedImages, ids: np.ndarray, batch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's share of `ids`, one view each, with crops, flips and masks that never change, and a weight [B] of 1, or 0 for padding.

    Every rank yields the same number of batches of the same size, so collective calls inside the loop match.
    """
    dataset = replace(dataset, views=1)
    rounds = -(-len(ids) // (batch * world))
    for number in range(rounds):
        places = (number * world + rank) * batch + np.arange(batch)
        weight = torch.from_numpy((places < len(ids)).astype(np.float32))
        chosen = ids[np.minimum(places, len(ids) - 1)]
        rows = dataset.batch([(FIXED, int(sample), int(place)) for sample, place in zip(chosen, places, strict=True)])
        counted = [fault for fault in rows["bad"] if fault["position"] < len(ids)]  # padding repeats a sample, not its fault
        rows["bad"] = [fault | {"position": None} for fault in counted]  # of no place in training
        yield rows, weight
