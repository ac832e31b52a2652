"""What the keeper of a machine's cache (keeper.py) is asked, what it fetches, and when: sets that are opened, plans of those who read, threads that fetch.

`Keeper.answer` is called by a thread for each connection, `Keeper.work` by threads that fetch; all they share is held by one lock, and no request to a
store is waited for under it.
"""

import base64
import hashlib
import heapq
import itertools
import math
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mpp.base.errors import DataError, UserError, disk_fault
from mpp.base.text import say, sized
from mpp.data.cache_folder import CacheFolder, Part, Shard
from mpp.data.fetch_plan import Plan
from mpp.data.origins import Origin, origin_of
from mpp.data.shard_format import MANIFEST, Manifest, manifest_in
from mpp.data.shard_table import ShardEntry
from mpp.disk.files import being_written, sha256_of, write_atomically
from mpp.disk.patience import disks
from mpp.remote.retries import InTroubleError, Refused, Trouble

TRIED = 8  # shards at a time, of which other jobs may be fetching some
BEGUN = 4  # shards at once, so that the first one needed is there first
RENEWED = 3  # times that an answer which asking again would not change is asked for all the same, with credentials that are looked for anew
SECONDS_BETWEEN = 5.0  # tries of a shard that could not be had
TOLD_EVERY = 30.0  # seconds between two such lines
TELLING = 10.0  # seconds of trouble from which on people are told
CLAIMED_EVERY = 1.0  # seconds


class Kept:
    """A set that is read through the cache."""

    def __init__(self, origin: Origin, folder: Path, key: str, manifest: Manifest):
        self.origin, self.folder, self.key = origin, folder, key
        self.shards = manifest.shards
        self.starts = np.cumsum(np.array(manifest.shards.samples, np.int64)) - manifest.shards.samples
        self.mean_bytes = sum(manifest.shards.bytes) // max(1, len(manifest.shards))
        self._names = np.array(manifest.shards.names)
        self._by_name = np.argsort(self._names, kind="stable")
        self.odd: set[str] = set()  # whose sha256 is not the manifest's, also when fetched again: their samples are checked one by one

    def entry(self, name: str) -> ShardEntry:
        """Raises KeyError.  By bisection: a dict of them would take more than all the rest of a large set."""
        wanted = os.fsencode(name)
        at = int(np.searchsorted(self._names, wanted, sorter=self._by_name)) if len(wanted) <= self._names.itemsize else len(self._names)
        if at == len(self._names) or self._names[number := int(self._by_name[at])] != wanted:
            raise KeyError(name)
        return self.shards[number]

    def names(self) -> Iterator[str]:
        return map(os.fsdecode, self.shards.names)


class Fetching:
    """A shard on its way."""

    def __init__(self, shard: Shard, kept: Kept, part: Part):
        self.shard, self.kept, self.part = shard, kept, part
        self.next = self.pending = 0  # byte from which on nobody has been asked; ranges on their way
        self.error: Exception | None = None

    @property
    def has_more(self) -> bool:
        return self.error is None and self.next < self.part.size


class Failure:
    def __init__(self) -> None:
        self.since = self.next = time.monotonic()
        self.times, self.error, self.final, self.told = 0, "", False, False


class Keeper:
    def __init__(self, folder: CacheFolder):
        self.folder = folder
        lock = threading.RLock()
        self.changed = threading.Condition(lock)  # something came, or cannot come: for those who wait for it
        self.to_fetch = threading.Condition(lock)  # there may be something to fetch, or room for it
        self.sets: dict[str, Kept] = {}
        self.plans: dict[int, Plan] = {}
        self.hands: dict[int, int] = {}  # bytes that each plan has in hand
        self.wanted: Counter[Shard] = Counter()
        self.fetching: dict[Shard, Fetching] = {}
        self.failures: dict[Shard, Failure] = {}
        self.present: set[Shard] = set()
        self.wrong: dict[Shard, str] = {}  # sha256 of what came last time, where that is not the manifest's
        self.bytes, self.shards, self.began, self.last = 0, 0, 0.0, 0.0  # fetched; when that began, and when something came last
        self._numbers, self._claimed, self._told = itertools.count(1), 0.0, -math.inf

    # ------------------------------------------------------------------------------------------------ what is asked

    def answer(self, asked: dict, plans: set[int]) -> dict | None:
        """plans: of the connection."""
        match asked["do"]:
            case "open":
                return self.open(asked["where"])
            case "want":
                return self.want([Shard(asked["set"], name) for name in asked["shards"]])
            case "plan":
                return self.plan(asked, plans)
            case "at":
                self.at(asked["plan"], asked["batch"])
                return None
            case "done":
                self.drop({asked["plan"]} & plans)
                return None
            case "suspect":
                return self.suspect(Shard(asked["set"], asked["shard"]))
            case "status":
                return self.status(self.sets[asked["set"]])
        raise DataError(f"the keeper of a cache is asked for {asked['do']!r}, which it does not know")

    def open(self, where: str) -> dict:
        """Manifest and index are fetched, and sizes looked up; of a store that is in trouble, as when all nodes of a cluster begin at once, again and
        again for the patience of a shard.  Raises DataError."""
        began = told = time.monotonic()
        while True:
            try:
                return self._open(where)
            except InTroubleError as error:
                now = time.monotonic()
                if now - began > disks.patience:
                    raise
                if now - told > TELLING:
                    told = now + TOLD_EVERY - TELLING
                    say(f"warning: {str(error).partition('; ')[0]}; it is tried again, for up to {disks.patience:.0f} s", error=True)
            time.sleep(min(SECONDS_BETWEEN, disks.patience / 4))

    def _open(self, where: str) -> dict:
        origin = origin_of(where)
        try:
            data = origin.small(MANIFEST)
        except Refused as error:
            raise DataError(
                f"{where}: has no {MANIFEST} that can be read ({error}), so it is no finished set of shards; check the address and your access to it"
            ) from error
        except OSError as error:
            raise DataError(f"{where}: {error.strerror or error}; check the disk, mount and permissions") from error
        manifest = manifest_in(data, origin.where(MANIFEST))
        key = _key_of(data)
        folder = self.folder.sets / key
        folder.mkdir(exist_ok=True)
        write_atomically(folder / MANIFEST, data)
        with self.changed:
            kept = self.sets.setdefault(key, Kept(origin, folder, key, manifest))
            kept.origin = origin
        index = folder / manifest.index.name
        if not index.is_file() or index.stat().st_size != manifest.index.bytes or sha256_of(index) != manifest.index.sha256:
            self._fetch_index(kept, manifest, index)
        faults = self._wrong_sizes(kept)
        there = {file.name for file in os.scandir(folder) if file.is_file()}
        with self.changed:
            self.present |= {Shard(key, name) for name in kept.names() if name in there}
        return {"folder": str(folder), "set": key, "limit": self.folder.limit, "room": self.folder.room(), "sizes": faults}

    def _fetch_index(self, kept: Kept, manifest: Manifest, path: Path) -> None:
        entry, origin = manifest.index, kept.origin
        for last in (False, True):
            try:
                with being_written(path) as file:

                    def write(data: bytes, at: int, file: BinaryIO = file) -> None:
                        file.seek(at)
                        file.write(data)

                    while (done := file.seek(0, os.SEEK_END)) < entry.bytes:
                        if not origin.fetch(entry.name, done, min(entry.bytes, done + (origin.range_bytes or entry.bytes)), write):
                            break
            except (Refused, OSError) as error:
                fault = self.fault_of_cache(error)
                raise DataError(fault or f"{origin.where(entry.name)}: {error}; check it and your access to it") from error
            if (found := sha256_of(path)) == entry.sha256:
                return
            path.unlink()
            if last:
                raise DataError(
                    f"{origin.where(entry.name)}: sha256 is {found[:12]}..., the manifest says {entry.sha256[:12]}...; copy the split again"
                )

    def fault_of_cache(self, error: Exception) -> str:
        """One line about the disk of the cache, where that has failed and not the place where the shards lie; else empty."""
        own = isinstance(error, OSError) and str(error.filename or "").startswith(str(self.folder.path))
        fault = disk_fault(error) if own else None
        return f"system.cache={self.folder.path}: {fault}, or give another folder; then resume" if fault else ""

    def _wrong_sizes(self, kept: Kept) -> dict[str, int]:
        """Of shards whose size there is not the manifest's; -1 for none."""
        try:
            found = kept.origin.sizes(kept.names())
        except (Refused, OSError) as error:
            raise DataError(f"{kept.origin.where()}: cannot be listed ({error}); check the address and your access to it") from error
        if found is None:
            return {}
        each = zip(kept.names(), kept.shards.bytes, strict=True)
        return {name: there for name, size in each if (there := found.get(name, -1)) != size}

    def want(self, shards: list[Shard]) -> dict:
        with self.changed:
            self.wanted.update(shards)
            self.to_fetch.notify_all()
            try:
                self.present.difference_update([shard for shard in shards if not self.folder.has(shard)])  # another job may have removed it
                while missing := [shard for shard in shards if shard not in self.present]:
                    for shard in missing:
                        if (failure := self.failures.get(shard)) and failure.final:
                            self.failures.pop(shard)  # who asks again, has it tried again
                            raise DataError(failure.error)
                    self.changed.wait(1.0)
                return {}
            finally:
                self.wanted.subtract(shards)
                self.wanted = +self.wanted

    def plan(self, asked: dict, plans: set[int]) -> dict:
        kept = self.sets[asked["set"]]
        sampler = pickle.loads(base64.b64decode(asked["sampler"]))  # of the job's own process: nobody else reaches this socket
        with self.changed:
            theirs = sum(told["hand"] for told in self.folder.others())
            hand = asked["hand"] + sum(self.hands.values())
            if theirs and theirs + hand > self.folder.limit:
                pids = ", ".join(str(told["pid"]) for told in self.folder.others() if told["hand"])
                raise DataError(
                    f"system.cache={self.folder.path}: other jobs here (processes {pids}) have up to {sized(theirs)} in hand and this one "
                    f"{sized(hand)}, beyond the limit of {sized(self.folder.limit)}; raise system.cache_gb, or give this job another folder"
                )
            number = next(self._numbers)
            self.plans[number], self.hands[number] = Plan(sampler, kept.key, kept.shards.names, kept.starts), asked["hand"]
            plans.add(number)
            self._claim(at_once=True)
            self.to_fetch.notify_all()
        return {"plan": number}

    def at(self, number: int, batch: int) -> None:
        with self.changed:
            if plan := self.plans.get(number):
                plan.moved(batch)
                self.to_fetch.notify()

    def drop(self, numbers: set[int]) -> None:
        with self.changed:
            for number in numbers:
                self.plans.pop(number, None)
                self.hands.pop(number, None)
            self.to_fetch.notify()

    def suspect(self, shard: Shard) -> dict:
        """A copy that is not of the manifest's sha256 is fetched again, once; what is there then is as good as it gets."""
        kept = self.sets[shard.key]
        place = self.folder.place(shard)
        with suppress(FileNotFoundError):
            if shard.name in kept.odd or sha256_of(place) == kept.entry(shard.name).sha256:
                return {}
        say(f"warning: {place} is not what was fetched: a disk's fault, or somebody's; it is fetched again", error=True)
        with self.changed:
            self.folder.remove(shard)
            self.present.discard(shard)
        return self.want([shard])

    def status(self, kept: Kept) -> dict:
        with self.changed:
            seconds = max(0.0, self.last - self.began)
            held = sum(kept.entry(shard.name).bytes for shard in self.present if shard.key == kept.key)
            return {"bytes": self.bytes, "shards": self.shards, "seconds": seconds, "held": held}

    # ------------------------------------------------------------------------------------------------ what is fetched, and when

    def work(self) -> None:
        """Of a thread that fetches."""
        while True:
            fetching, start, end = self._next()
            try:
                came = fetching.kept.origin.fetch(fetching.shard.name, start, end, fetching.part.write)
                if came < end - start:
                    raise Trouble(f"ends at byte {start + came}, the manifest says {fetching.part.size}")
                error: Exception | None = None
            except Exception as found:  # whatever it is: it is told to who waits, and nothing is left hanging
                error, came = found, 0
            with self.changed:
                self.bytes, self.last = self.bytes + came, time.monotonic()
                fetching.error = fetching.error or error
                fetching.pending -= 1
                complete = not fetching.pending and not fetching.has_more
            if complete:
                self._complete(fetching)

    def _next(self) -> tuple[Fetching, int, int]:
        """The range to fetch next: of the shard that is needed first; waits until there is one."""
        with self.changed:
            while True:
                for shard in sorted(self.fetching, key=self._urgency):
                    if (fetching := self.fetching[shard]).has_more:
                        return self._range(fetching)
                if len(self.fetching) < BEGUN and (begun := self._begin()):
                    return self._range(begun)
                self.to_fetch.wait(1.0)

    def _range(self, fetching: Fetching) -> tuple[Fetching, int, int]:
        start = fetching.next
        fetching.next = end = min(fetching.part.size, start + (fetching.kept.origin.range_bytes or fetching.part.size))
        fetching.pending += 1
        self.to_fetch.notify()  # another thread takes the next one
        return fetching, start, end

    def _urgency(self, shard: Shard) -> float:
        """Micro-batches until it is needed; below 0 where somebody waits for it."""
        if self.wanted[shard]:
            return -1.0
        return min((plan.distance(shard) for plan in self.plans.values()), default=math.inf)

    def _begin(self) -> Fetching | None:
        """Begin the missing shard that is needed first, if there is room for it."""
        mean = max((kept.mean_bytes for kept in self.sets.values()), default=1)
        for plan in self.plans.values():
            plan.look(2 + self.folder.limit // max(1, mean))
        self._claim()
        now = time.monotonic()
        known = {*self.wanted, *(shard for plan in self.plans.values() for shard in plan.uses)}
        missing = [
            shard
            for shard in known - self.present - self.fetching.keys()
            if not (failure := self.failures.get(shard)) or (failure.next <= now and not failure.final)
        ]
        for shard in heapq.nsmallest(TRIED, missing, key=lambda each: (self._urgency(each), each)):
            begun = self._try(shard)
            if isinstance(begun, Fetching):
                return begun
            if begun in ("full", "disk full"):  # there is no room for what is needed later, either
                return None
        return None

    def _try(self, shard: Shard) -> Fetching | str:
        """Or why not."""
        try:
            return self._tried(shard)
        except OSError as error:
            return self._fails(shard, error)

    def _tried(self, shard: Shard) -> Fetching | str:
        kept = self.sets[shard.key]
        if self.folder.has(shard):  # another job of this machine has fetched it
            return self._appears(shard)
        size = kept.entry(shard.name).bytes
        part = self.folder.begin(shard, size, self._urgency)
        self.present -= self.folder.removed
        self.folder.removed.clear()
        if isinstance(part, str):
            return self._has_no_room(shard, size, part)
        if self.folder.has(shard):  # it has come in between
            part.discard()
            return self._appears(shard)
        self.began = self.began or time.monotonic()
        self.fetching[shard] = Fetching(shard, kept, part)
        return self.fetching[shard]

    def _has_no_room(self, shard: Shard, size: int, why: str) -> str:
        """Nothing to do as long as nobody waits for it."""
        if why == "elsewhere" or not self.wanted[shard]:
            return why
        if why == "disk full" or size > self.folder.limit or not self.fetching:
            words = (
                f"the disk has {sized(self.folder.free())} left"
                if why == "disk full"
                else f"its limit of {sized(self.folder.limit)} is reached by what is needed sooner, here or by other jobs"
            )
            room = DataError(
                f"system.cache={self.folder.path} has no room for {self.sets[shard.key].origin.where(shard.name)} ({sized(size)}): {words}; "
                "make room there, raise system.cache_gb, or give another folder"
            )
            self._fails(shard, room)
        return why

    def _appears(self, shard: Shard) -> str:
        with suppress(OSError):
            os.utime(self.folder.place(shard))
        self.present.add(shard)
        self.failures.pop(shard, None)
        self.changed.notify_all()
        self.to_fetch.notify()
        return "there"

    def _complete(self, fetching: Fetching) -> None:
        """All ranges of a shard have come, or one has failed."""
        shard, kept, error = fetching.shard, fetching.kept, fetching.error
        entry = kept.entry(shard.name)
        found = ""
        if error is None:
            try:
                found = sha256_of(fetching.part.path)
            except OSError as failed:
                error = failed
        if error is None and shard.name not in kept.odd and found != entry.sha256:
            where = kept.origin.where(shard.name)
            if self.wrong.get(shard) != found:
                self.wrong[shard] = found
                error = Trouble(f"sha256 is {found[:12]}..., the manifest says {entry.sha256[:12]}...")
            elif self._was_replaced(kept):
                error = Refused("is another file now, and so is the manifest.json beside it: another set has taken the place of this one")
            else:
                kept.odd.add(shard.name)
                say(
                    f"warning: {where}: its sha256 is {found[:12]}..., also when fetched again, the manifest says {entry.sha256[:12]}...: it is used, and "
                    "each of its samples checked",
                    error=True,
                )
        if error is None:
            try:
                self.folder.publish(fetching.part)
            except OSError as failed:
                error = failed
        with self.changed:
            del self.fetching[shard]
            if error is None:
                self.shards += 1
                self._appears(shard)
            else:
                fetching.part.discard()
                self._fails(shard, error)
            self.to_fetch.notify_all()

    def _was_replaced(self, kept: Kept) -> bool:
        """Whether the manifest there is another one now; not where that cannot be told."""
        try:
            return _key_of(kept.origin.small(MANIFEST)) != kept.key
        except (UserError, Refused, OSError):
            return False

    def _fails(self, shard: Shard, error: Exception) -> str:
        """Note it; it is tried again until the patience ends, or where asking again would change nothing a few times with other credentials."""
        failure, origin, now = self.failures.setdefault(shard, Failure()), self.sets[shard.key].origin, time.monotonic()
        failure.times += 1
        failure.next = now + min(SECONDS_BETWEEN, disks.patience / 4, 0.1 * 4**failure.times)
        words = str(error) or type(error).__name__
        where = origin.where(shard.name)
        said = words if isinstance(error, UserError) else f"{where}: {words}; check it and your access to it, then resume"
        failure.error = self.fault_of_cache(error) or said
        if isinstance(error, Refused):
            origin.renew()
            failure.final = failure.times > RENEWED
        else:
            if "credentials" in words:
                origin.renew()
            failure.final = now - failure.since > disks.patience
        due = not failure.told and now - self._told > TOLD_EVERY  # of many shards in trouble one stands for all
        if (failure.final or now - failure.since > TELLING) and due and not (failure.final and self.wanted[shard]):
            failure.told, self._told = True, now
            needed = f"waited for, for up to {disks.patience:.0f} s" if self.wanted[shard] else "needed later"
            say(f"warning: {failure.error.partition('; ')[0]}; it is {needed}, and tried again", error=True)
        if failure.final and not self.wanted[shard]:  # it is somebody's only when it is needed
            failure.final, failure.times, failure.next = False, 0, now + 60.0
        self.changed.notify_all()
        return "failed"

    def _claim(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._claimed < CLAIMED_EVERY:
            return
        self._claimed = now
        soon = {shard for plan in self.plans.values() for shard in plan.uses if shard in self.present or shard in self.fetching}
        with suppress(OSError):  # a full disk: then others may have a shard make way that is asked for again
            self.folder.claim(sum(self.hands.values()), sorted(soon | set(self.wanted)))


def _key_of(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:32]
