"""CIFAR's archives: small ones of the official formats, as Python 2 and Python 3 would pickle them, and what a hostile one may not do."""

import hashlib
import io
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from data_prep import make_shards
from mpp.base.errors import DataError
from mpp.data.cifar import LAYOUTS
from mpp.data.decode import decode
from mpp.data.shards import ShardSet
from mpp.prep.source import SourceOptions
from mpp.prep.sources import cifar, open_source

IMAGES = 3  # a batch
NAMES = {"cifar10": [f"ten{n}" for n in range(10)], "cifar100": [f"hundred{99 - n}" for n in range(100)]}  # not in alphabetical order
FOLDERS = list(LAYOUTS)


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 wrote its one kind of string, and arrays under numpy's old names."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, text):
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(text)

    def save_array(self, array):
        self.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR(K\1")
        self.save(array.shape)
        self.write(b"cnumpy\ndtype\n(U\x02u1K\0K\1tR(K\3U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")
        self.save(not array.flags.c_contiguous)
        self.save(array.tobytes("A"))
        self.write(b"tb")

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[np.ndarray] = save_array


def pickled(content: dict, python: int = 3) -> bytes:
    if python == 3:
        return pickle.dumps(content, protocol=2)
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


def batch(kind: str, number: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng([len(kind), number])
    return rng.integers(0, 256, (IMAGES, 3072), np.uint8), rng.integers(0, len(NAMES[kind]), IMAGES).tolist()


def members(folder: str, python: int = 3) -> dict[str, bytes | None]:
    """What lies in such an archive, batches in another order than by name."""
    layout = LAYOUTS[folder]
    found: dict[str, bytes | None] = {folder: None}
    for number, name in reversed(list(enumerate(layout.batches))):
        data, labels = batch(layout.kind, number)
        if name.endswith(".bin"):
            head = [[label] if layout.kind == "cifar10" else [label // 5, label] for label in labels]
            found[f"{folder}/{name}"] = np.concatenate([np.array(head, np.uint8), data], axis=1).tobytes()
        else:
            coarse = {"coarse_labels": [label // 5 for label in labels]} if layout.kind == "cifar100" else {}
            content = {"data": data, layout.labels_key: labels, **coarse, "filenames": ["é.png"] * IMAGES}
            found[f"{folder}/{name}"] = pickled(content, python)
    names = NAMES[layout.kind]
    found[f"{folder}/{layout.names}"] = (
        pickled({layout.names_key: names, "num_vis": 3072}, python) if layout.names_key else ("\n".join(names) + "\n\n").encode()
    )
    found[f"{folder}/readme.html"] = b"<html>"
    return found


@pytest.fixture
def opened(tmp_path, write_tar, no_bar):
    """opened(members, cut=None): an archive of them, with its own checksum given, listed and ready to be read."""

    def make(content: dict, cut: int | None = None):
        data = write_tar(None, content, "w:gz")[:cut]
        (tmp_path / "any name.tgz").write_bytes(data)
        source = open_source(tmp_path / "any name.tgz", tmp_path, SourceOptions(checksum=hashlib.sha256(data).hexdigest()))
        (tmp_path / "scratch").mkdir(exist_ok=True)
        return source.unpack(tmp_path / "scratch", no_bar)

    return make


@pytest.mark.parametrize("python", [2, 3])
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pixel_label_and_split_is_as_the_archive_holds_it(opened, tmp_path, folder, python):
    source = opened(members(folder, python))
    layout = LAYOUTS[folder]
    assert source.kind == layout.kind
    assert source.class_names({"x"}) == NAMES[layout.kind]
    items, reader = list(source.items(Counter())), source.reader()
    assert len(items) == IMAGES * len(layout.batches)
    for item in items:
        name, number = item.name.split("/")
        position = [member.removesuffix(".bin") for member in layout.batches].index(name)
        data, labels = batch(layout.kind, position)
        expected = data[int(number)].reshape(3, 32, 32).transpose(1, 2, 0)
        ppm = reader.read(item)
        assert len(ppm) == item.size
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(ppm))), expected)
        assert item.label == NAMES[layout.kind][labels[int(number)]]
        assert item.split == ("test" if "test" in name else "train")
    assert {path.name for path in (tmp_path / "scratch").iterdir()} >= {"cifar.rows", "cifar.json"}
    assert not (tmp_path / "scratch" / "source.tar").exists()
    made = (tmp_path / "scratch" / "cifar.rows").stat()
    assert list(opened(members(folder, python)).items(Counter())) == items
    assert (tmp_path / "scratch" / "cifar.rows").stat() == made  # what is there is taken over


def test_the_python_and_the_binary_archive_hold_the_same_items(opened, tmp_path):
    found = []
    for folder in ("cifar-100-python", "cifar-100-binary"):
        found.append(list(opened(members(folder)).items(Counter())))
        for path in (tmp_path / "scratch").iterdir():
            path.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize(("folder", "oracle"), [("cifar-10-batches-py", "CIFAR10"), ("cifar-100-python", "CIFAR100")])
def test_shards_hold_what_torchvision_reads(tmp_path, write_tar, monkeypatch, folder, oracle):
    content = members(folder, 2)
    archive = tmp_path / "cifar.tar.gz"
    checksum = hashlib.md5(write_tar(archive, content, "w:gz")).hexdigest()
    words = [str(archive), str(tmp_path / "out"), "--labels", "--quiet", "--workers", "1"]
    assert make_shards.main([*words, "--checksum", checksum]) == 0
    for name, data in content.items():
        (tmp_path / name).mkdir() if data is None else (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    for split in ("train", "test"):
        expected = getattr(torchvision.datasets, oracle)(tmp_path, train=split == "train")
        shards = ShardSet.open(tmp_path / "out" / split)
        assert shards.classes == expected.classes
        found = sorted((decode(shards.read(sample)).tobytes(), int(shards.labels[sample])) for sample in range(len(shards)))
        assert found == sorted(zip((image.tobytes() for image in expected.data), expected.targets, strict=True))


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def _hostile(path: Path) -> dict[str, bytes]:
    """Pickles that would make `path`, by the name that must be refused."""
    return {
        f"{os.system.__module__}.system": pickle.dumps(Hostile(os.system, f"touch '{path}'"), 2),
        "builtins.eval": pickle.dumps({"data": Hostile(eval, f"open({str(path)!r}, 'w')")}, 4),
        "__builtin__.open": f"c__builtin__\nopen\n(V{path}\nVw\ntR.".encode(),
        "os.system": f"(Vtouch '{path}'\nios\nsystem\n.".encode(),
        "numpy.load": b"cnumpy\nload\n(V" + str(path).encode() + b"\ntR.",
        "numpy._core.multiarray.fromfile": b"cnumpy._core.multiarray\nfromfile\n(tR.",
        "the codec 'zlib'": b"c_codecs\nencode\n(Vx\nVzlib\ntR.",
    }


@pytest.mark.parametrize("call", _hostile(Path()))
@pytest.mark.parametrize("member", ["batches.meta", "data_batch_3"])
def test_a_hostile_pickle_is_refused_by_name_and_never_run(opened, tmp_path, call, member):
    content = members("cifar-10-batches-py") | {f"cifar-10-batches-py/{member}": _hostile(tmp_path / "ran")[call]}
    with pytest.raises(DataError, match=f"{member}: the pickle calls for {call}, .* do not trust this archive"):
        opened(content)
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("scratch/cifar*"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_another_archive_than_the_official_one_is_not_even_unpacked(tmp_path, write_tar, no_bar, monkeypatch, folder):
    write_tar(tmp_path / "cifar.tar.gz", members(folder), "w:gz")
    monkeypatch.setattr(cifar, "PackedTar", None)
    monkeypatch.setattr("mpp.data.cifar.ArrayUnpickler", None)
    layout = LAYOUTS[folder]
    for checksum in (None, "official"):
        source = open_source(tmp_path / "cifar.tar.gz", tmp_path, SourceOptions(layout.kind, checksum))
        with pytest.raises(DataError, match=f"and not {layout.md5}; get {layout.archive} again, or give --checksum HEX"):
            source.unpack(tmp_path, no_bar)
    source = open_source(tmp_path / "cifar.tar.gz", tmp_path, SourceOptions(checksum="0" * 64))
    with pytest.raises(DataError, match=f"and not {'0' * 64}; get the file again, or mend --checksum"):
        source.unpack(tmp_path, no_bar)


def test_an_archive_of_another_kind_is_refused_by_the_format_that_is_named(tmp_path, write_tar):
    write_tar(tmp_path / "ten.tar.gz", members("cifar-10-batches-bin"), "w:gz")
    with pytest.raises(
        DataError, match=r"does not hold what --format cifar100 reads; give cifar-100-python.tar.gz or cifar-100-binary.tar.gz"
    ):
        open_source(tmp_path / "ten.tar.gz", tmp_path, SourceOptions("cifar100"))
    assert open_source(tmp_path / "ten.tar.gz", tmp_path, SourceOptions("tar.gz")).kind == "tar.gz"


PIXELS, LABELS = batch("cifar10", 0)


@pytest.mark.parametrize(
    ("folder", "member", "data", "message"),
    [
        ("cifar-10-batches-py", "test_batch", pickled({"data": PIXELS, "labels": LABELS})[:-40], "is no pickle of arrays"),
        ("cifar-10-batches-py", "test_batch", pickled({"data": PIXELS, "labels": LABELS[1:]}), "has no list labels with a class number for each of"),
        ("cifar-10-batches-py", "test_batch", pickled({"data": PIXELS, "labels": [1, 2, 10]}), "holds the class number 10"),
        ("cifar-10-batches-py", "test_batch", pickled({"data": PIXELS, "labels": [1, 2, -1]}), "has no list labels"),
        ("cifar-10-batches-py", "test_batch", pickled({"data": PIXELS[:, 1:].copy(), "labels": LABELS}), "has no array data of bytes"),
        ("cifar-10-batches-py", "test_batch", pickled({"data": PIXELS.astype(np.int64), "labels": LABELS}), "an array of 'i8' and not of bytes"),
        ("cifar-10-batches-py", "test_batch", pickled({"data": [1], "labels": LABELS}), "has no array data of bytes"),
        ("cifar-10-batches-py", "test_batch", pickle.dumps([1]), "holds no dictionary"),
        ("cifar-10-batches-py", "test_batch", None, "holds no file cifar-10-batches-py/test_batch"),
        ("cifar-10-batches-py", "batches.meta", pickled({"label_names": ["a"] * 10}), "does not hold 10 class names"),
        ("cifar-100-binary", "test.bin", b"x" * 3074, "holds the class number 120"),
        ("cifar-100-binary", "test.bin", b"x" * 3073, "has 3073 bytes, no multiple of 3074"),
        ("cifar-100-binary", "test.bin", b"", "has 0 bytes"),
        ("cifar-100-binary", "fine_label_names.txt", b"a\nb\n", "does not hold 100 class names"),
    ],
)  # fmt: skip
def test_an_archive_with_another_content_is_named(opened, folder, member, data, message):
    with pytest.raises(DataError, match=message):
        opened(members(folder) | {f"{folder}/{member}": data})


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_beside_the_batches_is_counted(opened, folder):
    ignored: Counter = Counter()
    list(opened(members(folder) | {f"{folder}/data_batch_6": b"x", "notes.txt": b"x"}).items(ignored))
    assert ignored == {"(files beside the batches)": 2}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_behind_the_rows_of_a_batch_is_named(opened, folder):
    content, batch = members(folder), next(iter(LAYOUTS[folder].batches))
    with pytest.raises(DataError, match=r"holds 3 bytes behind its pickle|no multiple of"):
        opened(content | {f"{folder}/{batch}": content[f"{folder}/{batch}"] + b"abc"})


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_cut_archive_is_named(opened, write_tar, share):
    content = members("cifar-10-batches-bin")
    with pytest.raises(DataError, match="is cut short or damaged"):
        opened(content, int(len(write_tar(None, content, "w:gz")) * share))
