import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mpp.base.errors import UserError
from mpp.disk.files import append, make_folder, sync_path, writing
from mpp.disk.patience import disks


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


def test_what_cannot_be_flushed_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "labels.npy").write_bytes(b"1")
    with pytest.raises(OSError) as error:
        sync_path(tmp_path / "labels.npy")
    assert error.value.filename == str(tmp_path / "labels.npy")


def test_a_fault_of_the_tensors_themselves_stays_what_it_is(tmp_path):
    with pytest.raises(SafetensorError, match="InvalidHeader"), writing(tmp_path / "weights"):
        raise SafetensorError("Error while serializing: InvalidHeader")


@pytest.mark.parametrize("taken", [0, 3])
def test_a_line_is_appended_once_and_whole_though_the_disk_fails_in_between(tmp_path, monkeypatch, taken):
    path, failures, opened = tmp_path / "metrics.jsonl", [1, 1], Path.open
    path.write_text("first\n")

    class Failing:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if failures:
                failures.pop()
                self.file.write(data[:taken])
                raise OSError(116, "Stale file handle")
            return self.file.write(data)

    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", *more, **named: (
            Failing(opened(self, mode, *more, **named)) if "b" in mode else opened(self, mode, *more, **named)
        ),
    )
    monkeypatch.setattr("mpp.disk.patience.time.sleep", lambda seconds: None)
    append(path, "second\n")
    append(path, "third\n")
    assert os.read(os.open(path, os.O_RDONLY), 100) == b"first\nsecond\nthird\n"


def test_a_disk_that_takes_no_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "patience", 0.0)
    with pytest.raises(OSError, match="metrics"):
        append(tmp_path / "no folder" / "metrics.jsonl", "x\n")


def test_nothing_is_written_into_a_set_of_shards(tmp_path):
    make_folder(tmp_path / "train", "run_dir")
    (tmp_path / "train" / "manifest.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"^run_dir=\S+/train is a set of shards, beside which nothing else should lie; give a folder of its own$"
    ):
        make_folder(tmp_path / "train", "run_dir")
    make_folder(tmp_path / "train" / "own", "run_dir")
