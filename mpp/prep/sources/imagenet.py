"""ImageNet (ILSVRC 2012) as its official files lie in a folder, read in place: tars inside a tar, and the labels of val in a third.

Classes are the WordNet ids (n01440764, ...), sorted, so that their numbers are torchvision's.  The development kit, which gives the labels
of val, is always compared with its official md5; the tars of images, 145 GB, only on --checksum official.
torchvision would unpack them into 1.3 million files first.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError
from mpp.prep.source import Item, Source, state_of
from mpp.prep.sources.archives import FilesReader, Stretch, Tar, irregular, tar_images, tar_members
from mpp.prep.sources.checksum import OFFICIAL, verify_once
from mpp.remote.urls import Bar

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
MD5 = {TRAIN: "1d675b47d978889d74fa0da5fadfb00e", VAL: "29b22e2961454d5413ddabcf34fc5622", DEVKIT: "fa75699e90414af021442c21a62c3abf"}
META, TRUTH = "ILSVRC2012_devkit_t12/data/meta.mat", "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
MAX_DEVKIT_MEMBER_BYTES = 1 << 26


def is_imagenet(folder: Path) -> bool:
    return (folder / TRAIN).is_file() or (folder / VAL).is_file()


@dataclass(frozen=True)
class ImageNet(Source):
    """Whichever of the two tars of images are there.  Items are named n01440764/n01440764_10026.JPEG and ILSVRC2012_val_00000001.JPEG."""

    path: Path  # the folder
    files: tuple[str, ...]  # those of MD5 that are there
    checksum: str | None = None  # OFFICIAL, or that of another development kit
    kind = "imagenet"
    unlabelled = f"has no label, because {DEVKIT} does not lie beside {VAL}"

    @classmethod
    def open(cls, path: Path, checksum: str | None) -> "ImageNet":
        """Raises DataError for a folder without the tars of images."""
        if not is_imagenet(path):
            raise DataError(f"{path}: holds neither {TRAIN} nor {VAL}; give the folder with ImageNet's official files")
        files = tuple(name for name in MD5 if (path / name).is_file())
        if checksum not in (None, OFFICIAL) and DEVKIT not in files:
            raise DataError(
                f"--checksum: in a folder of ImageNet it is that of {DEVKIT}, which is not in {path}; give {OFFICIAL} or leave it out"
            )
        return cls(path, files, checksum)

    def identity(self) -> str:
        return " ".join(f"{name} {state_of(self.path / name)}" for name in self.files)

    def unpack(self, scratch: Path, bar: Bar) -> "ImageNet":
        for name in self.files if self.checksum == OFFICIAL else {DEVKIT} & set(self.files):
            own = self.checksum if name == DEVKIT and self.checksum != OFFICIAL else None
            remedy = "get the file again" + (
                ", or give --checksum HEX (md5 or sha256) for another that you trust" if name == DEVKIT else ""
            )
            verify_once(self.path / name, own or MD5[name], remedy, scratch, bar)
        return self

    def items(self, ignored: Counter) -> Iterator[Item]:
        if TRAIN in self.files:
            yield from self._train(ignored)
        if VAL in self.files:
            yield from self._val(ignored)

    def _train(self, ignored: Counter) -> Iterator[Item]:
        path = self.path / TRAIN
        with path.open("rb") as file, path.open("rb", buffering=0) as inside:
            for info in tar_members(file, str(path)):
                wnid = re.fullmatch(r"(?:\./)?(n\d{8})\.tar", info.name)
                if info.isdir():
                    continue
                if irregular(info) or not wnid:
                    ignored[irregular(info) or "(in the train tar, but no class)"] += 1
                    continue
                name = wnid[1]
                inner: Any = io.BufferedReader(Stretch(inside, info.offset_data, info.size))
                for item in tar_images(inner, f"{path}: {info.name}", ignored):
                    yield Item(f"{name}/{item.name}", item.size, (info.offset_data + item.place[0],), name, "train")

    def _val(self, ignored: Counter) -> Iterator[Item]:
        truth = read_devkit(self.path / DEVKIT)[1] if DEVKIT in self.files else None
        for item in Tar(self.path / VAL).items(ignored):
            label = ""
            if truth is not None:
                number = re.fullmatch(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG", item.name)
                if not number or not 0 < int(number[1]) <= len(truth):
                    raise DataError(
                        f"{self.path / VAL}: {item.name} is none of the {len(truth)} images that {DEVKIT} labels; get both again"
                    )
                label = truth[int(number[1]) - 1]
            yield item._replace(label=label, split="val")

    def reader(self) -> FilesReader:
        return FilesReader(self.path, lambda item: {"train": TRAIN, "val": VAL}[item.split])

    def class_names(self, labels: Collection[str]) -> list[str]:
        """Sorted WordNet ids: all of the development kit's where it is there."""
        if DEVKIT not in self.files:
            return sorted(labels)
        names = read_devkit(self.path / DEVKIT)[0]
        if strange := set(labels) - set(names):
            raise DataError(f"{self.path / TRAIN}: {DEVKIT} knows no class {min(strange)}; get both again, or leave out --labels")
        return names


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """Sorted WordNet ids of the classes, and the WordNet id of each image of val.  Raises DataError.

    Only for a file whose checksum was found right: scipy ends the process with a segmentation fault on some damaged meta.mat.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise DataError(f"reading {DEVKIT} needs the package scipy: pip install scipy") from None
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                name = info.name.removeprefix("./")
                if name in (META, TRUTH) and info.size <= MAX_DEVKIT_MEMBER_BYTES and (file := tar.extractfile(info)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is cut short or damaged ({error}); get it again") from error
    for name in (META, TRUTH):
        if name not in found:
            raise DataError(f"{path}: holds no file {name}; get {DEVKIT} again")
    try:
        synsets = loadmat(io.BytesIO(found[META]), squeeze_me=True, variable_names=["synsets"])["synsets"]
        leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if not row["num_children"]}
        numbers = [int(line) for line in found[TRUTH].split()]
    except (ArithmeticError, IndexError, KeyError, MatReadError, NotImplementedError, OSError, TypeError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be understood ({type(error).__name__}: {error}); get {DEVKIT} again") from error
    if strange := set(numbers) - set(leaves):
        raise DataError(f"{path}: gives a val image the class {min(strange)}, which it does not list; get {DEVKIT} again")
    return sorted(leaves.values()), [leaves[number] for number in numbers]
