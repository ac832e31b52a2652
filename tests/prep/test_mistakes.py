"""What people do by mistake, and what kills leave behind before anything is planned."""

import json
import os
import struct
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep import index_shards
from data_prep.make_shards import main
from mpp.base.errors import BadSample, DataError, UserError
from mpp.data.class_folders import reason_to_ignore
from mpp.data.shards import ShardSet
from mpp.prep.destination import PLAN, Destination
from mpp.prep.sources import open_source


def make(*words) -> None:
    assert main([*map(str, words), "--quiet", "--workers", "1"]) == 0


def folder_of(path: Path, picture, numbers, *, flat: bool = False) -> Path:
    for number in numbers:
        file = path / ("" if flat else "ab"[number % 2]) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number, "PNG"))
    return path


def packed(folder: Path) -> Path:
    archive = folder.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    return archive


def contents(out: Path) -> list[bytes]:
    shards = ShardSet.open(out / "train")
    return sorted(shards.read(sample) for sample in range(len(shards)))


@pytest.fixture
def stopped_before_the_plan(monkeypatch):
    """A context in which make_shards.py is killed when it has listed, just before it notes its plan down."""

    def stop(*words) -> None:
        real = Destination.put

        def put(self, name, data):
            if name == PLAN:
                raise KeyboardInterrupt
            real(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(Destination, "put", put)
            patch.setattr(Destination, "abandon", lambda self: None)  # a kill leaves no time for this
            with pytest.raises(KeyboardInterrupt):
                make(*words)

    return stop


@pytest.mark.parametrize("archive", [False, True])
def test_another_command_takes_nothing_over_from_one_that_was_killed_before_it_planned(tmp_path, picture, stopped_before_the_plan, archive):
    first, second = folder_of(tmp_path / "first", picture, range(8)), folder_of(tmp_path / "second", picture, range(20, 29))
    if archive:
        first, second = packed(first), packed(second)
    stopped_before_the_plan(first, tmp_path / "out", "--seed", 1)
    make(second, tmp_path / "out", "--seed", 2)
    assert contents(tmp_path / "out") == sorted(picture(number, "PNG") for number in range(20, 29))
    make(second, tmp_path / "fresh", "--seed", 2)
    assert (tmp_path / "out" / "train" / "000000.tar").read_bytes() == (tmp_path / "fresh" / "train" / "000000.tar").read_bytes()


def test_a_mended_source_is_listed_anew_also_by_a_part(tmp_path, picture):
    source = folder_of(tmp_path / "photos", picture, range(4))
    (source / "flat.png").write_bytes(picture(9, "PNG"))
    with pytest.raises(DataError, match=r"'flat\.png' lies in no folder"):
        make(source, tmp_path / "out", "--labels", "--part", "0/2")
    (source / "flat.png").rename(source / "a" / "flat.png")
    make(source, tmp_path / "out", "--labels", "--part", "0/2")
    make(source, tmp_path / "out", "--labels")
    assert len(contents(tmp_path / "out")) == 5


def test_what_a_killed_listing_spilled_is_neither_read_nor_kept(tmp_path, picture, monkeypatch):
    monkeypatch.setattr("mpp.prep.shuffle.BUFFER_BYTES", 1)
    monkeypatch.setattr("secrets.token_hex", lambda count: "00" * count)  # as if the dead run had had our number
    source, scratch = folder_of(tmp_path / "photos", picture, range(6)), tmp_path / "out" / ".work"
    scratch.mkdir(parents=True)
    for bucket in range(1024):
        (scratch / f".train-{bucket:04d}.tmp-{os.getpid()}-00000000").write_bytes(b"\x20\0\0\0rubbish")
    make(source, tmp_path / "out", "--part", "0/1")
    assert not list(scratch.glob(".train-*"))
    make(source, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 6


def test_no_two_processes_share_a_temporary_name_though_both_are_number_1(tmp_path, monkeypatch):
    from mpp.disk.files import temporary

    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert len({temporary(tmp_path / "x") for _ in range(100)}) == 100


def test_index_shards_leaves_a_set_in_the_making_alone(tmp_path, picture):
    make(folder_of(tmp_path / "photos", picture, range(6)), tmp_path / "out", "--part", "0/2", "--samples-per-shard", 3)
    before = sorted((tmp_path / "out" / ".work").iterdir())
    for folder in (tmp_path / "out", tmp_path / "out" / "train"):
        with pytest.raises(DataError, match=r"is made by make_shards\.py"):
            index_shards.main([str(folder), "--quiet"])
    assert sorted((tmp_path / "out" / ".work").iterdir()) == before


def test_a_name_that_a_manifest_cannot_hold_is_refused_before_any_work(tmp_path, picture):
    source = tmp_path / "photos"
    for folder in (b"caf\xe9", b"plain"):
        path = Path(os.fsdecode(os.fsencode(source) + b"/" + folder))
        path.mkdir(parents=True)
        (path / "a.png").write_bytes(picture(1, "PNG"))
    with pytest.raises(DataError, match="this name is no UTF-8"):
        make(source, tmp_path / "out", "--labels")
    assert not (tmp_path / "out").exists()
    make(source, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 2


def test_tars_in_capitals_are_read_and_files_of_a_mac_are_not(tmp_path, picture, write_tar):
    (tmp_path / "tars").mkdir()
    for name in ("a.TAR", "b.tar"):
        write_tar(tmp_path / "tars" / name, {f"{name[0]}1.png": picture(ord(name[0]), "PNG")})
    (tmp_path / "tars" / "._b.tar").write_bytes(b"resource fork")
    make(tmp_path / "tars", tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 2
    assert index_shards.main([str(tmp_path / "tars"), "--quiet", "--workers", "1"]) == 0
    assert len(ShardSet.open(tmp_path / "tars")) == 2


def test_a_lost_shard_of_a_finished_set_is_told_with_a_way_out(tmp_path, picture):
    source = folder_of(tmp_path / "photos", picture, range(6))
    make(source, tmp_path / "out")
    (tmp_path / "out" / "train" / "000000.tar").unlink()
    with pytest.raises(
        DataError, match=r"000000\.tar: is missing, the manifest lists it; put back what is missing, or remove .*out and make it again"
    ):
        make(source, tmp_path / "out")


def test_leaving_out_every_image_of_train_is_told_where_to_look(tmp_path, picture):
    for name in "ab":
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        (folder / "same.png").write_bytes(picture(1, "PNG"))
    with pytest.raises(DataError, match=r"no readable image is left for train; .*duplicates\.jsonl lists why"):
        make(tmp_path / "photos", tmp_path / "out", "--val", 1, "--dedup")


@pytest.mark.parametrize(("place", "value"), [(20, 2**50), (20, 2**64 - 1000), (42, 2**63)])  # packed size, header offset
def test_a_zip_that_points_outside_itself_is_a_reject(tmp_path, place, value):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a.png", b"image")
    data = bytearray((tmp_path / "archive.zip").read_bytes())
    at, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    extra = struct.pack("<HHQ", 1, 8, value)  # zip64
    data[at + place : at + place + 4] = b"\xff" * 4
    data[at + 30 : at + 32] = struct.pack("<H", len(extra))
    data[end:end] = extra
    at = data.index(b"PK\5\6")
    data[at + 12 : at + 16] = struct.pack("<I", struct.unpack_from("<I", data, at + 12)[0] + len(extra))
    (tmp_path / "archive.zip").write_bytes(data)
    source = open_source(tmp_path / "archive.zip", tmp_path)
    for item in source.items(Counter()):
        with pytest.raises(BadSample, match="damaged in the archive"):
            source.reader().read(item)


def test_a_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        open_source(tmp_path / "pipe", tmp_path)


def test_numbered_files_do_not_fill_the_memory_with_kinds():
    kinds = {reason_to_ignore([f"frame.{number:06d}"]) for number in range(1000)} | {reason_to_ignore(["a." + "x" * 40])}
    assert kinds == {"(other suffixes)"}
    assert reason_to_ignore(["a.heic"]) == ".heic"


def test_files_named_by_their_writer_are_train(tmp_path, picture):
    rows = [{"image": {"bytes": picture(number), "path": None}} for number in range(4)]
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set" / "part-00000-of-00001.parquet")
    make(tmp_path / "set", tmp_path / "out", "--val", 1)
    assert len(contents(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--quality", "30"], "--quality is of encoded images"), (["--label-field", "x"], "--label-field says where labels are")],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, picture, words, message):
    with pytest.raises(UserError, match=message):
        make(folder_of(tmp_path / "photos", picture, range(2)), tmp_path / "out", *words)


def test_a_complete_set_is_told_to_machines_too(tmp_path, picture, capsys):
    source = folder_of(tmp_path / "photos", picture, range(4))
    make(source, tmp_path / "out")
    capsys.readouterr()
    make(source, tmp_path / "out", "--json")
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "out"), "complete": ["train"]}


def test_passwords_of_urls_stay_out_of_what_is_written(tmp_path, picture):
    good = folder_of(tmp_path / "photos", picture, range(3), flat=True)
    rows = [*map(str, sorted(good.iterdir())), "foo://user:secret@host/a.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(rows) + "\n")
    make(tmp_path / "list.txt", tmp_path / "out", "--max-rejects", 0.5)
    assert "secret" not in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_a_label_that_only_looks_like_a_class_number_is_refused(tmp_path):
    for label in ("-1", "10.0"):
        (tmp_path / "list.csv").write_text(f"path,label\na.jpg,1\nb.jpg,{label}\n")
        with pytest.raises(DataError, match=f"line 3: the label {label} is a number, but no class number"):
            make(tmp_path / "list.csv", tmp_path / "out", "--labels")


def test_a_tree_without_end_is_refused(tmp_path):
    path = tmp_path / "deep"
    for _ in range(230):
        path = path / "d"
    path.mkdir(parents=True)
    with pytest.raises(DataError, match="is more than 200 folders deep"):
        list(open_source(tmp_path / "deep", tmp_path / "out").items(Counter()))
