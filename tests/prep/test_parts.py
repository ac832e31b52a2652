"""One data set made by many runs, on many machines: --part I/N, then the same command without it."""

import fcntl
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.make_shards import main
from mpp.base.errors import DataError, UserError
from mpp.disk.locks import hold_folder

PROGRAM = Path(__file__).parents[2] / "data_prep" / "make_shards.py"
WORDS = ("--val", "5", "--samples-per-shard", "4", "--max-rejects", "0.5", "--quiet")


def make(*words) -> None:
    assert main([*map(str, words), "--workers", "1"]) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory, picture) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.jpg").write_bytes(picture(number))
    (folder / "bad.jpg").write_bytes(b"bad")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("parts") / "whole"
    make(source, out, *WORDS)
    return visible(out)


def visible(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


def shards(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*.tar")}


@pytest.mark.parametrize("order", [[0], [2, 0, 1], [8, 1, 0, 2, 3, 4, 5, 7, 6, 10, 9, 11]])
def test_parts_in_any_order_and_any_number_give_the_bytes_of_one_run(source, whole, tmp_path, order):
    out = tmp_path / "out"
    for part in order:
        make(source, out, *WORDS, "--part", f"{part}/{len(order)}")
        assert not list(out.glob("*/manifest.json"))  # a data set begins to exist when it is finished
    made = {path: (out / path).stat().st_mtime_ns for path in shards(out)}
    make(source, out, *WORDS)
    assert visible(out) == whole
    assert {path: (out / path).stat().st_mtime_ns for path in shards(out)} == made  # the parts had done all the work
    assert {path.name for path in (out / ".work").iterdir()} == {"plan.json", "lock", "lock-plan"}


def test_each_part_makes_its_own_shards_and_only_those(source, tmp_path):
    made = []
    for part in range(3):
        make(source, tmp_path / str(part), *WORDS, "--part", f"{part}/3")
        made.append(shards(tmp_path / str(part)))
    make(source, tmp_path / "whole", *WORDS)
    assert set.union(*made) == shards(tmp_path / "whole")
    assert sum(map(len, made)) == len(shards(tmp_path / "whole"))


def test_what_a_part_did_not_make_is_made_in_the_end(source, whole, tmp_path):
    make(source, tmp_path / "out", *WORDS, "--part", "1/3")
    make(source, tmp_path / "out", *WORDS)
    assert visible(tmp_path / "out") == whole


def test_parts_at_the_same_time_do_not_disturb_each_other(source, whole, tmp_path):
    words = [str(source), str(tmp_path / "out"), *WORDS, "--workers", "1"]
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, *words, "--part", f"{part}/3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for part in range(3)
    ]
    for process in running:
        _, complaints = process.communicate(timeout=100)
        assert process.returncode == 0, complaints
    make(*words)
    assert visible(tmp_path / "out") == whole


def test_a_part_is_made_by_one_run_at_a_time_and_the_end_waits_for_none(source, tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.prep.plan.hold_folder", functools.partial(hold_folder, seconds=0))
    out = tmp_path / "out"
    make(source, out, *WORDS, "--part", "0/2")
    with (out / ".work" / "lock").open("w") as lock, (out / ".work" / "lock-0-of-2").open("w") as own:
        fcntl.flock(lock, fcntl.LOCK_SH)
        fcntl.flock(own, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another run of part 0/2 is at work here"):
            make(source, out, *WORDS, "--part", "0/2")
        with pytest.raises(UserError, match=r"another make_shards\.py is at work here"):
            make(source, out, *WORDS)
        make(source, out, *WORDS, "--part", "1/2")


def test_a_part_of_other_files_or_options_is_refused(source, tmp_path, picture):
    out = tmp_path / "out"
    make(source, out, *WORDS, "--part", "0/2")
    with pytest.raises(DataError, match="half done, but by another command"):
        make(source, out, *WORDS, "--part", "1/2", "--seed", 1)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "0.jpg").write_bytes(picture(0))
    (out / ".work" / "listing.json").unlink()  # another machine, with a scratch folder of its own, lists for itself
    with pytest.raises(DataError, match="the files of photos changed"):
        make(other, out, *WORDS, "--part", "1/2")


@pytest.mark.parametrize("part", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_a_part_that_cannot_be_is_refused(source, tmp_path, part, capsys):
    with pytest.raises(UserError, match="is not I/N with I from 0 to N-1"):
        make(source, tmp_path / "out", f"--part={part}")


def test_the_summary_for_machines_adds_up(source, tmp_path, capsys):
    told = []
    for words in (("--part", "0/2"), ("--part", "1/2"), ()):
        make(source, tmp_path / "out", *WORDS, "--json", *words)
        told.append(json.loads(capsys.readouterr().out))
    assert [facts["part"] for facts in told] == [[0, 2], [1, 2], None]
    for split, count in (("train", 26), ("val", 5)):
        assert told[0]["splits"][split]["images"] + told[1]["splits"][split]["images"] == told[2]["splits"][split]["images"]
        assert told[2]["splits"][split]["images"] in (count, count - 1)  # one of 31 is rejected
    assert told[2]["rejected"] == 1
    assert told[2]["built_shards"] == 0
