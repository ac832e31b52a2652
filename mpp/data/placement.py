"""Puts the pixels of a run's images where its system section wants them."""

from dataclasses import replace

import numpy as np
import torch

from mpp.base.errors import ConfigError
from mpp.base.machine import usable_cores
from mpp.config.sections import SystemConfig
from mpp.data.crop_dataset import CropDataset
from mpp.data.device_jpegs import DeviceJpegs
from mpp.data.joined_shards import JoinedShards
from mpp.data.pixels import DevicePixels, MemoryPixels, StoredPixels
from mpp.data.shards import ShardSet


def placed(data: CropDataset, system: SystemConfig, device: torch.device, local_world: int) -> CropDataset:
    """The same crops, of images as they are stored, with their pixels where system.images and system.decode want them.

    local_world: processes of this machine, each with a copy of its own.  Raises ConfigError for what cannot lie there.
    """
    stored = data.pixels
    assert isinstance(stored, StoredPixels)
    source, max_pixels = stored.source, stored.max_pixels
    if system.images != "shards":
        threads = max(1, usable_cores() // local_world)
        memory = MemoryPixels(source, reach(data.pool), max_pixels, threads, local_world)
        return replace(data, pixels=memory if system.images == "ram" else DevicePixels(memory, device))
    if system.decode == "cpu" or device.type != "cuda":
        return data
    if not isinstance(source, ShardSet | JoinedShards):
        raise ConfigError(f"system.decode=device reads shards, and {source.path} holds none: make shards, or leave system.decode out")
    return replace(data, pixels=DeviceJpegs(source, max_pixels, device))


def reach(ids: range | np.ndarray) -> range:
    """From the first of ascending ids to the last."""
    return range(int(ids[0]), int(ids[-1]) + 1)
