"""Run a command on chosen cores and say how long it took and what memory it held, or kill it half-way.

The command runs under `taskset` in a session of its own; the page cache is left as it is.
"""

import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

SAMPLED_EVERY = 0.1  # seconds


class Failed(Exception):
    """A measured command did not end well: its last lines."""


def timed(command: Sequence[str | Path], cores: str, log: Path, out: Path | None = None) -> dict[str, float]:
    """Run it; `out`, where it writes, is removed first.  Raises Failed.

    seconds: of the whole process; cpu_seconds: of it and of the descendants that were waited for.
    flush_seconds: to bring to the disk what it left in the page cache below `out`.
    peak_mb: resident bytes summed over the process and its descendants, sampled with psutil; pages that forked processes share count
    once for each, so it is an upper bound.
    """
    if out:
        shutil.rmtree(out, ignore_errors=True)
    os.sync()  # nobody pays for the writes of the run before
    cpu = cpu_of_children()
    began = time.perf_counter()
    process = start(command, cores, log)
    peaks: list[int] = [0]
    sampler = threading.Thread(target=sample, args=(process, peaks), daemon=True)
    sampler.start()
    status = process.wait()
    ended = time.perf_counter()
    cpu = cpu_of_children() - cpu
    if status:
        last = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(last[-1] if last else f"exit status {status}")
    for path in out.rglob("*") if out else ():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flushed = time.perf_counter()
    sampler.join()
    return {"seconds": ended - began, "cpu_seconds": cpu, "flush_seconds": flushed - ended if out else 0.0, "peak_mb": max(peaks) / 1e6}


def killed_when(command: Sequence[str | Path], cores: str, log: Path, reached: Callable[[], bool]) -> None:
    """Start a command and SIGKILL it with all its descendants as soon as `reached`.  Raises Failed when it ends before."""
    process = start(command, cores, log)
    while not reached():
        if process.poll() is not None:
            raise Failed("ended before it could be killed")
        time.sleep(0.01)
    for member in members(process.pid):
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


def start(command: Sequence[str | Path], cores: str, log: Path) -> subprocess.Popen:
    pinned = ["taskset", "-c", cores, *map(str, command)]
    with log.open("wb") as output:
        return subprocess.Popen(pinned, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sample(process: subprocess.Popen, peaks: list[int]) -> None:
    while process.returncode is None:
        peaks.append(sum(map(resident, members(process.pid))))
        time.sleep(SAMPLED_EVERY)


def members(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
