"""One writer at a time: with locks, without them, and where a machine has died that held one.  A second program of this host is a forked one; one of
another host is what it would have written, with or without a thread that counts on."""

import errno
import functools
import json
import os
import platform
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mpp.base.errors import UserError
from mpp.disk import locks
from mpp.disk.locks import Owner, lock_folder
from tests.forks import Forked

hold = functools.partial(lock_folder, seconds=0)
ELSEWHERE = Owner("elsewhere", 7, "1", "SLURM_JOB_ID 77", "their token")
HOLDER = """
import sys, time
from mpp.disk.locks import lock_folder
lock = open(sys.argv[1], "w")
lock_folder(lock, "busy", seconds=0, leased=True)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request, monkeypatch):
    def flock(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "DEAD_SECONDS", 1.0)
    monkeypatch.setattr(locks, "_said", set())


def owned(folder: Path, owner: Owner) -> Path:
    (folder / "lock.owner").write_text(json.dumps(asdict(owner)))
    return folder / "lock.owner"


@pytest.fixture
def counting(tmp_path):
    """A program on another host holds the folder, and lives."""
    over = threading.Event()

    def count() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            part = tmp_path / "part"
            part.write_text(json.dumps(asdict(replace(ELSEWHERE, count=number))))
            part.rename(tmp_path / "lock.owner")

    owned(tmp_path, ELSEWHERE)
    thread = threading.Thread(target=count)
    thread.start()
    yield
    over.set()
    thread.join()


def test_a_file_system_without_locks_is_said_aloud_once(tmp_path, no_locks, capsys):
    for _ in range(2):
        with (tmp_path / "lock").open("w") as lock:
            hold(lock, "busy")
            hold(lock, "busy", shared=True)
    said = capsys.readouterr().err
    assert said.count("warning: ") == said.count("\n") == 1
    assert f"{tmp_path}/lock cannot be locked (" in said


def test_without_locks_another_program_of_this_host_is_kept_out_for_as_long_as_it_runs(tmp_path, no_locks):
    other = Forked(["-c", "import time; time.sleep(60)"], cwd=tmp_path, env={})
    owner = owned(tmp_path, replace(Owner.this_process(), pid=other.pid, began=locks._began(other.pid)))
    with (tmp_path / "lock").open("w") as lock:
        with pytest.raises(UserError, match=rf"busy \(process {other.pid} on {platform.node()}, by .*lock\.owner\)"):
            hold(lock, "busy")
        other.send_signal(9)
        other.wait(10)
        hold(lock, "busy")
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    del lock
    assert not owner.exists()


def test_without_locks_another_process_with_the_number_of_one_that_has_ended_keeps_nobody_out(tmp_path, no_locks):
    owned(tmp_path, replace(Owner.this_process(), pid=os.getppid(), began="1"))
    hold((tmp_path / "lock").open("w"), "busy")


def test_a_program_in_another_container_of_this_host_is_waited_for_as_one_on_another_host_is(tmp_path, no_locks, capsys):
    owned(tmp_path, replace(Owner.this_process(), pid=99_999_999, place="another kernel's, or another name space"))
    began = time.monotonic()
    hold((tmp_path / "lock").open("w"), "busy")
    assert time.monotonic() - began > locks.DEAD_SECONDS and "has not counted on for 1 s" in capsys.readouterr().err


def test_a_program_on_another_host_that_lives_is_named_and_keeps_others_out(tmp_path, no_locks, counting):
    with pytest.raises(UserError, match=r"busy \(process 7 on elsewhere, SLURM_JOB_ID 77, by .*lock.owner\)"):
        lock_folder((tmp_path / "lock").open("w"), "busy", seconds=3 * locks.DEAD_SECONDS)


def test_a_lease_that_has_ceased_to_count_is_taken_over_aloud(tmp_path, no_locks, capsys):
    owner = owned(tmp_path, ELSEWHERE)
    began = time.monotonic()
    lock = (tmp_path / "lock").open("w")
    hold(lock, "busy")
    assert time.monotonic() - began > locks.DEAD_SECONDS
    assert "process 7 on elsewhere, SLURM_JOB_ID 77 has not counted on for 1 s" in capsys.readouterr().err
    assert json.loads(owner.read_text())["pid"] == os.getpid()


def test_a_lock_that_outlives_its_dead_machine_is_taken_over_and_keeps_others_out_again(tmp_path, capsys):
    theirs = (tmp_path / "lock").open("w")
    hold(theirs, "busy")  # as a file server does for a machine that will never let go
    owned(tmp_path, ELSEWHERE)
    ours = (tmp_path / "lock").open("w")
    hold(ours, "busy", leased=True)
    assert "its machine is gone" in capsys.readouterr().err
    theirs.close()
    with (tmp_path / "lock").open("w") as third, pytest.raises(UserError, match="busy"):
        hold(third, "busy")
    assert Owner.read(tmp_path / "lock.owner").pid == os.getpid()


def test_a_lock_whose_holder_on_another_host_lives_is_not_taken_over(tmp_path, counting):
    theirs = (tmp_path / "lock").open("w")
    hold(theirs, "busy")
    with pytest.raises(UserError, match=r"busy .*elsewhere"):
        lock_folder((tmp_path / "lock").open("w"), "busy", seconds=3 * locks.DEAD_SECONDS)


def test_a_lease_counts_on_for_as_long_as_it_is_held(tmp_path):
    lock = (tmp_path / "lock").open("w")
    hold(lock, "busy", leased=True)
    first = Owner.read(tmp_path / "lock.owner")
    ends = time.monotonic() + 10
    while (now := Owner.read(tmp_path / "lock.owner")) is None or now.count < 3:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert (now.token, now.pid) == (first.token, os.getpid())
    lock.close()
    del lock
    assert not (tmp_path / "lock.owner").exists()


def test_a_holder_that_was_taken_over_while_it_was_suspended_ends_at_once(tmp_path, monkeypatch):
    holder = Forked(
        [
            "-c",
            HOLDER.replace("import sys, time", "import sys, time; import mpp.disk.locks; mpp.disk.locks.BEAT_SECONDS = 0.1"),
            str(tmp_path / "lock"),
        ],
        cwd=tmp_path,
        env=os.environ,
    )
    ends = time.monotonic() + 30
    while not (tmp_path / "lock.owner").exists():
        assert time.monotonic() < ends and holder.poll() is None, holder.communicate()
        time.sleep(0.05)
    holder.send_signal(19)
    owned(tmp_path, ELSEWHERE)
    holder.send_signal(18)
    _, said = holder.communicate(timeout=20)
    assert holder.returncode == 2
    assert "process 7 on elsewhere, SLURM_JOB_ID 77 has taken this folder over" in said


@pytest.mark.parametrize("half", ["", "{", "[1]", '{"host": 1}'])
def test_without_locks_half_a_note_keeps_nobody_out(tmp_path, no_locks, half):
    (tmp_path / "lock.owner").write_text(half)
    hold((tmp_path / "lock").open("w"), "busy")


@pytest.mark.parametrize("turn", range(20))
def test_of_many_that_find_a_dead_lease_one_takes_it(tmp_path, turn):
    owner = owned(tmp_path, replace(Owner.this_process(), pid=os.getppid(), began="1"))
    before, files, won = Owner.read(owner), [(tmp_path / "lock").open("w") for _ in range(8)], []
    threads = [threading.Thread(target=lambda file: won.append(locks._keep(file, owner, before)), args=[file]) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1
