"""What has to be settled before a program imports anything slow: an interrupt between its start and its `main` ends it quietly, and threads that wait for
each other do not spin for long.

Every program calls `quiet_until_main` before it imports anything else; `run_program` gives ctrl-C its usual meaning back.
"""

import os
import signal
from types import FrameType

# Rounds in which a thread of torch's OpenMP looks for its next work before it sleeps.  libgomp's own 300,000 are milliseconds, in which it takes a core
# from the thread it waits for, where something else runs beside: two threads then did a fifth to three quarters of what they do with 1,000
# (docs/results.md).
SPINS = 1000
SPIN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def quiet_until_main(name: str) -> None:
    """name: `__name__` of the program; where it is imported nothing is changed, and interrupts are not where they are ignored (nohup)."""
    if name == "__main__" and not any(setting in os.environ for setting in SPIN_SETTINGS):  # libgomp reads it when torch is imported
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    if name == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def loud_again() -> None:
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
