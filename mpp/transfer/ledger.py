"""How often test images have been read: every read is written down before it happens, in two places.

    OUT/test_reads.jsonl                      beside the results it was for
    $XDG_STATE_HOME/mpp/test_reads.jsonl      the user's own, over all folders (~/.local/state where that is not set; the key `ledger` names another)

One JSON object a line: id, time, command, encoder, test (as it was given), test_identity, content (fingerprints.py), images (read), of (the split has), folder.
Reads are counted by content: moving, renaming or sharding a split again, or another out=, begins no new count.  One that stands in both places
counts once, by its id.  Lines from before there was a content count by test_identity.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError, UserError
from mpp.base.text import counted
from mpp.data.fingerprints import content_id
from mpp.data.images import Images
from mpp.disk.files import sync_path, user_folder, writing
from mpp.disk.locks import lock_folder

TEST_READS = "test_reads.jsonl"
LOCK_SECONDS = 60.0  # for others to write a line each
BUSY = "{path} has been held by another program for a minute; stop it"


@dataclass(frozen=True)
class Reads:
    """Of one split's images, the last one included."""

    times: int
    folders: int  # that they were for
    images: int  # read this time
    of: int  # in the split
    ledger: Path
    note: str = ""  # why they may have been more; empty: nothing speaks for that

    def words(self) -> str:
        some = "" if self.images == self.of else f" ({self.images:,} of them this time)"
        where = "by this folder's own log" if self.note else f"ledger {self.ledger}"
        return f"these {counted(self.of, 'test image')}{some} have been read {counted(self.times, 'time')}, for {counted(self.folders, 'folder')} ({where})"


def ledger_path(asked: str | None) -> Path:
    """asked: the key `ledger`."""
    if asked:
        return Path(asked).expanduser()
    return user_folder("XDG_STATE_HOME", "~/.local/state") / "mpp" / TEST_READS


def log_test_read(
    folder: Path, test: Images, images: int, *, ledger: str | None, command: Sequence[str], encoder: str, named: str
) -> Reads:
    """Write down, flushed to the disk, that so many images of `test` are now read for `folder`; returns how often they have been, now included.

    ledger: as in the config; named: the words the split was asked for by.  Only what the images are, byte for byte, is looked at before that.  A ledger that cannot be written is noted; raises DataError for a log that is
    not one, OSError where the folder cannot be written.
    """
    own, shared, content = folder / TEST_READS, ledger_path(ledger), content_id(test.prints)
    entry = {
        "id": uuid.uuid4().hex,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(command),
        "encoder": encoder,
        "test": named,
        "test_identity": test.identity,
        "content": content,
        "images": images,
        "of": len(test),
        "folder": str(folder.resolve()),
    }
    line, note = json.dumps(entry).encode() + b"\n", ""
    _append(own, line)
    if shared.absolute() != own.absolute():
        try:
            if shared.parts[0] == "~":
                raise FileNotFoundError(2, "there is no home folder", str(shared))
            shared.parent.mkdir(parents=True, exist_ok=True)
            _append(shared, line)
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or error
            note = f"the ledger {shared} cannot be written ({reason}), so only reads noted in {own} are counted; give ledger= a file that you may write to"
    times, folders = reads_of([own] if note else [own, shared], content, test.identity)
    return Reads(times, folders, images, len(test), shared, note)


def reads_of(places: Iterable[Path], content: str, identity: str = "") -> tuple[int, int]:
    """How often images have been read, and for how many folders, by these logs or folders that may hold one; a read in several of them counts once.

    content: of the split.  identity: of the split, for lines that name no content (all lines, where `content` is empty).  Raises DataError for a
    damaged line, naming it.
    """
    found: dict[str, str] = {}
    for place in places:
        path = place / TEST_READS if place.is_dir() else place
        for number, entry in _entries(path):
            noted = entry.get("content")
            if noted == content if content and noted else entry["test_identity"] == identity:
                found[entry.get("id") or f"{path.resolve()}:{number}"] = entry.get("folder") or str(path.resolve().parent)
    return len(found), len(set(found.values()))


def _append(path: Path, line: bytes) -> None:
    """The whole line or nothing of it, after those of all others who write here."""
    with writing(path), path.open("ab+") as file:
        lock_folder(file, BUSY.format(path=path), seconds=LOCK_SECONDS)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line  # half a line, which a kill has left, stays one of its own
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(file.fileno(), left) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    if not size:
        sync_path(path.parent)


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a log, numbered from 1; none where it is not there.  Raises DataError."""
    try:
        with path.open("rb") as file:
            lock_folder(file, BUSY.format(path=path), shared=True, seconds=LOCK_SECONDS)
            lines = file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; it is the record of every read of the test split: make it readable") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["test_identity"], str):
                raise ValueError("test_identity is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is damaged in line {number} ({error}); put it right by hand: it is the record of every read of the test split"
            ) from error
        yield number, entry
