"""Folders that are splits: made into splits, told, and refused where it cannot be known; and labels that leave classes empty."""

import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep import index_shards, make_shards
from mpp.base.errors import DataError, UserError
from mpp.data.shards import ShardSet


def lay_out(root: Path, names: str, picture) -> Path:
    for number, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def make(*words) -> None:
    assert make_shards.main([*map(str, words), "--quiet", "--workers", "1"]) == 0


def splits(out: Path) -> dict[str, list[str]]:
    """split -> class of each image, sorted."""
    found = {}
    for folder in sorted(out.iterdir()):
        if (folder / "manifest.json").exists():
            shards = ShardSet.open(folder)
            found[folder.name] = sorted(shards.classes[label] if label >= 0 else "" for label in shards.labels)
    return found


SPLIT = "set/train/ant/1.jpg set/train/bee/2.jpg set/val/ant/3.jpg"


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_split_folders_become_splits_and_their_folders_the_classes(tmp_path, picture, kind, capsys):
    source = lay_out(tmp_path, SPLIT, picture) / "set"
    if kind == "tar":
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(source, "set")
        source = tmp_path / "set.tar"
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for path in source.rglob("*.jpg"):
                archive.write(path, path.relative_to(tmp_path))
        source = tmp_path / "set.zip"
    make(source, tmp_path / "out", "--labels")
    assert splits(tmp_path / "out") == {"train": ["ant", "bee"], "val": ["ant"]}
    assert ShardSet.open(tmp_path / "out" / "val").classes == ["ant", "bee"]  # one numbering
    assert "val' are taken for splits and the folders at level" in capsys.readouterr().err
    make(source, tmp_path / "out", "--labels")  # complete, and found to be unchanged
    make(source, tmp_path / "bare")
    assert splits(tmp_path / "bare") == {"train": ["", ""], "val": [""]}  # val is not pretrained on


def test_parts_of_a_set_of_splits_make_what_one_process_makes(tmp_path, picture):
    source = lay_out(tmp_path, SPLIT, picture) / "set"
    make(source, tmp_path / "whole", "--labels")
    for part in ("0/2", "1/2"):
        make(source, tmp_path / "parts", "--labels", "--part", part)
    make(source, tmp_path / "parts", "--labels")
    for split in ("train", "val"):
        assert (tmp_path / "parts" / split / "000000.tar").read_bytes() == (tmp_path / "whole" / split / "000000.tar").read_bytes()


@pytest.mark.parametrize(
    ("names", "words", "expected"),
    [
        (SPLIT, "--labels --class-level 1", {"train": ["train", "train", "val"]}),
        (SPLIT, "--labels --split-level 0 --class-level 2", {"train": ["ant", "ant", "bee"]}),
        (SPLIT, "--split-level 0", {"train": ["", "", ""]}),
        ("set/ant/train/1.jpg set/ant/test/2.jpg set/bee/train/3.jpg", "--labels", {"train": ["ant", "bee"], "test": ["ant"]}),
        ("set/ant/train/1.jpg set/bee/val/2.jpg", "--labels --split-level 0", {"train": ["ant", "bee"]}),
        ("set/test/1.jpg set/cat/2.jpg", "--labels", {"train": ["cat", "test"]}),
        ("set/a/x/1.jpg set/b/y/2.jpg", "--labels --class-level 2", {"train": ["x", "y"]}),
        ("set/train/1.jpg set/val/2.jpg", "", {"train": [""], "val": [""]}),
        ("set/train/1.jpg set/val/2.jpg", "--labels --class-level 1", {"train": ["train", "val"]}),
    ],
)
def test_the_user_may_say_which_level_is_which(tmp_path, picture, names, words, expected):
    make(lay_out(tmp_path, names, picture) / "set", tmp_path / "out", *words.split())
    assert splits(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("names", "words", "says"),
    [
        (
            SPLIT + " set/docs/4.jpg",
            "",
            r"'docs' beside it is not; make each split by itself \(make_shards.py {0}/train OUT-train --labels, .*--class-level 1",
        ),
        ("set/train/1.jpg set/val/2.jpg", "", "no folders of classes lie in it; .*leave out --labels, or give --class-level 1"),
        (
            "set/ant/train/1.jpg set/ant/val/2.jpg set/bee/3.jpg",
            "",
            "but images such as 'bee/3.jpg' lie in none of them; give --split-level 0",
        ),
        (SPLIT + " set/4.jpg", "", r"'4.jpg' lies in no class folder \(folder level 2\), so it has no class"),
        ("set/ant/1.jpg set/bee/2.jpg", "--split-level 1", "at folder level 1 is named like no split .*; mend --split-level"),
        (SPLIT, "--val 1", r"the source has its own splits \(train, val\)"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_give(tmp_path, picture, names, words, says):
    source = lay_out(tmp_path, names, picture) / "set"
    with pytest.raises(UserError, match=says.replace("{0}", str(source))):
        make(source, tmp_path / "out", "--labels", *words.split())
    assert not (tmp_path / "out" / "train").exists()


def test_without_labels_what_cannot_be_told_is_said(tmp_path, picture, capsys):
    make(lay_out(tmp_path, SPLIT + " set/docs/4.jpg", picture) / "set", tmp_path / "out")
    assert "'docs' beside it is not, so all are taken for one split; make each" in capsys.readouterr().err


def test_tars_named_like_splits_become_splits_and_a_list_says_that_its_paths_are_of_several(tmp_path, picture, write_tar, capsys):
    (tmp_path / "tars").mkdir()
    for at, name in enumerate(("web-train-000.tar", "web-train-001.tar", "web-validation-000.tar")):
        write_tar(tmp_path / "tars" / name, {f"{at}.jpg": picture(at), f"{at}.cls": str(at % 2).encode()})
    make(tmp_path / "tars", tmp_path / "out", "--labels")
    assert splits(tmp_path / "out") == {"train": ["0", "1"], "val": ["0"]}
    lay_out(tmp_path, SPLIT, picture)
    (tmp_path / "list.txt").write_text(SPLIT.replace(" ", "\n"))
    capsys.readouterr()
    make(tmp_path / "list.txt", tmp_path / "listed")
    assert splits(tmp_path / "listed") == {"train": ["", "", ""]}
    assert (
        "the list names images of the folders 'set/train', 'set/val', and all go to OUT/train; --split-level 2 divides"
        in capsys.readouterr().err
    )
    make(tmp_path / "list.txt", tmp_path / "divided", "--split-level", 2)
    assert splits(tmp_path / "divided") == {"train": ["", ""], "val": [""]}


def test_folders_of_tars_are_named_where_the_folder_above_was_given(tmp_path, picture, write_tar):
    for split in ("train", "val"):
        (tmp_path / "tars" / split).mkdir(parents=True)
        write_tar(tmp_path / "tars" / split / "0.tar", {"0.jpg": picture(0)})
    with pytest.raises(
        DataError, match=r"holds no images among 2 files .*; its .tar files lie in 'train', 'val'; give one of these folders"
    ):
        make(tmp_path / "tars", tmp_path / "out")


def labelled_list(folder: Path, labels, picture) -> Path:
    for number in range(len(labels)):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(labels)))
    return folder / "list.csv"


def test_classes_without_images_are_named_and_label_names_makes_none(tmp_path, picture, capsys):
    source = labelled_list(tmp_path, [1, 2, 10], picture)
    make(source, tmp_path / "out", "--labels")
    shown = capsys.readouterr()
    assert "8 of 11 classes have no images: '0', '3', '4' and 5 more; if the labels begin at 1, that is why; --label-names" in shown.err
    assert "classes:  11 (0, 1, 2, ...), 8 of them without images: '0', '3', '4' and 5 more" in shown.out
    make(source, tmp_path / "named", "--labels", "--label-names")
    assert ShardSet.open(tmp_path / "named" / "train").classes == ["1", "2", "10"]
    assert splits(tmp_path / "named") == {"train": ["1", "10", "2"]}
    (tmp_path / "other").mkdir()
    source = labelled_list(tmp_path / "other", [3, 70000], picture)
    with pytest.raises(DataError, match="class numbers go up to 70000, but only 2 of them occur"):
        make(source, tmp_path / "sparse", "--labels")
    make(source, tmp_path / "sparse", "--labels", "--label-names")
    assert ShardSet.open(tmp_path / "sparse" / "train").classes == ["3", "70000"]
    make(tmp_path / "named" / "train", tmp_path / "again", "--labels")
    assert ShardSet.open(tmp_path / "again" / "train").classes == ["1", "2", "10"]
    for words, says in (((), "--label-names says what labels are"), (("--labels",), "has names for its classes; leave it out")):
        with pytest.raises(UserError, match=says):
            make(parquet_of_classes(tmp_path, picture), tmp_path / "x", "--label-names", *words)


def parquet_of_classes(folder: Path, picture) -> Path:
    rows = [{"image": {"bytes": picture(number), "path": None}, "label": "ab"[number]} for number in range(2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "set.parquet")
    return folder / "set.parquet"


def test_labels_of_which_some_are_numbers_are_names_and_that_is_said(tmp_path, picture, capsys):
    make(labelled_list(tmp_path, [10, 9, "none"], picture), tmp_path / "out", "--labels")
    assert ShardSet.open(tmp_path / "out" / "train").classes == ["10", "9", "none"]
    assert (
        "labels such as '10' are numbers, but 'none' is none, so all are names and numbered in the order of text" in capsys.readouterr().err
    )


def test_indexing_names_empty_classes_and_refuses_numbers_that_are_none(tmp_path, picture, write_tar, capsys):
    for name, labels in (("ones", (1, 3)), ("huge", (1, 70000))):
        (tmp_path / name).mkdir()
        content = {
            f"{at}.{field}": data for at, label in enumerate(labels) for field, data in (("jpg", picture(at)), ("cls", str(label).encode()))
        }
        write_tar(tmp_path / name / "a.tar", content)
    assert index_shards.main([str(tmp_path / "ones"), "--labels", "--quiet", "--workers", "1"]) == 0
    assert "classes:  4, 2 of them without images: '0', '2'" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"only 2 of them occur.*--labels --label-names"):
        index_shards.main([str(tmp_path / "huge"), "--labels", "--quiet", "--workers", "1"])
    assert not (tmp_path / "huge" / "manifest.json").exists()


def test_the_closing_words_name_classes_whose_images_were_all_rejected(tmp_path, picture, capsys):
    source = labelled_list(tmp_path, ["a", "b", "b"], picture)
    (tmp_path / "0.jpg").write_bytes(b"no image")
    make(source, tmp_path / "out", "--labels", "--max-rejects", 0.5)
    assert "classes:  2 (a, b), 1 of them without images: 'a'" in capsys.readouterr().out
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of 3 files is a readable image, first '\d.jpg' .* mend them") as caught:
        make(source, tmp_path / "none", "--labels")
    assert "--max-rejects" not in str(caught.value)
