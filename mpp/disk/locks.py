"""One writer at a time in a folder: locks, and, for what no lock tells, leases.

A lock is the kernel's (flock): it ends with its holder, whatever happens to that.  On a shared file system it may not exist (ENOLCK ...), and it may
outlive a holder whose machine has died.  So who holds a folder for long also writes NAME.owner: host, process and job, and a count that goes on every
BEAT_SECONDS for as long as the holder lives.  Where there are no locks that lease keeps others out; where a lock is held and its lease has ceased to
count, the holder is gone and the lock is taken over, aloud.  A holder that was suspended, and finds its lease taken over when it goes on, ends at once.
"""

import fcntl
import json
import os
import platform
import secrets
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mpp.base.errors import BusyError
from mpp.base.progress import Progress
from mpp.base.text import say
from mpp.disk.files import temporary, writing
from mpp.processes.watch import leave_at_once, watch

LOCK_SECONDS = 10  # how long the workers of a killed run may take to notice and end
BEAT_SECONDS = 5.0  # between two counts of a lease
DEAD_SECONDS = 60.0  # without a count, after which a holder on another host is gone; longer than a file server takes to restart
_said: set[str] = set()  # warnings that were given


def hold_folder(path: Path, busy: str, *, shared: bool = False, seconds: float = LOCK_SECONDS) -> Any:
    """The open file `path`, made with its folder, held as `lock_folder` holds it; for folders whose last user removes them, lock and all.

    A lock that was removed while this process waited for it keeps nobody out, so the one that is there now is taken then.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = path.open("w")
        except FileNotFoundError:  # the folder was removed between the two
            continue
        try:
            lock_folder(lock, busy, shared=shared, seconds=seconds, leased=not shared)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def lock_folder(lock: Any, busy: str, *, shared: bool = False, seconds: float = LOCK_SECONDS, leased: bool = False) -> None:
    """Hold the open file `lock` until this process and those forked from it have ended.

    shared: beside other shared holders.  leased: write NAME.owner, too, for a folder that is held for long; an exclusive holder does so anyhow where the
    file system has no locks, which is said.  Raises BusyError(busy) when others still hold it after so many seconds, or, where one of another host
    might be gone, as soon as it is seen to live.
    """
    path, began, wait = Path(f"{lock.name}.owner"), time.monotonic(), Waiting()
    with Progress(f"waiting for another program to let go of {Path(lock.name).parent}") as bar:
        while True:
            lockable = True
            try:
                fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:
                _say_once(
                    f"{lock.name} cannot be locked ({error.strerror}): nothing but {path} and care keeps two programs from writing here at once"
                )
                lockable = False
                if shared:
                    return
            else:
                if leased and not shared:
                    _keep(lock, path, Owner.read(path))
                return
            owner = Owner.read(path)
            if not lockable and (owner is None or owner.has_ended) and _keep(lock, path, owner):
                return
            waited = time.monotonic() - began
            if owner and owner.is_elsewhere:
                if wait.is_gone(owner):
                    _say_once(
                        f"{path}: {owner.words} has not counted on for {DEAD_SECONDS:.0f} s, so its machine is gone, and the folder is taken over; if "
                        "it is still at work, stop one of the two"
                    )
                    if lockable:
                        _replace(lock)
                        wait = Waiting()  # for whoever was quicker
                    elif _keep(lock, path, owner):
                        return
                    continue
                waited = waited if wait.lives else 0.0  # until it is known
            if waited > seconds:
                raise BusyError(busy + (f" ({owner.words}, by {path})" if owner else ""))
            watch.moved("waiting for a lock", slow=True)
            bar.update(0)
            time.sleep(0.1)


@dataclass(frozen=True)
class Owner:
    """Who holds a folder, as NAME.owner says."""

    host: str
    pid: int
    began: str | None  # when that process began, in its kernel's words
    job: str = ""  # the batch system's number
    token: str = ""
    count: int = 0  # goes on for as long as it lives
    place: str = ""  # kernel and name space in which its pid counts

    @classmethod
    def this_process(cls) -> "Owner":
        job = next(
            (f"{name} {os.environ[name]}" for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID") if os.environ.get(name)), ""
        )
        return cls(platform.node(), os.getpid(), _began(os.getpid()), job, secrets.token_hex(8), place=_place())

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """None where there is none, or half of one."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host}{f', {self.job}' if self.job else ''}"

    @property
    def is_elsewhere(self) -> bool:
        return self.host != platform.node() or self.place not in ("", _place())

    @property
    def has_ended(self) -> bool:
        """On this host; of another it cannot be asked.  This process itself holds the folder no more when it asks for it."""
        return not self.is_elsewhere and (self.pid == os.getpid() or _began(self.pid) is None or _began(self.pid) != self.began)


class Waiting:
    """What is seen of the owner of a folder while one waits for it."""

    def __init__(self) -> None:
        self.lives = False
        self._last: Owner | None = None
        self._since = time.monotonic()

    def is_gone(self, owner: Owner) -> bool:
        if owner != self._last:
            self.lives = self._last is not None and owner.token == self._last.token
            self._last, self._since = owner, time.monotonic()
        return time.monotonic() - self._since > DEAD_SECONDS


def _keep(lock: Any, path: Path, before: Owner | None) -> bool:
    """Write NAME.owner in place of what was read there, and count on in it for as long as `lock` lives.  False where another was quicker."""
    mine = Owner.this_process()
    part = temporary(path)
    try:
        with writing(part):
            part.write_text(json.dumps(asdict(mine)))
        if before is not None or path.exists():  # whoever can rename it away may put its own there
            aside = temporary(path)
            path.rename(aside)
            there = Owner.read(aside)
            if there is not None and (
                before is None or there.token != before.token or there.pid != before.pid
            ):  # of one that came meanwhile
                aside.rename(path)
                return False
            aside.unlink()
        os.link(part, path)  # not over one that came meanwhile
    except (FileNotFoundError, FileExistsError):
        return False
    finally:
        part.unlink(missing_ok=True)
    over = threading.Event()
    weakref.finalize(lock, _let_go, path, mine, over)
    threading.Thread(target=_count, args=[path, mine, over], name="lease", daemon=True).start()
    return True


def _count(path: Path, mine: Owner, over: threading.Event) -> None:
    count = 0
    while not over.wait(BEAT_SECONDS):
        with suppress(OSError):  # a server that restarts: the next count may be written
            owner = Owner.read(path)
            if owner is not None and owner.token != mine.token:
                sys.stderr.write(
                    f"error: {path}: {owner.words} has taken this folder over while this process was suspended, or cut off; it ends\n"
                )
                leave_at_once(2)
            if owner is not None:
                count += 1
                part = temporary(path)
                part.write_text(json.dumps(asdict(replace(mine, count=count))))
                part.rename(path)


def _let_go(path: Path, mine: Owner, over: threading.Event) -> None:
    over.set()
    if os.getpid() == mine.pid and (owner := Owner.read(path)) and owner.token == mine.token:  # not in a fork
        path.unlink(missing_ok=True)


def _replace(lock: Any) -> None:
    """The file that a gone machine holds makes place for one that nobody holds, under its name and in this open file."""
    path = Path(lock.name)
    fresh = temporary(path)
    with fresh.open("w") as file:
        fresh.rename(path)
        os.dup2(file.fileno(), lock.fileno(), inheritable=False)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(f"warning: {text}", error=True)


def _place() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """When a process of this host began, in the kernel's words; None where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
