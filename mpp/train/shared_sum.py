"""The one small sum that ranks share in a step."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from mpp.processes.watch import meeting
from mpp.processes.world import World


class SharedSum:
    """Numbers summed over ranks: asked for at once, and read when they are needed.  Nothing waits in between, neither for the device nor for a rank."""

    def __init__(self, numbers: Iterable[float | bool | Tensor], world: World):
        """Collective.  numbers: tensors, of one element, where they are on the device."""
        filled = lambda number: torch.full((), float(number), dtype=torch.float64, device=world.device)  # a fill waits for nothing
        self._sum = torch.stack([number.double() if isinstance(number, Tensor) else filled(number) for number in numbers])
        self._work = dist.all_reduce(self._sum, async_op=True) if world.size > 1 else None
        self._there: torch.cuda.Event | None = None
        if world.device.type == "cuda":
            if self._work:
                self._work.wait()  # the device's queue does; the host goes on
            self._sum = torch.empty(self._sum.shape, dtype=torch.float64, pin_memory=True).copy_(self._sum, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> list[int]:
        with meeting():
            if self._there:
                self._there.synchronize()
            elif self._work:
                self._work.wait()
        return [int(number) for number in self._sum.tolist()]


def shared_sum(numbers: Iterable[float | bool | Tensor], world: World) -> list[int]:
    """Collective: each number summed over ranks, at once."""
    return SharedSum(numbers, world).read()
