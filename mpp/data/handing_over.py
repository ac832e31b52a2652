"""What loader processes hand over to the rank they work for, and what is said where they do not: one that died, was stopped, or finds no end.

Every data loader of mpp is read through `handed_over`.
"""

import atexit
import gc
import math
import multiprocessing
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mpp.base.errors import DataError, leave_no_children, of_this_rank
from mpp.disk.sockets import folder_of_sockets
from mpp.processes.launch import orphaned
from mpp.processes.watch import watch
from mpp.processes.watchman import process_state

ENDING = 0.5  # seconds from the last that a killed process hands over until it is seen to have ended
PREFETCHED = 4  # batches a worker is ahead
DIED = "exited unexpectedly|is killed by signal|Pin memory thread exited"  # torch's words


def packed(batch: dict[str, Any]) -> dict[str, Any]:
    """All tensors of numbers but images and bytes as the bytes of one, since each that a process hands over costs a file: `unpacked` undoes it."""
    small = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.dtype != torch.uint8}
    small = dict(sorted(small.items(), key=lambda item: -item[1].itemsize))  # so that each begins at a multiple of its own size
    layout = [(name, tuple(value.shape), value.dtype) for name, value in small.items()]
    numbers = torch.cat([value.contiguous().view(-1).view(torch.uint8) for value in small.values()])
    return {name: value for name, value in batch.items() if name not in small} | {"numbers": numbers, "layout": layout}


def unpacked(batch: dict[str, Any]) -> dict[str, Any]:
    """Views of the one tensor, so in pinned memory where it is."""
    numbers, layout = batch.pop("numbers"), batch.pop("layout")
    parts = numbers.split([math.prod(shape) * dtype.itemsize for _, shape, dtype in layout])
    return batch | {name: part.view(dtype).view(*shape) for part, (name, shape, dtype) in zip(parts, layout, strict=True)}


def as_it_is(item: Any) -> Any:
    """To collate with, where a data set gives whole batches."""
    return item


def settings(workers: int) -> dict[str, Any]:
    """Of a DataLoader with so many processes."""
    return {
        "num_workers": workers,
        "worker_init_fn": _begin_worker,
        "multiprocessing_context": "fork" if workers else None,  # fast, and shares memory; workers touch neither CUDA nor threads
    }


def begun(loader: DataLoader) -> Iterator[Any]:
    """Its processes are forked now.  What this process holds is left out of their garbage collections, which would copy it page by page."""
    if not loader.num_workers:
        return iter(loader)
    _make_folder()
    gc.collect()
    gc.freeze()
    try:
        iterator = iter(loader)
    finally:
        gc.unfreeze()
    # torch would raise wherever this process is when a worker dies; the next look at the queue tells of it in the right place.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    atexit.register(leave_no_children)  # before torch's and Python's own farewells, which would wait for them
    return iterator


def _make_folder() -> None:
    """For the sockets over which loader processes hand over files: one folder for all of this process, for each would make its own, and leave it where it is
    killed, as most are.  It goes when this process ends (`leave_no_children`)."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # which forked processes have, too
    if not (config.get("tempdir") and Path(config["tempdir"]).is_dir()):
        config["tempdir"] = str(folder_of_sockets("loaders"))


def handed_over(loader: DataLoader, phase: str, iterator: Iterator[Any] | None = None) -> Generator[Any]:
    """The loader's items; to the watch, this process waits for data or does what `phase` says with them.  iterator: of a loader that is `begun`.

    Raises DataError for a loader process that died or has been stopped, and where nothing came for as long as anything may take.
    """
    before, items = watch.board, 0
    eye = Eye()
    try:
        while True:
            watch.moved("waiting for data", slow=True)
            eye.waits = True
            try:
                iterator = begun(loader) if iterator is None else iterator
                if loader.num_workers and not eye.ident:
                    eye.start()
                item = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, EOFError, ConnectionError) as error:
                if not eye.fault and not (
                    loader.num_workers and (isinstance(error, EOFError | ConnectionError) or re.search(DIED, str(error)))
                ):
                    raise
                words = " ".join((str(error) or type(error).__name__).split())
                died = f"a loader process died ({words}); if memory ran out, lower the number of workers ({loader.num_workers} here)"
                raise of_this_rank(DataError(eye.fault or died)) from error
            eye.waits = False
            watch.moved(phase, slow=items == 0)  # the first batch takes what has to be set up, too
            items += 1
            yield item
    finally:
        eye.over.set()
        watch.moved(before.phase, slow=before.slow)


class Eye(threading.Thread):
    """Looks at the loader processes while nothing comes.  What is at fault it kills, so that whoever waits for it sees its end, and says in `fault`."""

    def __init__(self) -> None:
        super().__init__(name="eye", daemon=True)
        self.over = threading.Event()
        self.waits = False
        self.fault = ""

    def run(self) -> None:
        every = min(5.0, watch.patience / 4)  # seconds; they are counted in looks, as a suspended job is not late when it goes on
        waited, stopped = 0.0, dict[int, float]()
        while not self.over.wait(every) and not self.fault:
            waited = waited + every if self.waits else 0.0
            states = [(child.pid or 0, process_state(child.pid or 0)[0]) for child in multiprocessing.active_children()]
            stopped = {pid: stopped.get(pid, 0.0) + every for pid, state in states if state == "T" and waited}
            self.fault = fault_of(stopped, waited, states)
            if self.fault:
                kill_workers()


def fault_of(stopped: dict[int, float], waited: float, states: list[tuple[int, str]]) -> str:
    for pid, seconds in stopped.items():
        if seconds >= watch.patience:
            return f"loader process {pid} on {socket.gethostname()} has been stopped by a signal (such as SIGSTOP) for {seconds:.0f} s; give the same command again"
    if waited >= watch.slow:
        found = ", ".join(f"{pid} (state {state or 'gone'})" for pid, state in states)
        return (
            f"no images came for {waited:.0f} s from the loader processes {found} on {socket.gethostname()}; state D waits for a disk: mend it, and "
            "give the same command again"
        )
    return ""


def _begin_worker(worker: int) -> None:
    """A scheduler's request to stop reaches the whole group; this process's parent decides, and still needs samples for the step in hand."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    usual = sys.excepthook

    def told(*error: Any) -> None:
        """multiprocessing's threads print a traceback where the rank is killed while they hand something over to it."""
        time.sleep(ENDING)
        if not orphaned():
            usual(*error)

    sys.excepthook = told


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
