"""An interrupt between a program's start and its `main` ends it quietly.

Every program calls `quiet_until_main` before it imports anything else; `run_program` gives ctrl-C its usual meaning back.
"""

import os
import signal
from types import FrameType


def quiet_until_main(name: str) -> None:
    """name: `__name__` of the program; where it is imported, and where interrupts are ignored (nohup), nothing is changed."""
    if name == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def loud_again() -> None:
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
