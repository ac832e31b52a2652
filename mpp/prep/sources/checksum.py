"""A source's files compared with the checksums they must have, before anything else is done with them."""

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mpp.base.errors import DataError, UserError
from mpp.disk.files import write_atomically
from mpp.prep.source import Around, Source
from mpp.remote.urls import Bar

OFFICIAL = "official"  # --checksum official: those that the publisher of a known data set gives
CHUNK = 1 << 20


def parse_checksum(text: str) -> str:
    """Lower-case md5 or sha256, or OFFICIAL.  Raises UserError."""
    if re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", text.lower()) or text == OFFICIAL:
        return text.lower()
    raise UserError(f"--checksum {text}: is neither an md5 (32 hexadecimal digits) nor a sha256 (64), nor the word {OFFICIAL}")


def verify_once(path: Path, wanted: str, remedy: str, scratch: Path, bar: Bar) -> None:
    """Read the file through and compare; what was found right is noted in `scratch`, so that an unchanged file is not read again.

    wanted: md5 or sha256 in lower-case hexadecimal.  Raises DataError, which ends in `remedy`.
    """
    note = scratch / f"checked-{wanted}"
    method = "md5" if len(wanted) == 32 else "sha256"
    digest = hashlib.new(method, usedforsecurity=False)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        state = f"{path.name} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
        if note.exists() and note.read_bytes() == state:
            return
        with bar(f"{method} of {path.name}", status.st_size) as progress:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                progress.update(len(chunk))
    if digest.hexdigest() != wanted:
        raise DataError(f"{path}: its {method} is {digest.hexdigest()}, and not {wanted}; {remedy}")
    write_atomically(note, state)


@dataclass(frozen=True)
class Checked(Around):
    """A source whose one file is verified before it is listed."""

    wanted: str

    def unpack(self, scratch: Path, bar: Bar) -> Source:
        verify_once(self.source.path, self.wanted, "get the file again, or mend --checksum", scratch, bar)
        return self.source.unpack(scratch, bar)


def checked(source: Source, wanted: str, own: Collection[str]) -> Source:
    """The source with its check; own: the kinds that see to it themselves.  Raises UserError for a source that is not one file."""
    if source.kind in own:
        return source
    if wanted == OFFICIAL:
        raise UserError(f"--checksum {OFFICIAL}: is for {', '.join(own)}, and {source.path} is {source.kind}; give its md5 or sha256")
    if source.path.is_dir():
        raise UserError(f"--checksum: {source.path} is a folder, and has no checksum; leave it out")
    return Checked(source, wanted)
