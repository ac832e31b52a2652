"""JPEGs decoded on the training device, by torchvision's nvJPEG: loader processes only read and check them.

Bytes and boxes go to the training process, which decodes a micro-batch at once and cuts and resizes there.  What nvJPEG is not asked for
(other formats, turned or CMYK images, cut files, what `is_safe` names), or refuses, is decoded as everywhere else.  nvJPEG rounds otherwise
than libjpeg-turbo, so pixels differ by a few of 255 levels from the CPU's: a run that is to continue bit for bit keeps to one of the two.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from mpp.base.errors import BadSample, ConfigError
from mpp.data.crop import Box, Size, both, plain_jpeg
from mpp.data.joined_shards import Opened
from mpp.data.order import Sampler
from mpp.data.pixels import Cut, Pixels, StoredPixels

LOOKED_AT = 4096  # images, evenly from the set, whose mean size stands for all
_SOI, _SOS = 0xD8, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of a frame, whatever its coding
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class Refused(Exception):
    """One of the images is none that nvJPEG decodes."""


class DeviceJpegs(Pixels):
    """max_pixels: larger images are bad samples.  Raises ConfigError on a device that decodes nothing."""

    def __init__(self, source: Opened, max_pixels: int, device: torch.device):
        self.source, self.max_pixels, self.device = source, max_pixels, device
        self._on_cpu = StoredPixels(source, max_pixels)
        self.decoder = f"JPEGs decoded by nvJPEG; those it does not take: {self._on_cpu.decoder}"
        some = np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(np.int64)
        self.encoded_bytes = int(np.mean(source.index[some]["size"]))
        try:
            self._decode([encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))])
        except Refused as error:
            raise ConfigError(
                f"system.decode=device: {device} decodes no JPEGs here ({error.__cause__}); take system.decode=cpu"
            ) from error

    @property
    def on_cpu(self) -> Pixels:
        return self._on_cpu

    def ahead(self, samples: Sequence[int]) -> None:
        self._on_cpu.ahead(samples)

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        return self._on_cpu.expects(sampler, hand)

    def cut(self, sample: int, boxes: Sequence[Box], size: Size) -> Cut:
        width, height = self.size_of(sample)
        if width * height > self.max_pixels:
            raise BadSample(f"too many pixels ({width}x{height}, the limit is {self.max_pixels})")
        data = self.source.read(sample)
        if plain_jpeg(data, self.max_pixels) != (1, width, height) or not is_safe(data):
            return self._on_cpu.cut(sample, boxes, size)
        return data

    def complete(self, batch: dict[str, Any], views: int, size: Size) -> list[int]:
        if "encoded" not in batch:
            return []
        rows, ends, encoded = (batch.pop(name) for name in ("encoded_rows", "encoded_ends", "encoded"))
        encoded = list(encoded.tensor_split(ends[:-1]))
        try:
            images = self._decode(encoded)
        except Refused:  # nvJPEG does not say which of them
            images = [self._decode_or_not(each) for each in encoded]
        image = torch.empty(len(batch["box"]), 3, *both(size), dtype=torch.uint8, device=self.device)
        if "image" in batch:
            image.copy_(batch["image"])
        batch["image"] = image
        refused = []
        for decoded, first in zip(images, rows.tolist(), strict=True):
            if decoded is None:
                refused.append(first)
                continue
            for row in range(first, first + views):
                left, top, right, bottom = batch["box"][row].tolist()
                part = decoded[None, :, top:bottom, left:right].float()
                resized = torch.nn.functional.interpolate(part, size=both(size), mode="bicubic", antialias=True)
                image[row] = resized[0].round().clamp(0, 255).to(torch.uint8)
        return refused

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


def is_safe(data: bytes) -> bool:
    """Whether nvJPEG, asked for a JPEG (grey or colour, from SOI to EOI), gives what libjpeg does or an error.

    Seen with torchvision 0.26 on an H100: a grey image with sampling factors comes out as noise, and where stray markers cut the coded data
    short the rest is made up, without an error.  ITU-T T.81, B.1: in coded data 0xff is followed by 0, a restart's number or a marker.
    """
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        head = data[at : at + 12]
        if head[:2] == b"\xff\xd9":
            return at + 2 == len(data)
        if len(head) < 4 or head[0] != 0xFF or head[1] == _SOI:
            return False
        if head[1] in _FRAMES and head[9:10] == b"\x01" and head[11:12] != b"\x11":  # one component; its sampling across and down
            return False
        at += 2 + int.from_bytes(head[2:4])
        if head[1] == _SOS:
            found = _MARKER.search(data, at)
            if not found:
                return False
            at = found.start()


def joined(encoded: list[tuple[int, bytes]]) -> dict[str, torch.Tensor]:
    """[(first row, bytes)] -> one tensor of all bytes, where each image's end and which row is its first: a file each when handed over."""
    rows, images = zip(*encoded, strict=True)
    ends = np.cumsum([len(image) for image in images])
    return {
        "encoded": torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8),
        "encoded_ends": torch.from_numpy(ends),
        "encoded_rows": torch.tensor(rows),
    }
