"""Images that occur more than once: found without reading the source again, named, and left out by a rule that no division of work changes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.make_shards import main
from mpp.data.shard_format import INDEX_DTYPE
from mpp.data.shards import ShardSet
from mpp.prep import repeats
from mpp.prep.repeats import KEPT_WHOLE, MADE_BY_US, TRAIN
from mpp.prep.shard_job import Job, Record


def make(*words) -> None:
    assert main([*map(str, words), "--quiet", "--workers", "1"]) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory, picture) -> Path:
    """40 images in two classes, 28 of them different: 12 are copies, some under the other class."""
    folder = tmp_path_factory.mktemp("repeats") / "photos"
    for number in range(40):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number if number < 28 else 3 + number % 5, "PNG"))
    return folder


WORDS = ("--labels", "--val", 12, "--samples-per-shard", 4)


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("repeats") / "plain"
    make(source, out, *WORDS)
    return out


@pytest.fixture(scope="module")
def clean(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("repeats") / "clean"
    make(source, out, *WORDS, "--dedup")
    return out


def contents(out: Path, split: str) -> dict[int, bytes]:
    shards = ShardSet.open(out / split)
    return {int(shards.index["key"][sample]): shards.read(sample) for sample in range(len(shards))}


def visible(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


def test_what_is_left_holds_every_image_once_and_val_keeps_what_train_shares_with_it(plain, clean):
    val, train = contents(plain, "val"), contents(plain, "train")
    first: dict[bytes, tuple[str, int]] = {}
    for split, images in (("val", val), ("train", train)):
        for key, data in sorted(images.items()):
            first.setdefault(data, (split, key))
    for split in ("val", "train"):
        assert contents(clean, split) == {key: data for data, (of, key) in first.items() if of == split}
    assert len(first) == 28


def test_every_repeat_is_named_beside_the_image_that_is_kept(source, plain, clean):
    kept = {(split, key): data for split in ("train", "val") for key, data in contents(clean, split).items()}
    everything = {(split, key): data for split in ("train", "val") for key, data in contents(plain, split).items()}
    lines = [json.loads(line) for line in (clean / "duplicates.jsonl").read_text().splitlines()]
    assert {(line["split"], line["key"]) for line in lines} == everything.keys() - kept.keys()
    for line in lines:
        same = line["same_as"]
        assert (source / line["name"]).read_bytes() == (source / same["name"]).read_bytes() == kept[same["split"], same["key"]]
        assert line["left_out"]


def test_without_being_asked_repeats_are_named_but_stay(plain, capsys, source, tmp_path):
    assert sum(len(contents(plain, split)) for split in ("train", "val")) == 40
    lines = [json.loads(line) for line in (plain / "duplicates.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert not any(line["left_out"] for line in lines)
    make(source, tmp_path / "out", *WORDS, "--json")
    told = json.loads(capsys.readouterr().out)["repeats"]
    crossing = [line for line in lines if (line["split"], line["same_as"]["split"]) == ("train", "val")]
    relabelled = [line for line in lines if line["name"][0] != line["same_as"]["name"][0]]
    assert told == {"repeats": 12, "in_val": len(crossing), "relabelled": len(relabelled), "left_out": 0}
    assert crossing
    assert relabelled


def test_parts_leave_out_the_same_images(source, clean, tmp_path):
    for part in (2, 0, 1):
        make(source, tmp_path / "out", *WORDS, "--dedup", "--part", f"{part}/3")
    make(source, tmp_path / "out", *WORDS, "--dedup")
    assert visible(tmp_path / "out") == visible(clean)


@pytest.mark.parametrize("rebuilt", [0, 1, 3])
def test_a_run_stopped_among_the_shards_it_makes_anew_ends_with_the_same_bytes(source, clean, tmp_path, monkeypatch, rebuilt):
    from mpp.prep import making

    out, real = tmp_path / "out", making.build

    def stop_after_some(jobs, *others):
        real([job for job in jobs if not job.drop] + [job for job in jobs if job.drop][:rebuilt], *others)
        if any(job.drop for job in jobs):
            raise KeyboardInterrupt

    monkeypatch.setattr("mpp.prep.making.build", stop_after_some)
    with pytest.raises(KeyboardInterrupt):
        make(source, out, *WORDS, "--dedup")
    monkeypatch.setattr("mpp.prep.making.build", real)
    make(source, out, *WORDS, "--dedup")
    assert visible(out) == visible(clean)


def test_a_test_split_of_the_source_stays_whole_and_train_loses_what_it_shares_with_it(tmp_path, picture, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    images = {"train": [0, 1, 2, 3, 2, 10], "test": [10, 11, 10, 3]}  # numbers of pictures
    for split, numbers in images.items():
        rows = [{"image": {"bytes": picture(number), "path": f"{place}.jpg"}} for place, number in enumerate(numbers)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    make(folder, tmp_path / "out", "--dedup", "--json")
    assert sorted(contents(tmp_path / "out", "test").values()) == sorted(map(picture, images["test"]))
    assert sorted(contents(tmp_path / "out", "train").values()) == sorted(map(picture, [0, 1, 2]))
    told = json.loads(capsys.readouterr().out)["repeats"]
    assert told == {"repeats": 4, "in_val": 2, "relabelled": 0, "left_out": 3}
    lines = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines if not line["left_out"]] == ["test"]


def test_whose_images_are_kept_before_whose():
    assert repeats.rank_of(Job("test", 0, "test", 0, 0, 1)) == KEPT_WHOLE
    assert repeats.rank_of(Job("val", 0, "train", 0, 0, 1)) == MADE_BY_US
    assert repeats.rank_of(Job("train", 0, "train", 0, 0, 1)) == TRAIN


class Images:
    """An OUT whose shards are dictionaries."""

    def __init__(self, images: dict[tuple[str, str, int], bytes]):
        self.images = images

    def read(self, split: str, shard: str, offset: int, size: int) -> bytes:
        assert len(self.images[split, shard, offset]) == size
        return self.images[split, shard, offset]


image = st.tuples(st.sampled_from([b"aa", b"ab", b"ba", b"c"]), st.integers(0, 2))


@settings(max_examples=60)
@given(shards=st.lists(st.lists(image, max_size=6), min_size=1, max_size=6), at_once=st.integers(1, 7))
def test_groups_are_those_of_a_plain_comparison_also_where_checksums_collide_and_in_any_bucket(shards, at_once, tmp_path_factory):
    jobs = [Job("train", number, "train", 0, 100 * number, 100) for number in range(len(shards))]
    images, tables = {}, []
    for job, shard in zip(jobs, shards, strict=True):
        rows = np.zeros(len(shard), INDEX_DTYPE)
        for place, (data, checksum) in enumerate(shard):  # checksums that say nothing about the content
            rows[place]["offset"], rows[place]["size"], rows[place]["key"] = place, len(data), job.first + place
            rows[place]["crc32"] = checksum * (2**32 // 3)
            images[job.split, job.name, place] = data
        tables.append(Record({}, [], np.zeros(0), Counter(), rows))
    expected: dict[tuple[bytes, int], list[int]] = {}
    for job, shard in zip(jobs, shards, strict=True):
        for place, (data, checksum) in enumerate(shard):
            expected.setdefault((data, checksum), []).append(job.first + place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpp.prep.shuffle.BUFFER_BYTES", 150 * at_once)
        pairs = repeats._equal(jobs, tables, tmp_path_factory.getbasetemp(), Images(images))
        found = [(kept.key, repeat.key) for kept, repeat in pairs]
    assert sorted(found) == sorted((first, key) for first, *others in expected.values() for key in others)
    assert not list(tmp_path_factory.getbasetemp().glob(".repeats-*"))
