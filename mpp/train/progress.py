"""What every training loop says to people, and the one small sum its ranks share in a step."""

from collections.abc import Iterable

import torch
import torch.distributed as dist

from mpp.watch import meeting
from mpp.world import World


def clock(seconds: float) -> str:
    """1:02:03 for 3,723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def signed(figure: float | None) -> str:
    """ "+0.1234"; "none" where the figure is not defined."""
    return "none" if figure is None else f"{figure:+.4f}"


def shared_sum(numbers: Iterable[float | bool | torch.Tensor], world: World) -> list[int]:
    """Collective: each number summed over ranks."""
    filled = lambda number: torch.full((), float(number), dtype=torch.float64, device=world.device)  # a fill waits for nothing
    total = torch.stack([number.double() if isinstance(number, torch.Tensor) else filled(number) for number in numbers])
    with meeting():
        dist.all_reduce(total)
        summed = total.tolist()
    return [int(number) for number in summed]
