"""What loader processes hand over to the rank they work for, and what is said where they do not: one that died, was stopped, or finds no end.

Every data loader of mpp is read through `handed_over`.
"""

import atexit
import multiprocessing
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from mpp.errors import DataError, of_this_rank
from mpp.watch import watch
from mpp.watchman import process_state

PREFETCHED = 4  # batches a worker is ahead
DIED = "exited unexpectedly|is killed by signal|Pin memory thread exited"  # torch's words


def settings(workers: int) -> dict[str, Any]:
    """Of a DataLoader with so many processes."""
    return {
        "num_workers": workers,
        "timeout": look_seconds() if workers else 0,
        "worker_init_fn": _ignore_signals,
        "multiprocessing_context": "fork" if workers else None,  # fast, and shares memory; workers touch neither CUDA nor threads
    }


def look_seconds() -> float:
    """How often the processes are looked at while nothing comes."""
    return min(5.0, watch.patience / 4)


def handed_over(loader: DataLoader, phase: str) -> Iterator[Any]:
    """The loader's items; to the watch, this process waits for data or does what `phase` says with them.

    Raises DataError for a loader process that died or has been stopped, and where nothing came for as long as anything may take.
    """
    iterator = None
    before, items = watch.board, 0
    waited, stopped = 0.0, dict[int, float]()
    watch.moved("waiting for data", slow=True)
    while True:
        try:
            if iterator is None:
                iterator = iter(loader)
                if loader.num_workers:
                    # torch would raise wherever this process is when a worker dies; the next look at the queue tells of it in the right place.
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    atexit.register(kill_workers)  # before torch's and Python's own farewells, which would wait for them
            item = next(iterator)
        except StopIteration:
            watch.moved(before.phase, slow=before.slow)
            return
        except RuntimeError as error:
            pinning = getattr(iterator, "_pin_memory_thread", None)
            if "DataLoader timed out" in str(error) and (pinning is None or pinning.is_alive()):
                waited += loader.timeout
                stopped = {pid: stopped.get(pid, 0.0) + loader.timeout for pid, state in states() if state == "T"}
                refuse_stopped(stopped)
                refuse_endless(waited)
                continue
            if not re.search(DIED, str(error)) and "DataLoader timed out" not in str(error):
                raise
            why = f"if memory ran out, lower the number of workers ({loader.num_workers} here); a bus error may also be an index.bin that was cut under the run"
            raise of_this_rank(DataError(f"a loader process died ({' '.join(str(error).split())}); {why}")) from error
        waited, stopped = 0.0, {}
        watch.moved(phase, slow=items == 0)  # the first batch takes what has to be set up, too
        items += 1
        yield item
        watch.moved("waiting for data", slow=True)


def states() -> list[tuple[int, str]]:
    return [(child.pid or 0, process_state(child.pid or 0)[0]) for child in multiprocessing.active_children()]


def refuse_stopped(stopped: dict[int, float]) -> None:
    for pid, seconds in stopped.items():
        if seconds >= watch.patience:
            kill_workers()
            raise of_this_rank(
                DataError(
                    f"loader process {pid} on {socket.gethostname()} has been stopped by a signal (such as SIGSTOP) for {seconds:.0f} s; give the same "
                    "command again"
                )
            )


def refuse_endless(waited: float) -> None:
    if waited >= watch.slow:
        found = ", ".join(f"{pid} (state {state or 'gone'})" for pid, state in states())
        kill_workers()
        raise of_this_rank(
            DataError(
                f"no images came for {waited:.0f} s from the loader processes {found} on {socket.gethostname()}; state D waits for a disk: mend it, and "
                "give the same command again"
            )
        )


def _ignore_signals(worker: int) -> None:
    """A scheduler's request to stop reaches the whole group; this process's parent decides, and still needs samples for the step in hand."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
