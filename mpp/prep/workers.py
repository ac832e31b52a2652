"""Worker processes: one job after the other to each, results in order, progress, and an end with the main process.

concurrent.futures runs them; it knows no progress within a job, holds all jobs at once, and leaves its processes behind when this one is killed.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from mpp.base.errors import UserError
from mpp.remote.through_fsspec import loop_runs

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], object]

_work: Callable[[Any, Tick], Any]
_shared: Any  # [whether to stop, progress of worker 1, of worker 2, ...]
_slot: int


class Stopped(Exception):
    """The main process has ended the work."""


def run_jobs(work: Callable[[Job, Tick], Result], jobs: Sequence[Job], workers: int, tick: Tick) -> Iterator[Result]:
    """work(job, tick) for every job, in up to `workers` processes (1: in this one); results in the order of the jobs.

    work: a function of a module, or a partial of one.  tick(n): adds to the progress, wherever it is called.
    Raises UserError when a process dies.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from (work(job, tick) for job in jobs)
        return
    # fsspec's event loop is a thread, which a fork would leave behind
    context: Any = multiprocessing.get_context("spawn" if loop_runs() else None)
    shared = context.RawArray("q", 1 + workers)  # no lock: a worker killed inside one would hang the rest
    slots = context.SimpleQueue()
    for slot in range(workers):
        slots.put(1 + slot)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work, shared, slots, os.getpid()))
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
                with _deaf_children():
                    waiting.append(pool.submit(_run, job))
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
        raise UserError(
            "a worker process died (killed, perhaps for lack of memory); run the same command again, perhaps with fewer --workers: what is "
            "finished is kept"
        ) from error
    finally:
        shared[0] = 1  # after an error or Ctrl-C the others give up their jobs
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C: it reaches the whole group, and this process decides."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start(work: Callable[[Any, Tick], Any], shared: Any, slots: Any, parent: int) -> None:
    global _work, _shared, _slot
    _work, _shared, _slot = work, shared, slots.get()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run(job: Any) -> Any:
    return _work(job, _tick)


def _tick(count: int) -> None:
    if _shared[0]:
        raise Stopped
    _shared[_slot] += count
