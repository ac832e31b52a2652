"""Looks inside an encoder while it is pretrained, on a few held-out images that never change: how far and how widely its heads look, and a picture.

    attention/distance/block_01 ..., attention/distance/mean    pixels, mean over heads, queries and images (monitor/attention.py)
    attention/entropy/block_01 ..., attention/entropy/mean      share of the entropy of looking everywhere alike

Rows of attention that cannot be had are left out.  Weights, gradients and random numbers are not touched.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mpp.config.pretrain import PretrainConfig
from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.order import FIXED
from mpp.data.pixels import StoredPixels
from mpp.monitor.attention_by_layer import LayerSpread, Patches, SpreadByLayer, board_rows, images_at_once
from mpp.monitor.inside_sheet import sheet
from mpp.monitor.insides import absolute_positions, cosines, filter_layer, is_grey, principal_filters, rotary_kernel
from mpp.processes.world import World
from mpp.recipe.model import PretrainingModel
from mpp.transfer.while_training import Chosen

IMAGES = 32  # of those that features are asked about
FILTERS = 28  # components, as in the ViT paper's figure 7
Gathered = Callable[[Iterable[nn.Parameter]], AbstractContextManager[None]]


class EncoderLooks:
    """Collective at ZeRO-3, where a forward pass needs the shares of all processes; else rank 0 looks alone."""

    def __init__(self, config: PretrainConfig, chosen: Chosen, world: World, everywhere: bool):
        """everywhere: whether all processes have to take part."""
        self.device, self.first, self.takes_part = world.device, world.first, (world.first or everywhere) and len(chosen.asked) > 0
        self.draws = config.log.pictures > 0
        side = config.model.image_size
        places = np.unique(np.linspace(0, len(chosen.asked) - 1, min(IMAGES, len(chosen.asked))).round().astype(np.int64))
        ids = chosen.asked[places]
        self.crops = torch.zeros(len(ids), 3, side, side, dtype=torch.uint8)  # what the other processes compute is not used
        if world.first:
            crops = CropDataset(StoredPixels(chosen.of_asked, config.data.max_pixels), Centre((side, side), 1.0), 0, chosen.asked)
            self.crops = crops.batch([(FIXED, int(sample), place) for place, sample in enumerate(ids)])["image"]

    @torch.no_grad()
    def look(self, model: PretrainingModel, gathered: Gathered, samples_seen: int) -> tuple[dict[str, float | None], Image.Image | None]:
        """In rank 0 the figures, and unless the run draws nothing (log.pictures=0) a picture; elsewhere none.

        gathered: makes parameters whole for as long as it lasts.
        """
        if not self.takes_part:
            return {}, None
        encoder = model.encoder
        side = self.crops.shape[-1]
        patches = Patches(encoder.grid, (side / encoder.grid[0], side / encoder.grid[1]), encoder.prefix, 0)
        spreads = SpreadByLayer(encoder.vit, patches)
        for crops in self.crops.split(images_at_once(encoder.vit, patches, IMAGES)):
            with spreads.watching(len(crops)):
                model.features(crops.to(self.device).float())
        layers = spreads.found()
        picture = self._picture(model, patches, layers, gathered, samples_seen) if self.draws else None
        return (dict(board_rows(layers)), picture) if self.first else ({}, None)

    def _picture(
        self, model: PretrainingModel, patches: Patches, layers: Sequence[LayerSpread], gathered: Gathered, samples_seen: int
    ) -> Image.Image:
        net: Any = model.encoder.vit
        convolution, rope, positions = filter_layer(net), getattr(net, "rope", None), getattr(net, "pos_embed", None)
        needed = [*(convolution.parameters() if convolution else ()), *(rope.parameters() if isinstance(rope, nn.Module) else ())]
        with gathered([*needed, *([positions] if isinstance(positions, nn.Parameter) else [])]):
            filters = None
            if convolution is not None:
                grey = is_grey(self.crops)
                filters = principal_filters(convolution.weight, FILTERS, model.std if grey else None)
            absolute = absolute_positions(net, patches.grid)
            similar = cosines(absolute) if absolute is not None else rotary_kernel(net, patches.grid)
        patch = (int(patches.cell[0]), int(patches.cell[1]))
        return sheet(filters, patch, similar, patches.grid, layers, f"encoder, {samples_seen:,} samples seen")
