"""Requests to servers are tried again with growing waits; here is what their errors mean.

By hand, and the libraries' own retries are switched off (gcsfs's cannot be): urllib3's and botocore's end where an answer begins, and what fails is mostly half
of a body, or an upload that is not what was sent.  One patience serves web servers and stores, and a full disk here is not waited for.
"""

import errno
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from mpp.base.errors import DataError
from mpp.base.text import say, sized

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
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_ELSEWHERE = ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_NOT_REACHED = (  # names of what libraries raise where no server has taken the request
    "ConnectionRefusedError",
    "gaierror",
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "ProxyConnectionError",
    "ProxyError",
    "SSLError",
    "ClientConnectorError",
)
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError", "ProfileNotFound")


_SECRET = re.compile(r"\?\S*(sig=|sign|hmac|auth|token|key|secret|pass|credential)\S*", re.IGNORECASE)  # sig=: of Azure


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


def too_large(most: int) -> Refused:
    """most: bytes that are taken."""
    return Refused(f"is larger than {sized(most)}")


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


class InTroubleError(DataError):
    """A server that takes requests was in trouble to the end of our patience; one that cannot be reached at all, whose address may be wrong, is a plain
    DataError."""


def in_time(call: Callable[[], T], seconds: float) -> T:
    """call(), in a thread of its own, which is left behind when it takes longer: what drips, as the headers of an answer may, keeps to all time limits of
    libraries, which are those of single bytes.  Raises Trouble.  call: does nothing that matters when it ends late."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise Trouble(f"took more than {seconds:g} s to begin an answer")
    return found[0]


def patiently(url: str, call: Callable[[], T]) -> T:
    """call(), again and again while the server is in trouble.

    Raises Refused, DataError for wrong credentials, and InTroubleError when the server is still in trouble after PATIENCE.waits.
    """
    waits = PATIENCE.waits[:1] if url.startswith(("gs:", "gcs:")) else PATIENCE.waits  # gcsfs itself has tried for a minute
    for wait in (*waits, None):
        try:
            return call()
        except errors() as error:
            failed, trouble = error, meaning(url, error)
        give_up_or_wait(url, trouble, wait, failed)
    raise AssertionError


def give_up_or_wait(url: str, trouble: str, wait: float | None, error: Exception) -> None:
    """Sleep before the next try, and say so where that is long; without a wait raise InTroubleError, or DataError where nobody was reached."""
    if wait is None:
        raise (InTroubleError if _was_reached(error) else DataError)(
            f"{shown(url)}: {trouble}, still so after several tries; check the server and the network, then run the same command again: "
            "what is done is kept"
        )
    after = asked_wait(error)
    seconds = wait * random.uniform(0.5, 1)  # many workers must not come back all at once
    seconds = max(seconds, min(after, PATIENCE.asked_seconds) * random.uniform(1, 1.25))
    if max(wait, after) >= 8:
        say(f"warning: {shown(url)}: {trouble}; trying again in {seconds:.0f} s", error=True)
    time.sleep(seconds)


def _was_reached(error: BaseException) -> bool:
    """Whether a server has taken the request."""
    return not any(type(cause).__name__ in _NOT_REACHED for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """It, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
    if "CERTIFICATE_VERIFY_FAILED" in said:
        raise DataError(
            f"{shown(url)}: the server's certificate is not trusted here ({_certificate(said)}); name the file with that of its authority in AWS_CA_BUNDLE "
            "(s3://) or REQUESTS_CA_BUNDLE"
        ) from error
    answer = _answer(error)
    code = str(answer.get("Error", {}).get("Code", ""))
    status = str(
        answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or getattr(error, "status_code", "") or getattr(error, "code", "")
    )
    if name in _NO_KEYS or code in _WRONG_KEYS or status == "401":
        need = CREDENTIALS.get(url.partition(":")[0], "check the credentials")
        raise DataError(f"{url}: no valid credentials ({code or said or name}); {need}") from error
    if code == "RequestTimeTooSkewed":
        raise DataError(
            f"{url}: the clock of this machine differs too much from the store's ({code}); set it (chronyc, timedatectl)"
        ) from error
    if code in _ELSEWHERE or (answer and status in ("301", "302", "307", "308")):
        headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
        region = answer["Error"].get("Region") or headers.get("x-amz-bucket-region")
        told = ", ".join(filter(None, [status, code if code != status else "", f"region {region}" if region else ""]))
        raise Refused(f"lies elsewhere ({told}): set AWS_DEFAULT_REGION to its region, or AWS_ENDPOINT_URL to its store") from error
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
    if "Max retries exceeded" in said:  # requests' words for no connection, with all that urllib3 knows of it
        why = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror][-1:] or [name]
        return f"cannot be reached{' through its proxy' if 'ProxyError' in said or name == 'ProxyError' else ''} ({why[0]})"
    if answer:
        return f"the server answers {status} {code if code != status else ''}".rstrip()
    return getattr(error, "strerror", None) or (f"{name}: {said}" if said else name)


def _certificate(said: str) -> str:
    """What is wrong with it, out of the words of an error."""
    found = re.search(r"certificate verify failed: ([\w -]+)", said)
    return found[1].strip() if found else "CERTIFICATE_VERIFY_FAILED"
