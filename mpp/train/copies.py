"""A run whose folder is kept in an object store, too (checkpoint.copy_to): what rank 0 asks of the process that talks to it (mpp/remote/copier.py).

    copies = Copies(config.checkpoint, run_dir)     the place is this run's; which commits lie there
    copies.find(resume)                             what the run goes on from: the newest commit of disk and store
    copies.bring(resume)                            the same, once it lies on the disk
    copies.begin(commits)                           from here on a thread asks for one copy after the other
    copies.take(commit)                             another one to copy; never waits
    copies.finish()                                 wait until all is there

A copy that fails is told of and tried again, with the newest commit of then.  Once none has been taken for checkpoint.give_up_minutes the run
commits, to its disk, and ends: who asks for copies does not trust that disk for longer.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import mpp
from mpp.base.errors import BusyError, CheckpointError, UserError
from mpp.base.progress import Progress
from mpp.base.text import say, sized
from mpp.config.pretrain import KeptCheckpointConfig
from mpp.config.schema import flat
from mpp.disk.files import user_folder
from mpp.disk.locks import Owner, hold_folder
from mpp.processes.watch import watch
from mpp.remote import retries
from mpp.remote.retries import shown
from mpp.remote.urls import is_url, last_name
from mpp.train.commit import Commit, DamagedError, checkpoint_folder, find_commit, read_commit, set_aside_damaged, warn
from mpp.train.run_folder import LIMITS, PASSED_OVER, PATHS

AGAIN_SECONDS = 60.0  # from a copy that failed to the next try
LAST_AGAIN_SECONDS = 10.0  # the same where the run ends and waits
LEAVE_SECONDS = 15.0  # in which the process that copies lets go of its place
FETCH_SECONDS = 1800.0  # for which another program of this user may fetch the same run
COMMAND = [sys.executable, "-P", "-m", "mpp.remote.copier"]


class CopyError(UserError):
    """What the process that copies could not do; kind: the name of its error."""

    def __init__(self, words: str, kind: str = ""):
        super().__init__(words)
        self.kind = kind
        self.status = BusyError.status if kind == BusyError.__name__ else self.status


class Helper:
    """The process, as one that is asked.  Started when it is first needed, and again after it has ended."""

    def __init__(self, where: str, run_dir: Path):
        self.where, self._run_dir = where, run_dir.absolute()
        self._owner = dataclasses.asdict(Owner.this_process())  # the same for all its processes
        self._process: subprocess.Popen | None = None

    def ask(self, do: str, heard: Callable[[Mapping[str, Any]], None] = lambda facts: None, **words: Any) -> Any:
        """heard: of what it says before it is done.  Raises CopyError."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                facts = json.loads(line)
                if "failed" in facts:
                    raise CopyError(facts["failed"], facts["kind"])
                if "made" in facts:
                    return facts["made"]
                heard(facts)
        except BrokenPipeError:
            pass
        raise CopyError(f"{shown(self.where)}: the process that copies has ended, with exit status {process.wait()}")

    def _start(self) -> None:
        root = str(Path(mpp.__file__).resolve().parents[1])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd="/")
        orders = {"where": self.where, "run_dir": str(self._run_dir), "owner": self._owner}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(orders | {"patience": dataclasses.asdict(retries.PATIENCE)}) + "\n")

    def end(self) -> None:
        """It lets go of what it holds, and ends; the next question starts another, which may have other credentials by then."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write('{"do": "leave"}\n')
                process.stdin.close()
            try:
                process.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


class Copies:
    """Of rank 0.  there: the commits of the store, by step, newest first, as they would lie on the disk.  given_up: in words, once no copy was
    taken for as long as was said."""

    def __init__(self, checkpoint: KeptCheckpointConfig, run_dir: Path):
        """Raises UserError where another run writes there, and where the store cannot be used."""
        assert checkpoint.copy_to is not None
        self.where, self.run_dir, self.config = shown(checkpoint.copy_to.rstrip("/")), run_dir, checkpoint
        self._helper = Helper(checkpoint.copy_to, run_dir)
        with Progress(f"looking at {self.where}", at_once=True):
            found = self._helper.ask("hold")
        self.there = {int(name): Commit(checkpoint_folder(run_dir, int(name)), found[name]) for name in sorted(found, reverse=True)}
        self._state = threading.Condition()
        self._waiting: list[Commit] = []  # to be copied, oldest first: the newest, and those before it that are kept for good
        self._in_hand: Commit | None = None
        self._have: list[str] = []  # files of the one in hand that were copied
        self._failing_since: float | None = None
        self._ending = self._beside = self._ended = False
        self.given_up = ""
        self.seconds = 0.0  # that the longest copy took

    # ------------------------------------------------------------------------------------------------ where a run begins

    def find(self, resume: str | int) -> Commit | None:
        """As commit.find_commit, of the disk and the store; of the same step that of the disk."""
        copied = self.there.get(resume) if isinstance(resume, int) else next(iter(self.there.values()), None)
        try:
            here = find_commit(self.run_dir, resume)
        except CheckpointError:
            if copied is None:
                raise
            return copied
        return here if here and (copied is None or isinstance(resume, int) or here.step >= copied.step) else copied

    def refuse_other_run(self, commit: Commit | None) -> None:
        """commit: of the disk, from which the run goes on.  Raises CheckpointError where the newest one of the store is of another run."""
        newest = next(iter(self.there.values()), None)
        if commit is None or newest is None or commit == newest:
            return
        ours, theirs = _origin(commit), _origin(newest)
        if other := next((key for key in sorted(ours.keys() & theirs.keys()) if ours.get(key) != theirs.get(key)), None):
            raise CheckpointError(
                f"checkpoint.copy_to={self.where} holds another run's checkpoints ({other}={theirs.get(other)} there, {ours.get(other)} in "
                f"{self.run_dir}); give a place of its own"
            )

    def bring(self, resume: str | int) -> Commit | None:
        """`find`, and what is found lies on the disk.  One that is not as committed is set aside in the store, aloud, and the one before is taken."""
        self._helper.ask("confirm")
        damaged = list[str]()
        while True:
            found = self.find(resume)
            newest = next(iter(self.there), None)
            if found is None or self.there.get(found.step) != found or self._is_here(found):
                if found is None and damaged:
                    raise CheckpointError(
                        f"checkpoint.copy_to={self.where}: no checkpoint there is whole ({'; '.join(damaged)}); give another run_dir and "
                        "another place to begin again"
                    )
                if found and newest is not None and newest != found.step:
                    say(
                        f"{self.run_dir} holds step {found.step}, {self.where} step {newest}: the run goes on from the one in {self.run_dir}"
                    )
                return found
            say(f"{self.where} holds step {found.step}, {self.run_dir} none as new: it is fetched, and gone on from")
            if fault := _fetch(self._helper, found, beside=True):
                damaged.append(f"{found.folder.name}: {fault}")
                if isinstance(resume, int):
                    raise CheckpointError(
                        f"resume={resume}: {self.where}/checkpoints/{found.folder.name} is damaged: {fault}; give another step"
                    )
                new = self._helper.ask("aside", folder=found.folder.name, kind="damaged")
                warn(f"{self.where}/checkpoints/{found.folder.name} is damaged: {fault}; it is set aside as {new}")
                del self.there[found.step]

    def _is_here(self, commit: Commit) -> bool:
        try:
            return _is_there(commit)
        except DamagedError as error:
            set_aside_damaged(error, f", for the one in {self.where}")
            return False

    def set_aside_after(self, step: int) -> None:
        """As commit.set_aside_after, in the store: what a run that goes on from `step` leaves behind, so that none goes on from it unasked."""
        for newer in [each for each in self.there if each > step]:
            new = self._helper.ask("aside", folder=f"{newer:09d}", kind="aside")
            say(f"a newer checkpoint is set aside: {new}")
            del self.there[newer]

    # ------------------------------------------------------------------------------------------------ while it trains

    def begin(self, commits: Iterable[Commit]) -> None:
        """commits: of the disk; those that the store lacks are copied first."""
        threading.Thread(target=self._work, name="copies", daemon=True).start()
        for commit in sorted(commits, key=lambda each: each.step):
            self.take(commit)

    def take(self, commit: Commit) -> None:
        with self._state:
            if self.there.get(commit.step) != commit:
                self._waiting = [*(each for each in self._waiting if each.record.get("kept")), commit]
                self._state.notify_all()

    @property
    def in_hand(self) -> set[Path]:
        """Folders that must stay on the disk until they are copied."""
        with self._state:
            return {each.folder for each in [self._in_hand, *self._waiting] if each}

    def finish(self) -> None:
        """Wait until the newest commit and all beside it are in the store.  Raises CheckpointError where they could not be copied."""
        with self._state:
            self._ending = self._beside = True
            self._state.notify_all()
            with Progress(f"copying to {self.where}", at_once=True):
                while not self._ended:
                    watch.moved("copying to a store", slow=True)
                    self._state.wait(1)
        self._helper.end()
        if self.given_up:
            newest = max(self.there, default=None)
            there = "no checkpoint" if newest is None else f"step {newest}"
            raise CheckpointError(
                f"{self.given_up}: nothing was copied for checkpoint.give_up_minutes={self.config.give_up_minutes:g}; the run has ended, all of it is in {self.run_dir}, and "
                f"{there} is in {self.where}: mend that, and give the same command again"
            )

    def close(self) -> None:
        """Let go of the place, whatever is not copied."""
        self._helper.end()

    def _work(self) -> None:
        while True:
            with self._state:
                while not (self._in_hand or self._waiting or self._beside or self._ending):
                    self._state.wait()
                job = self._next()
                if job is None and not self._beside:
                    self._ended = True
                    self._state.notify_all()
                    return
            try:
                self._do(job)
            except (CopyError, OSError, ValueError) as error:  # whatever it is, the run goes on
                if not self._again(error, job):
                    return

    def _next(self) -> Commit | None:
        """The one in hand, unless a newer one waits and it need not be kept."""
        if self._in_hand and (not self._waiting or self._in_hand.record.get("kept")):
            return self._in_hand
        self._in_hand, self._have = (self._waiting.pop(0) if self._waiting else None), []
        return self._in_hand

    def _do(self, commit: Commit | None) -> None:
        began = time.monotonic()
        self._helper.ask("hold")
        if commit is None:
            self._helper.ask("beside")
            self._beside = False
        else:
            heard = lambda facts: self._have.append(facts["part"])
            found = self._helper.ask("copy", heard, folder=commit.folder.name, keep=self.config.keep, have=list(self._have))
            with self._state:
                self._in_hand = None
                self.there = {commit.step: commit} | {step: each for step, each in self.there.items() if f"{step:09d}" in found}
            self.seconds = max(self.seconds, time.monotonic() - began)
        self._failing_since, self.given_up = None, ""

    def _again(self, error: Exception, job: Commit | None) -> bool:
        """After a failure, once it is time for another try; False where there is to be none."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        left = self.config.give_up_minutes - (now - self._failing_since) / 60
        self._helper.end()
        taken_over = getattr(error, "kind", "") == BusyError.__name__
        if left <= 0 or taken_over:
            self.given_up = str(error)
        with self._state:
            if taken_over or (self.given_up and self._ending):
                self._ended = True
                self._state.notify_all()
                return False
            wait = LAST_AGAIN_SECONDS if self._ending else AGAIN_SECONDS
            if not self.given_up:
                what = f"step {job.step} was" if job else "the last files were"
                warn(f"{what} not copied ({error}); tried again in {wait:.0f} s, for up to {left:.0f} min")
            ends = time.monotonic() + wait
            while (rest := ends - time.monotonic()) > 0 and not (self._ending and wait == AGAIN_SECONDS):
                self._state.wait(rest)
        return True


@functools.cache
def local(source: str) -> str:
    """What programs take as encoder=, init_from= or branch_from=, on this machine: of a run in a store its folder in the cache."""
    return str(fetched(source)) if is_url(source) else source


def fetched(url: str) -> Path:
    """A run that lies in a store (or one of its checkpoints), as a run folder in this user's cache that holds its newest whole commit and no other.

    Fetched once, every part's sha256 compared; what is damaged is passed over aloud.  Raises UserError.
    """
    where, asked = _parts(url)
    try:
        KeptCheckpointConfig(copy_to=where)
    except ValidationError as error:
        raise CheckpointError(f"{shown(url)} cannot be read as a run: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    place = user_folder("XDG_CACHE_HOME", "~/.cache") / "mpp" / "runs" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    run_dir, helper = place / last_name(where), Helper(where, place / last_name(where))
    busy = f"{shown(url)} is being fetched to {place} by another program; wait for it"
    with hold_folder(place / "lock", busy, seconds=FETCH_SECONDS):
        try:
            found = helper.ask("look")
            for name in [asked] if asked else sorted(found, reverse=True):
                if name not in found:
                    break
                commit = Commit(checkpoint_folder(run_dir, int(name)), found[name])
                if _is_there(commit) or not (fault := _fetch(helper, commit, beside=False)):
                    for older in set((run_dir / "checkpoints").iterdir()) - {commit.folder}:
                        shutil.rmtree(older)
                    return run_dir
                warn(f"{shown(where)}/checkpoints/{name} is passed over, damaged: {fault}")
        finally:
            helper.end()
    raise CheckpointError(f"{shown(url)} holds no whole checkpoint; give the checkpoint.copy_to of a run, or one of its checkpoints/NNN")


def run_of(url: str) -> str:
    """The run's address, of that or of one of its checkpoints."""
    return _parts(url)[0]


def _parts(url: str) -> tuple[str, str | None]:
    """The run, and the checkpoint that is asked for."""
    parts = re.fullmatch(r"(.*?)(?:/checkpoints/(\d{9}))?/*", url)
    assert parts is not None
    return parts[1], parts[2]


def _is_there(commit: Commit) -> bool:
    """Raises DamagedError."""
    return commit.folder.exists() and read_commit(commit.folder) == commit


def _fetch(helper: Helper, commit: Commit, beside: bool) -> str | None:
    """What is wrong with it."""
    size, began, where = sum(facts["bytes"] for facts in commit.record["files"].values()), time.monotonic(), shown(helper.where)
    with Progress(f"fetching step {commit.step} from {where}", size, "MB", scale=1e-6) as bar:

        def heard(facts: Mapping[str, Any]) -> None:
            watch.moved()
            bar.update(facts["bytes"])

        try:
            done = helper.ask("fetch", heard, folder=commit.folder.name, beside=beside)
        except CopyError as error:
            if error.kind == "DamagedCopyError":
                return str(error)
            raise
    say(f"fetched step {commit.step} from {where} ({sized(done)} in {time.monotonic() - began:.0f} s)", error=not beside)
    return None


def _origin(commit: Commit) -> dict[str, Any]:
    """What two commits of one run have in common, whatever was changed on purpose on the way."""
    config = {
        key: value
        for key, value in commit.record["config"].items()
        if key in ("seed", "model", "mask", "corruption", "target", "decoder", "data")
    }
    known = {key: value for key, value in flat(config).items() if key not in (*PATHS, *LIMITS, PASSED_OVER)}
    return known | {f"manifest of {name}": digest for name, digest in commit.record.get("manifests", {}).items()}
