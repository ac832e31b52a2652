"""Files on disks that fail for a while, as those of a shared file system do when its server restarts: tried again with growing waits, then given up.

    data = patiently(lambda: read(path), str(path))

A failure that time may mend (ESTALE, EIO, a server that cannot be reached) is waited for as long as `disks.patience` says; any other for two
seconds, in case it is of that kind after all.
"""

import errno
import itertools
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mpp.base.text import say
from mpp.processes.watch import watch

Made = TypeVar("Made")
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EIO",
        "ESTALE",
        "ETIMEDOUT",
        "ENOTCONN",
        "ESHUTDOWN",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EREMOTEIO",
        "ENETUNREACH",
        "ENETDOWN",
        "ECONNRESET",
    )
    if hasattr(errno, name)
)
FIRST_WAIT, GROWTH, LONGEST_WAIT = 0.1, 4.0, 30.0  # seconds before each further try
SHORT = 2.1  # seconds for what does not look as if time mended it
TELLING = 1.0  # seconds of a wait from which on people are told


class Disks:
    """Of this process, and of those forked from it."""

    patience = 300.0  # seconds; system.disk_patience_seconds


disks = Disks()


def waits(error: OSError) -> Iterator[float]:
    """Seconds to wait before each further try, after such an error; they end where it is to be given up."""
    left = disks.patience if error.errno in PASSING else min(SHORT, disks.patience)
    for number in itertools.count():
        wait = min(FIRST_WAIT * GROWTH**number, LONGEST_WAIT, left)
        if wait <= 0:
            return
        left -= wait
        yield wait


def patiently(work: Callable[[], Made], what: str, again: Callable[[], object] = lambda: None) -> Made:
    """work(), again and again while it raises OSError, which is raised in the end.  what: is read or written, in words.  again: is called before each
    further try."""
    waiting: Iterator[float] | None = None
    while True:
        try:
            return work()
        except OSError as error:
            waiting = waits(error) if waiting is None else waiting
            wait = next(waiting, None)
            if wait is None:
                raise
            if wait >= TELLING:
                say(
                    f"warning: {what}: {error.strerror or error}; trying again in {wait:.0f} s, for up to {disks.patience:.0f} s",
                    error=True,
                )
            watch.moved("waiting for a disk", slow=True)
            time.sleep(wait)
            again()
