"""Stores through fsspec: Google Cloud Storage by gcsfs, and what it knows beside.

fsspec's own ways hold a whole listing in memory, do not tell of which version of an object the bytes are, and do not compare an upload; where
that matters, what gcsfs calls is called here.

Workers must not inherit fsspec's event loop: its thread does not survive a fork.  So a file system belongs to the process that made it,
and `loop_runs` tells who starts workers that they must not be forked.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError
from mpp.remote import retries, stores
from mpp.remote.retries import Trouble, patiently, unless_absent
from mpp.remote.stores import PACKAGES, Info, Store, Write

_file_systems: dict[tuple[int, str], Any] = {}  # by process: a forked one must neither use nor close its parent's


def loop_runs() -> bool:
    """Whether this process runs fsspec's event loop."""
    return any(pid == os.getpid() for pid, _ in _file_systems)


def file_system(protocol: str) -> Any:
    """This process's own fsspec file system.  Raises DataError for a protocol that is unknown or wants more than a bucket and a path, and where a
    package is missing."""
    key = os.getpid(), protocol
    if key not in _file_systems:
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            import fsspec

            if protocol in ("gs", "gcs"):
                import aiohttp

                patience = retries.PATIENCE
                options["requests_timeout"] = aiohttp.ClientTimeout(
                    total=patience.whole_seconds, sock_connect=patience.connect_seconds, sock_read=patience.read_seconds
                )
            kind = fsspec.get_filesystem_class(protocol)
            if kind._get_kwargs_from_urls(f"{protocol}://bucket/key"):  # such as ftp, whose hosts and users a path of ours does not tell
                raise ValueError
            made = fsspec.filesystem(protocol, **options)
        except ImportError as error:
            package = PACKAGES.get(protocol)
            need = f"the package {package}: pip install {package}" if package else f"a package ({error})"
            raise DataError(f"{protocol}:// needs {need}") from error
        except ValueError as error:
            raise DataError(
                f"{protocol}://: is neither read nor written; give s3://, gs:// or https://, or what else fsspec finds by a bucket and a path (az://, hf://)"
                + (f" ({error})" if str(error) else "")
            ) from error
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it prints the tracebacks of errors that it raises too
        _file_systems[key] = made
    return _file_systems[key]


@dataclass(frozen=True)
class FsspecStore(Store):
    """Any store that fsspec knows.  A listing holds one folder at a time."""

    @property
    def fs(self) -> Any:
        return file_system(self.protocol)

    def info(self, path: str) -> Info | None:
        found = patiently(self.url(path), lambda: self.fs.info(path))
        return None if found["type"] == "directory" else self._info(found)

    def _info(self, found: dict) -> Info:
        tag = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("LastModified") or ""
        return Info(found["name"], found["size"], str(tag).strip('"'))

    def fetch(self, path: str, start: int, end: int, write: Write) -> int:
        data = patiently(self.url(path), lambda: self.fs.cat_file(path, start=start, end=end))
        write(data, start)
        return len(data)

    def read_listed(self, info: Info) -> bytes | None:
        return unless_absent(lambda: self._read_listed(info))

    def _read_listed(self, info: Info) -> bytes | None:
        """In as few requests as can be."""
        found = self.info(info.path)
        return self.read(info.path, 0, info.size) if found and (found.size, found.tag) == (info.size, info.tag) else None

    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        waiting = [prefix]
        while waiting:
            folder = waiting.pop()
            found = unless_absent(partial(patiently, self.url(folder), partial(self.fs.ls, folder, detail=True))) or []
            waiting += [entry["name"] for entry in found if entry["type"] == "directory" and deep]
            yield from (self._info(entry) for entry in found if entry["type"] != "directory")

    def put(self, path: str, data: bytes) -> None:
        patiently(self.url(path), lambda: self.fs.pipe_file(path, data))

    def put_file(self, path: str, local: Path, moved: Callable[[], None] = lambda: None) -> Info:
        def upload() -> Info:
            self.fs.put_file(str(local), path, callback=_told(moved))
            return self._compare(path, local)

        return patiently(self.url(path), upload)

    def _compare(self, path: str, local: Path) -> Info:
        """The object's info.  Raises Trouble where it differs from the local file, as far as the store can tell."""
        info = self._info(self.fs.info(path))
        if info.size != local.stat().st_size:
            raise Trouble(f"has {info.size} bytes after an upload of {local.stat().st_size}")
        return info

    def differs(self, path: str, local: Path) -> str:
        return ""

    def copy(self, path: str, to: str) -> None:
        patiently(self.url(path), lambda: self.fs.cp_file(path, to))

    def remove(self, paths: list[str]) -> None:
        for path in paths:
            unless_absent(partial(patiently, self.url(path), partial(self.fs.rm_file, path)))

    def forget(self) -> None:
        _file_systems.pop((os.getpid(), self.protocol), None)


@dataclass(frozen=True)
class GcsStore(FsspecStore):
    """Google Cloud Storage; a tag is a generation, and reading names it.  A listing holds one page of stores.PAGE objects at a time."""

    def _info(self, found: dict) -> Info:
        return Info(found["name"], int(found["size"]), str(found["generation"]))

    def _read_listed(self, info: Info) -> bytes | None:
        # older gcsfs's cat_file does not know generations
        _, data = patiently(self.url(info.path), lambda: self.fs.call("GET", self.fs.url(info.path), generation=info.tag))
        return data if len(data) == info.size else None

    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        bucket, _, key = prefix.partition("/")
        query: dict[str, Any] = {"prefix": key + "/" if key else None, "maxResults": stores.PAGE, "json_out": True}
        query |= {} if deep else {"delimiter": "/"}
        last = ""
        while True:
            page = patiently(self.url(prefix), partial(self._page, bucket, query, last))
            for entry in page.get("items", []):
                if not entry["name"].endswith("/"):
                    yield self._info(entry | {"name": f"{bucket}/{entry['name']}"})
            if "nextPageToken" not in page:
                return
            query["pageToken"], last = page["nextPageToken"], _last_of(page) or last

    def _page(self, bucket: str, query: dict[str, Any], last: str) -> dict[str, Any]:
        """One of a listing, behind the one that ended with the name `last`.  Raises Trouble where it is that one."""
        page = self.fs.call("GET", "b/{}/o", bucket, **query)
        stores.refuse_again(last, _last_of(page))
        return page

    def _compare(self, path: str, local: Path) -> Info:
        found, known = self.fs.info(path), _md5(local)
        if (int(found["size"]), found.get("md5Hash", known)) != (local.stat().st_size, known):
            raise Trouble(f"has {found['size']} bytes and md5 {found.get('md5Hash')} after an upload of {local.stat().st_size} and {known}")
        return self._info(found)

    def differs(self, path: str, local: Path) -> str:
        told = patiently(self.url(path), lambda: self.fs.info(path)).get("md5Hash")
        return f"has md5 {told}, what came has {known}" if told and told != (known := _md5(local)) else ""


def _last_of(page: dict[str, Any]) -> str:
    """The last name on a page, or folder; empty for none."""
    return max([entry["name"] for entry in page.get("items", [])[-1:]] + page.get("prefixes", [])[-1:], default="")


def _md5(local: Path) -> str:
    """As Google writes it."""
    with local.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def _told(moved: Callable[[], None]) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={"moved": lambda size, value: moved()})
