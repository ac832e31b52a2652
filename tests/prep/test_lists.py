"""Lists of images: every kind of list, what is wrong with one, and what its rows lead to."""

import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from data_prep import make_shards
from mpp.base.errors import BadSample, DataError
from mpp.data.shards import ShardSet
from mpp.prep.source import Item, SourceOptions, wrong_size
from mpp.prep.sources import open_source
from mpp.prep.sources.lists import MAX_LINE_BYTES, ListFile, ListReader
from mpp.remote.urls import MAX_FILE_BYTES


def rows(path: Path, **options) -> list[tuple[str, str]]:
    return [(item.name, item.label) for item in open_source(path, path, SourceOptions(**options)).items(Counter())]


EXPECTED = [("a/1 x.jpg", "cat"), ("../b,2.png", ""), ("/c/3.jpg", "café")]
SAME = {
    "tabs.txt": "a/1 x.jpg\tcat\n\n../b,2.png\n/c/3.jpg\tcafé",
    "windows.txt": "\ufeffa/1 x.jpg\tcat\r\n../b,2.png\r\n/c/3.jpg\tcafé\r\n",
    "header.csv": 'width,Label,PATH\n3,cat,a/1 x.jpg\n3,,"../b,2.png"\n\n3, café ,/c/3.jpg\n',
    "other names.csv": '\ufeffClass,filename\r\ncat,a/1 x.jpg\r\n,"../b,2.png"\r\ncafé,/c/3.jpg\r\n',
    "no header.csv": 'a/1 x.jpg,cat\n"../b,2.png",\n/c/3.jpg,café\n',
    "no suffix": 'a/1 x.jpg,cat\n"../b,2.png",\n/c/3.jpg,café\n',
    "header.tsv": "path\tlabel\na/1 x.jpg\tcat\n../b,2.png\t\n/c/3.jpg\tcafé\n",
    "columns.txt": "width\tpath\tlabel\n3\ta/1 x.jpg\tcat\n3\t../b,2.png\t\n3\t/c/3.jpg\tcafé\n",
    "semicolons.csv": "path;label\na/1 x.jpg;cat\n../b,2.png;\n/c/3.jpg;café\n",
    "excel.csv": "sep=;\r\na/1 x.jpg;cat\r\n../b,2.png;\r\n/c/3.jpg;café\r\n",
    "bars": "path|label\na/1 x.jpg|cat\n../b,2.png|\n/c/3.jpg|café\n",
    "padded.csv": 'path , "label"\na/1 x.jpg , cat\n "../b,2.png" ,\n /c/3.jpg, "café"\n',
    "blanks.txt": "a/1 x.jpg cat\n../b,2.png\n/c/3.jpg  café \n",
    "blanks and a header.txt": "path label\na/1 x.jpg cat\n../b,2.png\n/c/3.jpg café\n",
    "rows.jsonl": '{"path": "a/1 x.jpg", "label": "cat"}\n\n{"Image": "../b,2.png", "cls": null}\n{"URL": "/c/3.jpg", "class": "caf\\u00e9"}\n',
}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["tabs.txt", "header.csv", "rows.jsonl"])
def test_lists_in_wide_letters_are_read(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(SAME[name].replace("\n", "\r\n").encode(encoding))
    assert rows(tmp_path / name) == EXPECTED
    (tmp_path / name).write_bytes(SAME[name].encode(encoding)[:-1])
    with pytest.raises(DataError, match=r"is not UTF-(16|32).*convert it to UTF-8"):
        rows(tmp_path / name)


@pytest.mark.parametrize("name", SAME)
def test_every_kind_of_list_is_recognised_and_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_text(SAME[name], newline="")
    assert rows(tmp_path / name) == EXPECTED


HEADERS = {
    "a.csv": "image_id,diagnosis\nimg/0.jpg,3\nimg/1.jpg,4\n",
    "b.tsv": "image_id\tdiagnosis\nimg/0.jpg\t3\nimg/1.jpg\t4\n",
    "c.txt": "image_id\tdiagnosis\nimg/0.jpg\t3\nimg/1.jpg\t4\n",
    "d.csv": "diagnosis;image_id\n3;img/0.jpg\n4;img/1.jpg\n",
    "e.csv": "image_id,diagnosis\nimg/0,3\nimg/1,4\n",  # paths without suffix: the label tells
    "f.csv": "image_id,diagnosis\nimg/0,mel\nimg/1,nv\n",  # or the file that is there
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_unknown_words_is_no_image_and_the_advice_reads_the_list_right(tmp_path, name, picture):
    (tmp_path / "img").mkdir()
    for number in range(2):
        for suffix in ("", ".jpg"):
            (tmp_path / "img" / f"{number}{suffix}").write_bytes(picture(number))
    (tmp_path / name).write_text(HEADERS[name])
    words = [str(tmp_path / name), str(tmp_path / "out"), "--labels", "--quiet", "--workers", "1"]
    with pytest.raises(DataError, match=r"so it is no row but a header .*: --image-field image_id --label-field diagnosis, with --labels$"):
        make_shards.main([*words, "--max-rejects", "0.9"])
    assert make_shards.main([*words, "--image-field", "image_id", "--label-field", "Diagnosis"]) == 0
    shards = ShardSet.open(tmp_path / "out" / "train")
    found = {shards.read(sample): shards.classes[shards.labels[sample]] for sample in range(2)}
    assert found == {picture(number): (("mel", "nv") if name == "f.csv" else ("3", "4"))[number] for number in range(2)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "image_id diagnosis\nimg/0.jpg 3\n", "line 1, 'image_id diagnosis', holds no path of an image, as the next does"),
        ("a.csv", "# made by hand\nimg/0.jpg,3\n", "'# made by hand', holds no path .*or take the line away"),
        ("a.csv", "image_id,diagnosis\n", "is the only row and leads to no file"),
        ("a.csv", "path,label\n", "holds no rows"),
        ("a.csv", "path,label\na.jpg,1\npath,label\nb.jpg,2\n", "line 3 repeats the header 'path,label'"),
        (
            "a.csv",
            "Smith, John.jpg\n",
            "'Smith' is no path of an image, and the other cells of 'Smith,John.jpg' lead to no file; give the list a header",
        ),
        ("a.csv", "cat,missing/0.jpg\ndog,missing/1.jpg\n", "'cat' is no path of an image"),
        ("a.txt", "3 img/0.jpg\n4 img/1.jpg\n", "'3 img/0.jpg' leads to no file, but 'img/0.jpg' does, so '3' is perhaps its label"),
        ("a.txt", "img/0.jpg\rimg/1.jpg\r", "holds a carriage return"),
        ("a.csv", "path,label,split\nimg/0.jpg,3,left\n", "the split 'left' is none of train"),
        ("a.json", '[{"path": "img/0.jpg"}]', "perhaps a JSON array: give one object a line"),
        ("a.jsonl", '{"image_id": "img/0.jpg"}\n', r"has no path; .*\(it has 'image_id'; name one with --image-field\)"),
        ("a.txt", "hello world\n", "its first line is 'hello world', with no path that ends in an image's suffix"),
        ("a.txt", "\n\n", "it is empty"),
    ],
)
def test_what_a_list_is_not_is_said_with_what_was_found(tmp_path, name, content, message):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "0.jpg").touch()
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


def test_the_label_may_come_first_where_the_files_tell_and_splits_may_stand_in_a_column(tmp_path):
    (tmp_path / "0.jpg").touch()
    (tmp_path / "a.csv").write_text("cat,0.jpg\ndog,1.jpg\n")
    assert rows(tmp_path / "a.csv") == [("0.jpg", "cat"), ("1.jpg", "dog")]
    for name, content in (
        ("b.csv", "path,split\n0.jpg,Train\n1.jpg,validation\n2.jpg,\n"),
        ("c.jsonl", '{"path": "0.jpg", "split": "train"}\n{"path": "1.jpg", "split": "dev"}\n{"path": "2.jpg"}'),
    ):
        (tmp_path / name).write_text(content)
        assert [(item.name, item.split) for item in open_source(tmp_path / name, tmp_path).items(Counter())] == [
            ("0.jpg", "train"),
            ("1.jpg", "val"),
            ("2.jpg", "train"),
        ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            "path,diagnosis\na.jpg,3\n",
            r"no column of the list is called label, .* \(it has 'path', 'diagnosis'; name one with --label-field",
        ),
        ("a.csv", "a.jpg,500,375,cat\n", "several columns and no header: give it a header"),
        ("a.jsonl", '{"path": "a.jpg", "dx": 3}\n', "has none of the keys label, .*'dx'; name one with --label-field"),
    ],
)
def test_a_label_that_is_not_found_is_told_with_the_columns_there_are(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"'a.jpg' .*{says}"):
        make_shards.main([str(tmp_path / name), str(tmp_path / "out"), "--labels", "--quiet"])


def test_an_option_that_names_no_column_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\na.jpg,1\n")
    with pytest.raises(DataError, match=r"no column is called 'dx' .it has 'path', 'label'; name one with --label-field"):
        rows(tmp_path / "a.csv", label_field="dx")


def test_a_list_that_looks_like_nothing_is_read_when_its_format_is_named(tmp_path):
    (tmp_path / "names").write_text("img/0001\nimg/0002\n")
    with pytest.raises(DataError, match="is neither a folder nor a whole archive nor a list of a known kind"):
        rows(tmp_path / "names")
    assert rows(tmp_path / "names", format="list") == rows(tmp_path / "names", format="csv") == [("img/0001", ""), ("img/0002", "")]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("list", b"a.jpg\nb\xff.jpg\n", r"line 2 is not UTF-8 \(invalid start byte at its byte 2\); convert"),
        ("list", b"a.jpg\n" + b"b" * (MAX_LINE_BYTES + 1), "line 2 is longer than"),
        ("list", b"a.jpg\tcat\tdog\n", "line 1 has more than one TAB"),
        ("list", b"a.jpg\n\tcat\n", "line 2 has no path"),
        ("list", b"a.jpg\nb\0.jpg\n", "line 2: the path 'b.x00.jpg' holds a NUL"),
        ("csv", b"path,label\na.jpg,cat\nb,c.jpg,dog\n", "line 3 has 3 fields, the header 2; mend it, perhaps with quotes"),
        ("csv", b"a.jpg,cat\nb.jpg\n", "line 2 has 1 field, the first row 2"),
        ("csv", b"name,label\na.jpg,cat\n", "its header 'name,label' names no column of paths"),
        ("csv", b'path,label\n"a.jpg,cat\nb.jpg,dog\n', r"line 3: is no CSV \(unexpected end of data\)"),
        ("csv", b"path,label\n\xe9.jpg,cat\n", "line 2 is not UTF-8"),
        ("csv", b"path,label\n,cat\n", "line 2 has no path"),
        ("jsonl", b'{"path": "a.jpg"}\n{"path": \n', "line 2: is no JSON"),
        ("jsonl", b"[" * 100_000, "line 1: is no JSON"),
        ("jsonl", b'["a.jpg"]\n', "line 1: is no JSON object"),
        ("jsonl", b'{"label": "cat"}\n', "line 1: has no path"),
        ("jsonl", b'{"path": 3}\n', "line 1: has no path"),
        ("jsonl", b'{"path": "a.jpg", "label": true}\n', "line 1: the label True is neither"),
        ("jsonl", b'{"path": "\\ud800.jpg"}\n', "line 1: the path .* holds half a surrogate pair"),
    ],
)
def test_what_is_wrong_with_a_list_is_named_with_its_line(tmp_path, kind, content, message):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows(tmp_path / "list", format=kind)


def test_labels_of_digits_are_class_numbers_and_others_are_names(tmp_path):
    source = ListFile(tmp_path / "list.csv", "csv", 0, 0)
    names = source.class_names({"007", "2"})
    assert names == ["0", "1", "2", "3", "4", "5", "6", "7"]
    numbers = {name: number for number, name in enumerate(names)}
    assert [source.class_number(label, numbers) for label in ("007", "2")] == [7, 2]
    assert source.class_names({"2", "10", "dog"}) == ["10", "2", "dog"]
    assert source.class_number("2", {"10": 0, "2": 1, "dog": 2}) == 1
    with pytest.raises(DataError, match="is not a class number from 0 to"):
        source.class_names({"9" * 5000})


def test_a_path_that_leads_to_no_image_file_is_a_reject_and_not_an_error(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "good.jpg").write_bytes(b"good")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.jpg")
    reader = ListReader(tmp_path / "lists")
    for name, reason in {
        "../missing.jpg": "No such file",
        "../good.jpg/x.jpg": "Not a directory",
        "../" + "x" * 300: "File name too long",
        "..": "a folder",
        "../pipe.jpg": "no regular file",
        "../empty.jpg": "an empty file",
        "../large.jpg": wrong_size(MAX_FILE_BYTES + 1),
    }.items():
        with pytest.raises(BadSample, match=reason):
            reader.read(Item(name, -1))
    assert reader.read(Item("../good.jpg", -1)) == reader.read(Item(str(tmp_path / "good.jpg"), -1)) == b"good"


def test_an_image_that_changes_while_it_is_read_ends_the_run(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    before = (tmp_path / "a.jpg").stat()
    (tmp_path / "a.jpg").write_bytes(b"123")
    monkeypatch.setattr(Path, "stat", lambda path: before)
    with pytest.raises(DataError, match=r"has changed while it was read \(5 bytes before, 3 read\)"):
        ListReader(tmp_path).read(Item("a.jpg", -1))


def test_a_list_that_changes_while_it_is_listed_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    source = open_source(tmp_path / "list.txt", tmp_path)
    with pytest.raises(DataError, match="has changed while it was listed"):
        for item in source.items(Counter()):
            if item.name == "a.jpg":
                with (tmp_path / "list.txt").open("a") as file:
                    file.write("c.jpg\n")


def test_addresses_are_read_from_afar_and_paths_are_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("mpp.remote.urls.read_url", lambda url: asked.append(url) or b"far")
    (tmp_path / "a.jpg").write_bytes(b"near")
    (tmp_path / "list.txt").write_text("https://example.org/1?size=2,3\ta\na.jpg\tb\n")
    source = open_source(tmp_path / "list.txt", tmp_path)
    assert [source.reader().read(item) for item in source.items(Counter())] == [b"far", b"near"]
    assert asked == ["https://example.org/1?size=2,3"]


@pytest.mark.parametrize("kind", ["list", "csv", "jsonl"])
def test_a_long_list_is_never_in_memory(tmp_path, kind):
    line = {"list": "folder/{}.jpg\tcat\n", "csv": "folder/{}.jpg,cat\n", "jsonl": '{{"path": "folder/{}.jpg", "label": "cat"}}\n'}[kind]
    (tmp_path / "list").write_text("".join(line.format(number) for number in range(40_000)))
    source = open_source(tmp_path / "list", tmp_path)
    assert source.kind == kind
    tracemalloc.start()
    count = sum(1 for _ in source.items(Counter()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000
    assert peak < 400_000  # the list has a million bytes


def test_a_list_becomes_labelled_shards_without_what_is_missing(tmp_path, picture, capsys):
    (tmp_path / "photos").mkdir()
    content = {f"photos/{number}": picture(number) for number in range(6)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    listed = [{"file": name, "label": number % 3} for number, name in enumerate(content)]
    listed += [{"file": "photos/gone.jpg", "label": 0}, {"file": "photos/5", "label": 4}]  # of a repeated name the last counts
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    words = [str(tmp_path / "photos.jsonl"), str(tmp_path / "out"), "--labels", "--quiet", "--workers", "1"]
    with pytest.raises(DataError, match=r"1 of 7 files .* first 'photos/gone.jpg' \(No such file or directory\)"):
        make_shards.main(words)
    assert make_shards.main([*words, "--max-rejects", "0.2"]) == 0
    assert "(repeated names) 1" in capsys.readouterr().out
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert shards.classes == ["0", "1", "2", "3", "4"]
    found = {shards.read(sample): int(shards.labels[sample]) for sample in range(len(shards))}
    assert found == {data: [0, 1, 2, 0, 1, 4][number] for number, data in enumerate(content.values())}


def test_labels_need_a_label_on_every_row(tmp_path, picture):
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "b.jpg").write_bytes(picture(2))
    (tmp_path / "list.csv").write_text("path,label\na.jpg,cat\nb.jpg,\n")
    words = [str(tmp_path / "list.csv"), str(tmp_path / "out"), "--quiet", "--workers", "1"]
    with pytest.raises(DataError, match=r"'b.jpg' has no label in the list, so it has no class"):
        make_shards.main([*words, "--labels"])
    assert make_shards.main(words) == 0
    with (tmp_path / "list.csv").open("a") as file:
        file.write("c.jpg,\n")
    with pytest.raises(DataError, match=r"the files of list\.csv changed"):
        make_shards.main(words)
