"""Sums that are kept on the device while training goes on, and looked at now and then."""

import torch
import torch.distributed as dist
from torch import Tensor


class Meters:
    """Sums on the device since they were last cleared; over all ranks when they are looked at."""

    def __init__(self, count: int, device: torch.device, dtype: torch.dtype = torch.float32, finite: bool = False):
        """finite: what holds a number that is not is left out, so that one batch does not hide the others; else such a number stays visible."""
        self.sums, self.finite = torch.zeros(count, device=device, dtype=dtype), finite

    def add(self, *parts: Tensor) -> None:
        added = torch.stack([part.sum() for part in parts])
        self.sums += torch.where(torch.isfinite(added).all(), added, 0.0) if self.finite else added

    def look(self, clear: bool) -> list[float]:
        """Collective."""
        sums = self.sums.clone()
        dist.all_reduce(sums)
        if clear:
            self.sums.zero_()
        return sums.tolist()
