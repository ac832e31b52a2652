"""Pixels of images by id, cut into crops: decoded whenever they are asked for, or all images of a small set decoded once, in RAM or on the
training device.

All answer alike, and order, crops, poses and masks are drawn before anybody asks where the pixels lie.  device_jpegs.py has one more.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.base.errors import BadSample, ConfigError, of_this_rank
from mpp.base.machine import free_memory
from mpp.base.progress import tracked
from mpp.base.text import sized
from mpp.data.crop import Box, Size, as_stored, as_stored_size, both, cut, jpeg_decoder, resize, turned
from mpp.data.decode import open_stored
from mpp.data.images import Images
from mpp.data.order import EveryOnce, Sampler

TOGETHER = 256  # images, of which those that lie elsewhere are asked for at once
Cut = list[np.ndarray] | bytes | None  # uint8 [3, H, W] of each box; or for the device to make: the encoded image, nothing


class Pixels(ABC):
    source: Images  # whose pixels they are
    decoder: str  # for people
    encoded_bytes = 0  # that a loader process hands over for a sample, beside its crops

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height), upright.  Raises BadSample."""
        return self.source.size_of(sample)

    def where(self, sample: int) -> str:
        return self.source.where(sample)

    def ahead(self, samples: Sequence[int]) -> None:  # noqa: B027 (whose pixels lie in memory has nothing to fetch)
        """These are cut next."""

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        """As `Images.expects`."""
        return lambda done: None

    @abstractmethod
    def cut(self, sample: int, boxes: Sequence[Box], size: Size) -> Cut:
        """A crop for each box of the upright image, size = (H, W).  Raises BadSample for a sample that cannot be shown."""

    def complete(self, batch: dict[str, Any], views: int, size: Size) -> list[int]:
        """In the training process: put in the `image` of a batch whose crops the device makes.  Returns the first rows of the samples, of `views`
        rows each, that it does not take: those are for `on_cpu`."""
        return []

    @property
    def on_cpu(self) -> "Pixels":
        """The same images without a device."""
        return self


class StoredPixels(Pixels):
    """Read and decoded whenever they are asked for.  max_pixels: larger images are bad samples."""

    def __init__(self, source: Images, max_pixels: int):
        self.source, self.max_pixels = source, max_pixels
        self.decoder = f"JPEGs decoded by {jpeg_decoder()}, others by Pillow"

    def ahead(self, samples: Sequence[int]) -> None:
        self.source.ahead(samples)

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        return self.source.expects(sampler, hand)

    def cut(self, sample: int, boxes: Sequence[Box], size: Size) -> list[np.ndarray]:
        width, height = self.source.size_of(sample)
        return cut(self.source.read(sample), width, height, boxes, size, self.max_pixels)


class MemoryPixels(Pixels):
    """All images of a pool, decoded once into one uint8 tensor; loader processes share its pages.

    Crops equal those of StoredPixels bit for bit as long as no crop is so large that it would be decoded at a reduced size (crop.SPARE).
    """

    decoder = "images decoded once, in RAM"

    def __init__(self, source: Images, pool: range, max_pixels: int, threads: int, processes: int):
        """threads: that decode; processes: of this machine that hold such a copy.  Raises ConfigError when it does not fit."""
        self.source, self.first = source, pool.start
        self.faults: dict[int, str] = {}
        self.sizes = np.array(
            [self._size_or_fault(sample) for sample in tracked(pool, f"sizes of {source.path}", len(pool), "images")], dtype=np.int64
        )  # [n, 2]: width, height
        self.start = np.concatenate([[0], np.cumsum(3 * self.sizes.prod(axis=1))])
        _refuse_beyond("RAM", int(self.start[-1]) * processes, free_memory())
        self.pixels = torch.empty(int(self.start[-1]), dtype=torch.uint8)  # image after image, each [height, width, 3] as it was stored
        self.orientation = np.ones(len(pool), dtype=np.uint8)  # EXIF
        with warnings.catch_warnings(), ThreadPoolExecutor(threads) as executor:  # what decoding in threads does to warnings ends here
            left = [sample for sample in pool if sample not in self.faults]
            done = source.expects(EveryOnce(np.array(left), TOGETHER, 0, 1)) if left else lambda number: None
            decoded = executor.map(lambda sample: self._decode(sample, max_pixels), left)
            for number, _ in enumerate(tracked(decoded, f"decoding {source.path}", len(left), "images")):
                if number % TOGETHER == 0:
                    done(number // TOGETHER)
            done(-1)

    def _size_or_fault(self, sample: int) -> tuple[int, int]:
        try:
            return self.source.size_of(sample)
        except BadSample as reason:
            self.faults[sample] = str(reason)
            return 0, 0

    def _decode(self, sample: int, max_pixels: int) -> None:
        width, height = self.size_of(sample)
        place = sample - self.first
        try:
            if width * height > max_pixels:
                raise BadSample(f"too many pixels ({width}x{height}, the limit is {max_pixels})")
            image, self.orientation[place] = open_stored(self.source.read(sample), 1, max_pixels)
            stored = (height, width) if self.orientation[place] >= 5 else (width, height)
            if image.size != stored:
                raise BadSample(f"is {image.width}x{image.height} pixels as stored, the index says {stored[0]}x{stored[1]}")
            self.stored(sample)[:] = np.asarray(image)
        except BadSample as reason:
            self.faults[sample] = str(reason)

    def size_of(self, sample: int) -> tuple[int, int]:
        if sample in self.faults:
            raise BadSample(self.faults[sample])
        width, height = self.sizes[sample - self.first].tolist()
        return width, height

    def stored(self, sample: int) -> np.ndarray:
        """uint8 [H, W, 3], as stored and not turned upright: a view of the store."""
        place = sample - self.first
        width, height = self.sizes[place].tolist()
        shape = (width, height, 3) if self.orientation[place] >= 5 else (height, width, 3)
        return self.pixels[self.start[place] : self.start[place + 1]].numpy().reshape(shape)

    def cut(self, sample: int, boxes: Sequence[Box], size: Size) -> list[np.ndarray]:
        width, height = self.size_of(sample)
        pixels, orientation = self.stored(sample), int(self.orientation[sample - self.first])
        parts = [as_stored(box, width, height, orientation) for box in boxes]
        return [
            turned(resize(pixels[top:bottom, left:right], as_stored_size(size, orientation)), orientation)
            for left, top, right, bottom in parts
        ]


class DevicePixels(Pixels):
    """All images of a pool, of one size, as uint8 [n, 3, H, W] on the training device, which also cuts the crops.

    Its arithmetic is float32: a crop differs from that of the other two by at most 2 of 255 levels.
    """

    decoder = "images decoded once, on the training device"

    def __init__(self, memory: MemoryPixels, device: torch.device):
        """Raises ConfigError for images of several sizes, or more than the device holds."""
        self.source, self.first, self.faults = memory.source, memory.first, memory.faults
        count = len(memory.sizes)
        sizes = sorted({memory.size_of(sample) for sample in range(self.first, self.first + count) if sample not in self.faults})
        if len(sizes) > 1:
            shown = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
            raise ConfigError(
                f"system.images=device needs images of one size, {self.source.path} holds {len(sizes)} sizes, such as {shown}; take system.images=ram"
            )
        self.width, self.height = sizes[0] if sizes else (1, 1)
        if device.type == "cuda":
            _refuse_beyond("GPU memory", memory.pixels.numel(), torch.cuda.mem_get_info(device)[0])
        self.pixels = torch.zeros(count, 3, self.height, self.width, dtype=torch.uint8, device=device)
        for place in range(count):  # one by one: a second copy of all might not fit
            if self.first + place not in self.faults:
                upright = turned(memory.stored(self.first + place).transpose(2, 0, 1), int(memory.orientation[place]))
                self.pixels[place] = torch.from_numpy(np.ascontiguousarray(upright))

    def size_of(self, sample: int) -> tuple[int, int]:
        if sample in self.faults:
            raise BadSample(self.faults[sample])
        return self.width, self.height

    def cut(self, sample: int, boxes: Sequence[Box], size: Size) -> None:
        return None

    def complete(self, batch: dict[str, Any], views: int, size: Size) -> list[int]:
        rows, boxes = (batch[name].to(self.pixels.device, non_blocking=True) for name in ("shown", "box"))
        batch["image"] = cut_on_device(self.pixels[rows - self.first], boxes, size)
        return []


def cut_on_device(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """uint8 [B, 3, H, W], int64 [B, 4] (left, top, right, bottom) -> uint8 [B, 3, *size]: antialiased bicubic as two matrix products."""
    height, width = both(size)
    across = bicubic_weights(boxes[:, 0], boxes[:, 2], images.shape[3], width)[:, None]
    down = bicubic_weights(boxes[:, 1], boxes[:, 3], images.shape[2], height)[:, None]
    with torch.autocast(images.device.type, enabled=False):
        lines = (images.float() @ across.transpose(-1, -2)).round().clamp(0, 255)  # the CPU's resizer rounds here too
        return (down @ lines).round().clamp(0, 255).to(torch.uint8)


def bicubic_weights(low: Tensor, high: Tensor, length: int, size: int) -> Tensor:
    """float32 [B, size, length]: what each of `length` pixels gives to each of `size`, for the pixels from low [B] to high [B]; rows sum to 1.

    Keys' cubic with a = -0.5, stretched to the step where the picture shrinks: Pillow's and torchvision's antialiased bicubic.
    """
    step = (high - low).double() / size
    stretch = step.clamp_min(1)[:, None, None]
    pixel = torch.arange(length, device=low.device)
    centre = low[:, None] + (torch.arange(size, device=low.device) + 0.5) * step[:, None]
    x = ((pixel + 0.5 - centre[:, :, None]) / stretch).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weight = weight * ((pixel >= low[:, None]) & (pixel < high[:, None]))[:, None]
    return (weight / weight.sum(-1, keepdim=True)).float()


def _refuse_beyond(what: str, needed: int, free: int) -> None:
    if needed > 0.8 * free:
        raise of_this_rank(
            ConfigError(
                f"system.images: the decoded images take {sized(needed)} of {what}, of which {sized(free)} are free; "
                "take system.images=shards, or smaller images"
            )
        )
