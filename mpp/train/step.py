"""A batch on its way to the device.  Names of its parts: data/loader.py.  Letters: B batch, N patches, K visible, M predicted."""

import torch
from torch import Tensor

from mpp.data.crop_dataset import Batch
from mpp.data.poses import posed


def images_on_device(batch: Batch, device: torch.device) -> Tensor:
    """float32 [B, 3, H, W], 0..255, each in the pose that the batch says."""
    return posed(batch["image"].to(device, non_blocking=True), batch["pose"]).float()


def masked_images(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a pretraining model is given (recipe/model.py): images; kind, source [B, N]; visible [B, K]; predicted [B, M]."""
    kind, source, visible, predicted = (batch[name].to(device, non_blocking=True) for name in ("kind", "source", "visible", "predicted"))
    return images_on_device(batch, device), kind, source, visible, predicted
