"""Colours 0..255 -> what an encoder sees."""

import functools

import torch
from torch import Tensor

Triple = tuple[float, float, float]


@functools.cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 on the device, made once: a copy from the host in every step would make the step wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def normalise(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """images float [..., 3, H, W], 0..255; mean and std of colours in 0..1."""
    mean_, std_ = (constant(tuple(part), images.device)[:, None, None] for part in (mean, std))
    return (images / 255 - mean_) / std_
