"""Worker processes: one job after the other to each, results in order, progress, and an end with the main process."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mpp.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], object]

_shared: Any  # [whether to stop, progress of worker 1, of worker 2, ...]
_slot: int


class Stopped(Exception):
    """The main process has ended the work."""


def run_jobs(work: Callable[[Job, Tick], Result], jobs: Iterable[Job], workers: int, tick: Tick) -> Iterator[Result]:
    """work(job, tick) for every job, in `workers` processes (1: in this one); results in the order of the jobs.

    work: a function of a module, or a partial of one.  tick(n): adds to the progress, wherever it is called.
    Raises UserError when a process dies.
    """
    if workers == 1:
        yield from (work(job, tick) for job in jobs)
        return
    shared = multiprocessing.RawArray("q", 1 + workers)  # no lock: a worker killed inside one would hang the rest
    slots: multiprocessing.SimpleQueue[int] = multiprocessing.SimpleQueue()
    for slot in range(workers):
        slots.put(1 + slot)
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(shared, slots, os.getpid()))
    waiting: deque[Future] = deque()
    todo, told = iter(jobs), 0

    def tell() -> None:
        nonlocal told
        now = sum(shared[1:])
        tick(now - told)
        told = now

    try:
        while True:
            while len(waiting) < 4 * workers and (job := next(todo, None)) is not None:
                waiting.append(pool.submit(_run, work, job))
            if not waiting:
                break
            try:
                result = waiting[0].result(timeout=0.2)
            except StillRunning:
                tell()
                continue
            tell()
            waiting.popleft()
            yield result
    except BrokenProcessPool as error:
        raise UserError("a worker process died (killed, perhaps for lack of memory); run again, perhaps with fewer --workers") from error
    finally:
        shared[0] = 1  # after an error or Ctrl-C
        pool.shutdown(cancel_futures=True)


def _start(shared: Any, slots: Any, parent: int) -> None:
    global _shared, _slot
    _shared, _slot = shared, slots.get()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    threading.Thread(target=end_with_parent, daemon=True).start()


def _run(work: Callable[[Job, Tick], Result], job: Job) -> Result:
    return work(job, _tick)


def _tick(count: int) -> None:
    if _shared[0]:
        raise Stopped
    _shared[_slot] += count
