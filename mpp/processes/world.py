"""The processes of one job as a process group, each on its device, and what they do together by collectives."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mpp.base.errors import ConfigError, UserError, error_told
from mpp.base.machine import usable_cores
from mpp.processes.peers import Peers, cannot_meet, meet
from mpp.processes.watch import meeting, watch

WAIT = timedelta(days=7)  # how long collectives wait: longer than mpp/processes/watchman.py, which says who is late
CPU = torch.device("cpu")
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


def join_processes(
    patience: float = 60, slow: float = 1800, folder: Path = Path(), alone_too: bool = False, peers: Peers | None = None
) -> World:
    """Alone without a launcher; among several, with collectives over gloo for the CPU and NCCL for GPUs, and under a watch.  Alone on a CPU,
    with collectives that are copies: gloo would listen on a port for others.

    patience, slow: seconds, of mpp/processes/watchman.py.  folder: where it writes stacks down.  alone_too: a process group also for one process.  peers: who
    has met; null: they meet now.  Collective.  Raises ConfigError where the environment cannot be right or the processes do not find each other.
    """
    watch.patience, watch.slow = patience, max(patience, slow)
    peers = peers or meet(slow)
    launch, local_size, device = peers.launch, peers.local_size, device_of(peers)  # all come, or all know who does not
    os.environ.update(LOCAL_WORLD_SIZE=str(local_size), MASTER_ADDR=launch.address, MASTER_PORT=str(launch.port))
    if launch.size > 1 or alone_too:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo" if launch.size > 1 else copies_alone()
        store = peers.store or dist.HashStore()  # which needs no port
        try:
            dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=WAIT)
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            raise cannot_meet(launch, error) from error
    if launch.size > 1:
        watch.begin(launch.rank, launch.size, folder, _share)
        peers.joined = True
    return World(launch.rank, launch.size, local_size, device)


def copies_alone() -> str:
    """The name of torch's backend that sends nothing: each collective leaves, or copies, what this process has, which is right where there is no other.  A torch
    that has none gets gloo, and its port."""
    try:
        from torch.testing._internal.distributed import fake_pg  # noqa: F401  # registers it, in every torch since 2.1
    except ImportError:
        return "gloo"
    return "fake"


def _share(value: Any) -> Any:
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def device_of(peers: Peers) -> torch.device:
    """Collective: this process's own GPU, or the CPU with its share of the threads.  Raises ConfigError for more processes than GPUs."""
    device = peers.together(lambda: local_device(peers.launch.local_rank, peers.local_size))
    if device.type == "cuda":
        peers.refuse_shared_gpus()
    return device


def local_device(local_rank: int, local_size: int) -> torch.device:
    """As `device_of`, of one process."""
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK={local_rank} but this machine has {torch.cuda.device_count()} GPUs; start that many processes a node"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    # Threads beyond the cores hold each other up severalfold: of processes that share them, or in a container whose quota torch does not know.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // local_size)))
    return torch.device("cpu")


def leave() -> int:
    """Collective: the end of a program whose processes have a group; its exit status.  From here on nobody waits for another, so that each ends when it
    likes, whatever started it."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    watch.leaves(0, "", said=True)
    return 0


def total(world: World, counts: np.ndarray) -> np.ndarray:
    """Collective: int64, summed over the processes."""
    summed = torch.from_numpy(counts.astype(np.int64))
    if world.size > 1:
        with meeting():
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
    with meeting():
        dist.all_gather_object(failures, failure and (str(failure), failure.status))
    if any(failures):
        raise error_told(*next(told for told in failures if told))  # the same everywhere, so that rank 0 alone prints it
    return made  # type: ignore[return-value]


def from_all(world: World, value: Made) -> list[Made]:
    """Collective: what each process has, in order of rank."""
    found = [value] * world.size
    if world.size > 1:
        with meeting():
            dist.all_gather_object(found, value)
    return found


def to_first(world: World, value: Made, senders: int) -> list[Made]:
    """Collective of the first `senders` processes (or all, if there are fewer): rank 0 gets what each has, one after the other, so that it holds no more than that; the others nothing."""
    senders = min(senders, world.size)
    if world.rank >= senders or senders <= 1:
        return [value] if world.first else []
    if not world.first:
        dist.send_object_list([value], dst=0, device=CPU)
        return []
    found = [value]
    with meeting():
        for rank in range(1, senders):
            holder: list[Any] = [None]
            dist.recv_object_list(holder, src=rank, device=CPU)
            found.append(holder[0])
    return found


def from_first(world: World, make: Callable[[], Made]) -> Made:
    """Collective: what rank 0 makes, given to all; a UserError there is raised by all."""
    made = together(world, lambda: make() if world.first else None)
    if world.size == 1:
        return made  # type: ignore[return-value]
    with meeting():
        return _share(made)
