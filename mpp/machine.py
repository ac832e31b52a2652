"""What this process may use of the machine."""

import os


def usable_cores() -> int:
    """CPU cores this process may run on: those of its affinity (taskset, SLURM), where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
