"""Which source a path is, and the options that say so or check it."""

import hashlib
import zipfile

import pytest

from mpp.base.errors import DataError, UserError
from mpp.prep.source import SourceOptions
from mpp.prep.sources import FORMATS, open_source


@pytest.fixture(scope="module")
def things(tmp_path_factory, write_tar):
    folder = tmp_path_factory.mktemp("things")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"a")
    (folder / "list.txt").write_text("photos/a.jpg\n")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", b"a")
    write_tar(folder / "photos.tar", {"a.jpg": b"a"})
    write_tar(folder / "photos.tar.gz", {"a.jpg": b"a"}, "w:gz")
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [("photos", "folder"), ("list.txt", "list"), ("photos.zip", "zip"), ("photos.tar", "tar"), ("photos.tar.gz", "tar.gz")],
)
def test_a_source_is_of_the_format_that_it_is_and_of_no_other_archive(things, name, kind):
    assert open_source(things / name, things).kind == kind
    assert open_source(things / name, things, SourceOptions(format=kind)).kind == kind
    for other in set(FORMATS) - {kind, "list", "csv", "jsonl", *(["webdataset"] if kind == "tar" else [])}:  # a tar may be either
        with pytest.raises(DataError, match=rf"--format {other}|leave out --format|holds neither ILSVRC2012|holds no \.(tar|parquet)"):
            open_source(things / name, things, SourceOptions(format=other))


@pytest.mark.parametrize("name", ["list.txt", "photos.zip", "photos.tar", "photos.tar.gz"])
@pytest.mark.parametrize("method", ["md5", "sha256"])
def test_a_checksum_is_compared_once_before_anything_is_unpacked_or_listed(things, tmp_path, no_bar, name, method):
    data = (things / name).read_bytes()
    (tmp_path / name).write_bytes(data)
    right = hashlib.new(method, data).hexdigest()
    source = open_source(tmp_path / name, tmp_path, SourceOptions(checksum=right.upper()))
    read = []

    def bar(what, total):
        read.append(what)
        return no_bar(what, total)

    first, again = source.unpack(tmp_path, bar), source.unpack(tmp_path, bar)
    assert first == again
    assert read.count(f"{method} of {name}") == 1
    wrong = open_source(tmp_path / name, tmp_path, SourceOptions(checksum="0" * len(right)))
    with pytest.raises(DataError, match=f"its {method} is {right}, and not 000"):
        wrong.unpack(tmp_path, no_bar)
    (tmp_path / name).write_bytes(data + b"\n")
    with pytest.raises(DataError, match=f"its {method} is "):
        source.unpack(tmp_path, no_bar)


def test_a_checksum_that_cannot_be_one_is_refused(things):
    for name, checksum, message in (
        ("photos.zip", "123", "is neither an md5"),
        ("photos.zip", "x" * 32, "is neither an md5"),
        ("photos.zip", "official", "is for cifar10, cifar100, imagenet"),
        ("photos", "0" * 32, "is a folder, and has no checksum"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(things / name, things, SourceOptions(checksum=checksum))
