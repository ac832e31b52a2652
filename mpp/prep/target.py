"""Where shards go, and where it is noted which of them are finished."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mpp.data.shard_format import REMAKE
from mpp.data.shards import ShardSet
from mpp.errors import DataError
from mpp.files import TEMPORARY, write_stream

WORK = ".work"
PLAN = f"{WORK}/plan.json"
LOCK = "lock"  # of whoever works alone here, in the scratch folder


class Target(Protocol):
    """OUT, as the worker processes see it.  Small and picklable."""

    scratch: Path  # a local folder for what only an unfinished run needs

    def where(self, *names: str) -> str:
        """A place below OUT, for messages."""

    def begun(self) -> bool:
        """Whether OUT was begun before.  Raises DataError where it is something else than a new or begun OUT."""

    def sweep(self) -> None:
        """Remove what killed runs left unfinished; only while no other run is at work."""

    def abandon(self) -> None:
        """Leave nothing behind of a new OUT that came to nothing."""

    def forget(self) -> None:
        """No plan is there yet: forget the listing of a run that came to nothing, or of an earlier OUT of this name."""

    def look(self) -> None:
        """Find out anew what is published; `state` and `get` may go by it until the next look."""

    def folder(self, split: str) -> Path:
        """The local folder in which a split's files are made."""

    def publish(self, split: str, name: str) -> None:
        """A file was made in `folder(split)`: put it where it belongs, whole or not at all."""

    def state(self, split: str, shard: str) -> list | None:
        """What tells a published shard from a changed one without reading it; None where there is none."""

    def discard(self, split: str, shard: str) -> None:
        """Remove a shard, if it is there."""

    def read(self, split: str, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a published shard."""

    def get(self, name: str) -> bytes | None:
        """A small file below OUT; None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Write a small file below OUT, whole or not at all."""

    def put_stream(self, name: str, chunks: Iterable[bytes]) -> None:
        """As `put`, for what need not fit into memory."""

    def check(self, split: str) -> None:
        """Raises DataError where a finished split is not whole, as far as can be told without reading its shards."""

    def clean(self) -> None:
        """OUT is complete: remove what only an unfinished run needs."""


class LocalTarget:
    """OUT on a file system."""

    def __init__(self, out: Path):
        self.shown = out
        self.root = out.resolve()
        self.scratch = self.root / WORK

    def where(self, *names: str) -> str:
        return str(self.shown.joinpath(*names))

    def begun(self) -> bool:
        if not self.root.is_dir() and self.root.exists():
            raise DataError(f"{self.shown}: is a file; choose another OUT")
        begun = self.get(PLAN) is not None
        if self.root.is_dir() and not begun and {path.name for path in self.root.iterdir()} - {WORK}:
            raise DataError(f"{self.shown}: is not empty and was not begun by make_shards.py; choose another OUT")
        return begun

    def sweep(self) -> None:
        for folder in (self.root, *self.root.glob("*/")):
            for leftover in folder.glob(TEMPORARY):
                leftover.unlink()

    def abandon(self) -> None:
        remove_scratch(self.scratch)
        with suppress(OSError):  # not empty: another run has begun it anew
            self.root.rmdir()

    def forget(self) -> None:
        (self.scratch / "listing.json").unlink(missing_ok=True)

    def look(self) -> None:
        pass  # the file system knows

    def folder(self, split: str) -> Path:
        return self.root / split

    def publish(self, split: str, name: str) -> None:
        pass  # it was given its name when it was whole

    def state(self, split: str, shard: str) -> list | None:
        try:
            status = (self.root / split / shard).stat()
        except FileNotFoundError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def discard(self, split: str, shard: str) -> None:
        (self.root / split / shard).unlink(missing_ok=True)

    def read(self, split: str, shard: str, offset: int, size: int) -> bytes:
        with (self.root / split / shard).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def get(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        self.put_stream(name, [data])

    def put_stream(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        write_stream(path, chunks)

    def check(self, split: str) -> None:
        try:
            ShardSet.open(self.root / split)
        except DataError as error:
            raise DataError(
                f"{str(error).removesuffix(f'; {REMAKE}')}; put back what is missing, or remove {self.shown} and make it again"
            ) from error

    def clean(self) -> None:
        clean_scratch(self.scratch)


def remove_scratch(scratch: Path) -> None:
    """Remove it, the lock that this run holds last: from then on another run may be making it anew, and what it makes stays."""
    for path in scratch.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    (scratch / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        scratch.rmdir()


def clean_scratch(scratch: Path) -> None:
    """Remove everything but the plan and the locks, which another run may be waiting for."""
    for path in scratch.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("plan.json", LOCK, "lock-plan"):
            path.unlink()
