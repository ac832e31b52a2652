"""The body of a server's answer, as it comes."""

import time
from collections.abc import Callable, Iterator

from mpp.remote import retries
from mpp.remote.retries import Trouble

PART = 1 << 20  # bytes, given at a time


def parts(read1: Callable[[int], bytes]) -> Iterator[bytes]:
    """A body in parts of PART bytes, each as soon as it is there.  read1: gives up to so many bytes as soon as there are any, none at the end.

    Raises Trouble where the whole takes longer than PATIENCE.whole_seconds: of a server that drips, every single read may be in time.
    """
    deadline = time.monotonic() + retries.PATIENCE.whole_seconds
    some, size = list[bytes](), 0
    while data := read1(PART - size):
        some.append(data)
        size += len(data)
        if size == PART:
            yield b"".join(some)
            some, size = [], 0
        if time.monotonic() > deadline:
            raise Trouble(f"took more than {retries.PATIENCE.whole_seconds:g} s for one answer")
    if some:
        yield b"".join(some)
