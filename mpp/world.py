"""The processes of one job, as the deepspeed launcher, torchrun or srun has described them in the environment."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mpp.errors import ConfigError, UserError
from mpp.machine import usable_cores

WAIT = timedelta(days=7)  # how long processes wait for each other where one of them works alone
Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def join_processes() -> World:
    """Alone without a launcher; among several, with collectives over gloo for the CPU and NCCL for GPUs."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_size = local_place()
    device = local_device(local_rank, local_size)
    if size > 1:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
        except dist.DistNetworkError as error:
            raise cannot_meet(error) from error
    return World(rank, size, local_size, device)


def local_place() -> tuple[int, int]:
    """This process's number on its machine, and how many there are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def local_device(local_rank: int, local_size: int) -> torch.device:
    """This process's own GPU, or the CPU with its share of the threads.  Raises ConfigError for more processes than GPUs."""
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK={local_rank} but this machine has {torch.cuda.device_count()} GPUs; start that many processes a node"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    # Processes that share cores slow each other down severalfold if each has a thread for every core.
    if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // local_size))
    return torch.device("cpu")


def cannot_meet(error: Exception) -> ConfigError:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return ConfigError(
        f"the processes cannot meet at {where} ({str(error).splitlines()[0]}); every node must reach that address, and on one host "
        f"each job needs a port of its own: deepspeed --master_port 29501 ..."
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def total(world: World, counts: np.ndarray) -> np.ndarray:
    """Collective: int64, summed over the processes."""
    summed = torch.from_numpy(counts.astype(np.int64))
    if world.size > 1:
        dist.all_reduce(summed)
    return summed.numpy()


def together(world: World, work: Callable[[], Made]) -> Made:
    """Collective: do this process's part; if a UserError stops any of them, all raise one, and none waits for ever."""
    if world.size == 1:
        return work()
    made, failure = None, None
    try:
        made = work()
    except UserError as error:
        failure = error
    failures: list[Any] = [None] * world.size
    dist.all_gather_object(failures, None if failure is None else str(failure))
    if any(failures):
        raise UserError(next(text for text in failures if text))  # the same everywhere, so that rank 0 alone prints it
    return made  # type: ignore[return-value]


def from_first(world: World, make: Callable[[], Made]) -> Made:
    """Collective: what rank 0 makes, given to all; a UserError there is raised by all."""
    made = together(world, lambda: make() if world.first else None)
    if world.size == 1:
        return made  # type: ignore[return-value]
    holder = [made]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]  # type: ignore[return-value]
