"""ImageNet's official files, made small: the same tars inside tars and the same development kit, read beside torchvision."""

import hashlib
import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from data_prep import make_shards
from mpp.base.errors import BadSample, DataError
from mpp.config.sections import ModelConfig
from mpp.data.labelled import open_labelled
from mpp.data.shards import ShardSet
from mpp.model.backbone import Backbone
from mpp.model.encoder import build_encoder
from mpp.prep.source import SourceOptions
from mpp.prep.sources import imagenet, open_source
from mpp.prep.sources.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL, read_devkit
from mpp.processes.world import World
from mpp.transfer.extraction import extract
from mpp.transfer.extractors import EncoderExtractor
from mpp.transfer.features import FeatureConfig, FeatureSpec
from tests.official_imagenet import meta_mat, write_official

WNIDS = ["n02000003", "n01440764", "n03000002", "n01500009"]  # in the order of their ILSVRC2012_ID, which is not that of the alphabet
VAL_IDS = [3, 1, 1, 4, 2, 3, 4]
VAL_IMAGES = {f"ILSVRC2012_val_{number:08d}.JPEG": f"val {number}".encode() for number in range(len(VAL_IDS), 0, -1)}  # not in order
TRAIN_IMAGES = {wnid: {f"{wnid}_{n}.JPEG": f"{wnid} {n}".encode() for n in range(1 + at)} for at, wnid in enumerate(WNIDS)}


@pytest.fixture(scope="module")
def devkit(write_tar) -> bytes:
    truth = "".join(f"{number}\n" for number in VAL_IDS).encode()
    return write_tar(
        None, {"ILSVRC2012_devkit_t12": None, "ILSVRC2012_devkit_t12/readme.txt": b"x", META: meta_mat(WNIDS), TRUTH: truth}, "w:gz"
    )


@pytest.fixture(scope="module")
def inner(write_tar) -> dict[str, bytes]:
    return {f"{wnid}.tar": write_tar(None, images) for wnid, images in TRAIN_IMAGES.items()}


@pytest.fixture(scope="module")
def official(tmp_path_factory, write_tar, devkit, inner) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    write_tar(folder / TRAIN, inner)
    write_tar(folder / VAL, VAL_IMAGES)
    (folder / DEVKIT).write_bytes(devkit)
    return folder


@pytest.fixture
def only(official, tmp_path):
    """only(names): a folder with copies of these official files."""

    def copy(*names: str) -> Path:
        for name in names:
            shutil.copy(official / name, tmp_path / name)
        return tmp_path

    return copy


def of(folder: Path) -> SourceOptions:
    """The options under which this folder's development kit is taken."""
    return SourceOptions(checksum=hashlib.md5((folder / DEVKIT).read_bytes()).hexdigest())


def listed(folder: Path, options: SourceOptions = SourceOptions()) -> tuple[list, Counter]:  # noqa: B008 (frozen)
    ignored: Counter = Counter()
    return list(open_source(folder, folder, options).items(ignored)), ignored


def test_classes_and_their_numbers_are_torchvisions(only, monkeypatch):
    folder = only(TRAIN, VAL, DEVKIT)
    source = open_source(folder, folder, of(folder))
    assert source.kind == "imagenet"
    items, reader = list(source.items(Counter())), source.reader()
    names = source.class_names({item.label for item in items})
    numbers = {name: number for number, name in enumerate(names)}
    monkeypatch.setattr(torchvision.datasets.imagenet, "_verify_archive", lambda *_: None)
    for split in ("train", "val"):
        expected = torchvision.datasets.ImageNet(folder, split)
        found = {reader.read(item): source.class_number(item.label, numbers) for item in items if item.split == split}
        assert names == expected.wnids
        assert found == {Path(path).read_bytes(): number for path, number in expected.samples}
    assert len({(item.split, item.name) for item in items}) == len(items)
    reader.close()


def test_a_development_kit_is_understood_as_torchvision_does(official, tmp_path, monkeypatch):
    shutil.copy(official / DEVKIT, tmp_path / DEVKIT)
    monkeypatch.setattr(torchvision.datasets.imagenet, "_verify_archive", lambda *_: None)
    torchvision.datasets.imagenet.parse_devkit_archive(tmp_path)
    classes, labels = torchvision.datasets.imagenet.load_meta_file(tmp_path)
    assert read_devkit(tmp_path / DEVKIT) == (sorted(classes), labels)


def test_train_alone_needs_no_development_kit_and_val_without_labels_neither(only, no_bar):
    folder = only(TRAIN)
    source = open_source(folder, folder).unpack(folder, no_bar)
    assert source.class_names({item.label for item in source.items(Counter())}) == sorted(WNIDS)
    (folder / TRAIN).unlink()
    only(VAL)
    items, _ = listed(folder)
    assert {(item.label, item.split) for item in items} == {("", "val")}
    words = [str(folder), str(folder / "out"), "--labels", "--quiet", "--workers", "1"]
    with pytest.raises(DataError, match=f"ILSVRC2012_val_00000001.JPEG' has no label, because {DEVKIT} does not lie beside {VAL}"):
        make_shards.main(words)


def test_val_alone_has_the_numbers_of_all_classes(only):
    folder = only(VAL, DEVKIT)
    assert open_source(folder, folder, of(folder)).class_names({WNIDS[0]}) == sorted(WNIDS)


def test_shards_of_both_splits_are_made_in_place(official, only, tmp_path, write_tar):
    photo = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(photo, "JPEG")
    folder = only(DEVKIT)
    write_tar(folder / TRAIN, {f"{wnid}.tar": write_tar(None, {f"{wnid}_1.JPEG": photo.getvalue()}) for wnid in WNIDS})
    write_tar(folder / VAL, dict.fromkeys(VAL_IMAGES, photo.getvalue()))
    words = [str(folder), str(tmp_path / "out"), "--labels", "--quiet", "--workers", "1", "--checksum", of(folder).checksum]
    assert make_shards.main(words) == 0
    train, val = ShardSet.open(tmp_path / "out" / "train"), ShardSet.open(tmp_path / "out" / "val")
    assert train.classes == val.classes == sorted(WNIDS)
    assert sorted(train.labels.tolist()) == [0, 1, 2, 3]
    assert sorted(val.labels.tolist()) == sorted(sorted(WNIDS).index(WNIDS[number - 1]) for number in VAL_IDS)


def test_class_folders_of_the_same_images_give_the_same_classes_labels_and_features(tmp_path, picture, capsys):
    """As ImageFolder reads them beside the shards; numbers and order of the images differ, so they are joined by their bytes."""
    images = {wnid: [picture(100 * at + n, size=(40, 32)) for n in range(2 + at)] for at, wnid in enumerate(WNIDS)}
    checksum = write_official(tmp_path / "official", images, [(WNIDS[0], picture(1000))])
    words = [str(tmp_path / "official"), str(tmp_path / "shards"), "--labels", "--quiet", "--workers", "1", "--checksum", checksum]
    assert make_shards.main(words) == 0
    for wnid, several in images.items():
        (tmp_path / "folders" / wnid).mkdir(parents=True)
        for number, data in enumerate(several):
            (tmp_path / "folders" / wnid / f"{wnid}_{number}.JPEG").write_bytes(data)
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    backbone = Backbone(build_encoder(model, 5).vit).eval()
    world = World(0, 1, 1, torch.device("cpu"))
    extractor = EncoderExtractor(
        backbone, FeatureSpec("tiny", (1, 2), ("cls", "mean"), 16, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32"), world.device
    )
    found = []
    for folder in (tmp_path / "shards" / "train", tmp_path / "folders"):
        opened = open_labelled(str(folder), "train")
        config = FeatureConfig(workers=0, batch=5)
        made = extract(opened, np.arange(len(opened)), {"tiny": extractor}, config, tmp_path / "cache", world)["tiny"]
        rows = {opened.read(at): (int(opened.labels[at]), made.features.values[at]) for at in range(len(opened))}
        found.append((opened.classes, rows))
    (classes, shards), (same, folders) = found
    assert classes == same == torchvision.datasets.ImageFolder(tmp_path / "folders").classes == sorted(WNIDS)
    assert shards.keys() == folders.keys() and len(shards) == sum(len(several) for several in images.values())
    for data, (label, features) in shards.items():
        assert folders[data][0] == label
        torch.testing.assert_close(folders[data][1], features)


def test_the_development_kit_is_always_checked_and_the_tars_when_asked(official, tmp_path, no_bar):
    source = open_source(official, tmp_path)
    with pytest.raises(DataError, match=f"and not {imagenet.MD5[DEVKIT]}; get the file again, or give --checksum HEX"):
        source.unpack(tmp_path, no_bar)
    with pytest.raises(DataError, match=f"{TRAIN}: its md5 is .* and not {imagenet.MD5[TRAIN]}; get the file again$"):
        open_source(official, tmp_path, SourceOptions(checksum="official")).unpack(tmp_path, no_bar)
    accepted = open_source(official, tmp_path, of(official))
    assert accepted.unpack(tmp_path, no_bar) == accepted
    with pytest.raises(DataError, match=f"it is that of {DEVKIT}, which is not in"):
        (tmp_path / VAL).touch()
        open_source(tmp_path, tmp_path, SourceOptions(checksum="0" * 32))


def test_a_changed_file_changes_the_identity(only):
    folder = only(TRAIN, VAL)
    before = open_source(folder, folder).identity()
    with (folder / VAL).open("ab") as file:
        file.write(bytes(512))
    assert open_source(folder, folder).identity() != before


def test_damage_inside_the_inner_tars_is_named(tmp_path, write_tar, inner):
    name = f"{WNIDS[2]}.tar"
    whole = inner[name]
    for bad in (whole[:1000], whole[:1024], whole[:1536], b"#" + whole[1:], whole[:1024] + b"#" + whole[1025:], b""):
        write_tar(tmp_path / TRAIN, inner | {name: bad})
        with pytest.raises(DataError, match=f"{TRAIN}: {name}: is cut short or damaged"):
            listed(tmp_path)
    data = write_tar(tmp_path / TRAIN, inner)
    with tarfile.open(tmp_path / TRAIN) as tar:
        places = [(info.offset, info.offset_data) for info in tar]
    for size in (places[1][0], places[1][0] + 100, places[1][1], places[1][1] + 600, places[3][1] + 1024, len(data) // 512 * 512 - 10240):
        (tmp_path / TRAIN).write_bytes(data[:size])
        with pytest.raises(DataError, match="is cut short or damaged"):
            listed(tmp_path)


def test_what_is_no_image_of_a_class_is_counted_and_never_followed(tmp_path, write_tar):
    link, outer_link = tarfile.TarInfo("n01440764_1.JPEG"), tarfile.TarInfo("n02000003.tar")
    link.type = outer_link.type = tarfile.SYMTYPE
    link.linkname = outer_link.linkname = "/etc/passwd"
    members = {"../../n01440764_2.JPEG": b"x", "": link, "n01440764_3.JPEG": b"good", "notes.txt": b"x"}
    outer = {"n01440764.tar": write_tar(None, members), "x": outer_link, "../n03000002.tar": b"x", "readme": b"x", "n1.tar": b"x"}
    write_tar(tmp_path / TRAIN, outer)
    items, ignored = listed(tmp_path)
    assert [item.name for item in items] == ["n01440764/n01440764_1.JPEG", "n01440764/n01440764_3.JPEG"]
    assert ignored == {"(names with ..)": 1, "(links)": 1, ".txt": 1, "(in the train tar, but no class)": 3}
    reader = open_source(tmp_path, tmp_path).reader()
    with pytest.raises(BadSample, match="a link that leads nowhere"):
        reader.read(items[0])
    assert reader.read(items[1]) == b"good"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({META: None}, f"holds no file {META}"),
        ({TRUTH: None}, f"holds no file {TRUTH}"),
        ({META: b"MATLAB 5.0 MAT-file" + bytes(200)}, "cannot be understood"),
        ({META: meta_mat(WNIDS)[:900]}, "cannot be understood"),
        ({TRUTH: b"1\nx\n"}, "cannot be understood"),
        ({TRUTH: b"1\n5\n"}, "gives a val image the class 5, which it does not list"),
        ({TRUTH: b"1\n2\n"}, "is none of the 2 images that"),
    ],
)
def test_a_development_kit_that_cannot_be_right_is_named(only, write_tar, changes, message):
    folder = only(VAL)
    truth = "".join(f"{number}\n" for number in VAL_IDS).encode()
    write_tar(folder / DEVKIT, {META: meta_mat(WNIDS), TRUTH: truth} | changes, "w:gz")
    with pytest.raises(DataError, match=message):
        listed(folder, of(folder))


def test_a_cut_development_kit_and_one_that_lacks_a_class_are_named(only, write_tar, devkit):
    folder = only(TRAIN)
    (folder / DEVKIT).write_bytes(devkit[:-30])
    with pytest.raises(DataError, match="is cut short or damaged"):
        open_source(folder, folder, of(folder)).class_names(set(WNIDS))
    write_tar(folder / DEVKIT, {META: meta_mat(WNIDS[:3]), TRUTH: b"1\n"}, "w:gz")
    with pytest.raises(DataError, match=f"knows no class {WNIDS[3]}"):
        open_source(folder, folder, of(folder)).class_names(set(WNIDS))


def test_the_train_tar_by_itself_and_a_folder_without_it_are_explained(official, tmp_path):
    with pytest.raises(DataError, match="holds tars of images; give the folder it lies in"):
        open_source(official / TRAIN, tmp_path)
    with pytest.raises(DataError, match=f"holds neither {TRAIN} nor {VAL}"):
        open_source(tmp_path, tmp_path, SourceOptions(format="imagenet"))
