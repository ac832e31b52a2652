import errno
import functools
import json
import os
import platform

import pytest
from safetensors import SafetensorError

from mpp import files
from mpp.errors import UserError
from mpp.files import lock_folder, writing
from tests.forks import Forked

hold = functools.partial(lock_folder, seconds=0)


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request, monkeypatch):
    def flock(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(files, "_said", set())


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
    owner = tmp_path / "lock.owner"
    owner.write_text(json.dumps({"host": platform.node(), "pid": other.pid, "began": files._began(other.pid)}))
    with (tmp_path / "lock").open("w") as lock:
        with pytest.raises(UserError, match=rf"busy \(process {other.pid}, by .*lock\.owner\)"):
            hold(lock, "busy")
        other.send_signal(9)
        other.wait(10)
        hold(lock, "busy")
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    del lock
    assert not owner.exists()


def test_without_locks_another_process_with_the_number_of_one_that_has_ended_keeps_nobody_out(tmp_path, no_locks):
    (tmp_path / "lock.owner").write_text(json.dumps({"host": platform.node(), "pid": os.getppid(), "began": "1"}))
    hold((tmp_path / "lock").open("w"), "busy")


def test_without_locks_a_program_on_another_host_is_told_of(tmp_path, no_locks, capsys):
    (tmp_path / "lock.owner").write_text(json.dumps({"host": "elsewhere", "pid": 7, "began": "1"}))
    hold((tmp_path / "lock").open("w"), "busy")
    assert "process 7 on elsewhere has not ended in good order and may still be at work here" in capsys.readouterr().err


@pytest.mark.parametrize("half", ["", "{", "[1]", '{"host": 1}'])
def test_without_locks_half_a_note_keeps_nobody_out(tmp_path, no_locks, half):
    (tmp_path / "lock.owner").write_text(half)
    hold((tmp_path / "lock").open("w"), "busy")


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (OSError(28, "No space left on device"), True),
        (SafetensorError("Error while serializing: I/O error: No such file or directory (os error 2)"), True),
        (OSError(2, "No such file or directory", "its-own"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_fails_while_a_file_is_written_names_the_file(tmp_path, raised, named):
    with pytest.raises(OSError) as error, writing(tmp_path / "weights"):
        raise raised
    assert error.value.filename == (str(tmp_path / "weights") if named else "its-own")


def test_a_fault_of_the_tensors_themselves_stays_what_it_is(tmp_path):
    with pytest.raises(SafetensorError, match="InvalidHeader"), writing(tmp_path / "weights"):
        raise SafetensorError("Error while serializing: InvalidHeader")
