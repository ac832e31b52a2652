"""What this process may use of the machine: a container, a pod or a job may give it less than there is."""

import math
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """CPU cores this process may run on: those of its affinity (taskset, SLURM), and no more than a quota is worth (docker --cpus, a pod's limits.cpu),
    in whole ones, as threads beyond it would hold each other up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _least(_cores_of, "cpu"))))


def usable_memory() -> int:
    """Bytes of RAM that this process may take, if it has the machine, or the container, to itself."""
    import psutil  # here, as below: what only counts cores does without

    return int(min(psutil.virtual_memory().total, _least(_bytes_of, "memory")))


def free_memory() -> int:
    """Bytes of RAM that programs here may still take: of the machine, or of the container where that has less."""
    import psutil

    return int(
        min(psutil.virtual_memory().available, max(0, _least(lambda group, old: _bytes_of(group, old) - _held(group, old), "memory")))
    )


def _least(of: Callable[[Path, bool], float], controller: str) -> float:
    """The narrowest limit of this process's control group and those around it, which all hold; infinite where there is none.

    of: what a group's folder says, which may fail; old: whether the folder is one of cgroup v1.
    """
    least = math.inf
    for group, old in _groups(controller):
        with suppress(OSError, ValueError, KeyError):  # a group without this controller, or one without a limit ("max")
            least = min(least, of(group, old))
    return least


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control group and of those around it, and whether they are of cgroup v1.  Inside a container its group's folder
    stands at the very top, while v1 goes on telling the name that it has outside."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = GROUPS / controllers if controllers else GROUPS
            if controllers and not top.is_dir():
                top = GROUPS / controller
            inner = top / path.lstrip("/")
            for group in (inner, *inner.parents):
                yield group, bool(controllers)
                if group == top:
                    break


def _cores_of(group: Path, old: bool) -> float:
    if old:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _bytes_of(group: Path, old: bool) -> int:
    return int((group / ("memory.limit_in_bytes" if old else "memory.max")).read_text())


def _held(group: Path, old: bool) -> int:
    """What cannot be taken back: files that the system merely remembers are counted by it, too."""
    used = int((group / ("memory.usage_in_bytes" if old else "memory.current")).read_text())
    told = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
    remembered = sum(int(told[f"{'total_' if old else ''}{kind}_file"]) for kind in ("active", "inactive"))
    return used - remembered


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
