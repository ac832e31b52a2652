"""A run folder's copy in an object store, and the process beside rank 0 that keeps it (mpp/train/copies.py starts it, and asks).

    WHERE/checkpoints/000012500/...   parts, then what else a resume or a reader needs, then COMMIT.json, without which no checkpoint exists
    WHERE/metrics.jsonl ...           as in the run folder
    WHERE/lease.json                  who writes here: host, process, job, and a count that goes on for as long as that lives

It is a process of its own, started as a program, for three reasons: gcsfs's event loop does not survive a fork, and loader processes are
forked; the training thread does not wait for this one's Python; and what hangs can be ended.  It ends with rank 0, at once.

A lease is no lock, for stores have none.  Who finds one that counts stays away; who finds one that does not count any more takes over; and its
holder looks at it before each COMMIT.json and before a copy or a change of names begins.  Two that begin in the same instant look again after a
moment; should both go on, parts of one may come to lie under the COMMIT.json of the other, which is found out when they are fetched, for each
part's sha256 is compared.
"""

import json
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from mpp.base.errors import BusyError, DataError, UserError
from mpp.base.text import say, sized
from mpp.disk.files import seal_of, sha256_of, temporary, write_atomically
from mpp.disk.locks import Owner
from mpp.remote import retries
from mpp.remote.retries import Patience, Refused, shown, unless_absent
from mpp.remote.stores import Info, store_for
from mpp.remote.urls import download, split_url

BEAT_SECONDS = 15.0  # between two counts of a lease
LOOK_SECONDS = 5.0  # between two looks at somebody else's
DEAD_SECONDS = 90.0  # without a count, after which its holder is gone
STALE_SECONDS = 600.0  # by the clocks of both, after which nobody waits for a count
SETTLE_SECONDS = 2.0  # between writing one and believing it
STEP = re.compile(r"\d{9}")
PLAIN = re.compile(r"[\w-][\w.-]*")  # names of files: none leads out of its folder
FLIGHT = "flight"
FOLDERS = ("tensorboard", "pictures", FLIGHT, "encoder", "teacher")  # of a run folder, beside its checkpoints
ANEW = ("encoder", "teacher")  # which a run writes at its end
WHOLE = (*ANEW, FLIGHT)  # whose files do not grow while they are copied
PICTURE_BYTES = 16 << 20  # larger ones are left out
MEMORY_BYTES = 64 << 20  # of a file that grows: more is copied on the disk first
PROBE_BYTES = 64 << 20  # that measure a store's speed
LEASE = "lease.json"

Record = dict[str, Any]
Moved = Callable[[], None]


class DamagedCopyError(UserError):
    """A checkpoint that is not what was committed."""


class Copy:
    """The copy at a URL.  Raises UserError, DataError and Refused throughout, as retries.py says."""

    def __init__(self, where: str, run_dir: Path, owner: Owner, moved: Moved = lambda: None):
        """owner: who writes.  moved: is called whenever the store has taken or given something."""
        protocol, path = split_url(where)
        self.where, self.run_dir, self.owner, self._moved = shown(where.rstrip("/")), run_dir, owner, moved
        self.store, self.root = store_for(protocol), path.strip("/")
        self.commits: dict[str, Record] = {}  # those that exist there, by folder
        self._counting, self._has_let_go = threading.Lock(), False  # of the lease
        self._sent: dict[str, tuple[int, int]] = {}  # what lies beside them: size and time of the last change of what was copied
        self._drawn: dict[str, int] | None = None  # pictures that an earlier start has copied: bytes

    # ------------------------------------------------------------------------------------------------ what is there

    def look(self) -> dict[str, Record]:
        """Find the commits: a COMMIT.json that fits its seal, and all its files, of the sizes it says."""
        found: dict[str, dict[str, Info]] = {}
        for info in self.store.items(f"{self.root}/checkpoints"):
            folder, _, name = info.path.removeprefix(f"{self.root}/checkpoints/").partition("/")
            if STEP.fullmatch(folder):
                found.setdefault(folder, {})[name] = info
            self._moved()
        self.commits = {}
        for folder, files in sorted(found.items()):
            if "COMMIT.json" not in files:
                continue
            record = _parsed(self.store.read_listed(files["COMMIT.json"]) or self._read(files["COMMIT.json"].path))
            if fault := _fault(folder, record, {name: info.size for name, info in files.items()}):
                say(f"warning: {self.where}/checkpoints/{folder} is passed over, damaged: {fault}", error=True)
            else:
                self.commits[folder] = record
        return self.commits

    def probe(self) -> Record:
        """Whether it can be listed, written, read and deleted from; seconds that PROBE_BYTES take; who holds it.  Nothing is left there."""
        self.look()
        path, data = f"{self.root}/doctor-{self.owner.token}", os.urandom(1 << 20) * (PROBE_BYTES >> 20)
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            began = time.monotonic()
            self.store.put_file(path, Path(file.name), self._moved)
            seconds = time.monotonic() - began
        if self.store.read(path, 0, 9) != data[:9]:
            raise DataError(f"{self.where}: gives other bytes than it was given; take another store")
        self.store.remove([path])
        if unless_absent(lambda: self.store.info(path)) is not None:
            raise DataError(f"{self.where}: what is deleted stays there; give the right to delete objects")
        held, _ = self._lease()
        lives = held is not None and not held.has_ended
        return {"bytes_per_second": PROBE_BYTES / max(seconds, 1e-6), "held": held.words if held and lives else None}

    def _read(self, path: str) -> bytes | None:
        """A small object, as it is now; None where there is none."""
        while (info := unless_absent(lambda: self.store.info(path))) is not None:
            if (data := self.store.read_listed(info)) is not None:
                return data
        return None

    # ------------------------------------------------------------------------------------------------ the lease

    def hold(self) -> None:
        """Raises BusyError where another run is at work there; `confirm` is to follow."""
        seen, since, told = None, time.monotonic(), False
        while True:
            found, written = self._lease()
            if found is None or found.token == self.owner.token or found.has_ended or time.time() - written > STALE_SECONDS:
                break
            if not found.is_elsewhere or (seen is not None and seen.token == found.token and seen != found):
                raise self._busy(found)
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > DEAD_SECONDS:
                say(f"warning: {self.where}: {found.words} has not counted on for {DEAD_SECONDS:.0f} s: its copy is taken over", error=True)
                break
            if not told:
                say(f"waiting for up to {DEAD_SECONDS:.0f} s whether {found.words} still writes to {self.where}", error=True)
                told = True
            self._moved()
            time.sleep(LOOK_SECONDS)
        self._write_lease()
        self._written = time.monotonic()

    def confirm(self) -> None:
        """Once a moment has passed in which another that found nobody, too, may have written.  Raises BusyError."""
        time.sleep(max(0.0, self._written + SETTLE_SECONDS - time.monotonic()))
        self.check_lease()

    def check_lease(self) -> None:
        """Raises BusyError where another has taken over."""
        found, _ = self._lease()
        if found is None:
            self._write_lease()
        elif found.token != self.owner.token:
            raise self._busy(found)

    def count(self) -> None:
        """Tell others that this run lives."""
        with self._counting:
            if not self._has_let_go:
                self.owner = replace(self.owner, count=self.owner.count + 1)
                self.check_lease()
                self._write_lease()

    def let_go(self) -> None:
        """For good, and not while it is being counted: a lease that is written again behind this would keep others waiting for a run that is over."""
        with self._counting:
            self._has_let_go = True
            found, _ = self._lease()
            if found is not None and found.token == self.owner.token:
                self.store.remove([f"{self.root}/{LEASE}"])

    def _busy(self, owner: Owner) -> BusyError:
        return BusyError(
            f"checkpoint.copy_to={self.where}: another run writes there ({owner.words}); wait for it, stop it, or give another place"
        )

    def _lease(self) -> tuple[Owner | None, float]:
        """Who holds it, and when that was written, by the clock there."""
        said = _parsed(self._read(f"{self.root}/{LEASE}"))
        try:
            written = float(said.pop("time"))
            return Owner(**said), written
        except (KeyError, TypeError, ValueError):  # none, or half of one
            return None, 0.0

    def _write_lease(self) -> None:
        self.store.put(f"{self.root}/{LEASE}", json.dumps(asdict(self.owner) | {"time": time.time()}).encode())

    # ------------------------------------------------------------------------------------------------ to the store

    def put_commit(self, folder: str, keep: int, have: list[str], told: Callable[[str], None] = lambda name: None) -> None:
        """Copy a commit; then delete older ones by the rule of the disk (commit.prune).  have: its files that an earlier try has copied; told: of
        each that is."""
        source, there = self.run_dir / "checkpoints" / folder, f"{self.root}/checkpoints/{folder}"
        data = (source / "COMMIT.json").read_bytes()
        record = json.loads(data)
        if self.commits.get(folder) == record:
            return
        self.check_lease()
        if not have:  # of another try, or of a run that has gone another way since
            self._delete(folder)
        for name in sorted(record["files"]):
            if name not in have:
                self.store.put_file(f"{there}/{name}", source / name, self._moved)
                told(name)
        self.put_beside()
        self.check_lease()
        self.store.put(f"{there}/COMMIT.json", data)
        self._moved()
        self.commits[folder] = record
        self._prune(keep)

    def _prune(self, keep: int) -> None:
        newest = sorted(self.commits, reverse=True)
        kept = {folder for number, folder in enumerate(newest) if number < keep or self.commits[folder].get("kept")}
        found = {
            info.path.removeprefix(f"{self.root}/checkpoints/").partition("/")[0] for info in self.store.items(f"{self.root}/checkpoints")
        }
        for folder in sorted(found):
            if STEP.fullmatch(folder) and folder not in kept and folder < max(kept):
                self._delete(folder)

    def _delete(self, folder: str) -> None:
        """COMMIT.json first, so that what is half-deleted does not exist."""
        there = f"{self.root}/checkpoints/{folder}"
        paths = [info.path for info in self.store.items(there)]
        first = [path for path in paths if path == f"{there}/COMMIT.json"]
        for batch in (first, [path for path in paths if path not in first]):
            if batch:
                self.store.remove(batch)
        self.commits.pop(folder, None)
        self._moved()

    def set_aside(self, folder: str, kind: str) -> str:
        """Rename it to NNN.KIND1, or the next number that is free, as on a disk; returns its address."""
        self.check_lease()
        base, old = f"{self.root}/checkpoints", f"{self.root}/checkpoints/{folder}"
        taken = {info.path.removeprefix(f"{base}/").partition("/")[0] for info in self.store.items(base)}
        new = next(name for number in range(1, len(taken) + 2) if (name := f"{folder}.{kind}{number}") not in taken)
        paths = [info.path for info in self.store.items(old)]
        commit = f"{old}/COMMIT.json"
        if commit in paths:
            self.store.copy(commit, f"{base}/{new}/COMMIT.json")
            self.store.remove([commit])  # from here on it is no checkpoint any more
        self.commits.pop(folder, None)
        for path in paths:
            if path != commit:
                self.store.copy(path, f"{base}/{new}/{path.removeprefix(f'{old}/')}")
                self._moved()
        if rest := [path for path in paths if path != commit]:
            self.store.remove(rest)
        return f"{self.where}/checkpoints/{new}"

    def put_beside(self) -> None:
        """What lies in the run folder beside the checkpoints and has changed since it was copied; of pictures, which do not change, those that are
        not there.  What the flight recorder has removed goes there, too: it tells of stops that are over."""
        if self._drawn is None:
            self._drawn = {info.path.removeprefix(f"{self.root}/"): info.size for info in self.store.items(f"{self.root}/pictures")}
        for path in _beside(self.run_dir):
            name = path.relative_to(self.run_dir).as_posix()
            try:
                facts = path.stat()
                now = facts.st_size, facts.st_mtime_ns
                if self._sent.get(name) == now or self._drawn.pop(name, None) == facts.st_size:
                    continue
                self._put_file(path, name, facts.st_size)
            except FileNotFoundError:  # renamed, or deleted, meanwhile
                continue
            self._sent[name] = now
            self._moved()
        over = [
            info.path
            for info in self.store.items(f"{self.root}/{FLIGHT}")
            if not (self.run_dir / info.path.removeprefix(f"{self.root}/")).exists()
        ]
        if over:
            self.store.remove(over)

    def _put_file(self, path: Path, name: str, size: int) -> None:
        to = f"{self.root}/{name}"
        if name.partition("/")[0] in WHOLE:
            self.store.put_file(to, path, self._moved)
        elif size <= MEMORY_BYTES:
            self.store.put(to, path.read_bytes())
        else:
            still = temporary(path)
            try:
                shutil.copyfile(path, still)
                self.store.put_file(to, still, self._moved)
            finally:
                still.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ from the store

    def fetch(self, folder: str, beside: bool, said: Callable[[int], None] = lambda done: None) -> int:
        """A commit comes into the run folder, its COMMIT.json last; returns bytes.  beside: with what lies beside it.  said: how many bytes more
        have come.  Raises DamagedCopyError where it is not what was committed."""
        record = self.commits[folder]
        to, there = self.run_dir / "checkpoints" / folder, f"{self.root}/checkpoints/{folder}"
        needed = sum(facts["bytes"] for facts in record["files"].values())
        to.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(to).free) < needed:
            raise DataError(f"{to}: {sized(needed)} are to be fetched from {self.where} and {sized(free)} free; make room there")
        done = 0

        @contextmanager
        def bar(what: str, total: int | None) -> Iterator[Any]:
            def told(count: int) -> None:
                self._moved()
                said(count)

            yield _Told(told)

        for name, facts in sorted(record["files"].items()):
            info = unless_absent(lambda: self.store.info(f"{there}/{name}"))  # noqa: B023, called at once
            if info is None or info.size != facts["bytes"]:
                raise DamagedCopyError(f"{name} has {info.size if info else 'no'} bytes, {facts['bytes']} were committed")
            download(self.store.url(f"{there}/{name}"), info, to / name, bar)
            if sha256_of(to / name) != facts["sha256"]:
                (to / name).unlink()
                raise DamagedCopyError(f"{name} is not what was committed (sha256 differs from COMMIT.json)")
            done += facts["bytes"]
        if beside:
            done += self._fetch_beside(bar)
        for note in to.glob(".*.json"):  # of the downloads
            note.unlink()
        write_atomically(to / "COMMIT.json", (json.dumps(record, indent=1) + "\n").encode())
        return done

    def _fetch_beside(self, bar: Any) -> int:
        """All but what is written anew at the end of a run."""
        done = 0
        for info in list(self.store.items(self.root)):
            name = info.path.removeprefix(f"{self.root}/")
            parts = name.split("/")
            if parts[0] in ("checkpoints", LEASE, *ANEW) or not all(map(PLAIN.fullmatch, parts)) or (parts[1:] and parts[0] not in FOLDERS):
                continue
            path = self.run_dir / name
            path.parent.mkdir(exist_ok=True)
            if info.size <= MEMORY_BYTES:
                write_atomically(path, (self.store.read_listed(info) or b"") if info.size else b"")
                self._moved()
            else:
                download(self.store.url(info.path), info, path, bar)
                path.with_name(f".{path.name}.json").unlink(missing_ok=True)
            facts = path.stat()
            self._sent[name] = facts.st_size, facts.st_mtime_ns
            done += info.size
        return done


class _Told:
    """A progress bar's face."""

    def __init__(self, told: Callable[[int], Any]):
        self.update = told


def _parsed(data: bytes | None) -> Record:
    """Empty for what is no record."""
    try:
        record = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _fault(folder: str, record: Record, sizes: Mapping[str, int]) -> str | None:
    files = record.get("files")
    if not files or not isinstance(files, dict) or record.get("seal") != seal_of(record) or not isinstance(record.get("config"), dict):
        return "COMMIT.json does not fit its own seal"
    if type(record.get("step")) is not int or f"{record['step']:09d}" != folder:
        return f"COMMIT.json says step {record.get('step')}, its folder {folder}"
    for name, facts in files.items():
        if not (PLAIN.fullmatch(name) and isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys()):
            return f"COMMIT.json does not say what {name!r} holds"
        if sizes.get(name) != facts["bytes"]:
            return f"{name} has {sizes.get(name, 'no')} bytes, {facts['bytes']} were committed"
    return None


def _beside(run_dir: Path) -> Iterator[Path]:
    """What a resume on an empty machine and a reader of results need beside checkpoints."""
    for path in sorted(run_dir.iterdir()):
        if path.is_file() and not path.name.startswith((".", "lock")):
            yield path
    for name in FOLDERS:
        for path in sorted(
            (run_dir / name).rglob("*"), key=lambda path: (path.suffix == ".json", path)
        ):  # what says that an encoder is whole comes last
            if path.is_file() and not path.name.startswith(".") and (name != "pictures" or path.stat().st_size <= PICTURE_BYTES):
                yield path


# ------------------------------------------------------------------------------------------------------------- the process


class Copier:
    """Reads requests, a JSON object a line, does one after the other, and answers each; ends when nobody can ask any more."""

    def __init__(self, orders: Record, answers: Any):
        retries.PATIENCE = Patience(**{**orders["patience"], "waits": tuple(orders["patience"]["waits"])})
        self._answers, owner = answers, Owner(**orders["owner"])
        self._parent = owner.pid
        self.copy = Copy(orders["where"], Path(orders["run_dir"]), owner, self._moved)
        self._busy, self._held, self._last = False, False, time.monotonic()
        self._requests: queue.SimpleQueue[Record] = queue.SimpleQueue()

    def run(self, lines: Any) -> NoReturn:
        threading.Thread(target=self._listen, args=[lines], name="requests", daemon=True).start()
        threading.Thread(target=self._look_around, name="stalls", daemon=True).start()
        while True:
            request = self._requests.get()
            self._busy, self._last = True, time.monotonic()
            try:
                self.answer({"made": getattr(self, f"do_{request.pop('do')}")(**request)})
            except (UserError, Refused, OSError) as error:
                words = str(error) if isinstance(error, UserError) else f"{self.copy.where}: {shown(str(error))}"
                self.answer({"failed": " ".join(words.split()), "kind": type(error).__name__})
            self._busy = False

    def do_look(self) -> Any:
        return self.copy.look()

    def do_probe(self) -> Any:
        return self.copy.probe() | {"commits": list(self.copy.commits)}

    def do_hold(self) -> Any:
        """What is there, too."""
        if not self._held:
            self.copy.hold()
            self._held = True
            threading.Thread(target=self._count, name="lease", daemon=True).start()
            self.copy.look()
        return self.copy.commits

    def do_confirm(self) -> None:
        self.copy.confirm()

    def do_copy(self, folder: str, keep: int, have: list[str]) -> list[str]:
        """What is there then."""
        self.copy.put_commit(folder, keep, have, lambda name: self.answer({"part": name}))
        return list(self.copy.commits)

    def do_beside(self) -> None:
        self.copy.check_lease()
        self.copy.put_beside()

    def do_aside(self, folder: str, kind: str) -> str:
        return self.copy.set_aside(folder, kind)

    def do_fetch(self, folder: str, beside: bool) -> int:
        return self.copy.fetch(folder, beside, lambda count: self.answer({"bytes": count}))

    def answer(self, facts: Record) -> None:
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()

    def _moved(self) -> None:
        self._last = time.monotonic()

    def _listen(self, lines: Any) -> None:
        for line in lines:
            request = json.loads(line)
            if request["do"] == "leave":  # the end of the pipe is not to be waited for: loader processes, which were forked, hold it, too
                break
            self._requests.put(request)
        self._leave()

    def _leave(self) -> NoReturn:
        """At once, whatever is in hand: rank 0 has done with this, or is gone, and a next start may be waiting for the lease."""
        if self._held:
            last = threading.Thread(target=self.copy.let_go, daemon=True)
            last.start()
            last.join(5)
        os._exit(0)

    def _look_around(self) -> None:
        """A store that takes nothing and says nothing is given up, with this process: what hangs in a library cannot be ended otherwise."""
        while True:
            time.sleep(0.5)
            if os.getppid() != self._parent:  # a loader process may still hold the pipe
                self._leave()
            if self._busy and time.monotonic() - self._last > retries.PATIENCE.stall_seconds:
                seconds = f"{retries.PATIENCE.stall_seconds:g} s"
                self.answer({"failed": f"{self.copy.where}: has taken and given nothing for {seconds}", "kind": "Stalled"})
                os._exit(1)

    def _count(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with suppress(UserError, Refused, OSError):  # the next request says so
                if self._held:
                    self.copy.count()


def main() -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):  # rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    Copier(json.loads(sys.stdin.readline()), answers).run(sys.stdin)


if __name__ == "__main__":
    main()
