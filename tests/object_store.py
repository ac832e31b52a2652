"""A small object store on loopback that speaks S3's language, and misbehaves when it is told to.

    python tests/object_store.py FOLDER [--port 0] [--latency-ms 20] [--mb-per-second 200] [--seconds 600]

FOLDER/BUCKET/KEY is the object s3://BUCKET/KEY, and http://127.0.0.1:PORT/BUCKET/KEY for whoever asks like a browser.  It prints its address and
ends by itself after --seconds.  AWS_ENDPOINT_URL=http://127.0.0.1:PORT leads boto3, s3fs and what builds on them to it.

    with ObjectStore(folder, latency=0.02, rate=100e6) as store:     # seconds a request; bytes a second, all connections together
        cut = store.faults.cut("photos/train/*.tar", at=0.5, skip=1)  # the second answer for each such key ends half-way
        ...
        assert cut.met == 1 and store.fetched("photos/train/*")["photos/train/000000.tar"] == 2

It knows: GET (one range; If-Match, If-None-Match), HEAD, ListObjectsV2 (pages, delimiter), PUT, DELETE, DeleteObjects, multipart uploads, buckets;
path-style only.  ETags are S3's: MD5, or that of the parts' MD5s.  Signatures are not checked; `credentials` are the access keys that it lets in.
What it does not know it answers with 501.  Like S3's own, an expired token is answered with 400, an unknown access key with 403.
"""

import argparse
import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import random
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

CHUNK = 1 << 16  # bytes between two looks at the clock, where the rate is limited
SPARE = 0.02  # seconds of the rate that may be caught up with after a sleep that was too long
UPLOADS = ".uploads"  # of FOLDER: what is not an object yet
PAGE = 1000  # keys a listing, at most


@dataclass
class Answer:
    """One request and what it was given.  Whoever has received bytes finds them counted."""

    when: float  # of the monotonic clock, when it came
    method: str  # GET, HEAD, PUT, POST, DELETE, or LIST
    key: str  # bucket/key; of a LIST bucket/prefix
    status: int = 0
    start: int = 0  # of the bytes that were asked for
    stop: int = 0
    sent: int = 0  # bytes of the body


# ---------------------------------------------------------------- what can go wrong


@dataclass
class Fault:
    """What goes wrong with the answers to some requests: each key's first `skip` go well, the next `times` do not (None: all that follow).

    methods: also PUT, POST, DELETE, LIST (a listing, by bucket/prefix) and ENTRY (a key's line in a listing).
    """

    what: str
    keys: str  # a pattern of bucket/key
    methods: tuple[str, ...] = ("GET",)
    skip: int = 0
    times: int | None = 1
    together: bool = False  # all keys are counted as one
    chance: float = 1.0  # that one which it would strike is struck; drawn by `seed`
    seed: int = 0
    at: float = 0.5  # share of the body that is sent before
    seconds: float = 0
    bytes: int = 0  # that a length is off by, or a second
    status: int = 0
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)  # by key
    met: int = 0  # answers that it has spoilt

    def __post_init__(self) -> None:
        self._draws = random.Random(self.seed)

    def strikes(self, method: str, key: str) -> bool:
        if method not in self.methods or not fnmatch.fnmatchcase(key, self.keys):
            return False
        counted = "" if self.together else key
        self.asked[counted] += 1
        strikes = self.asked[counted] > self.skip and (self.times is None or self.asked[counted] <= self.skip + self.times)
        strikes = strikes and (self.chance == 1 or self._draws.random() < self.chance)
        self.met += strikes
        return strikes


class Faults:
    """What the store does wrong.  Each word plants one fault, in effect from the next request on, and returns it.

    `keys`: a pattern of bucket/key.  For `skip` and `times` see Fault.  Where several strike one answer, the first planted does.
    """

    def __init__(self) -> None:
        self._planted: list[Fault] = []
        self._lock = threading.Lock()

    def strike(self, method: str, key: str) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._planted if fault.strikes(method, key)), None)

    def plant(self, what: str, keys: str, **settings: Any) -> Fault:
        fault = Fault(what, keys, **settings)
        with self._lock:
            self._planted.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._planted.clear()

    def stall(self, keys: str, seconds: float, at: float = 0.5, **when: Any) -> Fault:
        """Nothing comes for so long, after a share of the body."""
        return self.plant("stall", keys, seconds=seconds, at=at, **when)

    def late(self, keys: str, seconds: float, **when: Any) -> Fault:
        """Not even a header comes for so long."""
        return self.plant("late", keys, seconds=seconds, **when)

    def drip(self, keys: str, bytes_per_second: int, **when: Any) -> Fault:
        """Bytes come, but slowly."""
        return self.plant("drip", keys, bytes=bytes_per_second, **when)

    def cut(self, keys: str, at: float = 0.5, **when: Any) -> Fault:
        """The connection ends after a share of the body."""
        return self.plant("cut", keys, at=at, **when)

    def length(self, keys: str, off_by: int, **when: Any) -> Fault:
        """Content-Length announces so many bytes more than come, or fewer; then the connection ends."""
        return self.plant("length", keys, bytes=off_by, **when)

    def size(self, keys: str, off_by: int, **when: Any) -> Fault:
        """HEAD and listings tell a size that is off by so much."""
        return self.plant("size", keys, bytes=off_by, **{"methods": ("HEAD", "ENTRY"), "times": None, **when})

    def tag(self, keys: str, tag: str = "0" * 32, **when: Any) -> Fault:
        """The answer's ETag is another: the object was replaced since the one before."""
        return self.plant("tag", keys, code=tag, **when)

    def flip(self, keys: str, at: float = 0.5, **when: Any) -> Fault:
        """One bit of the object is not what it was, the lowest of the byte at this share of it."""
        return self.plant("flip", keys, at=at, **when)

    def chunked(self, keys: str, **when: Any) -> Fault:
        """The body comes in chunks, and nothing says how long it is; HEAD says it neither."""
        return self.plant("chunked", keys, **{"methods": ("GET", "HEAD"), "times": None, **when})

    def packed(self, keys: str, **when: Any) -> Fault:
        """Content-Encoding says gzip, though nobody asked for that."""
        return self.plant("packed", keys, **{"times": None, **when})

    def starred(self, keys: str, **when: Any) -> Fault:
        """A range is not said to be of how many bytes."""
        return self.plant("starred", keys, **{"times": None, **when})

    def creep(self, keys: str, seconds: float, **when: Any) -> Fault:
        """The headers come byte by byte for so long; then the connection ends."""
        return self.plant("creep", keys, seconds=seconds, **when)

    def again(self, keys: str, **when: Any) -> Fault:
        """A listing gives its first page, whichever it is asked for, and says that there are more."""
        return self.plant("again", keys, **{"methods": ("LIST",), "times": None, **when})

    def whole(self, keys: str, **when: Any) -> Fault:
        """A range is ignored, and everything sent, as some web servers do."""
        return self.plant("whole", keys, **{"times": None, **when})

    def status(self, keys: str, status: int, code: str = "", retry_after: int | None = None, **when: Any) -> Fault:
        """An error instead of the object: 403, 404, 429, 500, 503 and so on; code: S3's word for it."""
        words = {403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return self.plant("status", keys, status=status, code=code or words.get(status, "Error"), headers=headers, **when)

    def vanish(self, keys: str, **when: Any) -> Fault:
        """The object is there no more, neither for requests nor in listings."""
        settings = {"methods": ("GET", "HEAD", "ENTRY"), "times": None, **when}
        return self.plant("status", keys, status=404, code="NoSuchKey", **settings)


# ---------------------------------------------------------------- the store


class Rate:
    """Bytes a second that all connections share; None: no limit."""

    def __init__(self, bytes_per_second: float | None):
        self.bytes_per_second = bytes_per_second
        self._free = 0.0  # when the next byte may leave
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Returns when so many bytes more may have left."""
        if not self.bytes_per_second:
            return
        with self._lock:
            self._free = free = max(self._free, time.monotonic() - SPARE) + count / self.bytes_per_second
        if (wait := free - time.monotonic()) > 0:
            time.sleep(wait)


class ObjectStore:
    """A store over a folder, which serves from the moment it is made until it is closed.  Its settings may be changed meanwhile.

    latency: seconds before each answer; rate: bytes a second of all bodies together, None without a limit; credentials: the access keys that
    are let in, None for everybody.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0,
        rate: float | None = None,
        writable: bool = True,
        credentials: Iterable[str] | None = None,
    ):
        self.folder, self.latency, self.writable = Path(folder), latency, writable
        self.credentials = None if credentials is None else set(credentials)
        self.expired: set[str] = set()  # access keys that were let in once
        self.faults, self.log = Faults(), []  # type: ignore[var-annotated]
        self._rate = Rate(rate)
        self._tags: dict[tuple, str] = {}  # a file as it is -> its ETag
        self._hashing = threading.Lock()
        self._closed = threading.Event()
        self.host = host
        self._serve(port)

    def _serve(self, port: int) -> None:
        self._server = Server((self.host, port), self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> "ObjectStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()  # ends stalls
        self._server.stop()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def endpoint(self) -> str:
        """For AWS_ENDPOINT_URL; an object's own address is endpoint/bucket/key."""
        return f"http://{self.host}:{self.port}"

    @property
    def rate(self) -> float | None:
        return self._rate.bytes_per_second

    @rate.setter
    def rate(self, bytes_per_second: float | None) -> None:
        self._rate.bytes_per_second = bytes_per_second

    def rotate(self, *credentials: str) -> None:
        """Only these access keys are let in from now on; those that were are expired."""
        self.expired |= self.credentials or set()
        self.expired -= set(credentials)
        self.credentials = set(credentials)

    def refuse(self, seconds: float) -> threading.Thread:
        """Open connections end, and new ones are refused for so long.  Returns the thread that opens the store again."""
        port = self.port
        self._server.stop()

        def again() -> None:
            if not self._closed.wait(seconds):
                self._serve(port)

        thread = threading.Thread(target=again, daemon=True)
        thread.start()
        return thread

    # -- what was asked for

    def requests(self, keys: str = "*", *methods: str) -> int:
        """Answers to these methods (all, where none is named)."""
        return sum(fnmatch.fnmatchcase(a.key, keys) for a in list(self.log) if not methods or a.method in methods)

    def fetched(self, keys: str = "*") -> Counter:
        """Key -> GETs that were answered with the object, or a part of it, however that ended."""
        return Counter(a.key for a in list(self.log) if a.method == "GET" and a.status in (200, 206) and fnmatch.fnmatchcase(a.key, keys))

    def sent(self, keys: str = "*") -> Counter:
        """Key -> bytes of bodies that left."""
        counts: Counter = Counter()
        for answer in list(self.log):
            if answer.method == "GET" and fnmatch.fnmatchcase(answer.key, keys):
                counts[answer.key] += answer.sent
        return counts

    def forget(self) -> None:
        """Count anew."""
        self.log.clear()

    # -- what is stored

    def path(self, key: str) -> Path:
        """The file of bucket/key.  Raises Wrong for a key that leads elsewhere."""
        parts = key.split("/")
        if any(part in ("", ".", "..", UPLOADS) for part in parts) or "\0" in key:
            raise Wrong(400, "InvalidArgument", "this store keeps no such key")
        return self.folder.joinpath(*parts)

    def tag(self, path: Path) -> str:
        """MD5 of a file, computed once for as long as it stays what it is."""
        known = identity(path)
        with self._hashing:
            if known not in self._tags:
                with path.open("rb") as file:
                    self._tags[known] = hashlib.file_digest(file, "md5").hexdigest()
        return self._tags[known]

    def buckets(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name != UPLOADS)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Every key of a bucket that begins so, in S3's order (UTF-8 bytes)."""
        top = self.folder / bucket
        start = top / prefix.rpartition("/")[0]
        found = [os.path.relpath(os.path.join(where, name), top) for where, _, names in os.walk(start) for name in names]  # noqa: PTH118
        return sorted((key for key in found if key.startswith(prefix)), key=str.encode)


def identity(path: Path) -> tuple:
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], store: ObjectStore):
        self.store, self.open = store, set()  # type: ignore[var-annotated]
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no news
            super().handle_error(request, client_address)


def end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)


class Wrong(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, said: str = "", headers: dict[str, str] | None = None):
        super().__init__(code)
        self.status, self.code, self.said, self.headers = status, code, said or code, headers or {}


# ---------------------------------------------------------------- one connection


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "ObjectStore"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        came, self.read_body = time.monotonic(), False
        split = urlsplit(self.path)
        self.key = unquote(split.path).strip("/")
        self.query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        if self.key.partition("/")[0] == "-":
            self.given = Answer(came, self.command, "-")
            self.of_the_log()
            return
        bucket, _, key = self.key.partition("/")
        method = self.command
        if method == "GET" and not key:
            method, self.key = "LIST", f"{bucket}/{self.query.get('prefix', '')}"
        self.given = Answer(came, method, self.key)
        self.server.store.log.append(self.given)
        time.sleep(self.server.store.latency)
        try:
            self.let_in()
            {"GET": self.get, "HEAD": self.get, "LIST": self.list, "PUT": self.put, "POST": self.post, "DELETE": self.delete}[method](
                bucket, key
            )
        except Wrong as error:
            self.refuse(error)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def of_the_log(self) -> None:
        """GET /-/: requests and bytes so far, as JSON, for who runs the store in a process of its own; DELETE /-/: count anew."""
        store = self.server.store
        if self.command == "DELETE":
            store.forget()
        counts = {"requests": dict(Counter(answer.method for answer in list(store.log))), "fetched": store.fetched(), "sent": store.sent()}
        self.reply(200, json.dumps(counts).encode(), {"Content-Type": "application/json"})

    # -- answers

    def head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.given.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            if (name, headers.get("Transfer-Encoding")) != ("Content-Length", "chunked"):
                self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.head(status, len(body), {} if status == 204 else {"Content-Type": "application/xml", **(headers or {})})
        if self.command != "HEAD" and body:
            self.given.sent = len(body)
            self.wfile.write(body)

    def refuse(self, error: Wrong) -> None:
        self.drain()
        body = f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.said)}</Message><Resource>{escape(self.key)}</Resource></Error>"
        self.reply(error.status, b"" if error.status == 304 else f'<?xml version="1.0" encoding="UTF-8"?>{body}'.encode(), error.headers)

    def let_in(self) -> None:
        """Raises Wrong where credentials are asked for and these are not they."""
        store = self.server.store
        if store.credentials is None:
            return
        found = re.search(r"Credential=([^/,\s]+)", self.headers.get("Authorization", ""))
        key = found[1] if found else self.query.get("X-Amz-Credential", "").partition("/")[0]
        if key in store.expired:
            raise Wrong(400, "ExpiredToken", "The provided token has expired.")
        if not key:
            raise Wrong(403, "AccessDenied", "Access Denied")
        if key not in store.credentials:
            raise Wrong(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")

    # -- reading

    def get(self, bucket: str, key: str) -> None:
        store = self.server.store
        if not key:  # HEAD of a bucket
            if not (store.folder / bucket).is_dir():
                raise Wrong(404, "NoSuchBucket")
            self.reply(200)
            return
        fault = self.meet(self.command)
        try:
            file = store.path(self.key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            there = (store.folder / bucket).is_dir()
            raise Wrong(404, "NoSuchKey" if there else "NoSuchBucket") from None
        with file:
            self.send_object(file, fault, fault.what if fault else "")

    def meet(self, method: str) -> Fault | None:
        """The fault that strikes this answer; those before its first byte are done here.  Raises Wrong."""
        store = self.server.store
        fault = store.faults.strike(method, self.key)
        if fault and fault.what == "late":
            store._closed.wait(fault.seconds)
        if fault and fault.what == "status":
            raise Wrong(fault.status, fault.code, headers=fault.headers)
        if fault and fault.what == "creep":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Creeps: ")
            end = time.monotonic() + fault.seconds
            while time.monotonic() < end and not store._closed.wait(0.05):
                self.wfile.write(b"x")
            raise ConnectionAbortedError
        return fault

    def send_object(self, file: Any, fault: Fault | None, what: str) -> None:
        store, found = self.server.store, os.fstat(file.fileno())
        size, tag = found.st_size, fault.code if fault and what == "tag" else store.tag(store.path(self.key))
        if fault and what == "size":
            size += fault.bytes
        headers = {
            "ETag": f'"{tag}"',
            "Last-Modified": formatdate(found.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if self.headers.get("If-Match", "*").strip('"') not in ("*", tag):
            raise Wrong(412, "PreconditionFailed")
        if self.headers.get("If-None-Match", "").strip('"') == tag:
            raise Wrong(304, "NotModified", headers=headers)
        headers |= {"chunked": {"Transfer-Encoding": "chunked"}, "packed": {"Content-Encoding": "gzip"}}.get(what, {})
        start, stop, status = 0, size, 200
        if what != "whole" and (asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))) and any(asked.groups()):
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            if start >= stop:
                raise Wrong(416, "InvalidRange", headers={"Content-Range": f"bytes */{size}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{'*' if what == 'starred' else size}"
        self.given.start, self.given.stop = start, stop
        self.head(status, stop - start + (fault.bytes if fault and what == "length" else 0), headers)
        if self.command == "GET":
            self.send_body(file, fault, what, size)

    def send_body(self, file: Any, fault: Fault | None, what: str, size: int) -> None:
        start, stop = self.given.start, self.given.stop
        if fault is None or what in ("late", "tag", "whole", "size", "packed", "starred"):
            self.send_bytes(file, start, stop)
        elif what == "chunked":
            self.wfile.write(b"%x\r\n" % (stop - start))
            self.send_bytes(file, start, stop)
            self.wfile.write(b"\r\n0\r\n\r\n")
        elif what == "flip":
            place = min(int(size * fault.at), size - 1)
            if not start <= place < stop:
                self.send_bytes(file, start, stop)
                return
            self.send_bytes(file, start, place)
            self.given.sent += 1
            self.wfile.write(bytes([os.pread(file.fileno(), 1, place)[0] ^ 1]))
            self.send_bytes(file, place + 1, stop)
        elif what == "drip":
            own = Rate(fault.bytes)
            for place in range(start, stop, step := max(1, fault.bytes // 20)):
                if self.server.store._closed.is_set():
                    break
                own.take(min(step, stop - place))
                self.send_bytes(file, place, min(stop, place + step))
        elif what == "length":
            self.send_bytes(file, start, stop)
            self.close_connection = True
        else:  # stall, cut
            half = start + int((stop - start) * fault.at)
            self.send_bytes(file, start, half)
            if what == "stall":
                self.server.store._closed.wait(fault.seconds)
                self.send_bytes(file, half, stop)
            else:
                self.close_connection = True

    def send_bytes(self, file: Any, start: int, stop: int) -> None:
        """By the kernel, from the page cache to the socket."""
        rate = self.server.store._rate
        while start < stop:
            most = stop - start
            if rate.bytes_per_second:
                rate.take(most := min(most, CHUNK))
            self.given.sent += most
            count = os.sendfile(self.connection.fileno(), file.fileno(), start, most)
            self.given.sent -= most - count
            if not count:
                raise ConnectionAbortedError("the file has become shorter")
            start += count

    def list(self, bucket: str, key: str) -> None:
        store = self.server.store
        if not bucket:
            entries = (f"<Bucket><Name>{escape(name)}</Name><CreationDate>{moment(0)}</CreationDate></Bucket>" for name in store.buckets())
            buckets = "".join(entries)
            self.xml("ListAllMyBucketsResult", f"<Owner><ID>owner</ID></Owner><Buckets>{buckets}</Buckets>")
            return
        if not (store.folder / bucket).is_dir():
            raise Wrong(404, "NoSuchBucket")
        if "location" in self.query:
            self.xml("LocationConstraint", "")
            return
        if self.query.get("list-type") != "2":
            raise Wrong(501, "NotImplemented", "of a bucket only ListObjectsV2 and its location are known")
        fault = self.meet("LIST")
        self.page(bucket, again=fault is not None and fault.what == "again")

    def page(self, bucket: str, again: bool = False) -> None:
        """One page of a listing: keys, and what lies between prefix and delimiter once.  again: the first one, whichever was asked for."""
        store, query = self.server.store, self.query
        prefix, delimiter, most = query.get("prefix", ""), query.get("delimiter", ""), min(PAGE, int(query.get("max-keys", PAGE)))
        after = base64.b64decode(query["continuation-token"]).decode() if "continuation-token" in query else query.get("start-after", "")
        named = partial(quote, safe="/") if query.get("encoding-type") == "url" else escape
        after = "" if again else after
        entries, count, last, more = [], 0, "", again
        for key in store.keys(bucket, prefix):
            group = key[: key.index(delimiter, len(prefix)) + len(delimiter)] if delimiter and delimiter in key[len(prefix) :] else ""
            name = group or key
            if name == last or name.encode() <= after.encode() or (group and after.startswith(group)):
                continue
            fault = None if group else store.faults.strike("ENTRY", f"{bucket}/{key}")
            if fault and fault.what == "status":
                continue
            if count == most:
                more = True
                break
            count, last = count + 1, name
            if group:
                entries.append(f"<CommonPrefixes><Prefix>{named(group)}</Prefix></CommonPrefixes>")
                continue
            path = store.folder / bucket / key
            found = path.stat()
            size = found.st_size + (fault.bytes if fault and fault.what == "size" else 0)
            tag = fault.code if fault and fault.what == "tag" else store.tag(path)
            entries.append(
                f"<Contents><Key>{named(key)}</Key><LastModified>{moment(found.st_mtime)}</LastModified><ETag>&quot;{tag}&quot;</ETag>"
                f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        token = f"<NextContinuationToken>{base64.b64encode(last.encode()).decode()}</NextContinuationToken>" if more else ""
        coded = "<EncodingType>url</EncodingType>" if query.get("encoding-type") == "url" else ""
        self.xml(
            "ListBucketResult",
            f"<Name>{escape(bucket)}</Name><Prefix>{named(prefix)}</Prefix><Delimiter>{named(delimiter)}</Delimiter><MaxKeys>{most}</MaxKeys>"
            f"<KeyCount>{count}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}{coded}{''.join(entries)}",
        )

    def xml(self, name: str, inside: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{name}>'
        self.reply(200, text.encode())

    # -- writing

    def body(self) -> bytes:
        """The whole body of a request.  Raises Wrong where it is not what its headers say."""
        if "aws-chunked" in self.headers.get("Content-Encoding", "") or not self.headers.get("Content-Length", "").isdecimal():
            raise Wrong(501, "NotImplemented", "a body with a Content-Length, in one piece, is all that is known")
        data, self.read_body = self.rfile.read(int(self.headers["Content-Length"])), True
        if "Content-MD5" in self.headers and base64.b64decode(self.headers["Content-MD5"]) != hashlib.md5(data).digest():
            raise Wrong(400, "BadDigest")
        return data

    def drain(self) -> None:
        """What was sent and not read would be taken for the next request."""
        if not self.read_body and (length := self.headers.get("Content-Length", "")).isdecimal():
            left = int(length)
            while left and (data := self.rfile.read(min(left, 1 << 20))):
                left -= len(data)
        self.read_body = True

    def may_write(self, bucket: str) -> None:
        store = self.server.store
        if not store.writable:
            raise Wrong(403, "AccessDenied", "this store is read-only")
        self.meet(self.command)
        if not (store.folder / bucket).is_dir():
            raise Wrong(404, "NoSuchBucket")

    def put(self, bucket: str, key: str) -> None:
        store = self.server.store
        if not key:
            self.drain()
            store.path(bucket).mkdir(parents=True, exist_ok=True)
            self.reply(200, headers={"Location": f"/{bucket}"})
            return
        self.may_write(bucket)
        if "x-amz-copy-source" in self.headers:
            raise Wrong(501, "NotImplemented", "objects are not copied")
        data = self.body()
        tag = hashlib.md5(data).hexdigest()
        if "uploadId" in self.query:
            (self.upload(self.query["uploadId"]) / f"{int(self.query['partNumber']):05d}").write_bytes(data)
        else:
            self.store([data], tag)
        self.reply(200, headers={"ETag": f'"{tag}"'})

    def store(self, parts: Iterable[bytes], tag: str) -> None:
        """The object appears whole, with its last byte."""
        store = self.server.store
        path = store.path(self.key)
        if self.headers.get("If-None-Match") == "*" and path.exists():
            raise Wrong(412, "PreconditionFailed")
        path.parent.mkdir(parents=True, exist_ok=True)
        new = store.folder / UPLOADS / uuid.uuid4().hex
        new.parent.mkdir(exist_ok=True)
        with new.open("wb") as file:
            file.writelines(parts)
        new.replace(path)
        store._tags[identity(path)] = tag

    def upload(self, name: str) -> Path:
        folder = self.server.store.folder / UPLOADS / f"parts-{name}"
        if not name.isalnum() or not folder.is_dir():
            raise Wrong(404, "NoSuchUpload")
        return folder

    def post(self, bucket: str, key: str) -> None:
        self.may_write(bucket)
        store, data = self.server.store, self.body()
        if "delete" in self.query:
            gone = [entry.text or "" for entry in ElementTree.fromstring(data).iterfind(".//{*}Key")]
            for each in gone:
                store.path(f"{bucket}/{each}").unlink(missing_ok=True)
            self.xml("DeleteResult", "".join(f"<Deleted><Key>{escape(each)}</Key></Deleted>" for each in gone))
        elif "uploads" in self.query:
            name = uuid.uuid4().hex
            (store.folder / UPLOADS / f"parts-{name}").mkdir(parents=True)
            self.xml("InitiateMultipartUploadResult", self.names(bucket, key) + f"<UploadId>{name}</UploadId>")
        elif "uploadId" in self.query:
            folder = self.upload(self.query["uploadId"])
            parts = []
            for entry in ElementTree.fromstring(data).iterfind(".//{*}Part"):
                path = folder / f"{int(entry.findtext('{*}PartNumber', '0')):05d}"
                digest = hashlib.md5(path.read_bytes()).digest() if path.exists() else b""
                if entry.findtext("{*}ETag", "").strip('"') != digest.hex():
                    raise Wrong(400, "InvalidPart")
                parts.append((path, digest))
            tag = f"{hashlib.md5(b''.join(digest for _, digest in parts)).hexdigest()}-{len(parts)}"
            self.store((path.read_bytes() for path, _ in parts), tag)
            shutil.rmtree(folder)
            self.xml("CompleteMultipartUploadResult", self.names(bucket, key) + f"<ETag>&quot;{tag}&quot;</ETag>")
        else:
            raise Wrong(501, "NotImplemented")

    def names(self, bucket: str, key: str) -> str:
        return f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key>"

    def delete(self, bucket: str, key: str) -> None:
        self.may_write(bucket)
        store = self.server.store
        if "uploadId" in self.query:
            shutil.rmtree(self.upload(self.query["uploadId"]))
        elif key:
            store.path(self.key).unlink(missing_ok=True)
        else:
            raise Wrong(501, "NotImplemented", "buckets stay")
        self.reply(204)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="FOLDER/BUCKET/KEY is what is served")
    parser.add_argument("--host", default="127.0.0.1", help="the address it listens at")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--latency-ms", type=float, default=0, help="before each answer")
    parser.add_argument("--mb-per-second", type=float, help="of all connections together; without: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=600, help="after which it ends by itself")
    options = parser.parse_args()
    rate = options.mb_per_second and options.mb_per_second * 1e6
    with ObjectStore(options.folder, host=options.host, port=options.port, latency=options.latency_ms / 1e3, rate=rate) as store:
        for bucket in store.buckets():
            for key in store.keys(bucket):
                store.tag(store.path(f"{bucket}/{key}"))  # now, not while somebody waits
        print(store.endpoint, flush=True)
        time.sleep(options.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
