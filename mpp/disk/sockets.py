"""Folders for sockets, below the one for temporary files.  Each belongs to the process that made it; of one that was killed the next one removes it."""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

BEGINNING = 60.0  # seconds in which nobody may hold the lock of such a folder yet
_held: list[IO[str]] = []  # open, and so locked, for as long as this process or one that was forked from it lives


def folder_of_sockets(kind: str) -> Path:
    """A new folder mpp-KIND-..., for its maker to remove.  Those of the same kind whose makers were killed go now."""
    sweep(kind)
    folder = Path(tempfile.mkdtemp(prefix=f"mpp-{kind}-", dir=_base()))
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    _held.append(lock)
    return folder


def sweep(kind: str) -> None:
    """Remove the folders of this kind that nobody holds."""
    for folder in _base().glob(f"mpp-{kind}-*"):
        with suppress(OSError):
            began = (folder / "lock").stat()
            if began.st_uid != os.getuid() or time.time() - began.st_mtime < BEGINNING:
                continue
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _base() -> Path:
    """TMPDIR, unless what lies in a folder there would exceed the 107 bytes that a socket's path may have."""
    return Path("/tmp" if len(tempfile.gettempdir()) > 60 else tempfile.gettempdir())
