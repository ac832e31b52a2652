"""Archives that lie: whatever their bytes are, they are read, refused by name, or an image is rejected; nothing else happens."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import BadSample, DataError
from mpp.prep.source import Item
from mpp.prep.sources import open_source
from mpp.prep.sources.archives import tar_members
from mpp.remote.urls import MAX_FILE_BYTES

IMAGES = {f"{'ab'[number % 2]}/{number}.png": bytes([number]) * (40 + 300 * number) for number in range(4)}  # readers do not look inside


def tar(content: dict[str, bytes] = IMAGES, form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def packed_zip(content: dict[str, bytes] = IMAGES, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ARCHIVES = {
    "tar": tar(), "long.tar": tar({"x" * 150 + name: data for name, data in IMAGES.items()}),
    "pax.tar": tar({"é" * 80 + name: data for name, data in IMAGES.items()}, tarfile.PAX_FORMAT),
    "tar.gz": gzip.compress(tar(), mtime=0), "zip": packed_zip(), "stored.zip": packed_zip(method=zipfile.ZIP_STORED),
}  # fmt: skip


def bar(what: str, total: int | None):
    return nullcontext(SimpleNamespace(update=lambda count: None))


def read_all(data: bytes, folder: Path) -> dict[str, bytes | str]:
    """Name -> what the source's reader gives for it, or the reason why it gives nothing.  Raises DataError for a refused archive."""
    path = folder / "archive"
    path.write_bytes(data)
    for leftover in folder.glob("source*"):
        leftover.unlink()
    source = open_source(path, folder / "out").unpack(folder, bar)
    listed = list(source.items(Counter()))
    reader = source.reader()
    found: dict[str, bytes | str] = {}
    for item in listed:
        assert not item.name.startswith("/")
        assert ".." not in item.name.split("/")
        try:
            found[item.name] = reader.read(item)
        except BadSample as error:
            found[item.name] = str(error)
    reader.close()
    return found


@pytest.mark.parametrize("kind", ARCHIVES)
def test_whole_archives_give_every_file(kind, tmp_path):
    assert sorted(read_all(ARCHIVES[kind], tmp_path).values()) == sorted(IMAGES.values())


@pytest.mark.parametrize("kind", ARCHIVES)
@given(data=st.data())
def test_a_changed_byte_is_survived_and_in_a_zip_never_changes_an_image(kind, data, tmp_path_factory):
    archive = bytearray(ARCHIVES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_all(bytes(archive), tmp_path_factory.getbasetemp())
    except DataError as error:
        assert "archive" in str(error)
        return
    if "zip" in kind:  # which has a checksum for each file
        assert {content for content in found.values() if isinstance(content, bytes)} <= set(IMAGES.values())


def test_no_byte_of_a_zips_directory_can_stop_the_program(tmp_path):
    archive = ARCHIVES["zip"]
    for place in range(archive.index(b"PK\1\2"), len(archive)):
        for value in (0, 255, archive[place] ^ 128):
            try:
                found = read_all(archive[:place] + bytes([value]) + archive[place + 1 :], tmp_path)
            except DataError as error:
                assert "archive" in str(error)
            else:
                assert {content for content in found.values() if isinstance(content, bytes)} <= set(IMAGES.values())


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_cut_archive_is_refused_or_whole_at_any_length(kind, tmp_path):
    archive = ARCHIVES[kind]
    step = max(1, len(archive) // 120)
    for size in [*range(0, len(archive), step), *range(512, len(archive), 512)]:
        try:
            found = read_all(archive[:size], tmp_path)
        except DataError as error:
            assert "archive" in str(error)
        else:  # only what pads a tar behind its end mark may be missing
            assert len(found) == len(IMAGES)
            assert all(isinstance(content, bytes) for content in found.values())


def test_nothing_that_an_archive_names_is_written_or_followed(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, link in (
            ("/etc/evil.png", tarfile.REGTYPE, ""),
            ("../../evil.png", tarfile.REGTYPE, ""),
            ("a/../../evil.png", tarfile.REGTYPE, ""),
            ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.png", tarfile.LNKTYPE, "/etc/passwd"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("disk.png", tarfile.BLKTYPE, ""),
            ("terminal.png", tarfile.CHRTYPE, ""),
            ("good.png", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 5 * (kind == tarfile.REGTYPE)
            archive.addfile(info, io.BytesIO(b"image") if info.size else None)
    folder = tmp_path / "deep" / "inside"
    folder.mkdir(parents=True)
    (folder / "archive").write_bytes(buffer.getvalue())
    ignored: Counter = Counter()
    source = open_source(folder / "archive", folder / "out").unpack(folder, bar)
    assert {item.name: item.size for item in source.items(ignored)} == {"etc/evil.png": 5, "good.png": 5, "link.png": -1, "hard.png": -1}
    assert ignored == {"(names with ..)": 2, "(devices and pipes)": 3}
    for item in source.items(Counter()):
        if item.size < 0:
            with pytest.raises(BadSample, match="a link that leads nowhere"):
                source.reader().read(item)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["archive"]


def test_a_zip_link_to_a_file_outside_is_not_followed(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    source = open_source(tmp_path / "archive", tmp_path)
    (item,) = source.items(Counter())
    with pytest.raises(BadSample, match="a link that leads nowhere"):
        source.reader().read(item)


def test_a_size_beyond_any_photograph_is_rejected_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("huge.png")
    info.size = MAX_FILE_BYTES + 1
    path = tmp_path / "archive"
    with path.open("wb") as file:  # a sparse file: it costs nothing on the disk
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + -info.size % 512 + 1024)
    source = open_source(path, tmp_path / "out")
    (item,) = source.items(Counter())
    with pytest.raises(BadSample, match=f"{info.size} bytes"):
        source.reader().read(item)


def test_a_zip_entry_that_unpacks_to_more_than_it_says_is_cut_off_and_rejected(tmp_path):
    data = bytearray(packed_zip({"a.png": bytes(50_000_000)}))
    assert len(data) < 100_000
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)  # the directory says 1,000 bytes
    assert read_all(bytes(data), tmp_path) == {"a.png": "damaged in the archive (wrong checksum)"}


def test_entries_that_share_their_bytes_are_read_one_by_one(tmp_path):
    data = bytearray(packed_zip({"a.png": b"first" * 9, "b.png": b"other" * 9}))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = struct.pack("<I", 0)  # b.png begins where a.png does
    found = read_all(bytes(data), tmp_path)
    assert found["a.png"] == b"first" * 9
    assert isinstance(found["b.png"], str)


def test_a_decompression_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.prep.sources.archives.BOMB_BYTES", 1 << 20)
    with gzip.open(tmp_path / "archive", "wb", compresslevel=9) as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="perhaps a decompression bomb"):
        open_source(tmp_path / "archive", tmp_path / "out").unpack(tmp_path, bar)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_refused_and_never_read(kind, tmp_path):
    info = tarfile.TarInfo("name")
    info.type, info.size = kind, 1 << 33
    path = tmp_path / "archive"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 34)
    with path.open("rb") as file, pytest.raises(DataError, match=f"a name of {1 << 33} bytes"):
        list(tar_members(file, "archive"))


def test_an_archive_that_shrank_since_it_was_listed_stops_the_run(tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(tar())
    source = open_source(path, tmp_path / "out")
    *_, last = source.items(Counter())
    os.truncate(path, last.place[0] + 5)
    with pytest.raises(DataError, match="was cut after it was listed"):
        source.reader().read(last)


@pytest.mark.parametrize("text", ["x.png", "é.png", "日本.png", "a b.png", "a.b.c.png", "\udcff.png"])
def test_names_of_any_letters_come_through(text, tmp_path):
    assert read_all(tar({text: b"data"}), tmp_path) == {text: b"data"}
    assert Item(text, 4).name == text
