"""JPEGs decoded on the training device, by torchvision's nvJPEG: loader processes only read and check them.

Bytes and boxes go to the training process, which decodes a micro-batch at once and cuts and resizes there.  What nvJPEG is not asked for
(other formats, turned or CMYK images, cut files), or refuses, is decoded as everywhere else.  nvJPEG rounds otherwise than libjpeg-turbo, so
pixels differ by a few of 255 levels from the CPU's: a run that is to continue bit for bit keeps to one of the two.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from mpp.data.augment import View
from mpp.data.crop import Box, Size, both, plain_jpeg
from mpp.data.images import Crops, ShardImages
from mpp.data.shards import ShardSet
from mpp.errors import BadSample, ConfigError


class Refused(Exception):
    """One of the images is none that nvJPEG decodes."""


class DeviceJpegs:
    """max_pixels: larger images are bad samples; size: of the crops.  Raises ConfigError on a device that decodes nothing."""

    def __init__(self, shards: ShardSet, max_pixels: int, device: torch.device, size: Size):
        self.shards, self.max_pixels, self.device, self.size = shards, max_pixels, device, size
        self.on_cpu = ShardImages(shards, max_pixels)
        self.decoder = f"JPEGs decoded by nvJPEG; those it does not take: {self.on_cpu.decoder}"
        self.encoded_bytes = int(np.mean(shards.index["size"]))
        try:
            self._decode([encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))])
        except Refused as error:
            raise ConfigError(
                f"system.decode=device: {device} decodes no JPEGs here ({error.__cause__}); take system.decode=cpu"
            ) from error

    def boxes_and_crops(self, sample: int, views: Sequence[View], size: Size) -> tuple[list[Box], Crops]:
        width, height = self.shards.size_of(sample)
        if width * height > self.max_pixels:
            raise BadSample(f"too many pixels ({width}x{height}, the limit is {self.max_pixels})")
        data = self.shards.read(sample)
        if plain_jpeg(data, self.max_pixels) != (1, width, height):
            return self.on_cpu.boxes_and_crops(sample, views, size)
        return [view.box(width, height) for view in views], data

    def complete(self, batch: dict, dataset: Any) -> dict:
        if "encoded" not in batch:
            return batch
        keys, rows, ends, encoded = (batch.pop(name) for name in ("keys", "encoded_rows", "encoded_ends", "encoded"))
        encoded = list(encoded.tensor_split(ends[:-1]))
        try:
            images = self._decode(encoded)
        except Refused:  # nvJPEG does not say which of them
            images = [self._decode_or_not(each) for each in encoded]
        image = torch.empty(len(batch["box"]), 3, *both(self.size), dtype=torch.uint8, device=self.device)
        if "image" in batch:
            image.copy_(batch["image"])
        for decoded, first in zip(images, rows.tolist(), strict=True):
            if decoded is None:
                again = replace(dataset, images=self.on_cpu).batch([keys[first // dataset.views]])
                image[first : first + dataset.views] = again["image"].to(self.device)
                for name in {"box", "shown", "replaced", "label"} & batch.keys():
                    batch[name][first : first + dataset.views] = again[name]
                batch["bad"] += again["bad"]
                continue
            for row in range(first, first + dataset.views):
                left, top, right, bottom = batch["box"][row].tolist()
                part = decoded[None, :, top:bottom, left:right].float()
                resized = torch.nn.functional.interpolate(part, size=both(self.size), mode="bicubic", antialias=True)
                image[row] = resized[0].round().clamp(0, 255).to(torch.uint8)
        return batch | {"image": image}

    def _decode(self, encoded: list[torch.Tensor]) -> list[torch.Tensor | None]:
        try:
            return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:
            raise Refused from error

    def _decode_or_not(self, encoded: torch.Tensor) -> torch.Tensor | None:
        try:
            return self._decode([encoded])[0]
        except Refused:
            return None


def joined(encoded: list[tuple[int, bytes]]) -> dict[str, torch.Tensor]:
    """[(first row, bytes)] -> one tensor of all bytes, where each image's end and which row is its first: a file each when handed over."""
    rows, images = zip(*encoded, strict=True)
    ends = np.cumsum([len(image) for image in images])
    return {
        "encoded": torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8),
        "encoded_ends": torch.from_numpy(ends),
        "encoded_rows": torch.tensor(rows),
    }
