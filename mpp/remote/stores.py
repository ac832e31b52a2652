"""Object stores through fsspec: stat, read, list as a stream, put.  One request at a time, each tried again as retries.py says.

fsspec's own ways hold a whole listing in memory, do not tell of which version of an object the bytes are, and do not compare an upload; where
that matters, what s3fs and gcsfs call is called here.

Workers must not inherit fsspec's event loop: its thread does not survive a fork.  So a file system belongs to the process that made it,
a store pickles as its protocol, and `loop_runs` tells who starts workers that they must not be forked.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mpp.errors import DataError
from mpp.remote import retries
from mpp.remote.retries import Trouble, patiently, unless_absent

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
PART_BYTES = 50 << 20  # of a multipart upload; an ETag depends on it
PAGE = 1000  # objects a listing request: all that is held of a listing

_file_systems: dict[tuple[int, str], Any] = {}  # by process: a forked one must neither use nor close its parent's


class Info(NamedTuple):
    path: str  # without the protocol
    size: int
    tag: str  # changes with the content: an ETag, a generation; empty where the store has neither


def loop_runs() -> bool:
    """Whether this process runs fsspec's event loop."""
    return any(pid == os.getpid() for pid, _ in _file_systems)


def file_system(protocol: str) -> Any:
    """This process's own fsspec file system.  Raises DataError for a protocol we do not know, and where a package is missing."""
    if protocol not in (*PACKAGES, "memory"):  # others, such as ftp, want more than a URL tells
        raise DataError(f"{protocol}://: is neither read nor written; give s3://, gs:// or https://")
    key = os.getpid(), protocol
    if key not in _file_systems:
        patience = retries.PATIENCE
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if protocol in ("s3", "s3a"):
            timeouts = {"connect_timeout": patience.connect_seconds, "read_timeout": patience.read_seconds}
            options |= {"config_kwargs": timeouts | {"retries": {"total_max_attempts": 1}}, "max_concurrency": 2}
        try:
            import fsspec

            if protocol in ("gs", "gcs"):
                import aiohttp

                options["requests_timeout"] = aiohttp.ClientTimeout(
                    total=patience.whole_seconds, sock_connect=patience.connect_seconds, sock_read=patience.read_seconds
                )
            made = fsspec.filesystem(protocol, **options)
        except ImportError as error:
            package = PACKAGES.get(protocol)
            need = f"the package {package}: pip install {package}" if package else str(error)
            raise DataError(f"{protocol}:// needs {need}") from error
        if protocol in ("s3", "s3a"):
            made.retries = 1  # we do that
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it prints the tracebacks of errors that it raises too
        _file_systems[key] = made
    return _file_systems[key]


def forget(protocol: str) -> None:
    """The next file system of this process is made anew, and looks for credentials anew."""
    _file_systems.pop((os.getpid(), protocol), None)


@dataclass(frozen=True)
class Store:
    """Any store that fsspec knows.  Paths are without the protocol.  A listing holds one folder at a time."""

    protocol: str

    @property
    def fs(self) -> Any:
        return file_system(self.protocol)

    def url(self, path: str) -> str:
        return f"{self.protocol}://{path.lstrip('/')}"

    def info(self, path: str) -> Info | None:
        """None for a folder.  Raises Refused."""
        found = patiently(self.url(path), lambda: self.fs.info(path))
        return None if found["type"] == "directory" else self._info(found)

    def _info(self, found: dict) -> Info:
        tag = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("LastModified") or ""
        return Info(found["name"], found["size"], str(tag).strip('"'))

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer only where the object ends.  Raises Refused."""
        return patiently(self.url(path), lambda: self.fs.cat_file(path, start=start, end=end))

    def read_listed(self, info: Info) -> bytes | None:
        """The whole object; None when it is no longer the one of this listing.  Raises Refused."""
        return unless_absent(lambda: self._read_listed(info))

    def _read_listed(self, info: Info) -> bytes | None:
        """In as few requests as can be."""
        found = self.info(info.path)
        return self.read(info.path, 0, info.size) if found and (found.size, found.tag) == (info.size, info.tag) else None

    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        """Every object below a prefix (a folder, or a whole bucket), as a stream; deep: also those in folders below it."""
        waiting = [prefix]
        while waiting:
            folder = waiting.pop()
            found = unless_absent(partial(patiently, self.url(folder), partial(self.fs.ls, folder, detail=True))) or []
            waiting += [entry["name"] for entry in found if entry["type"] == "directory" and deep]
            yield from (self._info(entry) for entry in found if entry["type"] != "directory")

    def put(self, path: str, data: bytes) -> None:
        patiently(self.url(path), lambda: self.fs.pipe_file(path, data))

    def put_file(self, path: str, local: Path, moved: Callable[[], None] = lambda: None) -> Info:
        """Upload a file; the object appears whole or not at all.  moved: is called whenever a part was taken.  Raises Trouble's DataError where it is
        not the file afterwards."""

        def upload() -> Info:
            self.fs.put_file(str(local), path, callback=_told(moved), **self._put_options)
            return self._compare(path, local)

        return patiently(self.url(path), upload)

    _put_options: ClassVar[dict] = {}

    def _compare(self, path: str, local: Path) -> Info:
        """The object's info.  Raises Trouble where it differs from the local file, as far as the store can tell."""
        info = self._info(self.fs.info(path))
        if info.size != local.stat().st_size:
            raise Trouble(f"has {info.size} bytes after an upload of {local.stat().st_size}")
        return info

    def differs(self, path: str, local: Path) -> str:
        """How a file that was fetched from there is not the object, by a checksum that the store tells of; empty where it is, and where none is told."""
        return ""

    def copy(self, path: str, to: str) -> None:
        """Inside the store, without a way through this machine."""
        patiently(self.url(path), lambda: self.fs.cp_file(path, to))

    def remove(self, paths: list[str]) -> None:
        for path in paths:
            unless_absent(partial(patiently, self.url(path), partial(self.fs.rm_file, path)))


@dataclass(frozen=True)
class S3Store(Store):
    """S3 and what speaks its language.  A listing holds one page of PAGE objects at a time."""

    def _split(self, path: str) -> dict[str, str]:
        bucket, _, key = path.partition("/")
        return {"Bucket": bucket, "Key": key}

    def read(self, path: str, start: int, end: int) -> bytes:
        return self._get(path, end - start, Range=f"bytes={start}-{end - 1}")[0]

    def _read_listed(self, info: Info) -> bytes | None:
        data, tag = self._get(info.path, info.size)
        return data if (len(data), tag) == (info.size, info.tag) else None

    def _get(self, path: str, limit: int, **options: str) -> tuple[bytes, str]:
        """An object's bytes and ETag, from one answer; no bytes where it has more than `limit`."""
        from fsspec.asyn import sync

        def get() -> tuple[bytes, str]:
            answer = self.fs.call_s3("get_object", **self._split(path), **options)
            try:
                if answer["ContentLength"] > limit:
                    return b"", answer["ETag"].strip('"')
                data = sync(self.fs.loop, answer["Body"].read, timeout=retries.PATIENCE.whole_seconds)
            finally:
                answer["Body"].close()
            if len(data) != answer["ContentLength"]:
                raise Trouble(f"sent {len(data)} of {answer['ContentLength']} bytes")
            return data, answer["ETag"].strip('"')

        return patiently(self.url(path), get)

    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        bucket, _, key = prefix.partition("/")
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": key + "/" if key else "", "MaxKeys": PAGE}
        query |= {} if deep else {"Delimiter": "/"}
        while True:
            page = patiently(self.url(prefix), lambda: self.fs.call_s3("list_objects_v2", **query))
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # the mark of a folder
                    yield Info(f"{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    _put_options: ClassVar[dict] = {"chunksize": PART_BYTES}

    def _compare(self, path: str, local: Path) -> Info:
        head = self.fs.call_s3("head_object", **self._split(path))
        size, tag = local.stat().st_size, head["ETag"].strip('"')
        if head["ContentLength"] != size:
            raise Trouble(f"has {head['ContentLength']} bytes after an upload of {size}")
        if _etag_tells(head):  # otherwise the store itself has compared a checksum
            known = _etag(local, multipart="-" in tag)
            if len(tag) >= 32 and tag != known:
                raise Trouble(f"has ETag {tag} after an upload of {known}")
        return Info(path, size, tag)

    def differs(self, path: str, local: Path) -> str:
        head = patiently(self.url(path), lambda: self.fs.call_s3("head_object", **self._split(path)))
        tag = head["ETag"].strip('"')
        if (
            not _etag_tells(head) or len(tag) != 32 or (known := _etag(local, multipart=False)) == tag
        ):  # of others' parts the size is not known
            return ""
        return f"has ETag {tag}, what came has {known}"

    def remove(self, paths: list[str]) -> None:
        for at in range(0, len(paths), PAGE):
            objects = [{"Key": self._split(path)["Key"]} for path in paths[at : at + PAGE]]
            bucket = self._split(paths[at])["Bucket"]
            delete = partial(self.fs.call_s3, "delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            patiently(self.url(paths[at]), delete)


def _etag_tells(head: dict) -> bool:
    """Whether an ETag is a checksum: encrypted with a key of one's own, an object has one that says nothing."""
    return head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head


def _etag(local: Path, multipart: bool) -> str:
    """What S3 calls a file: its md5, or the md5 of its parts' md5s and their number."""
    with local.open("rb") as file:
        if not multipart:
            return hashlib.file_digest(file, "md5").hexdigest()
        parts = [hashlib.md5(part).digest() for part in iter(lambda: file.read(PART_BYTES), b"")]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


@dataclass(frozen=True)
class GcsStore(Store):
    """Google Cloud Storage; a tag is a generation, and reading names it.  A listing holds one page of PAGE objects at a time."""

    def _info(self, found: dict) -> Info:
        return Info(found["name"], int(found["size"]), str(found["generation"]))

    def _read_listed(self, info: Info) -> bytes | None:
        # older gcsfs's cat_file does not know generations
        _, data = patiently(self.url(info.path), lambda: self.fs.call("GET", self.fs.url(info.path), generation=info.tag))
        return data if len(data) == info.size else None

    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        bucket, _, key = prefix.partition("/")
        query: dict[str, Any] = {"prefix": key + "/" if key else None, "maxResults": PAGE, "json_out": True}
        query |= {} if deep else {"delimiter": "/"}
        while True:
            page = patiently(self.url(prefix), lambda: self.fs.call("GET", "b/{}/o", bucket, **query))
            for entry in page.get("items", []):
                if not entry["name"].endswith("/"):
                    yield self._info(entry | {"name": f"{bucket}/{entry['name']}"})
            if "nextPageToken" not in page:
                return
            query["pageToken"] = page["nextPageToken"]

    def _compare(self, path: str, local: Path) -> Info:
        found, known = self.fs.info(path), _md5(local)
        if (int(found["size"]), found.get("md5Hash", known)) != (local.stat().st_size, known):
            raise Trouble(f"has {found['size']} bytes and md5 {found.get('md5Hash')} after an upload of {local.stat().st_size} and {known}")
        return self._info(found)

    def differs(self, path: str, local: Path) -> str:
        told = patiently(self.url(path), lambda: self.fs.info(path)).get("md5Hash")
        return f"has md5 {told}, what came has {known}" if told and told != (known := _md5(local)) else ""


def _md5(local: Path) -> str:
    """As Google writes it."""
    with local.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def _told(moved: Callable[[], None]) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={"moved": lambda size, value: moved()})


def store_for(protocol: str) -> Store:
    kind = {"s3": S3Store, "s3a": S3Store, "gs": GcsStore, "gcs": GcsStore}.get(protocol, Store)
    return kind(protocol)
