"""A disk that fills up, or a run folder that disappears, under a run: one line, a failure, and every commit whole."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mpp.base.errors import disk_fault
from mpp.disk import locks
from mpp.monitor.board import Board
from mpp.train.commit import commits
from tests.pipeline.conftest import TINY, finish, start

LONG = [
    "optim.total_samples=120000000",
    "checkpoint.every_samples=24000000",
    "log.holdout_every_steps=10000000",
    "log.pictures_every_steps=10000000",
]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte.  Skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system may be mounted here ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


def written_on_a_full_disk(folder: Path, what: str) -> Exception:
    from PIL import Image

    board = Board(folder, 0)
    if what != "metrics":
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        (folder / "metrics.jsonl").symlink_to("/dev/null")
    (folder / "pictures").mkdir(exist_ok=True)
    fill(folder)
    with pytest.raises(OSError) as raised:
        if what == "picture":
            board.events.add = lambda *words: None  # its own line is another case
            board.picture(1, "a", Image.effect_noise((64, 64), 50).convert("RGB"))
        for step in range(2000):
            board.scalars(step, step, {"a": 1.0})
    return raised.value


@pytest.mark.parametrize("what, file", [("metrics", "metrics.jsonl"), ("events", "events.out.tfevents"), ("picture", "pictures/")])
def test_a_full_disk_is_named_with_the_file_that_did_not_fit(small_disk, what, file):
    line = disk_fault(written_on_a_full_disk(small_disk, what))
    assert line is not None and file in line and "No space left" in line and "make room" in line


def test_so_it_is_where_a_start_writes_its_command_line(small_disk, shards, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "command.txt").symlink_to(small_disk / "command.txt")
    fill(small_disk)
    done = finish(start([*TINY, f"data.shards={shards}", f"run_dir={run}"]))
    assert done.status == [2] and f"{run}/command.txt cannot be written" in done.err and "make room" in done.err


def test_and_where_the_lock_of_a_folder_says_whose_it_is(small_disk):
    fill(small_disk)
    with pytest.raises(OSError, match="No space left") as raised, (small_disk / "filler").open("rb") as lock:
        locks._keep(lock, small_disk / "lock.owner", None)
    assert f"{small_disk}/.lock.owner" in str(disk_fault(raised.value))


def test_a_full_disk_ends_a_run_with_one_line_and_whole_commits(small_disk, shards):
    run = small_disk / "run"
    (job,) = start([*TINY, *LONG, f"data.shards={shards}", f"run_dir={run}", "log.samples=true"])
    while not (run / "metrics.jsonl").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    fill(small_disk)
    done = finish([job], timeout=100)
    assert done.status == [2] and len(done.error_lines) == 1 and "Traceback" not in done.err, done.err
    assert "No space left on device" in done.error_lines[0] and str(run) in done.error_lines[0]
    for commit in commits(run):
        commit.verify()


@pytest.mark.parametrize("how", ["renamed", pytest.param("deleted", marks=pytest.mark.long)])
def test_a_run_folder_that_goes_away_ends_the_run_with_one_line(tmp_path, shards, how):
    run = tmp_path / "run"
    (job,) = start([*TINY, *LONG, f"data.shards={shards}", f"run_dir={run}", "checkpoint={every_samples: 240, give_up_minutes: 0}"])
    while not (run / "checkpoints").is_dir():
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    run.rename(tmp_path / "away")
    if how == "deleted":
        shutil.rmtree(tmp_path / "away")
    done = finish([job], timeout=100)
    assert done.status == [2] and len(done.error_lines) == 1 and "Traceback" not in done.err, done.err
    assert str(run) in done.error_lines[0] and "No such file" in done.error_lines[0]
    assert not run.exists()
    for commit in commits(tmp_path / "away"):
        commit.verify()


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EIO", "ENOENT", "EROFS", "ESTALE", "EACCES", "ENOTCONN"])
def test_every_fault_of_a_disk_has_a_line_with_a_remedy(number):
    import errno

    error = OSError(getattr(errno, number), os.strerror(getattr(errno, number)), "runs/a/metrics.jsonl")
    line = disk_fault(error)
    assert line is not None and "runs/a/metrics.jsonl" in line and os.strerror(getattr(errno, number)) in line and "\n" not in line


def test_what_is_no_fault_of_a_disk_keeps_its_traceback():
    assert disk_fault(ValueError("x")) is None
    assert disk_fault(OSError(22, "Invalid argument", "x")) is None
    assert "No space left" in str(disk_fault(RuntimeError("I/O error: No space left on device (os error 28)")))
