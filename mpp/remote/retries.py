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
from email.utils import parsedate_to_datetime
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
    asked_seconds: float = 60  # that are waited where a server asks for it (Retry-After), at most
    stall_seconds: float = 600  # of a copy in which a store neither takes nor gives anything; then its process is ended (copier.py)
    waits: tuple[float, ...] = (1, 2, 4, 8, 16, 32)  # seconds before each further try


PATIENCE = Patience()

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket AWS_NO_SIGN_REQUEST=YES",
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

    def __init__(self, said: str, after: str = ""):
        """after: Retry-After, as the server gave it."""
        super().__init__(said)
        self.after = after


def patiently(url: str, call: Callable[[], T]) -> T:
    """call(), again and again while the server is in trouble.

    Raises Refused, and DataError for wrong credentials or when the server is still in trouble after PATIENCE.waits.
    """
    waits = PATIENCE.waits[:1] if url.startswith(("gs:", "gcs:")) else PATIENCE.waits  # gcsfs itself has tried for a minute
    for wait in (*waits, None):
        try:
            return call()
        except errors() as error:
            trouble, after = meaning(url, error), asked_wait(error)
        give_up_or_wait(url, trouble, wait, after)
    raise AssertionError


def give_up_or_wait(url: str, trouble: str, wait: float | None, after: float) -> None:
    """Sleep before the next try, and say so where that is long; without a wait raise DataError.  after: seconds that the server asks to wait."""
    if wait is None:
        raise DataError(
            f"{shown(url)}: {trouble}, still so after several tries; check the server and the network, then run the same command again: "
            "what is done is kept"
        )
    seconds = wait * random.uniform(0.5, 1)  # many workers must not come back all at once
    seconds = max(seconds, min(after, PATIENCE.asked_seconds) * random.uniform(1, 1.25))
    if max(wait, after) >= 8:
        say(f"warning: {shown(url)}: {trouble}; trying again in {seconds:.0f} s", error=True)
    time.sleep(seconds)


def asked_wait(error: Exception) -> float:
    """Seconds that the server asks to wait: Retry-After, in seconds or as a date; 0 where it does not."""
    told = (
        error.after
        if isinstance(error, Trouble)
        else _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    )
    if told.strip().isdecimal():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0


def _answer(error: Exception) -> dict:
    """What botocore has made of an answer; nothing for other errors, and where none has come."""
    found = getattr(error, "response", None)
    return found if isinstance(found, dict) else {}


def errors() -> tuple[type[Exception], ...]:
    """What the libraries raise for a failed request; only of those that were imported."""
    found: list[type[Exception]] = [OSError, Trouble]  # requests' are OSErrors
    for module, names in (
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("aiohttp", ("ClientError",)),
        ("gcsfs.retry", ("HttpError",)),
        ("azure.core.exceptions", ("AzureError",)),
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
    answer = _answer(error)
    code = str(answer.get("Error", {}).get("Code", ""))
    status = str(
        answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or getattr(error, "status_code", "") or getattr(error, "code", "")
    )
    if name in _NO_KEYS or code in _WRONG_KEYS or status == "401":
        need = CREDENTIALS.get(url.partition(":")[0], "check the credentials")
        raise DataError(f"{url}: no valid credentials ({code or said or name}); {need}") from error
    if isinstance(error, FileNotFoundError) or (answer and status == "404"):
        raise Refused("is not there (404)" if code != "NoSuchBucket" else "there is no such bucket", absent=True) from error
    if code == "InvalidRange" or status == "416":
        raise Refused("is empty, or ends before the bytes that were asked for") from error
    if name == "ParamValidationError" or code == "InvalidBucketName":
        raise Refused(f"is no address of this store ({said})") from error
    if code == "InvalidObjectState":
        raise Refused("lies in an archive of its store (Glacier); have it restored first") from error
    if isinstance(error, PermissionError) or said.startswith("Forbidden") or status == "403":
        raise Refused("may not be read or written with these credentials (403)") from error
    if isinstance(error, Trouble):
        return said
    if answer:
        return f"the server answers {status} {code if code != status else ''}".rstrip()
    return getattr(error, "strerror", None) or (f"{name}: {said}" if said else name)
