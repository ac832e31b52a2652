"""WebDataset tars become shards: keys and fields as the package webdataset has them, images read in place."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_prep import make_shards
from mpp.base.errors import DataError
from mpp.data.shards import ShardSet
from mpp.prep.source import SourceOptions
from mpp.prep.sources import open_source
from mpp.prep.sources.webdataset import label_text
from tests.prep.tars import tar


def picture(number: int, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)).save(buffer, form)
    return buffer.getvalue()


def img2dataset(folder: Path, counts=(5, 4)) -> Path:
    """As img2dataset leaves it: per key an image, its caption and a record; beside each tar a table and statistics."""
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for index in range(count):
            key, record = f"{shard:05d}{index:04d}", {"caption": f"no {number}", "class": number % 3, "kind": "ab"[number % 2]}
            members += [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps(record).encode()), (f"{key}.txt", b"a caption")]
            number += 1
        tar(folder / f"{shard:05d}.tar", members)
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def make(source: Path, out: Path, *words) -> None:
    assert make_shards.main([str(source), str(out), "--quiet", "--workers", "1", *words]) == 0


def stored(folder: Path) -> dict[bytes, str]:
    shards = ShardSet.open(folder)
    return {shards.read(sample): shards.classes[label] if (label := shards.labels[sample]) >= 0 else "" for sample in range(len(shards))}


def listed(source: Path, ignored: Counter | None = None, **options) -> list[tuple[str, str]]:
    found = open_source(source, source / "out", SourceOptions(**options))
    assert found.kind == "webdataset"
    return [(item.name, item.label) for item in found.items(Counter() if ignored is None else ignored)]


def test_img2dataset_output_is_re_sharded_and_says_what_stays_behind(tmp_path, capsys):
    make(img2dataset(tmp_path / "laion"), tmp_path / "out")
    assert stored(tmp_path / "out" / "train") == {picture(number): "" for number in range(9)}
    assert "ignored:  18 (.json 9, .txt 9)" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())
    assert (manifest["source"]["kind"], manifest["source"]["name"]) == ("webdataset", "laion")


def test_a_key_of_the_record_is_the_label_where_asked(tmp_path):
    folder = img2dataset(tmp_path / "laion")
    make(folder, tmp_path / "numbers", "--labels", "--label-field", "class")
    assert stored(tmp_path / "numbers" / "train") == {picture(number): str(number % 3) for number in range(9)}
    make(folder, tmp_path / "texts", "--labels", "--label-field", "kind")
    assert stored(tmp_path / "texts" / "train") == {picture(number): "ab"[number % 2] for number in range(9)}
    with pytest.raises(
        DataError, match=r"'00000.tar/000000000.jpg' has no usable cls field \(--label-field names another\), so it has no class"
    ):
        make(folder, tmp_path / "none", "--labels")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, "3"),
        ("007", "7"),
        (" 12\n", "12"),
        ("-1", ""),
        (-1, ""),
        ("cat ", "cat"),
        (None, ""),
        (True, ""),
        (1.5, ""),
        ([1], "[1]"),
        ("٣", "٣"),
    ],
)
def test_a_label_is_a_whole_number_or_a_text(value, label):
    assert label_text(value) == label


def test_keys_and_fields_are_those_of_webdataset(tmp_path):
    """Every odd name that has one image a key, against the package itself."""
    members = [
        ("./a.b.jpg", picture(0)), ("./a.b.cls", b"4"), ("./a.cls", b"5"),
        ("x.y/c.JPG", picture(1)), ("x.y/c.cls", b"6"), ("x.y/c.Txt", b"t"),
        ("d.cls", b"cat"), ("d.seg.json", b"{}"), ("d.png", picture(2, "PNG")),
        ("lone.txt", b"no image"), ("no suffix", b"?"), ("__meta__/e.jpg", picture(3)), ("e..jpg", picture(4)),
    ]  # fmt: skip
    folder = tar(tmp_path / "odd" / "0.tar", members).parent
    expected = []
    for sample in webdataset.WebDataset(str(folder / "0.tar"), shardshuffle=False):
        images = [data for field, data in sample.items() if field.endswith(("jpg", "png"))]
        if images:
            expected.append((images[0], sample.get("cls", b"").decode()))
    ignored = Counter()
    source = open_source(folder, tmp_path)
    reader = source.reader()
    assert [(reader.read(item), item.label) for item in source.items(ignored)] == expected
    reader.close()
    assert len(expected) == 4
    assert ignored == {
        ".cls": 1, ".txt": 1, ".json": 1, "(keys without an image)": 1, "(no suffix)": 1, "(webdataset's own)": 1,
    }  # fmt: skip


def test_a_key_with_several_images_is_refused_until_one_is_chosen(tmp_path):
    members = [(f"{key}.{field}", picture(index)) for index, (key, field) in enumerate((k, f) for k in "ab" for f in ("jpg", "mask.png"))]
    folder = tar(tmp_path / "pairs" / "0.tar", members).parent
    with pytest.raises(DataError, match=r"0.tar: the key a has 2 images \(fields jpg, mask.png\); choose a field with --image-field jpg"):
        listed(folder)
    ignored = Counter()
    assert [name for name, _ in listed(folder, ignored, image_field="Mask.PNG")] == ["0.tar/a.mask.png", "0.tar/b.mask.png"]
    assert ignored == {".jpg": 2}


def test_repeated_names_count_once_within_a_tar_and_apart_across_tars(tmp_path, capsys):
    for shard in range(2):
        members = [("a.jpg", picture(0)), ("a.jpg", picture(10 + shard)), ("b.jpg", picture(20 + shard)), ("a.jpg", picture(30 + shard))]
        tar(tmp_path / "twice" / f"{shard}.tar", members)
    make(tmp_path / "twice", tmp_path / "out")
    assert set(stored(tmp_path / "out" / "train")) == {picture(number) for number in (20, 21, 30, 31)}
    assert "ignored:  4 ((repeated fields) 2, (repeated names) 2)" in capsys.readouterr().out


def test_mpps_own_shards_keep_their_class_names(tmp_path, make_shards):
    folder = make_shards(tmp_path / "train", [5, 4])
    before = ShardSet.open(folder)
    expected = {before.read(sample): before.classes[before.labels[sample]] for sample in range(9)}
    make(folder, tmp_path / "out", "--labels", "--samples-per-shard", "2")
    after = ShardSet.open(tmp_path / "out" / "train")
    assert after.classes == before.classes
    assert stored(tmp_path / "out" / "train") == expected
    assert len(after.samples_per_shard) == 5


def test_which_folders_are_taken_for_webdataset(tmp_path):
    folder = img2dataset(tmp_path / "laion")
    assert open_source(folder, folder / "out").kind == "webdataset"
    (folder / "out").mkdir()
    assert open_source(folder, folder / "out").kind == "webdataset"  # the output may lie inside
    assert open_source(folder, tmp_path).kind == "folder"
    with pytest.raises(DataError, match=r"holds no images among 6 files .*; for its 2 .tar files say --format webdataset"):
        make(folder, tmp_path / "made")
    (folder / "out").rmdir()
    (folder / "cover.jpg").write_bytes(picture(0))
    assert open_source(folder, tmp_path).kind == "folder"
    assert open_source(folder, tmp_path, SourceOptions("webdataset")).kind == "webdataset"
    assert open_source(folder / "00000.tar", tmp_path).kind == "tar"
    assert listed(folder / "00000.tar", format="webdataset")[0] == ("00000.tar/000000000.jpg", "")
    make(folder / "00000.tar", tmp_path / "made", "--format", "webdataset")
    assert len(stored(tmp_path / "made" / "train")) == 5
    with pytest.raises(DataError, match=r"holds no .tar at its top level"):
        open_source(tmp_path, tmp_path, SourceOptions("webdataset"))
    with pytest.raises(DataError, match=r"cover.jpg: is no tar"):
        open_source(folder / "cover.jpg", tmp_path, SourceOptions("webdataset"))


def test_a_cut_tar_is_refused_by_its_name(tmp_path):
    folder = img2dataset(tmp_path / "laion")
    with tarfile.open(folder / "00001.tar") as file:
        header = file.getmembers()[-3].offset
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[:header])
    with pytest.raises(DataError, match=f"00001.tar: is cut short or damaged at byte {header}"):
        make(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (folder / "00001.tar").write_bytes(whole)
    make(folder, tmp_path / "out")
    (folder / "00001.tar").touch()
    with pytest.raises(DataError, match="the files of laion changed"):
        make(folder, tmp_path / "out")
