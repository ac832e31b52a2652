"""Where shards go, and where it is noted which of them are finished."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from mpp.files import write_stream

WORK = ".work"


class Target(Protocol):
    """OUT, as the worker processes see it.  Small and picklable."""

    scratch: Path  # a local folder for what only an unfinished run needs

    def folder(self, split: str) -> Path:
        """The local folder in which `write_shard` makes a split's shards."""

    def publish(self, split: str, shard: str) -> None:
        """A shard was made in `folder(split)`: put it where it belongs, whole or not at all."""

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


class LocalTarget:
    """OUT on a file system."""

    def __init__(self, root: Path):
        self.root = root
        self.scratch = root / WORK

    def folder(self, split: str) -> Path:
        return self.root / split

    def publish(self, split: str, shard: str) -> None:
        pass  # `write_shard` has given it its name

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
