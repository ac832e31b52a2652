"""The errors a user can act on, and the one place that prints them.

Every message names the value, the rule it broke and the remedy, on one line.  Anything that is not one of these is a
fault of the program and keeps its traceback.
"""

import argparse
import atexit
import errno
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from mpp.base.interrupts import end_at_once, loud_again
from mpp.base.progress import Progress
from mpp.base.text import Cleaned, printable

AGAIN = 75  # exit status of what ended well and is not finished, or because of another process: give the same command again (EX_TEMPFAIL of sysexits.h)

UNMET = 69  # exit status where processes of a job do not find each other, or one does not answer, or another run is in the place: a node may be late, an address wrong, a node that was given up still at work, so that a few more tries may help (EX_UNAVAILABLE)

# Who is told of the end of a program, in a process of a job.
at_leaving: list[Callable[[int, str, bool], None]] = []  # the exit status, the last words, whether they have been printed
at_stopping: list[
    Callable[[str, bool], None]
] = []  # before it ends otherwise than well: why, and whether the device may still be asked for anything
lost_connection: list[Callable[[], object]] = []  # where another process has ended, before this one says so


class UserError(Exception):
    """Something the user can mend: shown as one line."""

    status = 2  # with which the program ends


class ConfigError(UserError):
    """A config file or a key=value word that cannot be right."""


class NotMetError(ConfigError):
    """Processes of a job that have not come, cannot be reached, or do not answer."""

    status = UNMET


class BusyError(UserError):
    """Another program is at work there, which may be a start before this one that a scheduler has given up, and which has not ended yet."""

    status = UNMET


class GoneError(UserError):
    """Another process of the job has ended, with a status of its own."""

    status = AGAIN


class DataError(UserError):
    """Shards that are missing, changed or of another kind than the program needs."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


class Parser(argparse.ArgumentParser):
    """A command line: --help begins with how this program was started, and with its description as it stands; what is wrong is said in one line, as
    everything else."""

    def __init__(self, **more: Any):
        started = Path(sys.argv[0])
        more.setdefault("prog", "/".join(started.parts[-2:]) if started.suffix == ".py" else sys.argv[0])  # mpp/plan.py, mpp plan
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


class BadSample(Exception):
    """The content of one sample is unusable (checksum, decoding, too many pixels); never an input/output error."""


def run_program(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Run a program's `main`, print a UserError as one line and leave with its exit status.

    With several processes an error that all of them share (a config key, a missing manifest) is printed by rank 0 only; `of_this_rank` marks the others.
    """
    loud_again()
    rank = os.environ.get("RANK", "0")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
            setattr(sys, name, Cleaned(stream))
    words, said = "", True
    try:
        status = main(None)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except UserError as error:
        words, said = " ".join(str(error).split()), rank == "0" or getattr(error, "of_this_rank", False)
        if said:
            say_error(words)
        status = error.status
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        status = 2
        if (fault := disk_fault(error)) is not None:
            words = f"{fault}, and give the same command again"
        elif _joined() and isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset|refused)|Broken pipe", str(error)):
            for wait in lost_connection:
                wait()
            words, status = "another process of this run has ended; its own message says why", AGAIN
        else:
            _leave(1)
            raise
        say_error(words)
    _leave(status or 0, words, said)
    sys.stdout.flush()
    if at_leaving:
        # Leave at once: what the libraries of a process group take down at exit can abort a process that has done everything (SIGABRT was seen).
        leave_no_children()
        if not status:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status or 0)
    raise SystemExit(status or 0)


def leave_no_children() -> None:
    """Before this process ends at once.  They take no other signal than SIGKILL, and hold nothing but the folder of their sockets, which is removed."""
    for child in multiprocessing.active_children():
        child.kill()
    if folder := multiprocessing.current_process()._config.get("tempdir"):  # type: ignore[attr-defined]
        shutil.rmtree(folder, ignore_errors=True)


def say_error(words: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"error{f' [rank {rank}]' if rank != '0' else ''}: {printable(' '.join(words.split()))}\n")
    sys.stderr.flush()


def _leave(status: int, words: str = "", said: bool = True) -> None:
    if status:
        error = sys.exc_info()[1]
        stopping(words or (repr(error) if error else "interrupted" if status == 130 else f"exit status {status}"))
    for tell in at_leaving:
        tell(status, words, said)


def stopping(words: str, device: bool = True) -> None:
    """Have those who wait for it told that the program stops, and why.  device: whether it may still be asked for anything."""
    for tell in at_stopping:
        with suppress(Exception):  # what is written down on the way out must not hide why
            tell(words, device)


DISK_FAULTS = {
    "ENOSPC": "make room there",
    "EDQUOT": "make room there, or have the quota raised",
    "EFBIG": "no file may be so large here: raise ulimit -f, or take another file system",
    "EIO": "the disk, or the way to it, is at fault: mend it",
    "ENOENT": "it, or its folder, was deleted or renamed under the program: put it back",
    "ENOTDIR": "a folder was replaced under the program: put it back",
    "EROFS": "the disk is read-only: mount it for writing, or give a folder elsewhere",
    "ESTALE": "the file server has lost it: mount it again",
    "ENOTCONN": "the file server cannot be reached: mount it again",
    "EACCES": "this user may not: give it the right to, or a folder elsewhere",
    "EPERM": "this user may not: give it the right to, or a folder elsewhere",
}  # what can be done about each


def number_told(error: BaseException) -> int | None:
    """The errno in the words of an error that is no OSError, as safetensors raises them."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def disk_fault(error: BaseException) -> str | None:
    """One line about a disk that is full, gone, read-only or broken under a program; None for what is no such thing."""
    number = error.errno if isinstance(error, OSError) else None
    where = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    number = number or number_told(error)
    remedy = DISK_FAULTS.get(errno.errorcode.get(number or 0, ""))
    if remedy is None or number is None:
        return None
    what = os.fsdecode(where) if isinstance(where, (str, bytes, os.PathLike)) else "a file"
    return f"{what} cannot be written or read ({os.strerror(number)}): {remedy}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Around imports that take seconds, which a terminal is told: an interrupt ends the program at once and without a word, wherever in others' code it falls."""
    usual = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, end_at_once)
    try:
        with Progress("starting", at_once=True):
            yield
    finally:
        if usual:
            loud_again()


def _joined() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_initialized())


def error_told(words: str, status: int) -> UserError:
    """As another process has raised it, with the status with which that ends."""
    error = UserError(words)
    error.status = status
    return error


def of_this_rank(error: UserError) -> UserError:
    """Mark an error that only this rank has met, so that it is printed whatever the rank."""
    error.of_this_rank = True  # type: ignore[attr-defined]
    return error
