"""Files that survive a kill: whole or absent, flushed to the disk, and with one writer at a time."""

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpp.errors import UserError
from mpp.watch import watch

TEMPORARY = ".*.tmp-*"  # names of unfinished files, which a new run may remove: those of `temporary`
LOCK_SECONDS = 10  # how long the workers of a killed run may take to notice and end


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process has, in this container or another."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole small file under a temporary name, flush it to the disk, then give it its name."""
    write_stream(path, [data])


def write_stream(path: Path, chunks: Iterable[bytes]) -> None:
    """As `write_atomically`, for what need not fit into memory.  An exception from `chunks` leaves nothing behind."""
    part = temporary(path)
    try:
        with writing(path), part.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        sync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def keep_lines(path: Path, wanted: Callable[[str], bool]) -> None:
    """Write a text file again with its complete lines that are wanted; a last line without an end is what a kill has left."""
    with path.open() as file:
        write_stream(path, (line.encode() for line in file if line.endswith("\n") and wanted(line)))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError without a file's name, as of a full disk, gets this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync_path(folder: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk, so that they outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path, key: str) -> None:
    """Make it, with those above it.  Raises UserError, naming the option it came from, where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(path, os.W_OK | os.X_OK) else "cannot be written"
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
    if problem:
        raise UserError(f"{key}={path} {problem}; give a folder on a disk that you may write to")


def lock_folder(lock: Any, busy: str, *, shared: bool = False, seconds: float = LOCK_SECONDS) -> None:
    """Hold the open file `lock` until this process and those forked from it have ended.

    shared: beside other shared holders.  Raises UserError(busy) when others still hold it after so many seconds.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(busy) from None
            watch.moved("waiting for a lock", slow=True)
            time.sleep(0.1)
        except OSError:  # a file system without locks: every writer's temporary names are its own
            return
