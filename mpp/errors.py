"""The errors a user can act on, and the one place that prints them.

Every message names the value, the rule it broke and the remedy, on one line.  Anything that is not one of these is a
fault of the program and keeps its traceback.
"""

import argparse
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mpp.text import Cleaned, printable


class UserError(Exception):
    """Something the user can mend: shown as one line, exit status 2."""


class ConfigError(UserError):
    """A config file or a key=value word that cannot be right."""


class DataError(UserError):
    """Shards that are missing, changed or of another kind than the program needs."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, as everything else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


class BadSample(Exception):
    """The content of one sample is unusable (checksum, decoding, too many pixels); never an input/output error."""


def run_program(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Run a program's `main`, print a UserError as one line and leave with its exit status.

    With several processes an error that all of them share (a config key, a missing manifest) is printed by rank 0 only; `of_this_rank` marks the others.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
            setattr(sys, name, Cleaned(stream))
    try:
        status = main(None)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0" or getattr(error, "of_this_rank", False):
            where = f" [rank {rank}]" if rank != "0" else ""
            sys.stderr.write(f"error{where}: {printable(' '.join(str(error).split()))}\n")
            sys.stderr.flush()
        status = 2
    except KeyboardInterrupt:
        status = 130
    except RuntimeError as error:
        if not (_joined() and re.search(r"[Cc]onnection (closed|reset|refused)|Broken pipe", str(error))):
            raise
        sys.stderr.write(f"error [rank {os.environ.get('RANK', '0')}]: another process of this run has ended; its own message says why\n")
        status = 2
    sys.stdout.flush()
    if status and _joined():
        # Leave at once: taking down a process group whose other members are leaving too can abort this process (SIGABRT was seen).
        for worker in multiprocessing.active_children():
            worker.kill()  # they take no other signal, and hold nothing
        os._exit(status)
    raise SystemExit(status or 0)


def _joined() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_initialized())


def of_this_rank(error: UserError) -> UserError:
    """Mark an error that only this rank has met, so that it is printed whatever the rank."""
    error.of_this_rank = True  # type: ignore[attr-defined]
    return error
