"""Disks that fill up or may not be written, and sources that vanish: one line, nothing half-named, and the same command goes on."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.make_shards import main
from mpp.base.errors import UserError

WORDS = ("--samples-per-shard", "4", "--workers", "2", "--quiet")


def make(*words) -> None:
    assert main([*map(str, words), *WORDS]) == 0


@pytest.fixture
def source(tmp_path, picture) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.png").write_bytes(picture(number, "PNG", (64, 64)))
    return folder


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """(options) -> a real file system of its own, mounted or mounted anew with them."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here (root may): {done.stderr.strip()}")
        return folder

    yield mount
    while os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def visible(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


@pytest.mark.parametrize("kilobytes", [8, 80, 200])
def test_a_full_disk_keeps_what_is_finished_and_goes_on_when_there_is_room(source, disk, tmp_path, kilobytes):
    make(source, tmp_path / "whole")
    expected = visible(tmp_path / "whole")
    out = disk(f"size={kilobytes}k") / "out"
    with pytest.raises(UserError, match=r"No space left on device; free some space, then run the same command again"):
        make(source, out)
    finished = visible(out) if out.exists() else {}
    assert finished.items() <= expected.items()  # whatever has its name is whole
    assert finished or kilobytes < 200  # two workers share the room: in 80 kB one of them may finish a shard
    assert "train/manifest.json" not in finished
    disk("remount,size=10m")
    make(source, out)
    assert visible(out) == expected


def test_a_folder_that_may_not_be_written_is_one_line(source, disk):
    disk("size=10m")
    folder = disk("remount,ro")
    with pytest.raises(UserError, match="Read-only file system; check that SOURCE can be read and OUT written"):
        make(source, folder / "out")
    assert not list(folder.iterdir())


def test_a_source_that_vanishes_stops_the_run_and_the_same_command_goes_on_when_it_is_back(source, tmp_path, monkeypatch):
    from mpp.prep import making

    out, real = tmp_path / "out", making.build

    def vanish_after_two(jobs, *others):
        real(jobs[:2], *others)
        source.rename(tmp_path / "away")
        real(jobs[2:], *others)

    monkeypatch.setattr("mpp.prep.making.build", vanish_after_two)
    with pytest.raises(UserError, match="has vanished since it was listed; put it back, or remove OUT"):
        make(source, out)
    monkeypatch.setattr("mpp.prep.making.build", real)
    with pytest.raises(UserError, match="photos: no such file or folder"):
        make(source, out)
    (tmp_path / "away").rename(source)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert len(kept) >= 2
    make(source, out)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}.items()
    make(source, tmp_path / "whole")
    assert visible(out) == visible(tmp_path / "whole")


def test_an_image_that_changed_since_it_was_listed_stops_the_run(source, tmp_path, monkeypatch, picture):
    from mpp.prep import making

    real = making.build

    def change_first(jobs, *others):
        (source / "07.png").write_bytes(picture(99, "PNG", (64, 64)))
        real(jobs, *others)

    monkeypatch.setattr("mpp.prep.making.build", change_first)
    with pytest.raises(UserError, match=r"07\.png: has changed since it was listed"):
        make(source, tmp_path / "out")
