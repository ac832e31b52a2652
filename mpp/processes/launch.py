"""Which process of a job this one is, as the deepspeed launcher, torchrun, srun or mpirun has said in the environment."""

import multiprocessing
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mpp.base.errors import ConfigError, of_this_rank

PORT = 29500  # at which processes meet where MASTER_PORT is not set: torch's and deepspeed's own
# How launchers without RANK describe a process: rank, size, rank on this machine, size there.
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def orphaned() -> bool:
    """Whether this is a process that another one began to work for it, as a loader does, and that one has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and parent.pid != os.getppid()  # what tells its end is open in all that it began


@dataclass(frozen=True)
class Launch:
    """Of this process in its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int | None = None  # processes on this machine; None: not said
    address: str = "127.0.0.1"  # of rank 0's host
    port: int = PORT


def find_launch() -> Launch:
    """Of this process; from then on the environment says it in full, in torch's names.  Raises ConfigError."""
    try:
        launch = launch_of(os.environ)
    except ConfigError as error:
        raise of_this_rank(error) from None
    os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.size), LOCAL_RANK=str(launch.local_rank))
    return launch


def launch_of(environment: Mapping[str, str]) -> Launch:
    """What a launcher has said in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; where neither of the first two is
    set, what srun or mpirun says of a step of several processes; else this process is alone.

    What is missing has the only value that can be right, or is asked for.  Raises ConfigError.
    """
    said = {name: value for name, value in environment.items() if value.strip()}
    if "RANK" not in said and "WORLD_SIZE" not in said:
        said |= _from_slurm(said) or _from_mpi(said)
    if "RANK" not in said and "WORLD_SIZE" not in said:
        return Launch()
    size = _number(said, "WORLD_SIZE", 1)
    rank = _number(said, "RANK", 0) if size != 1 or "RANK" in said else 0
    if rank >= size:
        raise ConfigError(f"RANK={rank} must be below WORLD_SIZE={size}; ranks count from 0 (unset both to run one process)")
    if size == 1:  # it meets nobody: where does not matter
        return Launch(local_rank=_number(said, "LOCAL_RANK", 0) if "LOCAL_RANK" in said else 0, local_size=1)
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
    return Launch(rank, size, local_rank, local_size, said.get("MASTER_ADDR", "127.0.0.1").strip(), port)


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
