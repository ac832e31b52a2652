"""The run folder: seen by all, with room, nobody else's; and left as it was."""

import shutil
from collections import namedtuple

import pytest

from mpp.base.errors import UserError
from mpp.checks import folder
from mpp.config.pretrain import KeptCheckpointConfig
from mpp.config.sections import CheckpointConfig
from mpp.disk.locks import lock_folder
from mpp.train.copies import Copies, CopyError
from tests.processes.test_peers import job
from tests.stores import listing, serve_s3

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("size", [1, 3])
def test_a_folder_that_all_see_is_well_and_nothing_is_left_in_it(tmp_path, size):
    run_dir = tmp_path / "runs" / "own"
    for found in job(size, lambda mine: folder.shared(run_dir, mine)):
        assert found.verdict == "ok" and f"(to be made in {tmp_path})" in found.found
    assert list(tmp_path.iterdir()) == []
    run_dir.mkdir(parents=True)
    assert {found.verdict for found in job(size, lambda mine: folder.shared(run_dir, mine))} == {"ok"}
    assert list(run_dir.iterdir()) == []


def test_who_does_not_see_it_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()  # a disk of its own under the same name
    look = lambda mine: folder.shared(tmp_path / ("elsewhere" if mine.rank in (2, 3) else "there") / "run", mine, seconds=0.3)
    for found in job(4, look):
        assert found.verdict == "FAILED" and "rank 2 (host n1) and 1 more does not see what rank 0 writes" in found.found
    assert list((tmp_path / "there").iterdir()) == [] == list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_cannot_be_written_is_refused_to_all():
    found = job(2, lambda mine: folder.shared(folder.Path("/proc/run"), mine))
    assert all(isinstance(error, UserError) and "/proc cannot be written" in str(error) for error in found)


def test_a_run_that_trains_is_told_and_not_disturbed(tmp_path):
    assert folder.held(tmp_path).verdict == "ok"
    lock = (tmp_path / "lock").open("w")
    assert folder.held(tmp_path).verdict == "ok"  # of a run that has ended
    lock_folder(lock, "busy", leased=True)
    found = folder.held(tmp_path)
    assert found.verdict == "FAILED" and "a run trains in" in found.found and "process " in found.found
    before = sorted(path.name for path in tmp_path.iterdir())
    with (tmp_path / "lock").open("w") as second, pytest.raises(UserError):  # it is still held
        lock_folder(second, "busy", seconds=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == before == ["lock", "lock.owner"]
    assert folder.held(tmp_path / "not there", tmp_path).found == found.found  # in one of several
    lock.close()
    assert folder.held(tmp_path, tmp_path / "not there").verdict == "ok"


@pytest.mark.parametrize(
    ("checkpoint", "present", "count"),
    [
        ({"keep": 2}, 0, 3),
        ({"keep": 2}, 2, 1),
        ({"keep": 3, "keep_every_samples": 250}, 0, 8),
        ({"keep": 2, "keep_at_samples": (5, 7)}, 0, 5),
    ],
)
def test_a_disk_must_hold_one_checkpoint_more_than_are_kept(monkeypatch, tmp_path, checkpoint, present, count):
    monkeypatch.setattr(folder, "commits", lambda run_dir: [None] * present)
    for free, verdict in ((count * 1000 - 1, "FAILED"), (count * 1000, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(10**9, 0, free))
        found = folder.room([tmp_path / "not" / "there"], CheckpointConfig(**checkpoint), 1000, total_samples=1000)
        assert found.verdict == verdict, found
        repeats = [tmp_path / f"repeat-{number}" for number in range(3)]
        three = 3 * count * 1000 - (verdict != "ok")
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=three: Usage(10**9, 0, free))
        assert folder.room(repeats, CheckpointConfig(**checkpoint), 1000, total_samples=1000).verdict == verdict


def test_a_place_for_copies_is_tried_out_measured_and_left_as_it_was(tmp_path):
    with serve_s3() as store:
        checkpoint = KeptCheckpointConfig(copy_to="s3://bucket/runs/a", every_minutes=15)
        found = folder.copies(tmp_path / "run", checkpoint, 10**6)
        assert found.verdict == "ok" and "s3://bucket/runs/a can be listed, written, read and deleted from, at " in found.found
        assert listing(store) == {} and list(tmp_path.iterdir()) == []
        found = folder.copies(tmp_path / "run", checkpoint, 10**15)
        assert found.verdict == "warning" and "one is due every 15 min" in found.found and "checkpoint.every_minutes" in found.fix
        run = Copies(checkpoint, tmp_path)
        found = folder.copies(tmp_path / "run", checkpoint, 10**6)
        assert found.verdict == "FAILED" and "another run writes to s3://bucket/runs/a (process " in found.found
        run.close()
        with pytest.raises(CopyError, match="there is no such bucket"):
            folder.copies(tmp_path / "run", KeptCheckpointConfig(copy_to="s3://none/runs"), 1)


def test_a_run_with_copies_needs_room_for_the_checkpoint_that_is_being_copied(tmp_path):
    words = {"keep": 2, "every_samples": None}
    assert "3 checkpoints" in folder.room([tmp_path], KeptCheckpointConfig(**words), 1, 100).found
    assert "4 checkpoints" in folder.room([tmp_path], KeptCheckpointConfig(copy_to="s3://bucket/runs", **words), 1, 100).found
