"""The same command given twice at a time: one works, the other waits, and what the first has made stays."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from data_prep import index_shards, make_shards
from mpp.base.errors import DataError
from mpp.disk.locks import hold_folder
from tests.forks import Forked

PROGRAMS = Path(__file__).parents[2] / "data_prep"
WORDS = ("--val", "4", "--samples-per-shard", "3", "--workers", "1", "--quiet")


@pytest.fixture(scope="module")
def source(tmp_path_factory, picture) -> Path:
    folder = tmp_path_factory.mktemp("two") / "photos"
    folder.mkdir()
    for number in range(14):
        (folder / f"{number:02d}.jpg").write_bytes(picture(number))
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("two") / "whole"
    make(source, out)
    return visible(out)


def make(source: Path, out: Path, *words: str) -> None:
    assert make_shards.main([str(source), str(out), *WORDS, *words]) == 0


def visible(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


def start(program: str, *words: object, before: str = "") -> Forked:
    """before: Python to run in the process first."""
    code = f"import runpy; {before or 'pass'}\n"
    code += f"runpy.run_path({str(PROGRAMS / program)!r}, run_name='__main__')"
    return Forked(["-c", code, *map(str, words)], cwd=PROGRAMS.parent, env=os.environ | {"PYTHONPATH": str(PROGRAMS.parent)})


def meanwhile(monkeypatch, module: str, others_work) -> None:
    """The first time that the program wants the lock, another run has it, does its work and leaves."""
    waits = [others_work]

    def hold(*words, **options):
        if waits:
            waits.pop()()
        return hold_folder(*words, **options)

    monkeypatch.setattr(f"{module}.hold_folder", hold)


def test_what_another_run_finished_while_this_one_waited_stays(source, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    meanwhile(monkeypatch, "mpp.prep.plan", lambda: make(source, out))
    make(source, out)
    assert "is already complete" in capsys.readouterr().out
    make(source, out)
    assert visible(out) == whole


def test_what_another_run_began_while_this_one_waited_is_taken_over_and_never_removed(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    meanwhile(monkeypatch, "mpp.prep.plan", lambda: make(source, out, "--part", "0/2"))
    with pytest.raises(DataError, match="half done, but by another command"):
        make(source, out, "--seed", "1")
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert made
    make(source, out)
    assert visible(out) == whole
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_lock_that_its_holder_removed_keeps_others_out_all_the_same(source, whole, tmp_path, monkeypatch):
    """A run that comes to nothing removes OUT, the lock that others wait for too."""
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()

    def come_to_nothing() -> None:
        with pytest.raises(DataError, match="holds no images"):
            make(empty, out)

    first = hold_folder(out / ".work" / "lock", "busy")
    opened = Path.open
    turns = [lambda: (first.close(), come_to_nothing())]

    def open_and_then(path, *words, **options):
        file = opened(path, *words, **options)
        if path.name == "lock" and turns:  # opened, and not yet locked
            turns.pop()()
        return file

    monkeypatch.setattr(Path, "open", open_and_then)
    with hold_folder(out / ".work" / "lock", "busy") as lock:
        assert os.path.samestat(os.fstat(lock.fileno()), (out / ".work" / "lock").stat())
    make(source, out)
    assert visible(out) == whole


@pytest.mark.parametrize("kill", [False, True])
def test_processes_at_the_same_time_end_with_one_whole_set(source, whole, tmp_path, kill):
    slow = "import os, time; end = os.fsync; os.fsync = lambda file: (time.sleep(0.02), end(file))" if kill else ""
    for number in range(2):
        out = tmp_path / f"out{number}"
        running = [start("make_shards.py", source, out, *WORDS, before=slow) for _ in range(2 + kill)]
        if kill:
            while not list(out.glob("*/*.tar")) and all(process.poll() is None for process in running):
                time.sleep(0.01)
            os.killpg(running[number].pid, signal.SIGKILL)
        ends = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
        assert [end for end in ends if end[1]] == [("", -signal.SIGKILL)] * kill, ends
        make(source, out)
        assert visible(out) == whole


def indexed(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "manifest.json").read_bytes(), (folder / "index.bin").read_bytes()


def test_two_runs_of_index_shards_end_with_one_index(picture, write_tar, tmp_path, monkeypatch, capsys):
    for name in ("one", "two", "alone"):
        for tar in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            write_tar(tmp_path / name / f"{tar}.tar", {f"{number}.jpg": picture(4 * tar + number) for number in range(4)})
    words = ["--quiet", "--workers", "1"]
    assert index_shards.main([str(tmp_path / "alone"), *words]) == 0
    processes = [start("index_shards.py", tmp_path / "one", *words) for _ in range(3)]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    for complaint, status in ends:  # one that came after all was done is told so
        assert not status or "has a manifest.json already" in complaint, ends
    meanwhile(monkeypatch, "mpp.prep.indexing", lambda: index_shards.main([str(tmp_path / "two"), *words]))
    assert index_shards.main([str(tmp_path / "two"), *words]) == 0
    assert "already complete" in capsys.readouterr().out
    for name in ("one", "two"):
        tars = [(entry["name"], entry["sha256"]) for entry in json.loads(indexed(tmp_path / name)[0])["shards"]]
        assert tars == [(entry["name"], entry["sha256"]) for entry in json.loads(indexed(tmp_path / "alone")[0])["shards"]]
        assert indexed(tmp_path / name)[1] == indexed(tmp_path / "alone")[1]
        assert {path.name for path in (tmp_path / name).iterdir()} == {"0.tar", "1.tar", "manifest.json", "index.bin"}
