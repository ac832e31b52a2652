"""Colours 0..255 -> what an encoder sees."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

Triple = tuple[float, float, float]
_made: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 on the device, made once: a copy from the host in every step would make the step wait for it.  torch.compile writes so few numbers into
    its kernels."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.float32, device=device)
    if (values, device) not in _made:
        made = torch.tensor(values, dtype=torch.float32, device=device)
        if isinstance(made, FakeTensor):  # of somebody who follows shapes alone
            return made
        _made[values, device] = made
    return _made[values, device]


def normalise(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """images float [..., 3, H, W], 0..255; mean and std of colours in 0..1."""
    mean_, std_ = (constant(tuple(part), images.device)[:, None, None] for part in (mean, std))
    return (images / 255 - mean_) / std_
