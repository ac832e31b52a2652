"""One micro-batch through the model: from what the loader gives to one loss for each predicted patch."""

import torch
from torch import Tensor

from mpp.data.crop_dataset import Batch
from mpp.masking import MASKED
from mpp.targets import Target, gather_patches, patchify
from mpp.train.engine import Engine


def images_on_device(batch: Batch, device: torch.device) -> Tensor:
    """float32 [B, 3, S, S], 0..255, flipped where the batch says so."""
    images = batch["image"].to(device, non_blocking=True).float()
    return torch.where(batch["flip"].to(device)[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Colours 0..255 -> what the encoder sees; mean and std in 0..1."""
    return (images / 255 - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def mask_on_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind, source, visible, predicted = (batch[name].to(device, non_blocking=True) for name in ("kind", "source", "visible", "predicted"))
    return kind, source, visible, predicted


def predict(
    engine: Engine,
    target: Target,
    batch: Batch,
    patch_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions [B, M, O]; loss float32 [B, M] of every predicted patch; masked float32 [B, M], 1 where the patch showed [mask] or nothing.

    The target comes from the clean image before normalisation; the loss covers masked, swapped and kept patches alike (ViT B.1.2).
    """
    images = images_on_device(batch, device)
    kind, source, visible, predicted = mask_on_device(batch, device)
    prediction = engine.predict(normalise(images, mean, std), kind, source, visible, predicted)
    with torch.no_grad():
        cells = target.cells(gather_patches(patchify(images, patch_size), predicted))
        masked = (kind.gather(1, predicted) == MASKED).float()
    return prediction, target.loss(prediction, cells), masked
