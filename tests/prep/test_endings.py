"""What lies behind the place where a reader may stop: it is read, or named with its number of bytes, and never passed over."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep import index_shards, make_shards, verify_shards
from mpp.base.errors import DataError
from mpp.data.shards import ShardSet
from mpp.data.write_shards import write_manifest
from mpp.prep.sources import open_source
from mpp.prep.sources.archives import tar_members

zstandard = pytest.importorskip("zstandard")
PACK = {"gz": lambda data: gzip.compress(data, mtime=0), "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.fixture
def tars(write_tar) -> list[bytes]:
    return [write_tar(None, {f"{letter}/{number}.jpg": f"{letter}{number}".encode() for number in range(3)}) for letter in "abc"]


def names(path: Path, no_bar, tmp_path: Path) -> list[str]:
    for leftover in tmp_path.glob("source*"):
        leftover.unlink()
    return sorted(item.name for item in open_source(path, tmp_path / "out").unpack(tmp_path, no_bar).items(Counter()))


ALL = [f"{letter}/{number}.jpg" for letter in "abc" for number in range(3)]


@pytest.mark.parametrize("end", [512, 1024, 10240 - 3 * 1024, 300 * 512])
def test_joined_tars_give_the_images_of_all_whatever_end_mark_lies_between(tars, end, no_bar, tmp_path):
    joined = b"".join(data.rstrip(b"\0").ljust(3 * 1024, b"\0") + bytes(end) for data in tars)
    (tmp_path / "all.tar").write_bytes(joined)
    assert names(tmp_path / "all.tar", no_bar, tmp_path) == ALL


def test_a_joined_tar_is_refused_or_whole_wherever_it_is_cut(tars, no_bar, tmp_path):
    for size in range(0, 3072 + 1024, 128):
        (tmp_path / "all.tar").write_bytes(tars[0] + tars[1][:size])
        try:
            found = names(tmp_path / "all.tar", no_bar, tmp_path)
        except DataError as error:
            assert "all.tar: " in str(error)
        else:
            assert found == (ALL[:3] if size == 0 else ALL[:6])


@pytest.mark.parametrize("rest", [b"x", b"rubbish " * 100, b"\0\0" + b"ab" * 400, b"\xff" * 512])
@pytest.mark.parametrize("gap", [0, 7, 512])
def test_bytes_behind_the_end_mark_that_are_no_tar_are_counted(tars, rest, gap, tmp_path):
    path = tmp_path / "set.tar"
    path.write_bytes(tars[0] + bytes(gap) + rest)
    at = len(tars[0]) + gap + len(rest) - len(rest.lstrip(b"\0"))
    with (
        path.open("rb") as file,
        pytest.raises(DataError, match=rf"set\.tar: {path.stat().st_size - at} bytes from byte {at} on, behind its end mark"),
    ):
        list(tar_members(file, str(path)))


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("between", [0, 4, 8192])
def test_compressed_streams_behind_one_another_are_all_read(tars, kind, between, no_bar, tmp_path):
    path = tmp_path / f"set.tar.{kind}"
    path.write_bytes(bytes(between).join(PACK[kind](data) for data in tars) + bytes(between))
    assert names(path, no_bar, tmp_path) == ALL
    whole = b"".join(tars)
    path.write_bytes(
        bytes(between).join(PACK[kind](whole[at : at + 1000]) for at in range(0, len(whole), 1000))
    )  # cut anywhere, as pigz does
    assert names(path, no_bar, tmp_path) == ALL


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("rest", [b"x", b"rubbish " * 9, b"\0\0\0\0rubbish"])
def test_bytes_behind_a_compressed_stream_that_are_none_are_counted(tars, kind, rest, no_bar, tmp_path):
    path = tmp_path / f"set.tar.{kind}"
    packed = PACK[kind](tars[0])
    path.write_bytes(packed + rest)
    count = len(rest.lstrip(b"\0"))
    with pytest.raises(DataError, match=rf"{count} bytes from byte {len(packed) + len(rest) - count} on, behind a compressed stream"):
        names(path, no_bar, tmp_path)


@pytest.mark.parametrize("kind", PACK)
def test_a_second_compressed_stream_is_refused_wherever_it_is_cut(tars, kind, no_bar, tmp_path):
    path, first, second = tmp_path / f"set.tar.{kind}", PACK[kind](tars[0]), PACK[kind](tars[1])
    for size in [*range(1, len(second), 7), len(second) - 1]:
        path.write_bytes(first + second[:size])
        with pytest.raises(DataError, match=rf"set\.tar\.{kind}: "):
            names(path, no_bar, tmp_path)


def packed_zip(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return buffer.getvalue()


def test_a_zip_with_more_than_its_directory_lists_is_refused(no_bar, tmp_path):
    one, two = packed_zip(["a.jpg", "b.jpg"]), packed_zip(["c.jpg"])
    path = tmp_path / "set.zip"
    for data, message in (
        (two + one, f"{len(two)} bytes before its first entry"),
        (one + b"more", "4 bytes behind its end"),
        (one + two[:-30], f"{len(two) - 30} bytes behind its end"),
        (one.replace(b"\2\0\2\0", b"\1\0\1\0"), "its directory says 1 entries and lists 2"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            names(path, no_bar, tmp_path)
    path.write_bytes(one + bytes(64))
    assert names(path, no_bar, tmp_path) == ["a.jpg", "b.jpg"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", "a")
        archive.comment = b"a comment with PK in it"
    assert names(path, no_bar, tmp_path) == ["a.jpg"]


def test_parquet_files_joined_are_refused_and_other_files_of_the_folder_counted(picture, no_bar, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "set"
    folder.mkdir()
    for index in (False, True):
        for number in range(2):
            table = pyarrow.table({"image": [picture(2 * number), picture(2 * number + 1)]})
            parquet.write_table(table, folder / f"{number}.parquet", write_page_index=index)
        one, two = ((folder / f"{number}.parquet").read_bytes() for number in range(2))
        assert len(names(folder, no_bar, tmp_path)) == 4
        (tmp_path / "both.parquet").write_bytes(one + two)
        with pytest.raises(DataError, match="several parquet files joined"):
            open_source(tmp_path / "both.parquet", tmp_path / "out")
    for name in ("more.arrow", ".hidden"):
        (folder / name).write_bytes(b"x")
    ignored: Counter = Counter()
    assert len(list(open_source(folder, tmp_path / "out").unpack(tmp_path, no_bar).items(ignored))) == 4
    assert ignored == {".arrow": 1}


def samples(picture, first: int, count: int = 3) -> dict[str, bytes]:
    return {
        name: data for number in range(first, first + count) for name, data in ((f"{number}.jpg", picture(number)), (f"{number}.cls", b"1"))
    }


def faults(folder: Path, capsys, *words: str) -> dict[str, int]:
    capsys.readouterr()
    verify_shards.main([str(folder), "--quiet", "--json", "--workers", "1", *words])
    return json.loads(capsys.readouterr().out)["splits"][0]["kinds"]


def test_a_foreign_index_lists_images_behind_an_end_mark_and_verify_names_those_that_one_does_not(picture, write_tar, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    one, two = write_tar(None, samples(picture, 0)), write_tar(None, samples(picture, 3))
    (folder / "0.tar").write_bytes(one + two)
    (folder / "1.tar").write_bytes(one)
    assert index_shards.main([str(folder), "--labels", "--quiet", "--workers", "1"]) == 0
    shards = ShardSet.open(folder)
    assert [shards.read(sample) for sample in range(len(shards))] == [picture(number) for number in (*range(6), *range(3))]
    assert faults(folder, capsys, "--full") == {}
    # an index that stopped at the end mark, with everything else about it right
    rows, manifest = shards.index[[0, 1, 2, 6, 7, 8]], json.loads((folder / "manifest.json").read_text())
    entries = [(entry | {"samples": 3}, rows[at : at + 3]) for entry, at in zip(manifest["shards"], (0, 3), strict=True)]
    colours = np.ones((3, 256), int)
    write_manifest(
        folder, split="set", shards=entries, classes=["0", "1"], colours=colours, colour_images=6, rejects=0, source=manifest["source"]
    )
    assert faults(folder, capsys, "--full")["unlisted image"] == 3
    (folder / "2.TAR").write_bytes(two)
    (folder / "notes.tar").write_bytes(write_tar(None, {"notes.txt": b"x"}))
    assert faults(folder, capsys)["unlisted file"] == 1


def test_an_image_that_was_too_large_for_an_index_is_none_that_verify_misses(picture, write_tar, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "0.tar", {"0.jpg": picture(0), "1.jpg": picture(1, size=(40, 30))})
    assert index_shards.main([str(folder), "--quiet", "--workers", "1", "--max-pixels", "1000", "--max-rejects", "0.5"]) == 0
    assert len(ShardSet.open(folder)) == 1
    assert faults(folder, capsys, "--full") == {}


def test_index_shards_refuses_bytes_behind_the_end_mark_and_rows_of_links(picture, write_tar, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    data = write_tar(None, samples(picture, 0))
    (folder / "0.tar").write_bytes(data + b"rubbish")
    with pytest.raises(DataError, match=rf"0\.tar: 7 bytes from byte {len(data)} on, behind its end mark"):
        index_shards.main([str(folder), "--quiet", "--workers", "1"])
    link = tarfile.TarInfo("9.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
    (folder / "0.tar").write_bytes(data + link.tobuf() + bytes(1024))
    with pytest.raises(DataError, match=r"first '0\.tar/9\.jpg' \(a link to another member"):
        index_shards.main([str(folder), "--quiet", "--workers", "1"])
    assert index_shards.main([str(folder), "--quiet", "--workers", "1", "--max-rejects", "0.5"]) == 0
    assert len(ShardSet.open(folder)) == 3


def test_bytes_behind_the_end_of_an_image_stay_with_it(picture, tmp_path, no_bar):
    """Previews, depth maps and films hang behind the picture that phones take."""
    folder = tmp_path / "photos"
    folder.mkdir()
    kept = {f"{form}{number}": picture(number, form) + b"\0film" * number for number in range(3) for form in ("JPEG", "PNG")}
    for name, data in kept.items():
        (folder / f"{name}.jpg").write_bytes(data)
    assert make_shards.main([str(folder), str(tmp_path / "out"), "--quiet", "--workers", "1"]) == 0
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert sorted(shards.read(sample) for sample in range(len(shards))) == sorted(kept.values())
