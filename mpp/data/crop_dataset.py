"""Crops of images as micro-batches: each sample read, decoded, cropped, and masked, labelled, mixed, coloured where that is wanted, by its own key.

A batch is a dict of tensors.  B views (`views` of each sample, side by side), N patches, K visible, M predicted:
    image uint8 [B, 3, H, W], as cut   pose int64 [B] (0 to 7: what the device makes of it, poses.py)
    position int64 [B]   sample int64 [B] (the id the order asked for)   shown int64 [B] (the id whose image it is)   replaced bool [B] (another's)
    box int64 [B, 4] (left, top, right, bottom of the crop, in pixels)   bad: one record for each unreadable sample met
and from its parts
    masking   kind, source int64 [B, N]   visible int64 [B, K]   predicted int64 [B, M]
    labels    label int64 [B], of the image that is shown
    erasing   erase int64 [B, 4] (a box that becomes noise, or zeros)   noise int64 [B] (the seed of that noise)
    mixing    share float32 [B] (what an image keeps of itself)   paste int64 [B, 4] (cutmix's box, zeros for mixup)
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from mpp.base.errors import BadSample, DataError, UserError, of_this_rank
from mpp.base.rng import CROP, ERASE, MASK, RAND_AUGMENT, Draws, seed_of
from mpp.data.augment import Crop, View
from mpp.data.crop import Box, both
from mpp.data.device_jpegs import joined
from mpp.data.handing_over import PREFETCHED, packed
from mpp.data.images import unreadable
from mpp.data.mixing import Mixing, erased_box
from mpp.data.pixels import Cut, Pixels
from mpp.data.recolour import Recolour, recoloured

Batch = dict[str, Any]
Key = tuple[int, int, int]  # epoch, sample id, position of its first view
BAD_IN_A_ROW = 100
BYTES_BESIDE = 160  # of a view, beside its pixels, encoded bytes and mask: at most


class Masks(Protocol):
    """Of B views."""

    @property
    def kind(self) -> np.ndarray: ...  # int64 [B, N]
    @property
    def source(self) -> np.ndarray: ...  # int64 [B, N]
    @property
    def visible(self) -> np.ndarray: ...  # int64 [B, K]
    @property
    def predicted(self) -> np.ndarray: ...  # int64 [B, M]


class Masking(Protocol):
    """What draws masks, of which data know no more."""

    @property
    def patches(self) -> int: ...

    def draw_all(self, draws: Sequence[Draws]) -> Masks: ...


@dataclass(frozen=True)
class CropDataset(Dataset):
    """Map-style, of keys (epoch, sample id, position of its first view)."""

    pixels: Pixels
    augment: Crop
    seed: int
    pool: range | np.ndarray  # ids that are used; ascending where they may stand in for each other (training and hold-out never do)
    views: int = 1  # of each sample
    differ_in: Literal["crop", "mask"] = "crop"  # mask: the views of a sample share crop and pose
    leaves_none_out: bool = False  # an unreadable image is an error and has no stand-in: what is measured
    masking: Masking | None = None
    labels: np.ndarray | None = None  # int32, of every image of the set
    recolour: Recolour | None = None
    erasing: float = 0.0  # share of the samples
    mixing: Mixing | None = None

    @property
    def ids(self) -> np.ndarray:
        """int64: the pool as an array, 8 bytes an image: for what goes through all of them."""
        return np.arange(self.pool.start, self.pool.stop, self.pool.step) if isinstance(self.pool, range) else self.pool

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        """int64 [m]: the ids at these places of the pool, without all the others."""
        return self.pool.start + places * self.pool.step if isinstance(self.pool, range) else self.pool[places]

    def spread(self, count: int) -> np.ndarray:
        """int64: so many ids, evenly from the pool, or all of fewer."""
        return self.ids_at(np.linspace(0, len(self.pool) - 1, min(count, len(self.pool))).astype(np.int64))

    def __getitems__(self, keys: list[Key]) -> Batch:
        """As `batch`, ready to be handed over by a loader process: `unpacked` undoes it."""
        # An exception would reach the main process as a printed traceback; a value stays what it is.
        try:
            return packed(self.batch(keys))
        except UserError as error:
            return {"error": error}
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch has no MemoryError
                raise
            lower = "lower system.workers, data.max_pixels or system.micro_batch_max (of a probe features.workers, features.max_pixels or features.batch)"
            return {"error": of_this_rank(DataError(f"a loader process ran out of memory among samples {keys[0][1]}, ...; {lower}"))}

    def batch(self, keys: list[Key]) -> Batch:
        """All but what a device makes; `completed` adds that."""
        keys = self.drawn(keys)
        (height, width), count = both(self.augment.size), len(keys) * self.views
        self.pixels.ahead([sample for _, sample, _ in keys])
        rows: dict[str, list] = {name: [] for name in ("pose", "position", "sample", "shown", "box")}
        crops = self.views if self.differ_in == "crop" else 1
        image: torch.Tensor | None = None
        encoded: list[tuple[int, bytes]] = []
        bad: list[dict] = []
        for number, (epoch, sample, position) in enumerate(keys):
            views = [self.augment.draw(Draws(self.seed, CROP, epoch, sample, view)) for view in range(crops)]
            shown, boxes, cut, faults = self._open(sample, position, views)
            for view in range(self.views):
                crop = view % crops
                for name, value in zip(rows, (views[crop].pose, position + view, sample, shown, boxes[crop]), strict=True):
                    rows[name].append(value)
                if isinstance(cut, list):
                    if image is None:
                        image = _room_for_images(count, 3, height, width)
                    image.numpy()[number * self.views + view] = self._coloured(cut[crop], epoch, sample)
            if isinstance(cut, bytes):
                encoded.append((number * self.views, cut))
            bad += faults
        batch: Batch = {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}
        batch |= self._columns(keys, batch["shown"])
        batch |= {"replaced": batch["shown"] != batch["sample"], "bad": bad}
        if encoded:
            batch |= joined(encoded) | {"keys": keys}
        return batch if image is None else batch | {"image": image}

    def completed(self, batch: Batch) -> Batch:
        """In the training process: the batch with the crops that a device makes; what it does not take is judged, and replaced, by the CPU."""
        keys = batch.pop("keys", [])
        for first in self.pixels.complete(batch, self.views, self.augment.size):
            again = replace(self, pixels=self.pixels.on_cpu).batch([keys[first // self.views]])
            for name, value in again.items():
                if isinstance(value, torch.Tensor):
                    batch[name][first : first + self.views] = value
            batch["bad"] += again["bad"]
        return batch

    def drawn(self, keys: list[Key]) -> list[Key]:
        """The samples that stand at these positions, where that shows only now (streams.py)."""
        return keys

    def candidates(self, sample: int) -> Iterator[int]:
        """The sample itself, and those that are tried in its place, one after the other."""
        for step in range(min(BAD_IN_A_ROW, len(self.pool))):
            yield self.stand_in(sample, step)

    def stand_in(self, sample: int, step: int) -> int:
        """The id that is tried in place of `sample` after `step` unreadable ones, at step 0 itself: the next of the pool, cyclic."""
        return int(self.pool[(bisect_left(self.pool, sample) + step) % len(self.pool)]) if step else sample

    def _open(self, sample: int, position: int, views: list[View]) -> tuple[int, list[Box], Cut, list[dict]]:
        """The crops of the sample, or of the next readable one that may stand in for it, and which it is; a record of every
        fault on the way."""
        faults: list[dict] = []
        for candidate in self.candidates(sample):
            try:
                width, height = self.pixels.size_of(candidate)
                boxes = [view.box(width, height) for view in views]
                return candidate, boxes, self.pixels.cut(candidate, boxes, self.augment.size), faults
            except BadSample as reason:
                if self.leaves_none_out:
                    raise unreadable(self.pixels.source, candidate, reason) from reason
                where = self.pixels.where(candidate)
                faults.append({"position": position, "sample": sample, "bad": candidate, "where": where, "reason": str(reason)})
        raise of_this_rank(
            DataError(
                f"{len(faults)} samples in a row are unreadable, from {self.pixels.where(sample)} on ({faults[0]['reason']}); "
                f"make the shards again with data_prep/make_shards.py"
            )
        )

    def _coloured(self, crop: np.ndarray, epoch: int, sample: int) -> np.ndarray:
        """uint8 [3, H, W] -> the same, or otherwise coloured."""
        return recoloured(self.recolour, crop, seed_of(self.seed, RAND_AUGMENT, epoch, sample)) if self.recolour else crop

    def _columns(self, keys: list[Key], shown: torch.Tensor) -> Batch:
        """What the parts give; shown int64 [B]: the ids whose images are shown."""
        (height, width), found = both(self.augment.size), Batch()
        rows = [(epoch, sample, position, view) for epoch, sample, position in keys for view in range(self.views)]
        if self.masking:
            masks = self.masking.draw_all([Draws(self.seed, MASK, epoch, sample, view) for epoch, sample, _, view in rows])
            found |= {name: torch.from_numpy(getattr(masks, name)) for name in ("kind", "source", "visible", "predicted")}
        if self.labels is not None:
            found["label"] = torch.from_numpy(self.labels[shown.numpy()].astype(np.int64))
        if self.erasing:
            found["erase"] = torch.tensor([erased_box(self.erasing, self.seed, epoch, sample, height, width) for epoch, sample, *_ in rows])
            found["noise"] = torch.tensor([seed_of(self.seed, ERASE, epoch, sample, 1) for epoch, sample, *_ in rows])
        if self.mixing:
            pairs = [self.mixing.draw(self.seed, (position + view) // 2, height, width) for _, _, position, view in rows]
            found |= {"share": torch.tensor([share for share, _ in pairs]), "paste": torch.tensor([box for _, box in pairs])}
        return found

    def bytes_of(self, views: int) -> int:
        """Of a batch of so many views; at most, but for the spread of encoded sizes."""
        height, width = both(self.augment.size)
        masks = 32 * self.masking.patches if self.masking else 0
        return views * (3 * height * width + BYTES_BESIDE + masks + self.pixels.encoded_bytes // self.views)


_slots: list[torch.Tensor] = []  # a loader process's own: shared memory, uint8 [bytes], for the images of its batches in flight


def _room_for_images(*shape: int) -> torch.Tensor:
    """uint8, not initialised; in a loader process in the next of PREFETCHED + 1 slots in shared memory, each as large as the largest it held.

    Slots are used again and again, as new shared memory costs more than the copy out of it in `batches`: the first touch of every 4 kB is a
    page fault.  A worker has at most PREFETCHED batches to make and one more that is being taken, so none is overwritten.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, dtype=np.uint8))  # numpy asks for huge pages, torch.empty does not
    needed = math.prod(shape)
    slot = _slots.pop(0) if len(_slots) > PREFETCHED else None
    if slot is None or len(slot) < needed:
        storage = torch.UntypedStorage._new_shared(needed)  # as torch's own default_collate
        slot = torch.empty(0, dtype=torch.uint8).set_(storage)
    _slots.append(slot)
    return slot[:needed].view(shape)
