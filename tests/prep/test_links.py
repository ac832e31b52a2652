"""Links in archives: a tar or a zip of a folder gives what the folder gives."""

import io
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.base.errors import BadSample, DataError
from mpp.prep.sources import open_source
from mpp.prep.sources.links import MAX_LINKS

NOWHERE = "a link that leads nowhere"
Entry = tuple[str, str, str]  # name, kind (file, hard or symbolic), content or target


def contents(path: Path) -> dict[str, bytes | str]:
    """Name -> bytes, or why there are none; of a repeated name the last."""
    source = open_source(path, path.parent / "out")
    reader, found = source.reader(), {}
    for item in source.items(Counter()):
        try:
            found[item.name] = reader.read(item)
        except BadSample as error:
            found[item.name] = str(error)
    reader.close()
    return found


def tar(path: Path, entries: Sequence[Entry]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, kind, text in entries:
            info = tarfile.TarInfo(name)
            if kind == "file":
                info.size = len(text)
            else:
                info.type, info.linkname = tarfile.LNKTYPE if kind == "hard" else tarfile.SYMTYPE, text
            file.addfile(info, io.BytesIO(text.encode()) if kind == "file" else None)
    return path


def packed_zip(path: Path, entries: Sequence[Entry]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, kind, text in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if kind == "symbolic" else stat.S_IFREG) << 16
            file.writestr(info, text)
    return path


names = st.sampled_from(["a", "b", "c", "x.jpg", "y.jpg", "z.txt", ".hidden"])
folders = st.lists(st.sampled_from(["a", "b", "c", ".hidden"]), max_size=2)


@st.composite
def trees(draw) -> list[Entry]:
    """Files, hard links to them, and symbolic links to anything or nothing, none of them behind a link or below a file."""
    entries: dict[str, Entry] = {}

    def free(name: str) -> bool:
        taken = set(entries) | {"/".join(name.split("/")[:depth]) for name in entries for depth in range(1, name.count("/") + 1)}
        above = {"/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)}
        return name not in taken and not above & set(entries)

    for number in range(draw(st.integers(1, 5))):
        name = "/".join([*draw(folders), draw(st.sampled_from(["x.jpg", "y.jpg", "z.txt"]))])
        if free(name):
            entries[name] = (name, "file", f"content {number}")
    files = list(entries)
    for _ in range(draw(st.integers(0, 5))):
        name = "/".join([*draw(folders), draw(names)])
        if not free(name):
            continue
        if draw(st.booleans()):
            entries[name] = (name, "hard", draw(st.sampled_from(files)))
        else:
            target = "/".join([*[".."] * draw(st.integers(0, name.count("/"))), *draw(st.lists(names, max_size=2))])
            entries[name] = (name, "symbolic", target or ".")
    return draw(st.permutations(list(entries.values())))


@settings(max_examples=60)
@given(entries=trees())
def test_a_folder_its_tar_and_its_zip_give_the_same_images(entries, tmp_path_factory):
    base = tmp_path_factory.mktemp("tree")
    root = base / "tree"
    root.mkdir()
    for name, kind, text in sorted(entries, key=lambda entry: ("file", "hard", "symbolic").index(entry[1])):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file":
            path.write_text(text)
        elif kind == "hard":
            path.hardlink_to(root / text)
        else:
            path.symlink_to(text)
    expected = contents(root)
    assert contents(tar(base / "tree.tar", entries)) == expected
    by_name = {name: text for name, kind, text in entries if kind == "file"}
    whole = [
        (name, "file", by_name[text]) if kind == "hard" else (name, kind, text) for name, kind, text in entries
    ]  # zip has no hard links
    assert contents(packed_zip(base / "tree.zip", whole)) == expected
    shutil.rmtree(base)


def test_a_hard_link_is_what_its_target_was_before_it_and_else_what_comes_next(tmp_path):
    entries = [
        ("early.jpg", "hard", "./a.jpg"),
        ("chain.jpg", "hard", "early.jpg"),
        ("a.jpg", "file", "first"),
        ("b.jpg", "hard", "a.jpg"),
        ("a.jpg", "file", "second"),
        ("c.jpg", "hard", "/a.jpg"),
        ("later.jpg", "symbolic", "a.jpg"),
        ("d.jpg", "hard", "later.jpg"),
        ("b2.jpg", "hard", "b.jpg"),
        ("b.jpg", "file", "third"),
        ("lost.jpg", "hard", "no.jpg"),
        ("self.jpg", "hard", "self.jpg"),
        ("gone.jpg", "symbolic", "a.jpg"),
        ("gone.jpg", "file", "a file after all"),
    ]
    assert contents(tar(tmp_path / "set.tar", entries)) == {
        "early.jpg": b"first",
        "chain.jpg": b"first",
        "a.jpg": b"second",
        "b2.jpg": b"first",
        "c.jpg": b"second",
        "later.jpg": b"second",
        "d.jpg": b"second",
        "b.jpg": b"third",
        "lost.jpg": NOWHERE,
        "self.jpg": NOWHERE,
        "gone.jpg": b"a file after all",
    }


def test_links_are_followed_across_the_end_mark_of_joined_tars_and_in_compressed_ones(tmp_path, no_bar):
    import gzip

    one = tar(tmp_path / "one.tar", [("cat/a.jpg", "file", "miaow"), ("cat/b.jpg", "hard", "dog/c.jpg")]).read_bytes()
    two = tar(tmp_path / "two.tar", [("dog/c.jpg", "file", "bark"), ("dog/d.jpg", "hard", "cat/a.jpg")]).read_bytes()
    (tmp_path / "both.tar").write_bytes(one + two)
    expected = {"cat/a.jpg": b"miaow", "cat/b.jpg": b"bark", "dog/c.jpg": b"bark", "dog/d.jpg": b"miaow"}
    assert contents(tmp_path / "both.tar") == expected
    (tmp_path / "both.tar.gz").write_bytes(gzip.compress(one) + gzip.compress(two))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    open_source(tmp_path / "both.tar.gz", tmp_path / "out").unpack(scratch, no_bar)
    assert contents(scratch / "source.tar") == expected


def test_a_link_that_leads_out_of_a_tar_is_named_whatever_it_is_called(tmp_path):
    entries = [
        ("a.jpg", "file", "a"),
        ("b.jpg", "symbolic", "../a.jpg"),
        ("photos", "symbolic", "/data/photos"),
        ("c.jpg", "symbolic", "/a.jpg"),
    ]
    path = tar(tmp_path / "set.tar", entries)
    ignored: Counter = Counter()
    assert {item.name: item.size for item in open_source(path, tmp_path / "out").items(ignored)} == {"a.jpg": 1, "b.jpg": -1, "c.jpg": -1}
    assert ignored == {"(links that lead nowhere)": 1}


def test_links_in_webdataset_tars_are_fields_like_others(tmp_path):
    entries = [("0.cls", "file", "7"), ("0.jpg", "file", "image"), ("1.cls", "hard", "0.cls"), ("1.jpg", "symbolic", "0.jpg")]
    folder = tmp_path / "set"
    folder.mkdir()
    tar(folder / "0.tar", [*entries, ("2.cls", "file", "8"), ("2.jpg", "symbolic", "9.jpg")])
    ignored: Counter = Counter()
    source = open_source(folder, tmp_path / "out")
    assert [(item.name, item.label, source.reader().read(item)) for item in source.items(ignored)] == [
        ("0.tar/0.jpg", "7", b"image"),
        ("0.tar/1.jpg", "7", b"image"),
    ]
    assert ignored == {"(links that lead nowhere)": 1, "(keys without an image)": 1}


def test_links_without_end_are_refused_and_never_followed_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.prep.sources.links.MAX_LINKED", 1000)
    names = "abcdefgh"
    entries = [(f"{folder}/x.jpg", "file", folder) for folder in names]
    entries += [(f"{folder}/to_{other}", "symbolic", f"../{other}") for folder in names for other in names]
    with pytest.raises(DataError, match="make a tree without end"):
        contents(tar(tmp_path / "bomb.tar", entries))
    with pytest.raises(DataError, match="more than 200 folders deep"):
        contents(tar(tmp_path / "deep.tar", [("a/" * 300 + "x.jpg", "file", "x"), ("y.jpg", "hard", "z.jpg")]))
    chain = [(f"{number}.jpg", "symbolic", f"{number + 1}.jpg") for number in range(MAX_LINKS + 1)]
    found = contents(tar(tmp_path / "chain.tar", [*chain, (f"{MAX_LINKS + 1}.jpg", "file", "end")]))
    assert (found["0.jpg"], found["1.jpg"]) == (NOWHERE, b"end")


@pytest.mark.parametrize("code", ["utf-8", "cp437"])
def test_a_zip_without_the_mark_for_utf8_has_the_names_that_were_meant(tmp_path, monkeypatch, code):
    monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda self: (self.filename.encode(code), 0))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("Größe/é.jpg", b"1")
    monkeypatch.undo()
    assert [(item.name, item.label) for item in open_source(tmp_path / "set.zip", tmp_path).items(Counter())] == [("Größe/é.jpg", "Größe")]
