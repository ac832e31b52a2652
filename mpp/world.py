"""The processes of one job, as the deepspeed launcher, torchrun or srun has described them in the environment."""

import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mpp.errors import ConfigError, UserError, of_this_rank
from mpp.machine import usable_cores
from mpp.watch import meeting, watch

WAIT = timedelta(days=7)  # how long collectives wait: longer than mpp/watchman.py, which says who is late
PORT = 29500  # at which processes meet where MASTER_PORT is not set: torch's and deepspeed's own
LOOKUP_SECONDS = 60.0  # for the name of rank 0's host to become known: a pod's may take a moment
# How launchers without RANK describe a process: rank, size, rank on this machine, size there.
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
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


@dataclass(frozen=True)
class Place:
    """Of this process in its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int | None = None  # processes on this machine; None: not said
    address: str = "127.0.0.1"  # of rank 0's host
    port: int = PORT


def find_place() -> Place:
    """Of this process; from then on the environment says it in full, in torch's names.  Raises ConfigError."""
    try:
        place = place_of_process(os.environ)
    except ConfigError as error:
        raise of_this_rank(error) from None
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.size), LOCAL_RANK=str(place.local_rank))
    return place


def place_of_process(environment: Mapping[str, str]) -> Place:
    """What a launcher has said in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; where neither of the first two is
    set, what srun or mpirun says of a step of several processes; else this process is alone.

    What is missing has the only value that can be right, or is asked for.  Raises ConfigError.
    """
    said = {name: value for name, value in environment.items() if value.strip()}
    if "RANK" not in said and "WORLD_SIZE" not in said:
        said |= _from_slurm(said) or _from_mpi(said)
    if "RANK" not in said and "WORLD_SIZE" not in said:
        return Place()
    size = _number(said, "WORLD_SIZE", 1)
    rank = _number(said, "RANK", 0) if size != 1 or "RANK" in said else 0
    if rank >= size:
        raise ConfigError(f"RANK={rank} must be below WORLD_SIZE={size}; ranks count from 0 (unset both to run one process)")
    if size == 1:  # it meets nobody: where does not matter
        return Place(local_rank=_number(said, "LOCAL_RANK", 0) if "LOCAL_RANK" in said else 0, local_size=1)
    local_size = next((_number(said, name, 1) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in said), None)
    if local_size is not None and local_size > size:
        raise ConfigError(f"LOCAL_WORLD_SIZE={local_size} exceeds WORLD_SIZE={size}; it counts the processes of this machine alone")
    if "LOCAL_RANK" in said:
        local_rank = _number(said, "LOCAL_RANK", 0)
    elif local_size in (None, 1):
        local_rank = 0  # one process a machine, as in a PyTorchJob
    else:
        raise ConfigError(
            f"LOCAL_RANK is not set and LOCAL_WORLD_SIZE={local_size}: each process of a machine needs one, from 0 to {local_size - 1}"
        )
    if local_size is not None and local_rank >= local_size:
        raise ConfigError(f"LOCAL_RANK={local_rank} must be below LOCAL_WORLD_SIZE={local_size}; it counts from 0 on each machine")
    if "MASTER_ADDR" not in said and local_size != size:
        raise ConfigError(
            f"MASTER_ADDR is not set and WORLD_SIZE={size}: give every process the address of rank 0's host (or unset WORLD_SIZE)"
        )
    port = _number(said, "MASTER_PORT", 1) if "MASTER_PORT" in said else PORT
    if port > 65535:
        raise ConfigError(f"MASTER_PORT={port} must be from 1 to 65535, a port that is free on rank 0's host")
    return Place(rank, size, local_rank, local_size, said.get("MASTER_ADDR", "127.0.0.1").strip(), port)


def _number(said: Mapping[str, str], name: str, least: int) -> int:
    text = said.get(name, "").strip()
    if not text:
        other = "WORLD_SIZE" if name == "RANK" else "RANK"
        raise ConfigError(
            f"{name} is not set and {other}={said[other]} is: give both, as launchers do, or unset {other} to run one process"
        )
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ConfigError(f"{name}={text} must be a whole number from {least} on; it comes from the launcher (unset it to run one process)")
    return int(text)


def _from_slurm(said: Mapping[str, str]) -> dict[str, str]:
    """Of a task of `srun python mpp/...`; nothing in a batch script, which is one process whatever the job's size."""
    if not said.get("SLURM_STEP_ID", "").isdigit() or said.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "SLURM_PROCID" not in said:
        return {}
    found = {"RANK": said["SLURM_PROCID"], "WORLD_SIZE": said["SLURM_STEP_NUM_TASKS"]}
    if "SLURM_LOCALID" in said:
        found["LOCAL_RANK"] = said["SLURM_LOCALID"]
    tasks = [  # "2(x3),1": of each node
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", said.get("SLURM_STEP_TASKS_PER_NODE", ""))
        for _ in range(int(times or 1))
    ]
    node = said.get("SLURM_NODEID", "")
    if node.isdigit() and int(node) < len(tasks):
        found["LOCAL_WORLD_SIZE"] = str(tasks[int(node)])
    if first := re.match(r"([^\[,]+)(?:\[(\d+))?", said.get("SLURM_STEP_NODELIST", "")):
        found["MASTER_ADDR"] = first[1] + (first[2] or "")
    if said.get("SLURM_JOB_ID", "").isdigit():
        found["MASTER_PORT"] = str(20000 + int(said["SLURM_JOB_ID"]) % 10000)
    return {name: value for name, value in found.items() if name not in said}


def _from_mpi(said: Mapping[str, str]) -> dict[str, str]:
    for names in MPI:
        if names[0] in said and said.get(names[1], "1") != "1":
            ours = zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), names, strict=True)
            return {name: said[theirs] for name, theirs in ours if theirs in said and name not in said}
    return {}


def join_processes(patience: float = 60, slow: float = 1800, folder: Path = Path(), alone_too: bool = False) -> World:
    """Alone without a launcher; among several, with collectives over gloo for the CPU and NCCL for GPUs, and under a watch.

    patience, slow: seconds, of mpp/watchman.py.  folder: where it writes stacks down.  alone_too: a process group also for one process.
    Collective.  Raises ConfigError where the environment cannot be right or the processes do not find each other.
    """
    watch.patience, watch.slow = patience, max(patience, slow)
    place = find_place()
    host, local_size = socket.gethostname(), place.local_size or 1
    if place.size > 1:
        store, here = meet(place, host, slow)
        if place.local_size is None:
            local_size = sum(each == host for each, _ in here)
    elif alone_too:
        store = dist.HashStore()  # needs no port
    device = local_device(place.local_rank, local_size)
    os.environ.update(LOCAL_WORLD_SIZE=str(local_size), MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    if place.size > 1 or alone_too:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=WAIT)
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            raise cannot_meet(place, error) from error
    if place.size > 1:
        if device.type == "cuda":
            refuse_shared_gpus(here)
        watch.begin(place.rank, place.size, folder, _share)
    return World(place.rank, place.size, local_size, device)


def meet(place: Place, host: str, seconds: float) -> tuple[dist.Store, list[tuple[str, int]]]:
    """Collective: a store that all processes share, and the host and local rank of each.  Raises ConfigError, naming who has not come."""
    wait_for_name(place)
    limit = timedelta(seconds=max(seconds, 1.0))
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun serves it
    try:
        store: dist.Store = dist.TCPStore(place.address, place.port, None, place.rank == 0 and not agents, limit, False, multi_tenant=True)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"mpp/{attempt}", store)
        mine = f"{place.rank}\n{place.size}\n{host}\n{place.local_rank}\n{os.getpid()}"
        if store.compare_set(f"here/{place.rank}", "", mine).decode() != mine:
            raise of_this_rank(
                ConfigError(
                    f"two processes are rank {place.rank} at {place.address}:{place.port}; give each process of a job its own RANK, and each job its own port"
                )
            )
        names = [f"here/{rank}" for rank in range(place.size)]
        try:
            store.wait(names, limit)
        except dist.DistStoreError:
            absent = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
            raise of_this_rank(
                ConfigError(
                    f"rank {', '.join(absent[:8])}{' ...' if absent[8:] else ''} of {place.size} has not come to {place.address}:{place.port} within {seconds:.0f} s; "
                    "start as many processes as WORLD_SIZE says, on hosts that reach that address"
                )
            ) from None
        here = [store.get(name).decode().split("\n") for name in names]
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise cannot_meet(place, error) from error
    for rank, size, _, _, _ in here:
        if int(size) != place.size:
            raise ConfigError(
                f"rank {rank} has WORLD_SIZE={size} and rank {place.rank} WORLD_SIZE={place.size}; give all processes the same"
            )
    return store, [(theirs, int(local_rank)) for _, _, theirs, local_rank, _ in here]


def wait_for_name(place: Place) -> None:
    ends = time.monotonic() + LOOKUP_SECONDS
    while True:
        try:
            socket.getaddrinfo(place.address, place.port)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > ends or isinstance(error, UnicodeError) or place.rank == 0:
                raise of_this_rank(
                    ConfigError(f"MASTER_ADDR={place.address} is not the name of a host ({error}); give the name or address of rank 0's")
                ) from None
            time.sleep(1)


def refuse_shared_gpus(here: list[tuple[str, int]]) -> None:
    """Raises ConfigError where two ranks would use one GPU: LOCAL_RANK is missing."""
    for rank, place in enumerate(here):
        if place in here[:rank]:
            host, local_rank = place
            raise ConfigError(
                f"ranks {here.index(place)} and {rank} are both LOCAL_RANK={local_rank} on {host} and would share a GPU; give each process of a machine "
                "its own LOCAL_RANK, from 0 on"
            )


def _share(value: Any) -> Any:
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


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


def cannot_meet(place: Place, error: Exception) -> ConfigError:
    where = f"{place.address}:{place.port}"
    return of_this_rank(  # type: ignore[return-value]
        ConfigError(
            f"the processes cannot meet at {where} ({str(error).splitlines()[0]}); every node must reach that address, and on one host "
            f"each job needs a port of its own: deepspeed --master_port 29501 ..."
        )
    )


def leave() -> int:
    """Collective: the end of a program whose processes have a group; its exit status."""
    dist.barrier()
    dist.destroy_process_group()
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
        dist.all_gather_object(failures, None if failure is None else str(failure))
    if any(failures):
        raise UserError(next(text for text in failures if text))  # the same everywhere, so that rank 0 alone prints it
    return made  # type: ignore[return-value]


def from_first(world: World, make: Callable[[], Made]) -> Made:
    """Collective: what rank 0 makes, given to all; a UserError there is raised by all."""
    made = together(world, lambda: make() if world.first else None)
    if world.size == 1:
        return made  # type: ignore[return-value]
    with meeting():
        return _share(made)
