"""When a run's checkpoints are written, and what becomes of those that a disk does not take.

A checkpoint is copied in the step that it is of, written while training goes on, and committed in the first step in which all ranks have seen that all
parts are there.  One that could not be written is told of, and another tried a minute later, from the weights of then; the run goes on, until that has
failed for checkpoint.give_up_minutes.  Where a run ends it waits, and tries again with the same patience.
"""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

from mpp.base.text import say
from mpp.config.sections import CheckpointConfig
from mpp.processes.watch import watch
from mpp.processes.world import World
from mpp.train.checkpoint import NotWrittenError, Saving
from mpp.train.commit import Commit, prune, warn
from mpp.train.copies import Copies
from mpp.train.shared_sum import shared_sum

AGAIN_SECONDS = 60.0  # from a save that failed to the next try
WAITS = (1.0, 5.0, 30.0)  # seconds between tries where the run ends; the last one repeats
SPARE_SECONDS, SPARE_SAVES = 60.0, 3.0  # before a deadline: a minute, and so many times the longest save


class Saver:
    """All but `is_written`, `due` and `late` is collective."""

    def __init__(
        self, run_dir: Path, world: World, checkpoint: CheckpointConfig, committed: Callable[[Commit], None], copies: Copies | None = None
    ):
        """committed: is told of each commit once it exists.  copies: of rank 0, where each is copied to a store."""
        self.run_dir, self.world, self.config, self._committed, self._copies = run_dir, world, checkpoint, committed, copies
        self.pending: Saving | None = None
        self._began = self._last = time.monotonic()
        self._failing_since: float | None = None
        self._longest = 0.0  # seconds of a save, from the copy to the commit
        self._copied = 0.0  # seconds of the newest copy
        self._ends_at = _end_of_job()

    @property
    def is_written(self) -> bool:
        """Whether this rank has done its part of a checkpoint that is on its way."""
        return self.pending is not None and self.pending.is_written

    @property
    def due(self) -> bool:
        """By this rank's clock."""
        passed = time.monotonic() - self._last
        if self._failing_since is not None:
            return passed >= AGAIN_SECONDS
        return self.config.every_minutes is not None and passed >= 60 * self.config.every_minutes

    @property
    def late(self) -> bool:
        """Whether, by this rank's clock, it is time for a last commit: before checkpoint.stop_after_minutes, or the end of the job; also where no store
        takes copies any more."""
        if self._copies and self._copies.given_up:
            return True
        spare = SPARE_SECONDS + SPARE_SAVES * (self._longest + (self._copies.seconds if self._copies else 0.0))
        limit = self.config.stop_after_minutes
        if limit is not None and time.monotonic() - self._began + min(spare, 30 * limit) >= 60 * limit:
            return True
        return self._ends_at is not None and time.time() + spare >= self._ends_at

    def save(self, make: Callable[[], Saving], ends: bool) -> None:
        """make: copies the checkpoint of the step in hand.  ends: the run does, and waits until it exists.  Raises CheckpointError where disks have not
        taken one for checkpoint.give_up_minutes, and where numbers are not finite."""
        waits = itertools.chain(WAITS, itertools.repeat(WAITS[-1]))
        while True:
            try:
                self._finish()  # the one before, whose part others may still write
                began = time.monotonic()
                self.pending = make()
                self._last = time.monotonic()
                self._copied = self._last - began
                if ends or not self.config.background:
                    self._finish()
                return
            except NotWrittenError as error:
                wait = next(waits)
                self._failed(error, wait if ends else AGAIN_SECONDS)
                if not ends:
                    return
                with watch.slowly("waiting for a disk"):
                    time.sleep(wait)

    def finish(self) -> None:
        """Commit the checkpoint that is on its way."""
        try:
            self._finish()
        except NotWrittenError as error:
            self._failed(error, AGAIN_SECONDS)

    def _finish(self) -> None:
        pending, self.pending = self.pending, None
        if pending is None:
            return
        began = time.monotonic()
        commit = pending.commit()
        self._longest = max(self._longest, self._copied + pending.seconds + time.monotonic() - began)
        self._failing_since = None
        self._committed(commit)
        if self.world.first:
            if self._copies:
                self._copies.take(commit)
            try:
                prune(self.run_dir, self.config.keep, self._copies.in_hand if self._copies else ())
            except OSError as error:  # what is left of it has no COMMIT.json, and goes the next time
                warn(f"an older checkpoint could not be deleted ({error})")

    def _failed(self, error: NotWrittenError, wait: float) -> None:
        self.pending, self._last = None, time.monotonic()
        self._failing_since = self._last if self._failing_since is None else self._failing_since
        minutes = (self._last - self._failing_since) / 60
        left = self.config.give_up_minutes - minutes
        if shared_sum([self.world.first and left <= 0], self.world)[0]:
            raise error
        if self.world.first:
            say(f"warning: the checkpoint was not written ({error.why}); tried again in {wait:.0f} s, for up to {left:.0f} min", error=True)


def _end_of_job() -> float | None:
    """Of the batch job that this is part of, in seconds since 1970, where its system says it."""
    said = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(said) if said.isdigit() else None
