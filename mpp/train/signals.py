"""A request to stop: the scheduler's SIGTERM or SIGUSR1, or ctrl-C, is remembered until the end of the step that all ranks share."""

import signal
from types import FrameType

STOPPED = "stopped as asked"  # how a line of a run begins that ends well without being finished


def stopped_words(where: str) -> str:
    return f"{STOPPED} {where}; the same command goes on from there"


class StopRequest:
    """`requested` turns true at the first signal; a second ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
