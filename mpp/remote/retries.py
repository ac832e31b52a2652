"""Requests to servers are tried again with growing waits; here is what their errors mean.

By hand, and the libraries' own retries are switched off (gcsfs's cannot be): urllib3's and botocore's end where an answer begins, and what fails is mostly half
of a body, or an upload that is not what was sent.  One patience serves web servers and stores, and a full disk here is not waited for.
"""

import errno
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mpp.errors import DataError
from mpp.text import say

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how often it is asked again."""

    connect_seconds: float = 10
    read_seconds: float = 60  # without a single byte
    whole_seconds: float = 1800  # of one answer: a server may also drip
    stall_seconds: float = 600  # of a copy in which a store neither takes nor gives anything; then its process is ended (copier.py)
    waits: tuple[float, ...] = (1, 2, 4, 8, 16, 32)  # seconds before each further try


PATIENCE = Patience()

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=1",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon",
}
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a full disk is no server in trouble
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed")
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError", "ProfileNotFound")


_SECRET = re.compile(r"\?\S*(sign|token|key|secret|password|credential)\S*", re.IGNORECASE)


def shown(text: str) -> str:
    """A URL, or a text that holds some, for messages and files: without passwords, keys and signatures."""
    return _SECRET.sub("?...", re.sub(r"://[^/@\s]*@", "://", text))


_IN_COMMANDS = [  # of each the first group stays
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"((?:-H\s*|--header[\s=]+)(['\"])[\w-]+\s*:\s*)(?:(?!\2).)+",  # a header in quotes
        r"((?:-H\s*|--header[\s=]+)[\w-]+:)\S+",  # and one without
        r"(authorization\s*:\s*)(?:\w+\s+)?[^'\"\s]+",
        r"(\s(?:-u|--user|--[\w-]*(?:password|token|secret|key))[\s=]+)(?:'[^']*'|\"[^\"]*\"|\S+)",  # options
        r"((?<![^\s;&:(])\w*(?:password|token|secret|key|credentials)\w*=)(?:'[^']*'|\"[^\"]*\"|[^\s;&]+)",  # variables
    )
]


def hidden(text: str) -> str:
    """A word that may hold a URL or a command (pipe:), as `shown`, and without what a command's headers, options and variables give away."""
    if "pipe:" in text:
        for pattern in _IN_COMMANDS:
            text = pattern.sub(r"\1...", text)
    return shown(text) if "://" in text else text


class Refused(Exception):
    """The server answered and will not give this; asking again changes nothing."""

    def __init__(self, reason: str, *, absent: bool = False):
        super().__init__(reason)
        self.absent = absent


def unless_absent(call: Callable[[], T]) -> T | None:
    """call(), or None where the server says that there is no such thing."""
    try:
        return call()
    except Refused as error:
        if error.absent:
            return None
        raise


class Trouble(Exception):
    """An answer that cannot be used and may be better next time."""


def patiently(url: str, call: Callable[[], T]) -> T:
    """call(), again and again while the server is in trouble.

    Raises Refused, and DataError for wrong credentials or when the server is still in trouble after PATIENCE.waits.
    """
    waits = PATIENCE.waits[:1] if url.startswith(("gs:", "gcs:")) else PATIENCE.waits  # gcsfs itself has tried for a minute
    for wait in (*waits, None):
        try:
            return call()
        except errors() as error:
            trouble = meaning(url, error)
        give_up_or_wait(url, trouble, wait)
    raise AssertionError


def give_up_or_wait(url: str, trouble: str, wait: float | None) -> None:
    """Sleep before the next try, and say so where that is long; without a wait raise DataError."""
    if wait is None:
        raise DataError(
            f"{shown(url)}: {trouble}, still so after several tries; check the server and the network, then run the same command again: "
            "what is done is kept"
        )
    if wait >= 8:
        say(f"warning: {shown(url)}: {trouble}; trying again in {wait:g} s", error=True)
    time.sleep(wait * random.uniform(0.5, 1))  # many workers must not come back all at once


def errors() -> tuple[type[Exception], ...]:
    """What the libraries raise for a failed request; only of those that were imported."""
    found: list[type[Exception]] = [OSError, Trouble]  # requests' and s3fs's are OSErrors
    for module, names in (
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("aiohttp", ("ClientError",)),
        ("gcsfs.retry", ("HttpError",)),
        ("google.auth.exceptions", ("GoogleAuthError",)),
        ("urllib3.exceptions", ("HTTPError",)),
    ):
        found += [getattr(sys.modules[module], name) for name in names if module in sys.modules]
    return tuple(found)


def meaning(url: str, error: Exception) -> str:
    """The trouble in words, where another try may help.  Raises Refused or DataError where it cannot, and what no server has caused."""
    if getattr(error, "errno", None) in _OF_THIS_MACHINE:
        raise error
    name, said = type(error).__name__, shown(" ".join(str(error).split()))
    answer = getattr(error.__cause__, "response", None) or {}  # of an answer that never came there is none
    code = str(answer.get("Error", {}).get("Code", ""))
    status = getattr(error, "code", None)
    if name in _NO_KEYS or code in _WRONG_KEYS or status in (401, "401"):
        need = CREDENTIALS.get(url.partition(":")[0], "check the credentials")
        raise DataError(f"{url}: no valid credentials ({code or said or name}); {need}") from error
    if isinstance(error, FileNotFoundError):
        raise Refused("is not there (404)" if code != "NoSuchBucket" else "there is no such bucket", absent=True) from error
    if code in ("InvalidRange", "416"):
        raise Refused("is empty, or ends before the bytes that were asked for") from error
    if name == "ParamValidationError" or code == "InvalidBucketName":
        raise Refused(f"is no address of this store ({said})") from error
    if isinstance(error, PermissionError) or said.startswith("Forbidden") or status in (403, "403"):
        raise Refused("may not be read or written with these credentials (403)") from error
    if isinstance(error, Trouble):
        return said
    return getattr(error, "strerror", None) or (f"{name}: {said}" if said else name)
