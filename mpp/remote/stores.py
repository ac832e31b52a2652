"""Object stores: what is asked of any of them.  One request at a time, each tried again as retries.py says.

    s3.py               S3 and what speaks its language, through boto3
    through_fsspec.py   Google Cloud Storage through gcsfs, and what fsspec knows beside

A store pickles as its protocol: clients belong to the process that made them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mpp.remote.retries import Trouble

PACKAGES = {"s3": "boto3", "s3a": "boto3", "gs": "gcsfs", "gcs": "gcsfs"}
PAGE = 1000  # objects a listing request: all that is held of a listing

Write = Callable[[bytes, int], None]  # takes bytes, and where in the object they begin


def refuse_again(last: str, now: str) -> None:
    """The last names on a page of a listing and on the one behind it.  Raises Trouble where they are one page, whose listing would never end."""
    if last and now == last:
        raise Trouble(f"its listing gives the page that ends with {last} again and again")


class Info(NamedTuple):
    path: str  # without the protocol
    size: int
    tag: str  # changes with the content: an ETag, a generation; empty where the store has neither


@dataclass(frozen=True)
class Store(ABC):
    """Paths are without the protocol: bucket/key.  Every method raises Refused, and DataError, as retries.patiently does."""

    protocol: str

    def url(self, path: str) -> str:
        return f"{self.protocol}://{path.lstrip('/')}"

    @abstractmethod
    def info(self, path: str) -> Info | None:
        """None for a folder."""

    @abstractmethod
    def fetch(self, path: str, start: int, end: int, write: Write) -> int:
        """Bytes [start, end), written as they come; how many, fewer only where the object ends.  After trouble they are written again, from `start` on."""

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer only where the object ends."""
        parts = dict[int, bytes]()

        def write(data: bytes, at: int) -> None:
            if at == start:  # for the first time, or again
                parts.clear()
            parts[at] = data

        self.fetch(path, start, end, write)
        return b"".join(parts.values())

    @abstractmethod
    def read_listed(self, info: Info) -> bytes | None:
        """The whole object; None when it is no longer the one of this listing."""

    @abstractmethod
    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        """Every object below a prefix (a folder, or a whole bucket), as a stream; deep: also those in folders below it."""

    @abstractmethod
    def put(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    def put_file(self, path: str, local: Path, moved: Callable[[], None] = lambda: None) -> Info:
        """Upload a file; the object appears whole or not at all.  moved: is called whenever a part was taken.  Raises Trouble's DataError where it is
        not the file afterwards."""

    @abstractmethod
    def differs(self, path: str, local: Path) -> str:
        """How a file that was fetched from there is not the object, by a checksum that the store tells of; empty where it is, and where none is told."""

    @abstractmethod
    def copy(self, path: str, to: str) -> None:
        """Inside the store, without a way through this machine."""

    @abstractmethod
    def remove(self, paths: list[str]) -> None: ...

    @abstractmethod
    def forget(self) -> None:
        """The next client of this process is made anew, and looks for credentials anew."""


def store_for(protocol: str) -> Store:
    """Raises DataError for a protocol we do not know, and where a package is missing."""
    if protocol in ("s3", "s3a"):
        from mpp.remote.s3 import S3Store

        return S3Store(protocol)
    from mpp.remote.through_fsspec import FsspecStore, GcsStore

    return GcsStore(protocol) if protocol in ("gs", "gcs") else FsspecStore(protocol)
