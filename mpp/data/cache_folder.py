"""A folder on a machine's own disk that holds shards of sets that lie elsewhere, within a limit, for all jobs of a user on that machine.

    FOLDER/lock                         held while files are counted, removed or begun
    FOLDER/keepers/TOKEN                of each job that is alive, which holds it (flock): what it has in hand, in JSON
    FOLDER/sets/KEY/manifest.json       KEY: the first 32 letters of the manifest's sha256
    FOLDER/sets/KEY/000003.tar          whole, and of the manifest's sha256
    FOLDER/sets/KEY/.000003.tar.part    is being fetched by whoever holds it (flock); of a job that was killed nobody does

A file may be removed at any time: who has it open goes on reading it, and who has not asks for it again.  So nothing here can make a run wrong, only
slow.
"""

import errno
import fcntl
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mpp.base.errors import DataError
from mpp.disk.files import make_folder, writing

PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT)
SPARE = 0.02  # of a disk, which is left free


class Shard(NamedTuple):
    key: str  # of its set
    name: str


class Held(NamedTuple):
    """What is in a cache."""

    shard: Shard
    bytes: int
    touched: float  # when it was last asked for
    part: bool


@contextmanager
def _where_known() -> Iterator[None]:
    """Some file systems reserve nothing; there a full disk shows when it is written to."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


class Part:
    """A shard that is being fetched: an open file of its size, which gets its name when it is whole."""

    def __init__(self, path: Path, handle: int, size: int):
        self.path, self.handle, self.size = path, handle, size

    def write(self, data: bytes, start: int) -> None:
        view = memoryview(data)
        with writing(self.path):
            while view:
                written = os.pwrite(self.handle, view, start)
                view, start = view[written:], start + written

    def discard(self) -> None:
        with suppress(OSError):  # on a disk that is at fault, which shows elsewhere
            self.path.unlink()
        os.close(self.handle)


class CacheFolder:
    def __init__(self, path: Path, gigabytes: float | None):
        """gigabytes: that all sets here may take together; None: half of what the disk has for them.  Raises UserError for a folder that is not ours."""
        with suppress(OSError):  # which is told below
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)  # nobody else's to read
        make_folder(path, "system.cache")
        if (owner := path.stat()).st_uid != os.getuid():
            raise DataError(f"system.cache={path} belongs to user {owner.st_uid}; give a folder of your own")
        self.path, self.token = path, f"{os.getpid()}-{secrets.token_hex(6)}"
        for folder in (self.sets, self.keepers):
            folder.mkdir(exist_ok=True)
        self.limit = int(gigabytes * 1e9) if gigabytes is not None else self.room() // 2
        self.removed: set[Shard] = set()  # by this job, which takes note of it
        # Unbuffered: a disk that is full then fails where it is written, not where it is closed.
        self._claim = (self.keepers / self.token).open("wb", buffering=0)
        fcntl.flock(self._claim, fcntl.LOCK_EX)

    @property
    def sets(self) -> Path:
        return self.path / "sets"

    @property
    def keepers(self) -> Path:
        return self.path / "keepers"

    def close(self) -> None:
        with suppress(OSError):  # as in `discard`
            (self.keepers / self.token).unlink()
        self._claim.close()

    def place(self, shard: Shard) -> Path:
        return self.sets / shard.key / shard.name

    def has(self, shard: Shard) -> bool:
        return self.place(shard).is_file()

    def free(self) -> int:
        """Bytes of the disk that may be taken."""
        found = os.statvfs(self.path)
        return max(0, found.f_bavail * found.f_frsize - int(SPARE * found.f_blocks * found.f_frsize))

    def room(self) -> int:
        """Bytes that shards may take here, were there nothing else to limit them: those of the disk, and what they have taken."""
        return self.free() + sum(held.bytes for held in self.held())

    def held(self) -> Iterator[Held]:
        for folder in os.scandir(self.sets):
            with suppress(FileNotFoundError, NotADirectoryError):
                for entry in os.scandir(folder.path):
                    if not entry.name.endswith((".tar", ".TAR", PART)):
                        continue
                    with suppress(FileNotFoundError):
                        status, part = entry.stat(), entry.name.endswith(PART)
                        name = entry.name[1 : -len(PART)] if part else entry.name
                        yield Held(Shard(folder.name, name), status.st_blocks * 512 if part else status.st_size, status.st_mtime, part)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with (self.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def begin(self, shard: Shard, size: int, next_use: Callable[[Shard], float]) -> Part | str:
        """A part of so many bytes, for which others make room that are needed later; or why not now: "full", "disk full", or "elsewhere": another
        job of this machine is fetching it.  next_use: of a shard, in any unit; infinite for those nobody is known to need."""
        path = self.place(shard).with_name(f".{shard.name}{PART}")
        with self.locked():
            path.parent.mkdir(exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return "elsewhere"
            part = Part(path, handle, size)
            try:
                with writing(path):
                    os.ftruncate(handle, 0)
                    why = self._make_room(shard, size, next_use)
                    if not why:
                        with _where_known():
                            os.posix_fallocate(handle, 0, max(size, 1))
                        os.ftruncate(handle, size)
                        return part
            except OSError as error:
                part.discard()
                if error.errno in FULL:
                    return "disk full"
                raise
            part.discard()
            return why

    def publish(self, part: Part) -> None:
        """Its name, without waiting for the disk: what a machine that fails leaves half-written under it is found by each sample's CRC-32, and fetched
        anew.  Not while files are counted, which would be counted twice or not at all."""
        with self.locked():
            part.path.rename(part.path.with_name(part.path.name[1 : -len(PART)]))
        os.close(part.handle)

    def _make_room(self, shard: Shard, size: int, next_use: Callable[[Shard], float]) -> str:
        held = [each for each in self.held() if each.shard != shard or not each.part]
        lost = [each for each in held if each.part and self._is_abandoned(each.shard)]
        held = [each for each in held if each not in lost]
        used = sum(each.bytes for each in held)
        here = lambda: min(self.limit - used, self.free())
        if here() >= size:
            return ""
        claimed, own = self.claims(), next_use(shard)
        later = [(next_use(each.shard), each) for each in held if not each.part and each.shard not in claimed]
        later = [(use, each) for use, each in later if use > own or math.isinf(use)]
        later.sort(key=lambda pair: (-pair[0], pair[1].touched))
        disk = self.free() + sum(each.bytes for _, each in later) < size
        if disk or self.limit - used + sum(each.bytes for _, each in later) < size:
            return "disk full" if disk and self.limit - used >= size else "full"
        for _, each in later:
            if here() >= size:
                break
            self.remove(each.shard)
            used -= each.bytes
        return "" if here() >= size else "disk full"

    def _is_abandoned(self, shard: Shard) -> bool:
        """Remove the part of a job that was killed."""
        path = self.place(shard).with_name(f".{shard.name}{PART}")
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            path.unlink(missing_ok=True)
        return True

    def remove(self, shard: Shard) -> None:
        self.place(shard).unlink(missing_ok=True)
        self.removed.add(shard)

    def claim(self, hand: int, shards: list[Shard]) -> None:
        """Tell other jobs what this one has in hand: bytes that it needs at once, and the shards it is about to read."""
        sets: dict[str, list[str]] = {}
        for shard in shards:
            sets.setdefault(shard.key, []).append(shard.name)
        self._claim.seek(0)
        self._claim.write(json.dumps({"pid": os.getpid(), "hand": hand, "shards": sets}).encode())
        self._claim.truncate()

    def others(self) -> Iterator[dict]:
        """What other living jobs have told."""
        for path in self.keepers.iterdir():
            if path.name == self.token or path.name.startswith("."):
                continue
            with suppress(FileNotFoundError), path.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    with suppress(ValueError):  # it is just being written
                        yield json.loads(file.read())
                else:
                    path.unlink(missing_ok=True)

    def claims(self) -> set[Shard]:
        return {Shard(key, name) for told in self.others() for key, names in told["shards"].items() for name in names}
