"""Reads of a test split: each is written down before it happens, and counted by what the images are, over all folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpp.base.errors import DataError
from mpp.data.fingerprints import content_id
from mpp.transfer import ledger
from mpp.transfer.ledger import TEST_READS, Reads, ledger_path, log_test_read, reads_of


class Split:
    """What of a split is noted."""

    def __init__(self, prints, identity="i"):
        self.prints, self.identity = np.array(prints, dtype=np.uint64), identity

    def __len__(self):
        return len(self.prints)


IMAGES = Split([1, 2, 3])


def read(folder: Path, split: Split = IMAGES, *, asked: str | None = None) -> Reads:
    folder.mkdir(exist_ok=True)
    return log_test_read(folder, split, len(split), ledger=asked, command=["probe"], encoder="e", named="t")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_read_is_noted_in_the_folder_and_in_the_users_ledger(tmp_path, state):
    found = log_test_read(tmp_path, Split([5, 4]), 1, ledger=None, command=["a", "b"], encoder="e", named="shards/val")
    (entry,) = lines(tmp_path / TEST_READS)
    assert lines(state / "mpp" / TEST_READS) == [entry] and found.ledger == state / "mpp" / TEST_READS
    assert entry.pop("id") and entry.pop("time").endswith("Z")
    assert entry == {
        "command": ["a", "b"], "encoder": "e", "test": "shards/val", "test_identity": "i", "content": content_id(Split([4, 5]).prints),
        "images": 1, "of": 2, "folder": str(tmp_path),
    }  # fmt: skip
    assert (found.times, found.folders, found.note) == (1, 1, "")
    assert found.words() == f"these 2 test images (1 of them this time) have been read 1 time, for 1 folder (ledger {found.ledger})"


def test_reads_are_counted_by_content_over_all_folders(tmp_path):
    one, other = Split([1, 2, 3], "as it was"), Split([1, 2, 4], "other images")
    again = Split([3, 1, 2], "the same, sharded again")
    numbers = [read(tmp_path / name, split) for name, split in [("a", one), ("a", other), ("b", again), ("c", again), ("a", one)]]
    assert [(found.times, found.folders) for found in numbers] == [(1, 1), (1, 1), (2, 2), (3, 3), (4, 3)]
    assert "these 3 test images have been read 4 times, for 3 folders (ledger " in numbers[-1].words()


def test_a_ledger_that_is_asked_for_is_the_one_that_counts(tmp_path, state):
    assert [read(tmp_path / name, asked=str(tmp_path / "team" / "reads")).times for name in "ab"] == [1, 2]
    assert read(tmp_path / "c").times == 1 and len(lines(state / "mpp" / TEST_READS)) == 1
    assert [read(tmp_path / "own", asked=str(tmp_path / "own" / TEST_READS)).times for _ in range(2)] == [1, 2]
    assert len(lines(tmp_path / "own" / TEST_READS)) == 2


@pytest.mark.parametrize("home", [None, "", "not/absolute"])
def test_without_a_state_folder_the_ledger_is_in_the_home(monkeypatch, home):
    monkeypatch.setenv("HOME", "/home/someone")
    if home is None:
        monkeypatch.delenv("XDG_STATE_HOME")
    else:
        monkeypatch.setenv("XDG_STATE_HOME", home)
    assert ledger_path(None) == Path("/home/someone/.local/state/mpp/test_reads.jsonl")
    assert ledger_path("~/mine") == Path("/home/someone/mine")


def test_a_ledger_that_cannot_be_written_is_noted_and_the_folder_counts_alone(tmp_path, state):
    read(tmp_path / "a")
    state.rename(tmp_path / "gone")
    state.write_text("a file where a folder should be")
    found = [read(tmp_path / name) for name in ("a", "b")]
    assert [(each.times, each.folders) for each in found] == [(2, 1), (1, 1)]
    assert "cannot be written (" in found[0].note and str(state / "mpp" / TEST_READS) in found[0].note and "give ledger=" in found[0].note
    assert "(by this folder's own log)" in found[0].words()


def test_who_has_no_home_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    found = read(tmp_path / "a")
    assert found.times == 1 and "the ledger ~/.local/state/mpp/test_reads.jsonl cannot be written (there is no home folder)" in found.note


def test_a_full_disk_leaves_no_half_line_in_the_ledger(tmp_path, state, monkeypatch):
    read(tmp_path / "a")
    before, written = (state / "mpp" / TEST_READS).read_bytes(), os.write

    def full(handle, data):
        if os.path.samestat(os.fstat(handle), (state / "mpp" / TEST_READS).stat()):
            if len(data) < 100:
                raise OSError(28, "No space left on device")
            return written(handle, data[:-50])
        return written(handle, data)

    monkeypatch.setattr(os, "write", full)
    found = read(tmp_path / "a")
    assert (state / "mpp" / TEST_READS).read_bytes() == before
    assert found.times == 2 and "No space left on device" in found.note


@pytest.mark.parametrize("bad", ["nonsense", "[]", '{"test_identity": 3}', '{"id": "x"}', "\udcff"])
@pytest.mark.parametrize("where", ["folder", "ledger"])
def test_a_damaged_line_is_named(tmp_path, state, bad, where):
    read(tmp_path)
    path = (tmp_path if where == "folder" else state / "mpp") / TEST_READS
    with path.open("a", errors="surrogateescape") as file:
        file.write(bad + "\n")
    with pytest.raises(DataError, match=rf"{path} is damaged in line 2 .*put it right by hand"):
        read(tmp_path)


def test_what_a_kill_has_left_of_a_line_does_not_swallow_the_next(tmp_path):
    read(tmp_path)
    path = tmp_path / TEST_READS
    path.write_bytes(path.read_bytes() + b'{"id": "0')
    with pytest.raises(DataError, match="damaged in line 2"):
        read(tmp_path)
    kept = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in [kept[0], kept[2]]))
    assert read(tmp_path).times == 3


def test_lines_without_a_content_count_by_the_splits_identity(tmp_path):
    old = {"time": "2026-01-01T00:00:00Z", "command": ["probe"], "encoder": "e", "test": "t"}
    entries = [old | {"test_identity": identity} for identity in ("i", "i", "j")]
    (tmp_path / TEST_READS).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert read(tmp_path).times == 3
    content = content_id(IMAGES.prints)
    assert reads_of([tmp_path], content) == (1, 1) and reads_of([tmp_path], content, "j") == (2, 1)
    assert reads_of([tmp_path], "", "i") == (3, 1)  # results that know no content


def test_one_read_found_in_several_files_counts_once(tmp_path, state):
    for name in ("a", "b", "b"):
        read(tmp_path / name)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / TEST_READS).write_text((tmp_path / "b" / TEST_READS).read_text())
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "copy", tmp_path / "none", state / "mpp" / TEST_READS]
    assert reads_of(places, content_id(IMAGES.prints)) == (3, 2)
    assert reads_of(places[:1], content_id(IMAGES.prints)) == (1, 1)


def test_programs_that_note_at_once_lose_no_line(tmp_path, state):
    code = "import sys; from pathlib import Path; from tests.transfer.test_ledger import read\nfor _ in range(12): read(Path(sys.argv[1]))"
    root = Path(ledger.__file__).parents[2]
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen([*command, str(tmp_path / name)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) for name in ("a", "a", "b")
    ]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert len({entry["id"] for entry in lines(state / "mpp" / TEST_READS)}) == 36
    assert (read(tmp_path / "b").times, len(lines(tmp_path / "a" / TEST_READS))) == (37, 24)
