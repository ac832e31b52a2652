"""index_shards.py: tars from elsewhere become a set of shards where they lie."""

import io
import json
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_prep import index_shards
from mpp.base.errors import BadSample, DataError, UserError
from mpp.data.decode import decode
from mpp.data.shard_format import read_manifest
from mpp.data.shards import ShardSet
from mpp.disk.files import sha256_of
from tests.prep.tars import tar


def picture(number: int, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, (12 + number % 3, 10, 3), np.uint8)).save(buffer, form)
    return buffer.getvalue()


def written_by_webdataset(folder: Path, counts=(5, 4, 3)) -> Path:
    """Labels 0, 2, 4, ... 22; JPEG, PNG and WebP; captions before and after the image."""
    number = 0
    folder.mkdir(parents=True)
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"part-{shard}.tar")) as writer:
            for _ in range(count):
                field, form = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))[number % 3]
                # bytes, because the writer would encode pixels anew
                writer.write(
                    {"__key__": f"deep/er/no{number}", "cls": str(2 * number).encode(), field: picture(number, form), "txt": b"x" * number}
                )
                number += 1
    (folder / "part-0_stats.json").write_text("{}")
    return folder


def index(folder: Path, *words) -> None:
    assert index_shards.main([str(folder), "--quiet", "--workers", "1", *words]) == 0


def as_webdataset_gives_them(folder: Path) -> list[tuple[bytes, int]]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    return [(next(sample[field] for field in ("jpg", "png", "webp") if field in sample), int(sample["cls"])) for sample in samples]


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "manifest.json").read_bytes(), (folder / "index.bin").read_bytes()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    folder = written_by_webdataset(tmp_path_factory.mktemp("indexed") / "foreign")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    index(folder, "--labels")
    assert {path.name for path in folder.iterdir()} == {*before, "manifest.json", "index.bin"}
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == before[path.name] for path in folder.iterdir() if path.name in before)
    return folder


def test_every_sample_has_the_bytes_and_the_label_that_webdataset_gives(indexed):
    shards = ShardSet.open(indexed)
    expected = as_webdataset_gives_them(indexed)
    assert [(shards.read(sample), int(shards.labels[sample])) for sample in range(len(shards))] == expected
    assert shards.index["key"].tolist() == list(range(12))
    assert shards.classes == [str(number) for number in range(23)]
    assert shards.where(7).startswith("foreign/part-1.tar: 000000000007 (offset ")
    for entry in read_manifest(indexed)[0].shards:
        assert entry.sha256 == sha256_of(indexed / entry.name)


def test_the_manifests_claims_hold_when_worked_out_anew(indexed):
    manifest = json.loads((indexed / "manifest.json").read_text())
    decoded = [decode(data) for data, _ in as_webdataset_gives_them(indexed)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in decoded])
    np.testing.assert_allclose(manifest["mean"], pixels.mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(manifest["std"], pixels.std(0) / 255, rtol=1e-12)
    assert manifest["mean_std_images"] == manifest["samples"] == 12
    sizes = ShardSet.open(indexed).index[:][["height", "width"]].tolist()
    assert sizes == [image.shape[:2] for image in decoded]
    assert manifest["source"] == {
        "name": "foreign", "kind": "webdataset in place", "labels": True, "image_field": None, "label_field": None, "check": "header", "max_pixels": None,
        "colour_images": 4096,
    }  # fmt: skip


def test_the_colours_come_from_the_beginning_of_every_tar(tmp_path, monkeypatch):
    folder = written_by_webdataset(tmp_path / "foreign")
    monkeypatch.setattr("mpp.prep.indexing.MEAN_STD_IMAGES", 5)  # two a tar: tars from elsewhere may be sorted
    index(folder)
    chosen = [picture(number, form) for number, form in ((0, "JPEG"), (1, "PNG"), (5, "WEBP"), (6, "JPEG"), (9, "JPEG"), (10, "PNG"))]
    manifest = json.loads((folder / "manifest.json").read_text())
    pixels = np.concatenate([decode(data).reshape(-1, 3) for data in chosen])
    np.testing.assert_allclose(manifest["mean"], pixels.mean(0) / 255, rtol=1e-12)
    assert manifest["mean_std_images"] == len(chosen)
    assert not ShardSet.open(folder).labelled


def test_the_number_of_workers_changes_no_byte(indexed, tmp_path):
    folder = written_by_webdataset(tmp_path / "foreign")
    index(folder, "--labels", "--workers", "3")
    assert results(folder)[1] == results(indexed)[1]
    ours, theirs = (json.loads(results(path)[0]) for path in (folder, indexed))
    for manifest in (ours, theirs):  # the writer stamps the time into its tars
        del manifest["check"]
        for shard in manifest["shards"]:
            del shard["sha256"]
    assert ours == theirs


def test_a_run_that_ended_between_two_tars_goes_on_and_ends_with_the_same_bytes(tmp_path, capsys):
    folder = written_by_webdataset(tmp_path / "foreign")
    index(folder)
    expected = results(folder)
    for name in ("manifest.json", "index.bin"):
        (folder / name).unlink()
    whole = (folder / "part-2.tar").read_bytes()
    stamp = (folder / "part-2.tar").stat().st_mtime_ns
    (folder / "part-2.tar").write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"part-2.tar: is cut short or damaged"):
        index(folder)
    assert not (folder / "manifest.json").exists()
    notes = {path.name: path.stat().st_mtime_ns for path in (folder / ".work").glob("*.done")}
    assert set(notes) == {"part-0.tar.done", "part-1.tar.done"}
    (folder / "part-2.tar").write_bytes(whole)
    os.utime(folder / "part-2.tar", ns=(stamp, stamp))
    index(folder)
    assert "kept from an earlier run: 2 of 3 tars" in capsys.readouterr().out
    assert results(folder) == expected
    assert not (folder / ".work").exists()


def test_a_cut_tar_may_be_taken_away_without_reading_the_others_again(tmp_path, capsys):
    folder = written_by_webdataset(tmp_path / "foreign", (2,) * 8)
    os.truncate(folder / "part-7.tar", 1000)
    with pytest.raises(DataError, match=r"part-7.tar: is cut short or damaged"):
        index(folder)
    (folder / "part-7.tar").unlink()
    index(folder)
    assert "kept from an earlier run: 7 of 7 tars" in capsys.readouterr().out
    assert len(ShardSet.open(folder)) == 14


@pytest.mark.parametrize("change", ["a tar", "the options"])
def test_notes_made_for_other_options_or_another_tar_are_not_used(tmp_path, change):
    folder = written_by_webdataset(tmp_path / "foreign")
    data = (folder / "part-2.tar").read_bytes()
    (folder / "part-2.tar").write_bytes(data[:1000])
    with pytest.raises(DataError, match="damaged"):
        index(folder)
    (folder / "part-2.tar").write_bytes(data)
    if change == "a tar":
        tar(folder / "part-0.tar", [("x.png", picture(77, "PNG")), ("x.cls", b"1")])
        index(folder)
        assert ShardSet.open(folder).read(0) == picture(77, "PNG")
    else:
        index(folder, "--labels")
        assert ShardSet.open(folder).labelled


def test_bits_that_turn_later_are_noticed_by_readers(indexed, tmp_path, damage):
    folder = written_by_webdataset(tmp_path / "foreign")
    index(folder)
    damage(folder, [4])
    shards = ShardSet.open(folder)
    with pytest.raises(BadSample, match="CRC-32"):
        shards.read(4)
    assert shards.read(5) == ShardSet.open(indexed).read(5)


@pytest.mark.parametrize("cut", ["at a header", "in an image", "before the end mark"])
def test_a_cut_tar_is_refused_by_its_name(tmp_path, cut):
    folder = written_by_webdataset(tmp_path / "foreign")
    with tarfile.open(folder / "part-1.tar") as file:
        last = file.getmembers()[-2]
    size = {
        "at a header": last.offset,
        "in an image": last.offset_data + 9,
        "before the end mark": 512 * math.ceil(last.offset_data / 512 + 2),
    }[cut]
    os.truncate(folder / "part-1.tar", size)
    with pytest.raises(DataError, match=r"foreign/part-1.tar: is cut short or damaged"):
        index(folder)
    assert not (folder / "manifest.json").exists()


def test_what_cannot_stay_in_place_is_listed_and_numbered_all_the_same(tmp_path, capsys):
    members = [("a.gif", picture(0, "GIF")), ("b.jpg", b"no image"), ("c.jpg", picture(1)), ("d.jpg", picture(2)[:-100]), ("e.jpg", b"")]
    folder = tar(tmp_path / "odd" / "0.tar", members).parent
    tar(folder / "1.tar", [("f.jpg", picture(3)), ("f.json", b"{}")])
    tar(folder / "2.tar", [("g.txt", b"text")])
    with pytest.raises(
        DataError,
        match=r"4 of 6 files .* first '0.tar/a.gif' \(of a format that must be converted.*--max-rejects 0.667 .*make_shards.py FOLDER OUT",
    ):
        index(folder)
    index(folder, "--max-rejects", "0.7")
    shards = ShardSet.open(folder)
    assert [shards.read(sample) for sample in range(2)] == [picture(1), picture(3)]
    assert shards.index["key"].tolist() == [2, 5]
    assert shards.manifest["rejects"] == 4
    rejects = [json.loads(line)["name"] for line in (folder / "rejects.jsonl").open()]
    assert rejects == ["0.tar/a.gif", "0.tar/b.jpg", "0.tar/d.jpg", "0.tar/e.jpg"]
    said = capsys.readouterr().out
    assert "ignored:  2 ((keys without an image) 1, .json 1)" in said
    assert "without a readable image: 1 tars" in said


def test_bad_input_is_one_line_that_says_what_to_do(tmp_path, indexed, make_shards):
    named = tar(tmp_path / "named" / "0.tar", [("a.jpg", picture(0)), ("a.cls", b"cat")]).parent
    bare = tar(tmp_path / "bare" / "0.tar", [("a.jpg", picture(0))]).parent
    text = tar(tmp_path / "text" / "0.tar", [("a.txt", b"text")]).parent
    (tmp_path / "none").mkdir()
    half = tar(tmp_path / "out" / "train" / "0.tar", [("a.jpg", picture(0))]).parent
    (half.parent / ".work").mkdir()
    (half.parent / ".work" / "plan.json").write_text("{}")
    for words, message in (
        ((indexed,), "has a manifest.json already, so it can be trained on as it is .* remove manifest.json and index.bin"),
        ((make_shards(tmp_path / "ours", [3]),), "has a manifest.json already"),
        ((half,), "is made by make_shards.py"),
        ((named, "--labels"), "0.tar: a.jpg has the label 'cat', and only class numbers .*make_shards.py FOLDER OUT --labels"),
        ((bare, "--labels"), "0.tar: a.jpg has no label, and only"),
        ((text,), r"its 1 tars hold no readable images \(\(keys without an image\) 1\)"),
        ((tmp_path / "none",), "holds no .tar at its top level"),
        ((bare / "0.tar",), "is no folder; give the folder that holds the tars"),
        ((bare, "--workers", "0"), "'0' is not a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            index(*words)
    for folder in (named, bare, half, tmp_path / "none"):
        assert not (folder / ".work").exists()


def test_a_run_killed_while_it_cleaned_up_is_complete(indexed, tmp_path, capsys):
    folder = written_by_webdataset(tmp_path / "foreign")
    index(folder)
    (folder / ".work").mkdir()
    (folder / ".work" / "part-0.tar.done").touch()
    before = results(folder)
    index(folder)
    assert "is already complete: 12 images" in capsys.readouterr().out
    assert results(folder) == before
    assert not (folder / ".work").exists()
