"""What images are, byte for byte: against plain sets, and the same however they are stored."""

import io
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpp.base.errors import DataError
from mpp.data import folder_images
from mpp.data.array_images import ArrayImages
from mpp.data.fingerprints import content_id, overlap, packed, print_of
from mpp.data.folder_images import FolderImages
from mpp.data.shards import ShardSet
from mpp.data.write_shards import Sample, write_manifest, write_shard

PRINTS = st.lists(st.tuples(st.integers(0, 3) | st.integers(0, 2**32 - 1), st.integers(0, 3) | st.integers(0, 2**32 - 1)), max_size=20)


def array(prints: list[tuple[int, int]]) -> np.ndarray:
    both = np.array(prints, dtype=np.uint32).reshape(-1, 2)
    return packed(both[:, 0], both[:, 1])


@given(PRINTS, PRINTS, PRINTS)
def test_overlap_is_that_of_sets_of_crc_and_size(one, other, third):
    assert overlap(array(one), array(other)).tolist() == [pair in set(other) for pair in one]
    assert overlap(array(one), [array(other), array(third)]).tolist() == [pair in set(other) | set(third) for pair in one]
    assert not overlap(array(one), []).any()


@given(PRINTS, PRINTS)
def test_the_content_is_the_same_for_the_same_images_in_any_order_and_for_no_others(one, other):
    assert content_id(array(one)) == content_id(array(one[::-1]))
    assert (content_id(array(one)) == content_id(array(other))) == (Counter(one) == Counter(other))


def test_a_print_is_crc_and_size():
    data = b"some bytes"
    assert array([(zlib.crc32(data), len(data))]).tolist() == [print_of(data)]


def shards_of(folder, pictures: list[bytes], cut: list[int], labels: list[int]) -> ShardSet:
    folder.mkdir(parents=True)
    samples = [Sample(7 * key, "png", data, 5, 4, label) for key, (data, label) in enumerate(zip(pictures, labels, strict=True))]
    parts = [
        write_shard(folder, f"{n:06d}.tar", samples[a:b]) for n, (a, b) in enumerate(zip([0, *cut], [*cut, len(samples)], strict=True))
    ]
    colours = np.ones((3, 256), np.int64)
    write_manifest(
        folder, split=folder.name, shards=parts, classes=["a", "b"], colours=colours, colour_images=9, rejects=0, source={"name": "x"}
    )
    return ShardSet.open(folder)


@pytest.fixture
def stored(tmp_path):
    """Seven grey pictures, two of them the same, as an array, as shards of two kinds and as files."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5), dtype=np.uint8)
    pixels[5] = pixels[2]
    labels = np.array([0, 1, 0, 1, 0, 1, 1], dtype=np.int32)
    arrays = ArrayImages(tmp_path / "array", ["a", "b"], pixels, labels)
    pictures = [arrays.read(sample) for sample in range(7)]
    order = [3, 1, 6, 0, 2, 5, 4]
    for place, data in enumerate(pictures):
        (tmp_path / "files" / "ab"[labels[place]]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / "ab"[labels[place]] / f"{9 - place}.png").write_bytes(data)
    return {
        "array": arrays,
        "shards": shards_of(tmp_path / "one" / "train", pictures, [3], labels.tolist()),
        "again": shards_of(tmp_path / "two" / "other", [pictures[i] for i in order], [1, 2], [0] * 7),
        "files": FolderImages.open(tmp_path / "files"),
    }


def test_images_are_the_same_in_arrays_shards_and_folders(stored):
    assert len({content_id(images.prints) for images in stored.values()}) == 1
    for images in stored.values():
        assert images.prints.tolist() == [print_of(images.read(sample)) for sample in range(7)]
        assert overlap(images.prints, stored["array"].prints).all()
    assert content_id(stored["array"].prints) != content_id(np.delete(stored["array"].prints, 5))  # the same image twice counts twice


def test_no_image_of_shards_is_read(stored, monkeypatch):
    monkeypatch.setattr(ShardSet, "read", lambda *_: pytest.fail("read"))
    assert len(stored["shards"].prints) == 7


def test_files_that_data_prep_would_convert_count_as_it_stores_them(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for kind in ("bmp", "tiff"):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / f"0.{kind}")
    first, second = FolderImages.open(tmp_path).prints.tolist()
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG", compress_level=0)
    assert first == second == print_of(stored.getvalue())


def test_what_took_long_to_read_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, name in enumerate("ab"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (3 + number, 3)).save(tmp_path / "set" / name / "0.png")
    kept = lambda: list((tmp_path / "cache").rglob("*.bin"))
    first = FolderImages.open(tmp_path / "set").prints
    assert not kept()  # that was quick
    monkeypatch.setattr("mpp.data.fingerprints.KEPT_FROM", -1.0)
    assert FolderImages.open(tmp_path / "set").prints.tolist() == first.tolist() and len(kept()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(FolderImages, "read", lambda *_: pytest.fail("read"))
        again = FolderImages.open(tmp_path / "set").prints
    assert again.tolist() == first.tolist() and again.dtype == np.uint64
    kept()[0].write_bytes(bytes(24))  # damaged: three numbers, of which the last is not the print of the others
    assert FolderImages.open(tmp_path / "set").prints.tolist() == first.tolist()
    Image.new("RGB", (3, 3), "red").save(tmp_path / "set" / "a" / "0.png")
    folder_images._file_bytes.cache_clear()  # the last few files, which do not change under a program
    assert FolderImages.open(tmp_path / "set").prints[0] != first[0]
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert FolderImages.open(tmp_path / "set").prints[1] == first[1]


def test_a_file_that_is_no_image_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (3, 3)).save(tmp_path / name / "0.png")
    images = FolderImages.open(tmp_path)
    (tmp_path / "b" / "0.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b/0\.png: .*a measurement leaves no image out"):
        _ = images.prints
