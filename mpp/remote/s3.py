"""S3 and what speaks its language, through boto3.  Its own retries are switched off: retries.py tries again, also what fails behind an answer's beginning.

Where the store is and who we are come from where AWS's own programs look: the environment, ~/.aws, a machine's role.  AWS_NO_SIGN_REQUEST=YES (as GDAL
has it) asks for public objects without credentials.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError
from mpp.remote import body, retries, stores
from mpp.remote.retries import Refused, Trouble, in_time, patiently, unless_absent
from mpp.remote.stores import Info, Store, Write

PART_BYTES = 50 << 20  # of a multipart upload; an ETag depends on it
MOST_DELETED = 1000  # objects a request
CONNECTIONS = 32  # of a process, kept open

_clients: dict[int, Any] = {}  # by process: a forked one must not use its parent's connections


def client() -> Any:
    """This process's own, for all its threads.  Raises DataError where boto3 is missing."""
    if (own := _clients.get(os.getpid())) is not None:
        return own
    try:
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise DataError("s3:// needs the package boto3: pip install boto3") from None
    patience = retries.PATIENCE
    config = Config(
        connect_timeout=patience.connect_seconds,
        read_timeout=patience.read_seconds,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
    )
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
        config = config.merge(Config(signature_version=UNSIGNED))
    try:
        made = Session().client("s3", config=config)  # a session of its own: threads may come here at once
    except (BotoCoreError, ValueError) as error:  # ValueError: AWS_ENDPOINT_URL is no URL
        raise DataError(f"s3://: {error}; check the variables AWS_* and ~/.aws") from error
    return _clients.setdefault(os.getpid(), made)


def _split(path: str) -> dict[str, str]:
    bucket, _, key = path.lstrip("/").partition("/")
    return {"Bucket": bucket, "Key": key}


@dataclass(frozen=True)
class S3Store(Store):
    """A listing holds one page of stores.PAGE objects at a time."""

    def _ask(self, path: str, call: str, **options: Any) -> Any:
        return patiently(self.url(path), lambda: getattr(client(), call)(**options))

    def info(self, path: str) -> Info | None:
        place = _split(path)
        if place["Key"]:
            try:
                head = patiently(self.url(path), lambda: _head(place))
                return Info(path.lstrip("/"), head["ContentLength"], _tag(head))
            except Refused as error:
                if not error.absent:
                    raise
        below = place["Key"].rstrip("/") + "/" if place["Key"] else ""
        found = patiently(self.url(path), lambda: _begun("list_objects_v2", Bucket=place["Bucket"], Prefix=below, MaxKeys=1))
        if below and not found.get("KeyCount", len(found.get("Contents", []))):
            raise Refused("is not there (404)", absent=True)
        return None

    def fetch(self, path: str, start: int, end: int, write: Write) -> int:
        def fetch() -> int:
            answer = _begun("get_object", **_split(path), Range=f"bytes={start}-{end - 1}")
            at = start
            for data in _body(answer, end - start):
                write(data, at)
                at += len(data)
            return at - start

        return patiently(self.url(path), fetch)

    def read_listed(self, info: Info) -> bytes | None:
        def read() -> bytes | None:
            answer = _begun("get_object", **_split(info.path))
            with answer["Body"]:
                if (answer.get("ContentLength", info.size), _tag(answer)) != (info.size, info.tag):
                    return None
                return b"".join(_body({"ContentLength": info.size} | answer, info.size))

        return unless_absent(lambda: patiently(self.url(info.path), read))

    def items(self, prefix: str, *, deep: bool = True) -> Iterator[Info]:
        bucket, _, key = prefix.partition("/")
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": key + "/" if key else "", "MaxKeys": stores.PAGE}
        query |= {} if deep else {"Delimiter": "/"}
        last = ""
        while True:
            page = patiently(self.url(prefix), partial(_page, query, last))
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # the mark of a folder
                    yield Info(f"{bucket}/{entry['Key']}", entry["Size"], _tag(entry))
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"], last = page["NextContinuationToken"], _last_of(page) or last

    def put(self, path: str, data: bytes) -> None:
        self._ask(path, "put_object", **_split(path), Body=data)

    def put_file(self, path: str, local: Path, moved: Callable[[], None] = lambda: None) -> Info:
        def upload() -> Info:
            with local.open("rb") as file:
                client().upload_fileobj(file, **_split(path), Callback=lambda count: moved(), Config=_transfer())
            return self._compare(path, local)

        return patiently(self.url(path), upload)

    def _compare(self, path: str, local: Path) -> Info:
        """The object's info.  Raises Trouble where it differs from the local file, as far as the store can tell."""
        head = _head(_split(path))
        size, tag = local.stat().st_size, _tag(head)
        if head["ContentLength"] != size:
            raise Trouble(f"has {head['ContentLength']} bytes after an upload of {size}")
        if _etag_tells(head):  # otherwise the store itself has compared a checksum
            known = _etag(local, multipart="-" in tag)
            if len(tag) >= 32 and tag != known:
                raise Trouble(f"has ETag {tag} after an upload of {known}")
        return Info(path, size, tag)

    def differs(self, path: str, local: Path) -> str:
        head = patiently(self.url(path), lambda: _head(_split(path)))
        tag = _tag(head)
        if not _etag_tells(head) or len(tag) != 32:  # of others' parts the size is not known
            return ""
        return f"has ETag {tag}, what came has {known}" if (known := _etag(local, multipart=False)) != tag else ""

    def copy(self, path: str, to: str) -> None:
        patiently(self.url(path), lambda: client().copy(_split(path), **_split(to), Config=_transfer()))

    def remove(self, paths: list[str]) -> None:
        for at in range(0, len(paths), MOST_DELETED):
            objects = [{"Key": _split(path)["Key"]} for path in paths[at : at + MOST_DELETED]]
            self._ask(paths[at], "delete_objects", Bucket=_split(paths[at])["Bucket"], Delete={"Objects": objects, "Quiet": True})

    def forget(self) -> None:
        _clients.pop(os.getpid(), None)


def _begun(call: str, **options: Any) -> Any:
    """An answer whose headers have come.  Raises Trouble where they take too long or make no sense, Refused where it is led in a circle, and what
    botocore does."""
    patience, own = retries.PATIENCE, client()
    try:
        return in_time(lambda: getattr(own, call)(**options), patience.connect_seconds + 2 * patience.read_seconds)
    except RecursionError:  # botocore asks for the region of each place that it is led to
        raise Refused("is redirected again and again; check AWS_ENDPOINT_URL, and the network for a page to log in to") from None
    except ValueError as error:
        raise Trouble(f"its answer makes no sense ({error})") from error


def _head(place: dict[str, str]) -> dict[str, Any]:
    """What a store tells of an object.  Raises Trouble and what botocore does."""
    from botocore.exceptions import ClientError

    head: dict[str, Any] = {}
    try:
        head = _begun("head_object", **place)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NoSuchBucket"):
            raise
    if "ContentLength" not in head:  # an answer to HEAD has no body, and so no words for what is wrong; GET has
        head = _begun("get_object", **place, Range="bytes=0-0")
        head["Body"].close()
        if sent := re.fullmatch(r"bytes 0-0/(\d+)", head.get("ContentRange", "")):
            head["ContentLength"] = int(sent[1])
    if "ContentLength" not in head:
        raise Trouble("does not say how many bytes it has")
    return head


def _page(query: dict[str, Any], last: str) -> dict[str, Any]:
    """One page of a listing, behind the one that ended with the key `last`.  Raises Trouble where there is no way on from it, and what botocore does."""
    page = _begun("list_objects_v2", **query)
    if page.get("IsTruncated") and not page.get("NextContinuationToken"):
        raise Trouble("a page of its listing is not the last one, and does not say how to go on")
    if any("Size" not in entry for entry in page.get("Contents", [])):
        raise Trouble("its listing does not say how large objects are")
    stores.refuse_again(last, _last_of(page))
    return page


def _last_of(page: dict[str, Any]) -> str:
    """The last key on a page, or folder; empty for none."""
    return max(
        [entry["Key"] for entry in page.get("Contents", [])[-1:]] + [entry["Prefix"] for entry in page.get("CommonPrefixes", [])[-1:]],
        default="",
    )


def _tag(told: dict[str, Any]) -> str:
    return told.get("ETag", "").strip('"')


def _body(answer: dict, most: int) -> Iterator[bytes]:
    """The bytes of an answer, which are as many as it says, and no more than `most`.  Raises Trouble."""
    got = 0
    with answer["Body"] as stream:  # urllib3's: boto3's own `read` waits for all that it is asked for, however slowly that comes
        span = re.fullmatch(r"bytes (\d+)-(\d+)/.*", answer.get("ContentRange", ""))
        expected = answer.get(
            "ContentLength", int(span[2]) + 1 - int(span[1]) if span else None
        )  # a body may come in chunks, of no told length
        if expected is None:
            raise Trouble("does not say how many bytes it sends")
        if expected > most:
            raise Trouble(f"sends {expected} bytes where {most} were asked for")
        for data in body.parts(stream.read1):
            got += len(data)
            yield data
    if got != expected:
        raise Trouble(f"sent {got} of {expected} bytes")


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=2 * PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=2)


def _etag_tells(head: dict) -> bool:
    """Whether an ETag is a checksum: encrypted with a key of one's own, an object has one that says nothing."""
    return head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head


def _etag(local: Path, multipart: bool) -> str:
    """What S3 calls a file: its md5, or the md5 of its parts' md5s and their number."""
    with local.open("rb") as file:
        if not multipart:
            return hashlib.file_digest(file, "md5").hexdigest()
        parts = [hashlib.md5(part).digest() for part in iter(partial(file.read, PART_BYTES), b"")]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"
