"""Several labels of one image are refused by that name wherever labels enter; without --labels they are nobody's concern."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep import index_shards, make_shards
from mpp.base.errors import DataError
from mpp.data.labelled import open_labelled
from mpp.data.shards import ShardSet
from mpp.prep.multi_label import LETTERS, list_text, several_in
from mpp.prep.source import SourceOptions
from mpp.prep.sources import open_source
from tests.prep.tars import tar
from tests.prep.test_webdataset_source import picture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize(
    "label",
    [
        "3 5",
        "3|5",
        "3,5",
        "3; 5",
        "3\n5\n",
        "0 0 1 0",
        "0.0 1.0",
        "[0 1 0]",
        "[0., 1.]",
        "[3]",
        "[]",
        '["cat", "dog"]',
        "['cat']",
        "[null, 3]",
        "1e-3 0.5",
    ],
)
def test_what_is_unmistakably_several_labels(label):
    assert several_in([label, "cat", "7"]) == label


@pytest.mark.parametrize(
    "label",
    [
        "great white shark",
        "3",
        "-1",
        "3.5",
        "crane, bird",
        "cat|dog",
        "[unknown]",
        "[red, small]",
        "(1, 2)",
        "7 up",
        "route 66",
        "3-5",
        "3/5",
        "a;b",
        "",
        "[",
        "1,",
        "|",
    ],
)
def test_what_is_one_classes_name(label):
    assert several_in([label, "white", "shark", "crane"]) == ""


def test_names_that_are_joined_are_several_only_where_each_is_a_class_itself():
    assert several_in(["cat", "dog", "cat|dog"]) == "cat|dog" and several_in(["cat", "dog", "dog , cat"]) == "dog , cat"
    assert several_in(["cat", "cat|dog", "dog|bird"]) == ""


def test_numbers_may_be_names_where_the_user_says_so_and_lists_may_not():
    assert several_in(["3 5", "cat"], digits_are_names=True) == "" and several_in(["[3, 5]"], digits_are_names=True) == "[3, 5]"


@pytest.mark.parametrize(
    "values", [[], [3], [3, 5], [0.0] * 9, ["cat", "dog"], [None, 1], [[0, 1], [1, 0]], [{"a": 1}], ["x" * 999, "]"], [b"\0", 1]]
)
def test_every_list_is_known_again_from_its_text(values):
    assert several_in([list_text(values)]) == list_text(values)


def parquet(path: Path, column: str, values) -> Path:
    pq.write_table(pa.table({"image": pa.array([picture(i) for i in range(3)], pa.binary()), column: values}), path)
    return path


def listing(path: Path, text: str) -> Path:
    (path.parent / "img").mkdir()
    for i in range(3):
        (path.parent / "img" / f"{i}.jpg").write_bytes(picture(i))
    path.write_text(text)
    return path


def tars(folder: Path, field: str, *values: bytes) -> Path:
    members = [member for i, value in enumerate(values) for member in ((f"{i}.jpg", picture(i)), (f"{i}.{field}", value))]
    return tar(folder / "0.tar", members).parent


def array(values) -> bytes:
    data = io.BytesIO()
    np.save(data, np.array(values))
    return data.getvalue()


SOURCES = {  # how it is made, the words beside --labels, the sample's name and its labels
    "parquet list": (lambda d: parquet(d / "a.parquet", "label", pa.array([[3], [0, 5], []], pa.list_(pa.int64()))), [], "a.parquet/", "["),
    "parquet multi-hot": (lambda d: parquet(d / "a.parquet", "labels", pa.array([[0, 1]] * 3, pa.list_(pa.int8(), 2))), [], "a.parquet/", "[0, 1]"),
    "parquet chosen": (
        lambda d: parquet(d / "a.parquet", "tags", pa.array([["cat", "dog"]] * 3)), ["--label-field", "tags"], "a.parquet/", '["cat", "dog"]',
    ),
    "parquet text": (lambda d: parquet(d / "a.parquet", "label", pa.array(["3", "3 5", "4"])), [], "a.parquet/1", "3 5"),
    "cls": (lambda d: tars(d / "a", "cls", b"3", b"3 5", b"4"), [], "0.tar/1.jpg", "3 5"),
    "cls in lines": (lambda d: tars(d / "a", "cls", b"3", b"4", b"3\n5\n"), [], "0.tar/2.jpg", "3\\n5"),
    "json": (
        lambda d: tars(d / "a", "json", b'{"y": 3}', b'{"y": [3, 5]}', b'{"y": 4}'), ["--label-field", "y"], "0.tar/1.jpg", "[3, 5]",
    ),
    "npy": (lambda d: tars(d / "a", "npy", array([0, 1, 0]), array(1), array(1)), ["--label-field", "npy"], "0.tar/0.jpg", "[0, 1, 0]"),
    "csv": (lambda d: listing(d / "a.csv", "path,label\nimg/0.jpg,3\nimg/1.jpg,3|5\nimg/2.jpg,4\n"), [], "img/1.jpg", "3|5"),
    "csv of names": (lambda d: listing(d / "a.csv", "path,label\nimg/0.jpg,cat\nimg/1.jpg,dog\nimg/2.jpg,cat|dog\n"), [], "img/2.jpg", "cat|dog"),
    "list": (lambda d: listing(d / "a.txt", "img/0.jpg 3\nimg/1.jpg 3 5\nimg/2.jpg 4\n"), [], "img/1.jpg", "3 5"),
    "jsonl": (
        lambda d: listing(d / "a.jsonl", "".join(json.dumps({"path": f"img/{i}.jpg", "label": [i, 5]}) + "\n" for i in range(3))), [], "img/0.jpg", "[0, 5]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_several_labels_are_refused_by_name_with_the_sample_and_the_remedy_which_works(tmp_path, name):
    made, words, sample, label = SOURCES[name]
    source = made(tmp_path)
    command = [str(source), str(tmp_path / "out"), "--quiet", "--workers", "1"]
    with pytest.raises(DataError) as caught:
        make_shards.main([*command, "--labels", *words])
    said = str(caught.value)
    assert "\n" not in said and f"'{sample}" in said and f"has several labels, '{label}" in said, said
    assert "multi-label targets are not supported" in said and "or leave out --labels and --label-field for pretraining" in said
    assert make_shards.main(command) == 0
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert len(shards) == 3 and not shards.labelled


def test_with_a_hold_out_they_are_refused_before_it_is_drawn(tmp_path):
    source = tars(tmp_path / "a", "cls", b"3", b"3 5", b"4")
    with pytest.raises(DataError, match="multi-label"):
        make_shards.main([str(source), str(tmp_path / "out"), "--quiet", "--workers", "1", "--labels", "--val", "1"])


def test_a_class_called_by_several_numbers_is_one_where_the_user_says_that_labels_are_names(tmp_path):
    source = tars(tmp_path / "a", "cls", b"3", b"3 5", b"4")
    with pytest.raises(DataError, match="if this is the name of a class, give --label-names"):
        make_shards.main([str(source), str(tmp_path / "out"), "--quiet", "--workers", "1", "--labels"])
    assert make_shards.main([str(source), str(tmp_path / "out"), "--quiet", "--workers", "1", "--labels", "--label-names"]) == 0
    assert ShardSet.open(tmp_path / "out" / "train").classes == ["3", "4", "3 5"]


def test_a_name_of_several_words_stays_one_class(tmp_path):
    source = listing(tmp_path / "a.csv", "path,label\nimg/0.jpg,red fox\nimg/1.jpg,red\nimg/2.jpg,fox\n")
    assert make_shards.main([str(source), str(tmp_path / "out"), "--quiet", "--workers", "1", "--labels"]) == 0
    assert ShardSet.open(tmp_path / "out" / "train").classes == ["fox", "red", "red fox"]


def test_tars_that_are_indexed_in_place_are_refused_likewise(tmp_path):
    folder = tars(tmp_path / "a", "cls", b"3", b"3 5")
    with pytest.raises(DataError, match=r"1\.jpg has several labels, '3 5': multi-label targets are not supported"):
        index_shards.main([str(folder), "--labels", "--quiet", "--workers", "1"])


def test_a_long_list_is_shown_from_its_beginning(tmp_path):
    (item, *_) = open_source(
        tars(tmp_path / "a", "json", json.dumps({"y": [0] * 9999}).encode()), tmp_path, SourceOptions(label_field="y")
    ).items(Counter())
    assert item.label == "[0, 0, 0, 0, 0, 0, 0, 0, ...]"
    assert len(list_text([["x" * 10**6]])) < 2 * LETTERS


def npy(head: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


DAMAGED = {
    "short": array([3, 5])[:-1],
    "no data": array([3, 5])[:20],
    "no head": b"\x93NUMPY",
    "huge": npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}"),
    "objects": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"cos\nsystem\n",
    "brackets": npy(b"(" * 9000),
    "quotes": npy(b'"' * 3),
    "nul": npy(b"\0"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_array_is_no_label_and_nothing_worse(tmp_path, name):
    source = open_source(tars(tmp_path / "a", "npy", DAMAGED[name], array(4)), tmp_path, SourceOptions(label_field="npy"))
    assert [item.label for item in source.items(Counter())] == ["", "4"]


@pytest.mark.parametrize(
    "source", ["celeba", "CelebA", "voc", "VOCDetection", "voc2007", "coco", "CocoCaptions:data", "pascal_voc", "flickr30k"]
)
def test_torchvisions_sets_of_several_labels_are_no_classification(source):
    with pytest.raises(DataError, match=r"several labels or boxes an image \(multi-label, detection\).*choose one label"):
        open_labelled(source, "train")


@pytest.mark.parametrize("source", ["cocoa", "vocals/train", "celebrities"])
def test_other_names_are_folders_that_are_not_there(source):
    with pytest.raises(DataError, match="no such folder"):
        open_labelled(source, "train")
