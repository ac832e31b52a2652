"""Where the shards of a set lie that are read through a cache: below a URL, or in a folder on a disk that is far away.

An origin gives small files whole, large ones by ranges, and, where it can, the sizes of all; what becomes of an answer that is not the file asked for
is decided by who knows its sha256 (keeping.py).
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mpp.base.errors import DataError
from mpp.disk.patience import patiently as disk_patiently
from mpp.remote import stores, web
from mpp.remote.retries import InTroubleError, Refused, Trouble, patiently, shown, too_large, unless_absent
from mpp.remote.stores import Write
from mpp.remote.urls import WEB, is_url, split_url

RANGE_BYTES = 8 << 20  # asked for at a time
MOST_SMALL = 1 << 30  # bytes of a manifest
ASKED_AT_ONCE = 16  # web servers, which list nothing, for a size each
MOST_ASKED = 2000  # shards of a web server whose sizes are asked for; beyond, a wrong one shows when it is fetched
MOST_UNLISTED = 50  # shards that a listing does not name and that are asked for all the same: some lag behind what is there


class Origin(ABC):
    range_bytes: int | None = RANGE_BYTES  # None: files come whole

    @abstractmethod
    def where(self, name: str = "") -> str:
        """A file's place, for messages."""

    @abstractmethod
    def small(self, name: str) -> bytes:
        """A whole file, of no more than MOST_SMALL bytes.  Raises Refused, DataError, OSError."""

    @abstractmethod
    def fetch(self, name: str, start: int, end: int, write: Write) -> int:
        """Bytes [start, end), written as they come; how many, fewer where the file ends.  After trouble they are written again.  Raises as `small`, and
        what `write` raises."""

    @abstractmethod
    def sizes(self, names: Iterable[str]) -> Mapping[str, int] | None:
        """Bytes of those that are there; None where that cannot be told.  Raises as `small`."""

    def renew(self) -> None:  # noqa: B027 (a folder has none)
        """Look for credentials anew."""


class FolderOrigin(Origin):
    def __init__(self, folder: Path):
        self.folder = folder

    def where(self, name: str = "") -> str:
        return str(self.folder / name)

    def small(self, name: str) -> bytes:
        return disk_patiently((self.folder / name).read_bytes, self.where(name))

    def fetch(self, name: str, start: int, end: int, write: Write) -> int:
        def read() -> bytes:
            with (self.folder / name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), end - start, start)

        data = disk_patiently(read, self.where(name))
        write(data, start)
        return len(data)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: (self.folder / name).stat().st_size for name in names if (self.folder / name).is_file()}


class StoreOrigin(Origin):
    def __init__(self, url: str):
        self.protocol, path = split_url(url)
        self.root = path.strip("/")

    @property
    def store(self) -> stores.Store:
        return stores.store_for(self.protocol)

    def where(self, name: str = "") -> str:
        return self.store.url(f"{self.root}/{name}" if name else self.root)

    def small(self, name: str) -> bytes:
        path = f"{self.root}/{name}"
        info = self.store.info(path)
        if info is None:
            raise Refused("is a folder", absent=True)
        if info.size > MOST_SMALL:
            raise too_large(MOST_SMALL)
        return self.store.read(path, 0, info.size)

    def fetch(self, name: str, start: int, end: int, write: Write) -> int:
        return self.store.fetch(f"{self.root}/{name}", start, end, write)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        below = len(self.root) + 1
        listed = {info.path.lstrip("/")[below:]: info.size for info in self.store.items(self.root, deep=False)}
        unlisted = [name for name in names if name not in listed]
        if len(unlisted) <= MOST_UNLISTED:
            found = {name: unless_absent(partial(self.store.info, f"{self.root}/{name}")) for name in unlisted}
            listed |= {name: info.size for name, info in found.items() if info}
        return listed

    def renew(self) -> None:
        self.store.forget()


class WebOrigin(Origin):
    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def where(self, name: str = "") -> str:
        return f"{self.url}/{name}" if name else self.url

    def small(self, name: str) -> bytes:
        return patiently(self.where(name), lambda: web.read(self.where(name), MOST_SMALL))

    def fetch(self, name: str, start: int, end: int, write: Write) -> int:
        return patiently(self.where(name), lambda: self._fetch(self.where(name), start, end, write))

    def _fetch(self, url: str, start: int, end: int, write: Write) -> int:
        whole = self.range_bytes is None
        with web.get(url) if whole else web.get(url, start, end) as answer:
            answer.refuse_packed()
            if not answer.ranged:  # a server without ranges sends all, which is then asked for once
                self.range_bytes = None
            at = start if answer.ranged else 0
            for data in answer.chunks:
                if at + len(data) > end and answer.ranged:
                    raise Trouble(f"sent more than the {end - start} bytes asked for")
                if wanted := data[max(0, start - at) : end - at]:
                    write(wanted, max(start, at))
                at += len(data)
                if at >= end:
                    break
            if answer.size is not None and at < min(end, answer.size):
                raise Trouble(f"sent {at - start} of {min(end, answer.size) - start} bytes")
        return min(at, end) - start

    def sizes(self, names: Iterable[str]) -> dict[str, int] | None:
        asked = list(names)
        if len(asked) > MOST_ASKED:
            return None

        def size(name: str) -> int | None:
            try:
                with web.get(self.where(name), 0, 1) as answer:  # its first byte: not every server answers HEAD as it answers GET
                    return answer.size
            except Refused as error:
                if error.absent:
                    return -1
                raise

        try:
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                found = list(pool.map(lambda name: patiently(self.where(name), lambda: size(name)), asked))
        except InTroubleError:  # such as one that limits how often it is asked: the shards themselves are asked for more patiently
            return None
        if None in found:
            return None
        return {name: size for name, size in zip(asked, found, strict=True) if size is not None and size >= 0}


def origin_of(where: str) -> Origin:
    """Of a URL or a folder's path.  Raises DataError for a URL of another kind, and for one that carries a key: it would stand in logs and configs."""
    if not is_url(where):
        return FolderOrigin(Path(where))
    if shown(where) != where:
        raise DataError(
            f"{shown(where)}: carries a password, key or signature, which would stand in the run folder; leave it out and give it by the environment "
            "(AWS_*, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc for https)"
        )
    if split_url(where)[0] not in WEB:
        return StoreOrigin(where)
    if behind := re.search(r"[?#].*", where):
        raise DataError(f"{where}: ends in {behind[0]}, and files are looked for below an address; give that of the folder, without it")
    return WebOrigin(where)
