"""Shards that lie elsewhere, read through a folder on this machine's own disk, of which a keeper takes care (keeper.py).

    caching.use("/local/mpp", 500)           a program says which folder, and how much of it
    cached = cached_set("s3://...", peers)   None where the shards are read where they lie
    cached.want(["000003.tar"])              they are in cached.folder now
    moved = cached.plan(sampler, hand)       this process will read these micro-batches, in order
    moved(7)                                 and is done with the first seven

The first process of a machine begins the keeper, and the others ask it, too; it ends with that process.  No process but the keeper talks to a store.
"""

import base64
import json
import os
import pickle
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError, of_this_rank
from mpp.base.progress import Progress, minutes
from mpp.base.text import sized
from mpp.data.in_hand import InHand
from mpp.data.order import Sampler
from mpp.disk.patience import disks
from mpp.processes.launch import orphaned
from mpp.processes.peers import ALONE, Peers
from mpp.processes.watch import watch
from mpp.remote.retries import shown
from mpp.remote.urls import is_url

# Ranges come and go by megabytes: kept memory is not asked of the system again, page by page.
MEMORY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
LOOK_SECONDS = 1.0  # between two looks whether there is still anybody to wait for
BEGINNING_SECONDS = 60.0  # for a keeper to answer that it is there


class Caching:
    """Of this process, and of those forked from it."""

    folder: str | None = None  # system.cache
    gigabytes: float | None = None  # system.cache_gb

    def use(self, folder: str | None, gigabytes: float | None) -> None:
        self.folder, self.gigabytes = folder, gigabytes

    @property
    def place(self) -> Path:
        """The folder that was asked for, or one of this user's below TMPDIR, which is on a machine's own disk."""
        return Path(self.folder) if self.folder else Path(tempfile.gettempdir()) / f"mpp-cache-{os.getuid()}"

    def takes(self, where: str) -> bool:
        """Whether shards there are read through the cache: URLs are, and folders where a cache was asked for."""
        return is_url(where) or self.folder is not None


caching = Caching()


class CachedSet:
    """One set in the cache, as one process sees it.  Safe to fork; several threads may ask."""

    def __init__(self, where: str, address: str, told: dict):
        """told: the keeper's answer to `open`."""
        self.where, self.address = where, address
        self.folder, self.key = Path(told["folder"]), str(told["set"])
        # Bytes, of all sets in `cache`: that they may take, and that its disk has for them.
        self.limit, self.room = int(told["limit"]), int(told["room"])
        self.cache = self.folder.parent.parent
        self.sizes: dict[str, int] = told["sizes"]  # of shards that are not as large there as the manifest says; -1: not there

    def want(self, names: Sequence[str]) -> None:
        """Wait until all are there.  Raises DataError where one cannot be had."""
        _ask(self.address, {"do": "want", "set": self.key, "shards": list(names)}, f"waiting for {shown(self.where)}")

    def suspect(self, name: str) -> None:
        """A sample was not what the index says: a copy of its shard that is at fault is fetched anew.  Raises as `want`."""
        _ask(self.address, {"do": "suspect", "set": self.key, "shard": name}, f"looking at {shown(self.where)}")

    def plan(self, sampler: Sampler, hand: int) -> Callable[[int], None]:
        """hand: bytes of the shards that the reader has in hand at most.  What is given takes how many micro-batches are done with, -1 for all.  Raises
        DataError where other jobs have the room."""
        wanted = {"do": "plan", "set": self.key, "sampler": base64.b64encode(pickle.dumps(sampler)).decode(), "hand": hand}
        number = _ask(self.address, wanted, "planning what to fetch")["plan"]
        process = os.getpid()

        def moved(batch: int) -> None:
            if os.getpid() == process:
                _tell(
                    self.address, {"do": "done", "plan": number} if batch < 0 else {"do": "at", "plan": number, "batch": batch}, batch < 0
                )

        return moved

    def status(self) -> dict[str, Any]:
        """bytes, shards, seconds: fetched by this job so far; held: bytes of this set that are there."""
        return _ask(self.address, {"do": "status", "set": self.key}, "")


def cached_set(where: str, peers: Peers = ALONE) -> CachedSet | None:
    """Collective.  None where shards are read where they lie.  Raises DataError."""
    if not caching.takes(where):
        return None
    opened = lambda address: {"address": address, **_ask(address, {"do": "open", "where": where}, f"opening {shown(where)}")}
    mine = peers.together(lambda: opened(_keeper()) if peers.first_of_host else None)
    told = peers.gather(mine)[peers.hosts.index(peers.hosts[peers.rank])]
    own = not (Path(told["address"]).exists() and Path(told["folder"]).exists())  # in a container beside that of the other
    told = peers.together(lambda: opened(_keeper()) if own else told)
    return CachedSet(where, told.pop("address"), told)


def fetched_words(sets: Sequence[CachedSet], hand: InHand) -> str:
    """How far the cache is, for the start of a run.  hand: of this machine, of all these sets."""
    told = [cached.status() for cached in sets]
    rate = told[0]["bytes"] / told[0]["seconds"] if told[0]["seconds"] else 0.0
    held = sum(each["held"] for each in told)
    left = max(0, hand.bytes - held)
    there = f"{sized(held)} are there"
    there += f", at {rate / 1e6:,.0f} MB/s all of that in about {minutes(left / rate)}" if left and rate else ""
    return f"shards come through {sets[0].cache} (limit {sized(sets[0].limit)}) | in hand of this machine up to {hand} | {there}"


# ------------------------------------------------------------------------------------------------ the keeper, from outside

_keepers: dict[tuple, tuple[subprocess.Popen, str]] = {}  # of this process, by folder and limit
_local = threading.local()  # connections of this thread, by process and address


def _keeper() -> str:
    """The address of the keeper of this process, which begins it.  Raises DataError."""
    known = os.getpid(), str(caching.place), caching.gigabytes
    if known in _keepers and _keepers[known][0].poll() is None:
        return _keepers[known][1]
    facts = {"folder": str(caching.place.absolute()), "gigabytes": caching.gigabytes, "patience": disks.patience}
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "OMP_NUM_THREADS")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mpp.data.keeper", json.dumps(facts)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment | MEMORY,
    )
    assert process.stdout is not None
    with Progress("beginning the keeper of the cache"):
        ready, _, _ = select.select([process.stdout], [], [], BEGINNING_SECONDS)
        line = process.stdout.readline() if ready else b""
    process.stdout.close()
    try:
        told = json.loads(line)
    except ValueError:
        process.kill()
        raise of_this_rank(
            DataError(f"the keeper of system.cache={caching.place} did not begin; its own message, if it left one, says why")
        ) from None
    if "error" in told:
        raise of_this_rank(DataError(told["error"]))
    _keepers[known] = process, told["address"]
    return told["address"]


def end_keepers() -> None:
    """Those of this process, which end with it otherwise: for tests, which are many programs in one process."""
    for known in [known for known in _keepers if known[0] == os.getpid()]:
        process, _ = _keepers.pop(known)
        process.kill()
        process.wait()


class _Line:
    """A connection."""

    def __init__(self, address: str):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.socket.settimeout(LOOK_SECONDS)
        self.rest = b""

    def send(self, asked: dict, what: str) -> None:
        """Waits for a keeper that does not read just now, as where another job's holds the folder of both."""
        self._send(json.dumps(asked).encode() + b"\n", what)

    def _send(self, data: bytes, what: str) -> None:
        with Progress(what) as bar:
            end = time.monotonic() + watch.slow
            while data:
                try:
                    data = data[self.socket.send(data) :]
                except TimeoutError:
                    _go_on_waiting(bar, end, what)

    def tell(self, asked: dict, what: str) -> None:
        """Waits for nobody: what a keeper that does not read has no room for is left out."""
        line, sent = json.dumps(asked).encode() + b"\n", 0
        self.socket.setblocking(False)
        try:
            sent = self.socket.send(line)
        except BlockingIOError:
            return
        finally:
            self.socket.settimeout(LOOK_SECONDS)
        if sent < len(line):
            self._send(line[sent:], what)

    def receive(self, what: str) -> dict:
        with Progress(what) as bar:
            end = time.monotonic() + watch.slow
            while b"\n" not in self.rest:
                try:
                    if not (data := self.socket.recv(1 << 16)):
                        raise ConnectionResetError("it has ended")
                except TimeoutError:
                    _go_on_waiting(bar, end, what)
                    continue
                self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)


def _go_on_waiting(bar: Progress, end: float, what: str) -> None:
    """Each second, for the keeper.  Raises DataError from `end` on, a moment of time.monotonic."""
    bar.update(0)
    if orphaned():
        raise ConnectionResetError("the process that this one loads for has ended") from None
    watch.moved("waiting for shards", slow=True)
    if time.monotonic() > end:
        raise of_this_rank(
            DataError(f"the keeper of the cache has not answered for {watch.slow:.0f} s ({what}); end this job and begin it again")
        ) from None


def _line(address: str) -> _Line:
    lines = _local.__dict__.setdefault("lines", {})
    known = os.getpid(), address
    if known not in lines:
        lines[known] = _Line(address)
    return lines[known]


def _tell(address: str, asked: dict, must: bool) -> None:
    """must: what is told next does not make up for it."""
    what = "telling the keeper of the cache"
    try:
        line = _line(address)
        if must:
            line.send(asked, what)
        else:
            line.tell(asked, what)
    except OSError as error:
        raise _gone(error) from error


def _ask(address: str, asked: dict, what: str) -> dict:
    try:
        line = _line(address)
        line.send(asked, what)
        told = line.receive(what)
    except OSError as error:
        raise _gone(error) from error
    if "error" in told:
        raise of_this_rank(DataError(told["error"]))
    return told


def _gone(error: OSError) -> Exception:
    return of_this_rank(
        DataError(
            f"the keeper of the cache, a process of this machine, is gone ({error}): if memory ran out, give the job more, then resume"
        )
    )
