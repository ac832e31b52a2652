"""Where shards go, and where it is noted which of them are finished."""

from pathlib import Path
from typing import Protocol

from mpp.files import write_atomically

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

    def get(self, name: str) -> bytes | None:
        """A small file below OUT; None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Write a small file below OUT, whole or not at all."""


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

    def get(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data)
