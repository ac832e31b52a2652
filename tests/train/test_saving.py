"""When checkpoints are written, on saves that are no more than their part of the bargain: one that is written, is slow, or fails."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mpp.config.sections import CheckpointConfig
from mpp.processes.world import World
from mpp.train import saving
from mpp.train.checkpoint import NotWrittenError
from mpp.train.commit import Commit
from mpp.train.saving import Saver

ALONE = World(0, 1, 1, torch.device("cpu"))


@dataclass
class Part:
    """Of a checkpoint of this step."""

    step: int
    is_written: bool = True
    fails: bool = False
    seconds: float = 0.0  # that its writing took

    def commit(self) -> Commit:
        if self.fails:
            raise NotWrittenError("written", "rank 3: a full disk")
        return Commit(Path(f"{self.step:09d}"), {"step": self.step})


class Clock:
    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    return clock


@pytest.fixture
def committed():
    return list[int]()


@pytest.fixture
def saver(tmp_path, committed, clock):
    return lambda **config: Saver(tmp_path, ALONE, CheckpointConfig(**config), lambda commit: committed.append(commit.step))


def test_a_checkpoint_exists_once_its_parts_are_there_or_the_run_ends(saver, committed):
    run = saver()
    run.save(lambda: Part(2), ends=False)
    assert committed == [] and run.is_written
    run.finish()
    assert committed == [2] and not run.is_written
    run.finish()
    run.save(lambda: Part(4, is_written=False), ends=False)
    assert not run.is_written
    run.save(lambda: Part(6), ends=False)  # the one before comes first
    assert committed == [2, 4]
    run.save(lambda: Part(8), ends=True)
    assert committed == [2, 4, 6, 8] and run.pending is None


def test_without_a_background_each_exists_at_once(saver, committed):
    saver(background=False).save(lambda: Part(2), ends=False)
    assert committed == [2]


def test_a_checkpoint_that_a_disk_did_not_take_is_told_of_and_another_is_due_a_minute_later(saver, committed, clock, capsys):
    run = saver(every_minutes=None)
    run.save(lambda: Part(2, fails=True), ends=False)
    run.finish()
    assert "warning: the checkpoint was not written (rank 3: a full disk); tried again in 60 s, for up to 30 min" in capsys.readouterr().err
    assert not run.due and committed == []
    clock.now += saving.AGAIN_SECONDS
    assert run.due
    run.save(lambda: Part(3), ends=False)
    run.finish()
    assert committed == [3] and not run.due  # and nothing is owed any more
    clock.now += 10 * saving.AGAIN_SECONDS
    assert not run.due


def test_the_run_ends_when_no_disk_has_taken_one_for_as_long_as_was_said(saver, committed, clock):
    run = saver(give_up_minutes=5)
    with pytest.raises(NotWrittenError, match=r"^the checkpoint was not written \(rank 3: a full disk\); earlier ones are whole"):
        for step in range(100):
            run.save(lambda step=step: Part(step, fails=True), ends=False)
            run.finish()
            clock.now += 60
    assert 300 <= clock.now - 1000 <= 360 and committed == []
    with pytest.raises(NotWrittenError):
        saver(give_up_minutes=0, background=False).save(lambda: Part(1, fails=True), ends=False)


def test_the_last_checkpoint_is_tried_again_before_the_run_ends(saver, committed, clock):
    fails = [True, True, True, False]
    saver().save(lambda: Part(9, fails=fails.pop(0)), ends=True)
    assert committed == [9] and clock.slept == [1, 5, 30]
    with pytest.raises(NotWrittenError):
        saver(give_up_minutes=5).save(lambda: Part(9, fails=True), ends=True)
    assert 300 <= sum(clock.slept[3:]) <= 340


def test_an_older_checkpoint_that_cannot_be_deleted_does_not_end_the_run(saver, committed, monkeypatch, capsys):
    def prune(*_):
        raise OSError(39, "Directory not empty", ".nfs0001")

    monkeypatch.setattr(saving, "prune", prune)
    saver().save(lambda: Part(2), ends=True)
    assert committed == [2] and "could not be deleted" in capsys.readouterr().err


def test_checkpoints_are_due_by_the_clock(saver, clock):
    run = saver(every_minutes=15)
    assert not run.due
    clock.now += 15 * 60
    assert run.due
    run.save(lambda: Part(2), ends=False)
    assert not run.due


def test_a_last_commit_comes_before_a_deadline_with_time_for_three_saves(saver, clock, monkeypatch):
    run = saver(stop_after_minutes=60)

    def slow() -> Part:
        clock.now += 10
        return Part(2, seconds=30)  # beside the training

    run.save(slow, ends=False)
    run.finish()
    clock.now = 1000 + 3600 - 60 - 3 * 40 - 1
    assert not run.late
    clock.now += 1
    assert run.late
    clock.now = 1000
    monkeypatch.setenv("SLURM_JOB_END_TIME", "5000")
    run = saver()
    clock.now = 5000 - 61
    assert not run.late
    clock.now += 1
    assert run.late
    monkeypatch.setenv("SLURM_JOB_END_TIME", "Unknown")
    assert not saver().late


def test_a_short_deadline_leaves_half_of_it_to_train(saver, clock):
    run = saver(stop_after_minutes=1)
    clock.now += 29
    assert not run.late
    clock.now += 1
    assert run.late


def test_time_that_is_waited_for_a_disk_is_real(tmp_path, monkeypatch):
    """The module's own clock, once."""
    monkeypatch.setattr(saving, "WAITS", (0.05,))
    began, fails = time.monotonic(), [True, False]
    Saver(tmp_path, ALONE, CheckpointConfig(), lambda _: None).save(lambda: Part(1, fails=fails.pop(0)), ends=True)
    assert time.monotonic() - began >= 0.05


@dataclass
class Copied:
    """What is copied to a store, beside."""

    seconds: float = 0.0
    given_up: str = ""
    in_hand: frozenset = frozenset()

    def take(self, commit: Commit) -> None: ...


def test_the_last_commit_leaves_time_for_its_copy_and_comes_at_once_where_no_store_takes_any(tmp_path, clock):
    copied = Copied(seconds=100)
    run = Saver(tmp_path, ALONE, CheckpointConfig(stop_after_minutes=60), lambda _: None, copied)
    clock.now += 3600 - 60 - 3 * 100 - 1
    assert not run.late
    clock.now += 1
    assert run.late
    run = Saver(tmp_path, ALONE, CheckpointConfig(), lambda _: None, copied)
    assert not run.late
    copied.given_up = "the store is gone"
    assert run.late


def test_what_is_being_copied_is_told_before_anything_is_deleted(tmp_path, monkeypatch):
    seen, copied = [], Copied(in_hand=frozenset({Path("000000002")}))
    copied.take = lambda commit: seen.append(commit.step)
    monkeypatch.setattr(saving, "prune", lambda run_dir, keep, spared: seen.append(spared))
    Saver(tmp_path, ALONE, CheckpointConfig(), lambda _: None, copied).save(lambda: Part(4), ends=True)
    assert seen == [4, copied.in_hand]
