"""Files that survive a kill: whole or absent, and flushed to the disk."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from mpp.base.errors import UserError, number_told
from mpp.base.progress import Progress
from mpp.disk.patience import patiently

TEMPORARY = ".*.tmp-*"  # names of unfinished files, which a new run may remove: those of `temporary`
HASHED = 1 << 22  # bytes that are read together


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
    with being_written(path) as file:
        file.writelines(chunks)


@contextmanager
def being_written(path: Path) -> Iterator[BinaryIO]:
    """As `write_atomically`: an empty file to write to, which gets its name at the end.  An exception leaves nothing behind."""
    part = temporary(path)
    try:
        with writing(path), part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        sync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """At the end of a text file, all of it: on a disk that fails for a while it is tried again, from where the file ended."""
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.tell()

    def write() -> None:
        with writing(path), path.open("r+b", buffering=0) as file:
            file.seek(end)
            data = memoryview(text.encode(errors="surrogateescape"))
            while data:  # on a disk that fills up the system takes a part at first
                data = data[file.write(data) :]

    patiently(write, str(path), lambda: os.truncate(path, end))


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


def sync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk, so that they outlive a power cut.  An OSError names it."""
    with writing(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: Path, key: str) -> None:
    """Make it, with those above it.  Raises UserError, naming the option it came from, where it cannot be made or written, or is a set of shards, which
    whoever made it may make anew or delete."""
    if (path / "manifest.json").is_file():
        raise UserError(f"{key}={path} is a set of shards, beside which nothing else should lie; give a folder of its own")
    try:
        path.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(path, os.W_OK | os.X_OK) else "cannot be written"
    except FileExistsError:
        problem = "is a file" if path.exists() else "is a link to what is not there"
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


def sha256_of(path: Path) -> str:
    """Hexadecimal, of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file, Progress(f"sha256 of {path}", path.stat().st_size, "MB", scale=1e-6) as bar:
        while piece := file.read(HASHED):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()
