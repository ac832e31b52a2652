"""Labelled images from shards, class folders and torchvision's arrays: one face, the same pixels, torchvision's classes and order."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image

from mpp.base.errors import BadSample, DataError
from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.decode import FORMATS, check_header, decode
from mpp.data.labelled import check_splits, open_labelled
from mpp.data.pixels import StoredPixels
from mpp.disk.files import write_atomically

CLASSES = ["n01", "n02", "n10"]


@pytest.fixture
def folder(tmp_path):
    """Two images a class, of three formats; one name with capitals, one file that is no image."""
    rng = np.random.default_rng(0)
    for number, (name, suffix) in enumerate([(c, s) for c in CLASSES for s in (".png", ".bmp")]):
        path = tmp_path / "set" / name / f"{number}{suffix.upper() if number == 4 else suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    (tmp_path / "set" / "n01" / "notes.txt").write_text("no image")
    return tmp_path / "set"


@pytest.fixture
def cifar(tmp_path):
    """The official layout of CIFAR-10, with ten images a file; torchvision's checksums are told of them."""
    rng, made = np.random.default_rng(1), {}
    base = tmp_path / "root" / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = (np.arange(10) + len(made)) % 10
        made[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8), labels
        (base / name).write_bytes(pickle.dumps({"data": made[name][0], "labels": labels.tolist()}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return tmp_path / "root", made


def test_a_folder_of_classes_is_torchvisions_image_folder(folder):
    ours, theirs = open_labelled(str(folder), "train"), torchvision.datasets.ImageFolder(str(folder))
    assert ours.classes == theirs.classes == CLASSES and ours.labels.tolist() == theirs.targets and len(ours) == 6
    for sample in range(6):
        assert np.array_equal(decode(ours.read(sample), 1000), np.asarray(theirs[sample][0]))
        assert ours.size_of(sample) == (7, 9) and ours.where(sample) == theirs.samples[sample][0]
    assert list(ours.samples_per_shard) == [2, 2, 2] and ours.labelled


def test_an_edited_file_changes_the_stamp_and_another_name_or_size_the_identity(folder):
    first = open_labelled(str(folder), "train")
    path = folder / "n01" / "0.png"
    os.utime(path, ns=(1, 1))
    touched = open_labelled(str(folder), "train")
    assert touched.identity == first.identity and touched.stamp != first.stamp
    path.rename(path.with_name("1.png"))
    assert open_labelled(str(folder), "train").identity != first.identity


def test_the_order_of_classes_is_that_of_the_shards_made_from_the_same_folder(folder, tmp_path):
    from tests.forks import run_forked

    done = run_forked(
        ["data_prep/make_shards.py", str(folder), str(tmp_path / "shards"), "--labels", "--quiet", "--workers", "1"],
        cwd=".",
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    shards, files = open_labelled(str(tmp_path / "shards/train"), "train"), open_labelled(str(folder), "train")
    assert shards.classes == files.classes
    check_splits(shards, files)  # one may be trained on and the other tested on
    with pytest.raises(DataError, match="holds the splits train; give one of them"):
        open_labelled(str(tmp_path / "shards"), "train")


@pytest.fixture
def any_checksum(monkeypatch):
    for module in (torchvision.datasets.cifar, torchvision.datasets.utils):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)


def test_cifar_is_what_torchvision_reads(cifar, any_checksum):
    root, made = cifar
    train, test = open_labelled(f"cifar10:{root}", "train"), open_labelled(f"cifar10:{root}", "test")
    assert (len(train), len(test)) == (50, 10) and train.classes == [f"class {i}" for i in range(10)]
    assert np.array_equal(test.labels, made["test_batch"][1])
    pixels = made["test_batch"][0][3].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(decode(test.read(3), 2000), pixels)
    assert train.identity != test.identity and test.where(3) == "cifar10-test image 3"
    check_splits(train, test)
    for ours, theirs in ((train, torchvision.datasets.CIFAR10(root)), (test, torchvision.datasets.CIFAR10(root, train=False))):
        assert np.array_equal(ours.pixels, theirs.data) and ours.labels.tolist() == theirs.targets and ours.classes == theirs.classes


def test_a_cifar_pickle_is_never_run_even_if_its_checksum_were_right(cifar, any_checksum, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    root, _ = cifar
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(
        DataError, match=r"cifar-10-batches-py: data_batch_2: the pickle calls for posix.system, .* do not trust this archive"
    ):
        open_labelled(f"cifar10:{root}", "train")
    assert not (tmp_path / "ran").exists()


def test_a_cifar_file_of_another_checksum_is_not_read_but_fetched_again(cifar, monkeypatch):
    def fetch(url, root, filename, md5):
        assert (url, filename, md5) == (known.url, known.filename, known.tgz_md5) and root == cifar[0]
        raise RuntimeError("was fetched")

    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    with pytest.raises(DataError, match=r"cifar10: its files are not whole under .* \(was fetched\)"):
        open_labelled(f"cifar10:{cifar[0]}", "train")


def test_what_is_not_there_and_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        DataError, match=r"cifar100: its files are not whole under .* cannot be downloaded .*no network.*or give shards"
    ) as caught:
        open_labelled(f"cifar100:{tmp_path}", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"), [("nothing", "no such folder"), ("empty", r"neither manifest.json nor .* but .folders without images. 1, \.txt 1;")]
)
def test_what_is_no_labelled_set_is_named(folder, make, says):
    if make == "empty":
        (folder.parent / "empty" / "n01").mkdir(parents=True)
        (folder.parent / "empty" / "n01" / "notes.txt").touch()
    with pytest.raises(DataError, match=says):
        open_labelled(str(folder.parent / make), "train")


def test_a_folder_without_images_is_no_class_and_an_image_without_a_folder_is_refused(folder):
    (folder / "n02" / "2.png").unlink(), (folder / "n02" / "3.bmp").unlink()
    images = open_labelled(str(folder), "train")
    assert images.classes == ["n01", "n10"] and "the folders 'n02', which hold no images" in images.remarks[0]
    shutil.copy(folder / "n01" / "0.png", folder / "0.png")
    with pytest.raises(DataError, match=r"'0\.png' lies in no folder, so it has no class; move it"):
        open_labelled(str(folder), "train")


def test_the_content_decides_what_an_image_is_and_not_its_suffix(folder):
    pixels = np.asarray(Image.open(folder / "n01" / "0.png"))
    Image.fromarray(pixels).save(folder / "n01" / "0.png", "BMP")
    Image.fromarray(pixels).save(folder / "n01" / "1.bmp", "PNG")
    images = open_labelled(str(folder), "train")
    for sample in (0, 1):
        assert np.array_equal(decode(images.read(sample), 1000), pixels)
        assert images.read(sample).startswith(b"\x89PNG")


def test_an_image_that_cannot_be_read_is_named(folder):
    write_atomically(folder / "n01" / "0.png", b"\x89PNG nonsense")
    stored = StoredPixels(open_labelled(str(folder), "train"), 1000)
    measured = CropDataset(stored, Centre(8, 1.0), 0, range(6), leaves_none_out=True)
    with pytest.raises(DataError, match=r"n01/0\.png: .*leaves no image out, so mend that file, or take it away"):
        measured.batch([(0, 0, 0)])
    (folder / "n02" / "2.png").unlink()
    images = open_labelled(str(folder), "train")
    (folder / "n02" / "3.bmp").unlink()
    with pytest.raises(DataError, match="No such file"):
        images.read(2)


def test_a_folder_of_splits_and_a_single_class_are_no_labelled_set(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "splits" / split)
    with pytest.raises(DataError, match=r"holds the folders test, train of classes, .* such as .*train"):
        open_labelled(str(tmp_path / "splits"), "train")
    shutil.copytree(folder / "n01", tmp_path / "one" / "n01")
    with pytest.raises(DataError, match="has 1 class, and there is nothing to tell apart"):
        check_splits(open_labelled(str(tmp_path / "one"), "train"), None)
    shutil.copytree(folder, tmp_path / "wrapped" / "images")
    with pytest.raises(DataError, match=r"has 1 class \(in it lie 'n01', 'n02', 'n10': if they are the classes, give .*/wrapped/images\)"):
        check_splits(open_labelled(str(tmp_path / "wrapped"), "train"), None)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (("set/Train", "set/Val2017"), r"holds the folders set/Train, set/Val2017 of classes, which are splits .* such as .*/set/Val2017"),
        (("train",), "the classes are the folders in .*/train, since it is named like a split; give .*/train"),
        (("train", "docs"), "'train' is named like a split, but 'docs' beside it is not; make shards with data_prep/make_shards.py"),
        (("n01/train", "n01/val"), "holds the folders n01/train, n01/val of classes"),
    ],
)
def test_splits_are_known_by_the_rule_of_make_shards(folder, tmp_path, places, says):
    for place in places:
        shutil.copytree(folder, tmp_path / "all" / place)
    with pytest.raises(DataError, match=says):
        open_labelled(str(tmp_path / "all"), "train")


def test_classes_are_told_apart_from_the_splits_within_them(folder, tmp_path):
    for name, split in (("n01", "train"), ("n01", "val"), ("n02", "train")):
        shutil.copytree(folder / name, tmp_path / "all" / name / split)
    with pytest.raises(DataError, match=r"its classes are divided into the splits train, val; make shards with .*, which makes OUT/train"):
        open_labelled(str(tmp_path / "all"), "train")


def test_splits_that_do_not_belong_together_are_refused(folder, tiny_shards):
    images, shards = open_labelled(str(folder), "train"), open_labelled(str(tiny_shards), "train")
    with pytest.raises(DataError, match="is the same split"):
        check_splits(images, open_labelled(str(folder), "test"))
    with pytest.raises(DataError, match="only one of them has 'class 0'"):
        check_splits(images, shards)


def test_an_image_of_a_class_folder_may_be_as_large_as_whoever_decodes_it_allows(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "cat" / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(check_header, "__defaults__", (1000, FORMATS))
    images = open_labelled(str(tmp_path), "train")
    assert images.size_of(0) == (60, 50)
    assert decode(images.read(0), max_pixels=3000).shape == (50, 60, 3)
    with pytest.raises(BadSample, match="too many pixels"):
        decode(images.read(0), max_pixels=2999)
