"""Web servers: a file, or bytes of one, asked for once; urls.py tries again.

By hand above requests, which reads the body of a redirect however long it is, and believes whatever length an answer has.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import urljoin

import mpp
from mpp.base.errors import DataError
from mpp.remote import body, retries
from mpp.remote.retries import Refused, Trouble, in_time, shown, too_large

REDIRECTS = 10
TRY_AGAIN = (408, 425, 429)  # and everything from 500 on


class Answer(NamedTuple):
    size: int | None  # of the whole file; None where the server does not say
    tag: str  # ETag or time of the last change; empty for none
    ranged: bool  # the server sent the range, not the whole file
    chunks: Iterator[bytes]
    packed: str  # how, where it is sent otherwise than it was asked for; that of a file which lies there packed is told likewise

    def refuse_packed(self) -> None:
        """Raises Refused."""
        if self.packed:
            raise Refused(f"comes packed by {self.packed}, though it is asked for as it is; have the server send it unpacked")


@functools.cache
def _session(process: int) -> Any:
    """process: connections must not be shared by those that were forked."""
    try:
        import requests
    except ImportError:
        raise DataError("https:// needs the package requests: pip install requests") from None
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a list may name a million hosts
    session.headers.update({"User-Agent": f"mpp/{mpp.__version__}", "Accept-Encoding": "identity"})
    return session


@contextmanager
def get(url: str, start: int | None = None, end: int = 0) -> Iterator[Answer]:
    """Ask for a file, or its bytes [start, end).  Raises Refused and retries.errors(); takes no more than the server announced."""
    patience, session = retries.PATIENCE, _session(os.getpid())
    ranged = {} if start is None else {"Range": f"bytes={start}-{end - 1}"}
    timeout = patience.connect_seconds, patience.read_seconds
    ask = lambda: session.get(url, headers=ranged, stream=True, timeout=timeout, allow_redirects=False)
    for _ in range(REDIRECTS):  # by hand: requests reads the body of a redirect, however long it is
        try:
            response = in_time(ask, patience.connect_seconds + 2 * patience.read_seconds)
            if (leads_to := session.get_redirect_target(response)) is None:
                break
            response.close()
            url = urljoin(url, leads_to)
        except ValueError as error:  # requests says so of any other protocol and of what is no URL, urllib of some of these
            raise Refused(f"is no address, or leads to none ({shown(str(error))[:200]})") from error
    else:
        raise Refused(f"redirects more than {REDIRECTS} times")

    with response:
        status, said = response.status_code, f"the server answers {response.status_code} {response.reason}"
        if status >= 500 or status in TRY_AGAIN:
            raise Trouble(said, response.headers.get("Retry-After", ""))
        if status == 416:
            raise Refused("is empty, or ends before the bytes that were asked for")
        if status not in (200, 206):
            raise Refused(said, absent=status in (404, 410))
        size = int(response.headers["Content-Length"]) if response.headers.get("Content-Length", "").isdecimal() else None
        if status == 206:
            sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
            whole = int(sent[3]) if sent and sent[3] != "*" else None  # a server need not know
            if start is None or not sent or int(sent[1]) != start or int(sent[2]) != min(end, whole or end) - 1:
                raise Trouble(f"asked for bytes {start} to {end}, the server sends {response.headers.get('Content-Range')!r}")
            size = whole
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        packed = response.headers.get("Content-Encoding", "").lower().removeprefix("identity")
        yield Answer(size, tag, status == 206, body.parts(response.raw.read1), packed)  # raises where the connection is cut


def read(url: str, most: int) -> bytes:
    """A whole file, of `most` bytes at most: more are not even taken.  Raises as `get`, and Refused for more."""
    data = bytearray()
    with get(url) as answer:
        answer.refuse_packed()
        if answer.size is not None and answer.size > most:
            raise too_large(most)
        for chunk in answer.chunks:
            data += chunk
            if len(data) > most:
                raise too_large(most)
        if answer.size is not None and len(data) != answer.size:
            raise Trouble(f"sent {len(data)} of {answer.size} bytes")
    return bytes(data)
