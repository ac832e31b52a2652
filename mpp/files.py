"""Files that survive a kill: whole or absent, flushed to the disk, and with one writer at a time."""

import fcntl
import hashlib
import json
import os
import platform
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mpp.errors import UserError, number_told
from mpp.progress import Progress
from mpp.text import say
from mpp.watch import watch

TEMPORARY = ".*.tmp-*"  # names of unfinished files, which a new run may remove: those of `temporary`
_said: set[str] = set()  # warnings that were given
HASHED = 1 << 22  # bytes that are read together
LOCK_SECONDS = 10  # how long the workers of a killed run may take to notice and end


def seal_of(record: Mapping[str, Any], but: str = "seal") -> str:
    """sha256 over what a record says, hexadecimal: its JSON with sorted keys and without blanks, less the seal itself (its key is `but`)."""
    content = json.dumps({key: value for key, value in record.items() if key != but}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


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
    with path.open(errors="surrogateescape") as file:
        write_stream(path, (line.encode(errors="surrogateescape") for line in file if line.endswith("\n") and wanted(line)))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError without a file's name, as of a full disk, gets this one, and so does what safetensors raises in its place."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        if number := number_told(error):
            raise OSError(number, os.strerror(number), str(path)) from error
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


def user_folder(variable: str, otherwise: str) -> Path:
    """What programs keep for their user (XDG): the folder that an environment variable names, or this one in the home; "~/..." for who has no home."""
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():  # a relative one counts as none
        return named
    with suppress(RuntimeError):
        return Path(otherwise).expanduser()
    return Path(otherwise)


def hold_folder(path: Path, busy: str, *, shared: bool = False, seconds: float = LOCK_SECONDS) -> Any:
    """The open file `path`, made with its folder, held as `lock_folder` holds it; for folders whose last user removes them, lock and all.

    A lock that was removed while this process waited for it keeps nobody out, so the one that is there now is taken then.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = path.open("w")
        except FileNotFoundError:  # the folder was removed between the two
            continue
        try:
            lock_folder(lock, busy, shared=shared, seconds=seconds)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def lock_folder(lock: Any, busy: str, *, shared: bool = False, seconds: float = LOCK_SECONDS) -> None:
    """Hold the open file `lock` until this process and those forked from it have ended.

    shared: beside other shared holders.  Raises UserError(busy) when others still hold it after so many seconds.

    Where the file system has no locks (ENOLCK, EOPNOTSUPP, ENOSYS ...) this is said, and an exclusive holder notes itself in NAME.owner instead for as
    long as `lock` lives: that keeps out others on this host, and tells of those on another, which cannot be asked whether they still run.
    """
    end = time.monotonic() + seconds
    with Progress(f"waiting for another program to let go of {Path(lock.name).parent}") as bar:
        while True:
            try:
                fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = ""
            except OSError as error:
                _say_once(f"{lock.name} cannot be locked ({error.strerror}): nothing but care keeps two programs from writing here at once")
                holder = "" if shared else _note_owner(lock)
                if not holder:
                    return
            if time.monotonic() > end:
                raise UserError(busy + holder)
            watch.moved("waiting for a lock", slow=True)
            bar.update(0)
            time.sleep(0.1)


def sha256_of(path: Path) -> str:
    """Hexadecimal, of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file, Progress(f"sha256 of {path}", path.stat().st_size, "MB", scale=1e-6) as bar:
        while piece := file.read(HASHED):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(f"warning: {text}", error=True)


def _note_owner(lock: Any) -> str:
    """Write NAME.owner; or, in words, who on this host has written it and is still there."""
    path = Path(f"{lock.name}.owner")
    mine = {"host": platform.node(), "pid": os.getpid(), "began": _began(os.getpid())}
    try:
        theirs = json.loads(path.read_text())
        host, pid, began = theirs["host"], theirs["pid"], theirs["began"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or half of one
        host, pid, began = mine.values()
    if host == mine["host"] and pid != mine["pid"] and _began(pid) is not None and _began(pid) == began:
        return f" (process {pid}, by {path})"
    if host != mine["host"]:
        _say_once(
            f"{path}: process {pid} on {host} has not ended in good order and may still be at work here; if it is, stop one of the two"
        )
    path.unlink(missing_ok=True)
    try:
        with path.open("x") as file:
            json.dump(mine, file)
    except FileExistsError:  # another was quicker by a moment
        return f" (by {path})"
    weakref.finalize(lock, _forget_owner, path, os.getpid())
    return ""


def _began(pid: int) -> str | None:
    """When a process of this host began, in the kernel's words; None where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _forget_owner(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork
        path.unlink(missing_ok=True)
