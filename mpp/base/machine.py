"""What this process may use of the machine."""

import os
import resource
import sys


def usable_cores() -> int:
    """CPU cores this process may run on: those of its affinity (taskset, SLURM), where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allow_open_files() -> None:
    """Raise this process's limit on open files, which its children inherit, as far as the system lets it.

    Every tensor that a loader process hands over is a file until it is used, beside the shards that are open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def peak_gigabytes(device: str) -> float:
    """The most memory that this process has held so far, in 10^9 bytes: of a GPU ("cuda") what torch has allocated there, else resident in RAM."""
    if device == "cuda":
        import torch  # of programs that have imported it

        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
