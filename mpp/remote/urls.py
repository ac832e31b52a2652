"""URLs: which ones are taken, one small file from one, and one large file into the scratch folder.

http(s)://host/path      s3://bucket/key      gs://bucket/key      and, for SOURCE, what stores.py knows beside these
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mpp.base.errors import BadSample, DataError
from mpp.disk.files import write_atomically
from mpp.remote import retries, web
from mpp.remote.retries import Refused, Trouble, errors, give_up_or_wait, meaning, patiently, shown, too_large
from mpp.remote.stores import Info, store_for

WEB = ("http", "https")
LISTED = (*WEB, "s3", "gs")  # what a row of a list may name: its author is not the user
LOCAL = ("file", "local", "zip", "tar", "libarchive", "dir", "simplecache", "filecache", "blockcache")
MAX_FILE_BYTES = 256 << 20  # of an image: beyond this it is no photograph, and an archive that claims it may be a bomb
RANGE_BYTES = 32 << 20  # fetched at a time; what a kill may cost

Bar = Callable[[str, int | None], AbstractContextManager[Any]]  # (what, total bytes or None) -> something with update(bytes)


class Url(str):
    """An address where a path would stand."""

    @property
    def name(self) -> str:
        return last_name(self)

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.rstrip('/')}/{name}")

    def resolve(self) -> "Url":
        return self


def is_url(where: object) -> bool:
    return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::)", str(where)))


def split_url(url: str) -> tuple[str, str]:
    """(protocol, the rest).  Raises DataError for a chain of file systems and for local ones."""
    protocol, _, path = url.partition("://")
    if re.match(r"[\w+.-]+::", url) or re.search(r"::[\w+.-]+://", url):
        raise DataError(f"{shown(url)}: is a chain of URLs; give the URL of the file itself")
    if protocol.lower() in LOCAL:
        raise DataError(f"{shown(url)}: {protocol}:// is a local file; give its path")
    try:
        urlsplit(url if protocol.lower() in WEB else "")
    except ValueError as error:
        raise DataError(f"{shown(url)}: is no address of a server ({error})") from error
    if not path.strip("/"):
        raise DataError(f"{shown(url)}: names nothing; give {protocol}://bucket/prefix/ or the URL of a file")
    return protocol.lower(), path


def last_name(url: str) -> str:
    """The last part of a URL, without what follows a "?": no key or signature gets into a manifest."""
    path = urlsplit(url).path if urlsplit(url).scheme in WEB else url.partition("://")[2]
    return unquote(path).rstrip("/").rpartition("/")[2] or urlsplit(url).netloc


def read_url(url: str) -> bytes:
    """What a row of a list names, at most MAX_FILE_BYTES of it.

    Raises BadSample where the server answers and will not give it, DataError where it does not answer in the end: a dead server must
    stop a run, not reject a million images.
    """
    protocol, _, path = url.partition("://")
    protocol = protocol.lower()
    try:
        if protocol not in LISTED or (protocol not in WEB and not path.partition("/")[2]) or re.search(r"::[\w+.-]+://", url):
            raise Refused(f"is no URL of {', '.join(LISTED)}")
        data = (
            patiently(url, lambda: web.read(url, MAX_FILE_BYTES))
            if protocol in WEB
            else store_for(protocol).read(path, 0, MAX_FILE_BYTES + 1)
        )
        if not data:
            raise Refused("an empty file")
        if len(data) > MAX_FILE_BYTES:
            raise too_large(MAX_FILE_BYTES)
        return data
    except Refused as error:
        raise BadSample(f"{shown(url)[:200]}: {error}") from error


def stat(url: str) -> Info | None:
    """Size and tag of the file at a URL; None for a folder.  Raises DataError where there is neither."""
    protocol, path = split_url(url)
    try:
        if protocol not in WEB:
            return None if path.endswith("/") else store_for(protocol).info(path)
        size, tag = patiently(url, lambda: _size_and_tag(url))
    except Refused as error:
        raise DataError(f"{shown(url)}: {error}; check the address and your access to it") from error
    if size is None:
        raise DataError(
            f"{shown(url)}: the server does not say how large it is, so a cut would go unnoticed; get it yourself and give the file"
        )
    return Info(path, size, tag)


def _size_and_tag(url: str) -> tuple[int | None, str]:
    with web.get(url, 0, 1) as answer:  # its first byte: not every server answers HEAD as it answers GET
        return answer.size, answer.tag


def download(url: str, expected: Info, path: Path, bar: Bar) -> None:
    """Fetch a file to `path`, which gets its name when it is whole; goes on after what an earlier, killed run fetched, if anything.

    By hand, because no library goes on after a kill: every range is checked for its length, size and tag of the file at every answer that has
    them and at the end.  Raises DataError where the file changes meanwhile and where the server does not recover.
    """
    part, note = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [shown(url), expected.size, expected.tag]  # so a signature may be renewed between two runs
    try:
        noted, done = json.loads(note.read_bytes())
    except (FileNotFoundError, ValueError):
        noted, done = None, 0
    if noted == known and path.exists():
        return
    path.unlink(missing_ok=True)
    if noted != known or not part.exists() or part.stat().st_size < done:
        done = 0
        part.write_bytes(b"")
    with part.open("r+b") as file, bar(f"fetching {path.name}", expected.size) as progress:
        file.truncate(done)
        file.seek(done)
        progress.update(done)
        waits = iter(retries.PATIENCE.waits)
        while done < expected.size:
            try:
                with _range(url, done, min(done + RANGE_BYTES, expected.size), expected) as (start, end, chunks):
                    if start < done:  # no ranges here
                        progress.update(start - done)
                        file.truncate(start)
                        file.seek(start)
                        done = start
                    for chunk in chunks:
                        if done + len(chunk) > end:
                            raise Trouble(f"sent more than the {end - start} bytes asked for")
                        file.write(chunk)
                        done += len(chunk)
                        progress.update(len(chunk))
                    if done < end:
                        raise Trouble(f"sent {done - start} of {end - start} bytes")
            except Refused as error:
                if (now := _stat_or_none(url)) and (now.size, now.tag) != (expected.size, expected.tag):
                    raise _changed(url, expected, now) from error
                at = f"at byte {done} of {expected.size}"
                raise DataError(f"{shown(url)}: {error}, {at}; check the address and your access to it") from error
            except errors() as error:
                give_up_or_wait(url, f"{meaning(url, error)}, at byte {done} of {expected.size}", next(waits, None), error)
                continue
            waits = iter(retries.PATIENCE.waits)
            file.flush()
            os.fsync(file.fileno())  # a note that outlives a power cut must be true
            write_atomically(note, json.dumps([known, done]).encode())
    found = stat(url)
    if found is None or (found.size, found.tag) != (expected.size, expected.tag):
        raise _changed(url, expected, found)
    part.rename(path)


@contextmanager
def _range(url: str, start: int, end: int, expected: Info) -> Iterator[tuple[int, int, Iterable[bytes]]]:
    """(start, end, chunks) of what the server sends when asked for [start, end): the range, or the whole file where it knows no ranges."""
    protocol, path = split_url(url)
    if protocol not in WEB:
        yield start, end, [store_for(protocol).read(path, start, end)]
        return
    with web.get(url, start, end) as answer:
        if (answer.size, answer.tag) != (expected.size, expected.tag):
            raise _changed(url, expected, answer)
        yield (start, end, answer.chunks) if answer.ranged else (0, expected.size, answer.chunks)


def _stat_or_none(url: str) -> Info | None:
    """None where it cannot be told, too."""
    try:
        return stat(url)
    except DataError:
        return None


def _changed(url: str, expected: Info, found: Info | web.Answer | None) -> DataError:
    now = f"{found.size} bytes {found.tag}" if found else "a folder"
    return DataError(
        f"{shown(url)}: changed while it was fetched ({expected.size} bytes {expected.tag} then, {now} now); "
        "run the same command again, and leave it alone meanwhile"
    )
