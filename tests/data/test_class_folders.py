"""Which files are images, which folders are classes or splits: one rule, and every reader of a folder follows it."""

import io
from argparse import Namespace
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpp.base.errors import DataError
from mpp.data.class_folders import FolderLevels, class_names, reason_to_ignore, split_named, walk
from mpp.data.decode import decode, open_image
from mpp.data.folder_images import FolderImages
from mpp.data.labelled import open_labelled, remarks_on


def drawn(number: int, form: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "Train", "TRAINING", "train2017", "train_images", "trainset", "training_set", "Training Data", "trainval"), "train"),
        (
            ("val", "VALID", "validation", "val2017", "dev", "eval", "valid_set", "validate", "holdout", "imagenet-validation-003.tar"),
            "val",
        ),
        (("test", "testing", "Test_Images", "test1", "testset", "test-000001.tar"), "test"),
        (("trainer", "trains", "class 1", "tester", "tea", "valley", "train_cat", "images", "evaluate", "train-test.tar"), ""),
    ],
)
def test_names_of_splits_are_known_in_any_case_and_other_names_are_none(names, split):
    assert {name: split_named(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize(
    ("names", "levels"),  # of the class and the split
    [
        ("ant/1.jpg bee/2.jpg", (1, 0)),
        ("ant/2019/1.jpg bee/2020/2.jpg", (1, 0)),
        ("train/ant/1.jpg val/ant/2.jpg", (2, 1)),
        ("Train/ant/1.jpg TEST/bee/x/2.jpg dev/ant/3.jpg", (2, 1)),
        ("set/images/train/ant/1.jpg set/images/val/ant/2.jpg", (4, 3)),
        ("ant/train/1.jpg ant/val/2.jpg bee/train/3.jpg", (1, 2)),
        ("set/ant/train/1.jpg set/bee/val/2.jpg", (2, 3)),
        ("train/ant/1.jpg train/bee/1.jpg", (2, 0)),  # a lone split: the classes lie in it
        ("train_1/ant/1.jpg train_2/ant/1.jpg", (2, 0)),
        ("test/1.jpg cat/1.jpg dog/1.jpg", (1, 0)),  # a class that happens to be called so
        ("a/test/1.jpg a/other/2.jpg b/1.jpg", (1, 0)),
    ],
)
def test_the_levels_of_classes_and_splits_are_found(names, levels):
    found = FolderLevels()
    for name in names.split():
        found.add(name)
    layout = found.layout(labels=True)
    assert (layout.class_level, layout.split_level, layout.doubt) == (*levels, "")


@pytest.mark.parametrize(
    ("names", "of", "says"),
    [
        ("train/ant/1.jpg val/ant/2.jpg docs/3.jpg", "some", "each of 'train', 'val' is named like a split, but 'docs' beside it is not"),
        ("train/1.jpg val/2.jpg cat/3.jpg", "some", "but 'cat' beside it is not"),
        ("test/2019/1.jpg cat/2019/2.jpg", "some", "'test' is named like a split, but 'cat' beside it is not"),
        ("train/1.jpg val/2.jpg", "flat", "no folders of classes lie in it"),
        ("train/1.jpg", "flat", "'train' is named like a split"),
        ("ant/train/1.jpg ant/val/2.jpg bee/masks/3.jpg", "inside", "but 'masks' beside it is not"),
        ("ant/train/1.jpg bee/val/2.jpg bee/3.jpg", "inside", "but images such as 'bee/3.jpg' lie in none of them"),
    ],
)
def test_what_is_neither_surely_classes_nor_surely_splits_is_in_doubt(names, of, says):
    found = FolderLevels()
    for name in names.split():
        found.add(name)
    layout = found.layout(labels=True)
    assert layout.doubt_of == of and says in layout.doubt
    assert not found.layout(labels=True, class_level=1, split_level=0).doubt  # the user's word is taken


def test_names_of_millions_of_folders_are_not_kept():
    found = FolderLevels()
    for number in range(10_000):
        found.add(f"class {number}/train{number}/{number}.jpg")
    assert len(found.names_at(1)) + len(found.names_at(2)) < 10


def test_class_numbers_of_which_hardly_any_occur_are_refused():
    assert class_names({"3", "1"}, "list", numbers=True) == ["0", "1", "2", "3"]
    assert len(class_names({"999"}, "list", numbers=True)) == 1000
    with pytest.raises(DataError, match=r"go up to 70000, but only 2 of them occur, and 69,999 classes would be empty; .*--label-names"):
        class_names({"3", "70000"}, "list", numbers=True)
    assert class_names({"10", "9", "b"}, "list", numbers=False) == ["10", "9", "b"]


# Hidden folders, folders of the system, nesting, wrong and other suffixes, empty folders, files in the root, folders named like splits.
FOLDERS = st.sampled_from(
    ["ant", "bee", "10", "9", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "test", "train", "val", "bee/deeper", "ant/train", "ant/val"]
)
FILES = st.sampled_from(["a.jpg", "b.PNG", "c.bmp", "d.tif", "e.gif", ".hidden.jpg", "notes.txt", "f.webp", "Thumbs.db"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.tuples(FOLDERS, FILES), st.sampled_from(FORMS), max_size=8), st.booleans(), st.booleans())
def test_a_folder_has_the_same_classes_numbers_and_images_for_shards_and_for_probes(content, stray, hollow):
    from mpp.prep.layouts import as_laid_out
    from mpp.prep.plan import plan_splits
    from mpp.prep.prepare import Options, prepare
    from mpp.prep.shuffle import shuffle
    from mpp.prep.sources import open_source

    with TemporaryDirectory() as name:
        folder = Path(name) / "set"
        (folder / "hollow" if hollow else folder).mkdir(parents=True)
        for number, ((inside, file), form) in enumerate(content.items()):
            (folder / inside).mkdir(parents=True, exist_ok=True)
            (folder / inside / file).write_bytes(drawn(number, form))
        if stray:
            (folder / "stray.jpg").write_bytes(drawn(99, "PNG"))
        args = Namespace(source=folder, labels=True, class_level=None, split_level=None, label_names=False, val=0)
        try:
            scratch = Path(name)
            source, listed = as_laid_out(open_source(folder, folder), args, lambda source: shuffle(source, 0, scratch, lambda: None))
            if not listed.counts.total() or listed.levels != [1, 0]:
                raise DataError("nothing, or splits")
            plan_splits(source, listed, args)
        except DataError:
            with pytest.raises(DataError):
                open_labelled(str(folder), "train")
            return
        images = open_labelled(str(folder), "train")
        assert isinstance(images, FolderImages)
        names = source.class_names(listed.labels)
        assert images.classes == names
        numbers, reader, made = {name: number for number, name in enumerate(names)}, source.reader(), {}
        for item in source.items(Counter()):
            pixels = open_image(prepare(reader.read(item), Options(), Counter()).data)
            made[str(folder / item.name)] = source.class_number(item.label, numbers), np.asarray(pixels).tolist()
        seen = {images.where(at): (int(images.labels[at]), decode(images.read(at), 1000).tolist()) for at in range(len(images))}
        assert seen == made
        assert ("hollow" in " ".join(images.remarks)) == hollow


def test_where_every_file_is_an_image_the_order_is_torchvisions(tmp_path):
    for at, name in enumerate(
        ["b/2.jpg", "b/10.jpg", "b/x/1.jpg", "b/x.jpg", "a b/1.png", "a/1.jpg", "10/1.jpg", "9/1.jpg", "b/x y/1.jpg"]
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(drawn(at, "PNG"))
    ours, theirs = open_labelled(str(tmp_path), "train"), torchvision.datasets.ImageFolder(str(tmp_path))
    assert ours.classes == theirs.classes
    assert [(ours.where(at), int(ours.labels[at])) for at in range(len(ours))] == theirs.samples


def test_links_are_followed_once_and_what_is_left_out_is_counted(tmp_path):
    for name in ("far/1.jpg", "set/ant/1.jpg", "set/.git/2.jpg", "set/lost+found/3.jpg", "set/empty/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(drawn(1, "PNG"))
    (tmp_path / "set" / "bee").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "bee" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "ant" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    ignored = Counter()
    found = {(file.name, file.size >= 0) for file in walk(tmp_path / "set", ignored)}
    assert found == {("ant/1.jpg", True), ("bee/1.jpg", True), ("ant/gone.jpg", False)}
    assert ignored == {"(hidden folders)": 2, "(links in a circle)": 1, ".txt": 1, "(folders without images)": 1}
    assert reason_to_ignore(["x", "__MACOSX", "1.jpg"]) == "(hidden)"


def test_what_a_folder_leaves_out_and_what_is_unusual_is_said(tmp_path):
    for at, name in enumerate(["train/ant/1.jpg", "train/test/2.jpg", "train/bee/notes.txt", "test/ant/1.jpg", "test/test/2.jpg"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(drawn(at, "PNG"))
    train, test = (open_labelled(str(tmp_path / name), name) for name in ("train", "test"))
    said = "\n".join(remarks_on(train, test))
    assert "leaves out the folders 'bee', which hold no images and are no classes; (folders without images) 1, .txt 1" in said
    assert "'test' is named like a split, but taken for a class as the folders beside it, such as 'ant'" in said
