"""What a process holds of a set: by the shard a few dozen bytes, by the sample nothing; and manifests that are read and written entry by entry."""

import gc
import hashlib
import json
import os
import random
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.base.errors import DataError
from mpp.base.rng import Draws
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data import shard_faults, shard_table
from mpp.data.augment import Centre
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.device_jpegs import DeviceJpegs
from mpp.data.keeping import Kept
from mpp.data.order import Order, OrderSampler
from mpp.data.origins import FolderOrigin
from mpp.data.pixels import StoredPixels
from mpp.data.shard_format import (
    INDEX,
    INDEX_DTYPE,
    MANIFEST,
    IndexEntry,
    Manifest,
    check_of,
    digest_of,
    manifest_pieces,
    read_manifest,
    sealed,
)  # fmt: skip
from mpp.data.shard_index import STRETCH
from mpp.data.shard_table import ShardEntry, ShardTable, parsed
from mpp.data.shards import ShardSet
from mpp.data.training_set import TrainingSet, without_last
from mpp.disk.files import seal_of
from mpp.transfer.while_training import choose

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\x00"), min_size=1, max_size=12).map(lambda name: name + ".tar")
ENTRIES = st.lists(
    st.builds(ShardEntry, NAMES, st.integers(0, 2**59), st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(0, 2**53)), max_size=9
)  # fmt: skip


def manifest_of(entries, **changes) -> Manifest:
    table = entries if isinstance(entries, ShardTable) else ShardTable(entries)
    samples = sum(table.samples)
    facts = {
        "split": "train", "samples": samples, "bytes": sum(table.bytes), "rejects": 0, "repeats": 0, "classes": [], "mean": [0.5] * 3, "std": [0.2] * 3,
        "mean_std_images": 1, "short_sides": [(32, samples)], "source": {"name": "made"}, "mpp": "0",
        "index": IndexEntry(name=INDEX, bytes=samples * INDEX_DTYPE.itemsize, sha256="0" * 64), "check": "",
    }  # fmt: skip
    return sealed(Manifest(**(facts | changes), shards=table))


def entries_of(shards: int, each: int = 1000) -> list[ShardEntry]:
    return [
        ShardEntry(f"{number:06d}.tar", 108_000_000 + number, hashlib.sha256(b"%d" % number).hexdigest(), each) for number in range(shards)
    ]


def written(folder, manifest):
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(b"".join(manifest_pieces(manifest)))
    return folder


# ---------------------------------------------------------------------------------------------------------------- entry by entry


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.sampled_from([1, 2, 3, 100]), st.sampled_from(['"shards":[]', '\n "shards": []', "100 %s"]))
def test_a_manifest_is_written_sealed_and_read_as_if_it_were_one_object(tmp_path_factory, entries, stretch, told):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_table, "STRETCH", stretch)
        manifest = manifest_of(entries, classes=[told], source={"name": told, "shards": [], told: {"shards": []}})
        whole = manifest.model_dump()
        assert whole["shards"] == [entry._asdict() for entry in entries]
        folder = written(tmp_path_factory.mktemp("set"), manifest)
        data = (folder / MANIFEST).read_bytes()
        assert data == json.dumps(whole, indent=1).encode() + b"\n"
        assert manifest.check == check_of(manifest) == seal_of(whole, "check")
        found, digest = read_manifest(folder)
        assert digest == digest_of(found) == hashlib.sha256(data).hexdigest()
        assert found.model_dump() == whole and list(found.shards) == entries == found.shards[:]


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(0, 2**32), st.sampled_from([None, 0, 3, "\t"]), st.booleans())
def test_json_in_any_layout_and_order_of_its_keys_reads_alike(entries, seed, indent, ascii_only):
    content = {
        "format": "x",
        "shards": [entry._asdict() for entry in entries],
        "source": {"shards": [1, {"a": []}]},
        "rest": [None, True, 1e9, 'é"]}'],
    }
    items = list(content.items())
    random.Random(seed).shuffle(items)
    found = parsed("\r\n" + json.dumps(dict(items), indent=indent, ensure_ascii=ascii_only) + "  ")
    assert list(found.pop("shards")) == entries
    assert found == {key: value for key, value in content.items() if key != "shards"}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_json_refuses_is_refused(data):
    text = json.dumps({"format": "x", "shards": [entry._asdict() for entry in entries_of(2)], "more": [1, {"a": 2}]}, indent=1)
    at = data.draw(st.integers(0, len(text) - 1))
    spoilt = text[:at] + data.draw(st.sampled_from(["", ",", "]", "}", '"', "[", ":", "x"])) + text[at + data.draw(st.integers(0, 1)) :]
    try:
        known = json.loads(spoilt)
    except ValueError:
        known = None
    if known is None:
        with pytest.raises(ValueError):
            parsed(spoilt)
    elif isinstance(known, dict) and known.get("shards") == json.loads(text)["shards"]:
        assert parsed(spoilt) | {"shards": known["shards"]} == known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b.tar"}, r"shards\.5\.name: String should match pattern"),
        ({"bytes": -1}, r"shards\.5\.bytes: Input should be greater than or equal to 0"),
        ({"bytes": True}, r"shards\.5\.bytes: Input should be a valid integer"),
        ({"samples": 2**63}, r"shards\.5\.samples: Input should be less than 9223372036854775808"),
        ({"sha256": "0" * 63}, r"shards\.5\.sha256: String should match pattern"),
        (None, r"shards\.5: Input should be a valid dictionary"),
    ],
)
def test_an_entry_that_is_none_is_named_by_its_place_in_the_whole_list(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(shard_table, "STRETCH", 2)
    content = json.loads((written(tmp_path, manifest_of(entries_of(8))) / MANIFEST).read_text())
    content["shards"][5] = content["shards"][5] | change if change else 7
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(content)[:-1])
    with pytest.raises(DataError, match=r"is not a JSON object"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(DataError, match=r"version 2, this mpp reads 'mpp-shards' version 1"):  # which may have other entries
        read_manifest(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- memory


def held(make):
    """(bytes that what is made takes, bytes at most while it is made), as Python and numpy have asked for them."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del made
    return kept, most


def by_shard(make, few=1_000, many=5_000):
    """Bytes a shard, kept and at most, between two numbers of shards."""
    return tuple((large - small) / (many - few) for small, large in zip(held(lambda: make(few)), held(lambda: make(many)), strict=True))


@pytest.mark.long
def test_a_shard_of_the_manifest_takes_a_rank_a_few_dozen_bytes_and_a_keeper_few_more(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_table, "STRETCH", 128)
    name = len("000000.tar")
    folders = {count: written(tmp_path / str(count), manifest_of(entries_of(count))) for count in (1_000, 5_000)}
    for folder in folders.values():
        (folder / INDEX).touch()
    line = (folders[5_000] / MANIFEST).stat().st_size / 5_000

    table, reading = by_shard(lambda count: read_manifest(folders[count])[0])
    assert table <= 8 + 33 + name + 32 + 2 * 8 + 10  # a place in a list and bytes; a sha256; two columns; room to grow
    assert reading <= 2 * line + table + 60  # its bytes and its text, or its text and the table

    def rank(count):
        manifest, digest = read_manifest(folders[count])
        shards = ShardSet(folders[count], manifest, digest, 0)
        order = Order(without_last(shards.samples_per_shard, 1024), 4096, 1024, seed=0)
        for epoch in range(5):
            order.sample_ids(order.places(epoch * order.steps_per_epoch, 0, 8))
        return shards, order

    kept, _ = by_shard(rank)
    assert kept <= name + 2 * 8 + 8 + 2 * 16 + 2  # names and two columns; without the hold-out; two epochs

    keeper, _ = by_shard(lambda count: Kept(FolderOrigin(folders[count]), folders[count], "key", read_manifest(folders[count])[0]))
    assert keeper <= table + name + 2 * 8 + 2


def large(folder, shards, each, labelled=True):
    """A set of shards x each samples, whose index is a hole."""
    manifest = manifest_of(entries_of(shards, each), classes=["a", "b"])
    with (folder / INDEX).open("wb") as file:
        file.truncate(manifest.index.bytes)
    return ShardSet(folder, manifest, "0" * 64, unlabelled=0 if labelled else len(range(manifest.samples)))


def training_set(shards, apart):
    crops = lambda pool: CropDataset(StoredPixels(shards, 1000), Centre((8, 8), 1.0), 0, pool)
    trained = without_last(shards.samples_per_shard, apart)
    first = int(trained.sum())
    return TrainingSet(crops(range(first)), crops(range(first, len(shards))), trained, None, {}, shards, shards)  # type: ignore[arg-type]


def test_a_rank_and_its_sampler_hold_nothing_by_the_sample(tmp_path):
    """Of ten million images, labelled: the first steps of two epochs, the images to look at, those that trivial predictors are fitted on."""
    shards = large(tmp_path, 100, 10**5)
    config = load(PretrainConfig, None, ["data={shards: none, global_batch: 4096, holdout_samples: 1024}"])

    def begin():
        sets, plan = training_set(shards, 1024), plan_batch(4096, None, 8, 64)
        order = sets.order(config, plan)
        seen = [next(iter(OrderSampler(order, plan, 3, 8, step, step + 1))) for step in (0, order.steps_per_epoch)]
        chosen = choose(config, sets, 4000)
        return sets, order, seen, chosen, sets.some_training(10_000)[1]

    kept, most = held(begin)
    assert kept < 2e6 and most < 20e6  # two bytes a sample would be as much


def test_prints_and_labels_of_a_set_take_what_they_are_and_a_stretch_of_rows(tmp_path):
    shards = large(tmp_path, 10, 4 * 10**5)
    stretch = STRETCH * (INDEX_DTYPE.itemsize + 4 * 8)  # rows, and what is made of them
    for make, each in ((lambda: shards.index.column("label"), 4), (lambda: large(tmp_path, 10, 4 * 10**5).prints, 8)):
        kept, most = held(make)
        assert kept < each * len(shards) + 1e5 and most < each * len(shards) + stretch + 1e6


def test_what_is_read_of_the_index_does_not_grow_with_the_set(tmp_path, monkeypatch):
    shards, read = large(tmp_path, 10, 10**6), []
    asked = shards.index._pread
    monkeypatch.setattr(shards.index, "_pread", lambda size, offset: read.append(size) or asked(size, offset))
    monkeypatch.setattr(DeviceJpegs, "_decode", lambda self, data: None)
    assert DeviceJpegs(shards, 1000, "cpu").encoded_bytes == 0  # type: ignore[arg-type]
    assert sum(read) <= 4096 * INDEX_DTYPE.itemsize


def test_sizes_of_many_shards_are_asked_for_at_once_and_told_in_order(tmp_path, monkeypatch):
    manifest = manifest_of(entries_of(600, each=1))
    (tmp_path / INDEX).write_bytes(bytes(manifest.index.bytes))
    for entry in manifest.shards:
        with (tmp_path / entry.name).open("wb") as file:
            file.truncate(entry.bytes + (entry.name in ("000007.tar", "000400.tar")))
    (tmp_path / "000300.tar").unlink()
    together, stat = threading.Barrier(shard_faults.ASKERS, timeout=20), Path.stat

    def meets(path, **given):
        if path.name in {f"{number * shard_faults.IN_A_ROW:06d}.tar" for number in range(1, shard_faults.ASKERS)} | {"000000.tar"}:
            together.wait()  # breaks where others are not on their way, too
        return stat(path, **given)

    monkeypatch.setattr(Path, "stat", meets)
    found = [fault for fault in shard_faults.file_faults(tmp_path, manifest) if fault.shard]
    assert [(fault.shard, fault.kind) for fault in found] == [
        ("000007.tar", "file size"),
        ("000300.tar", "missing file"),
        ("000400.tar", "file size"),
    ]


def test_who_stops_at_the_first_fault_leaves_no_thread_to_be_waited_for_later(tmp_path):
    """By whichever thread Python then clears up in: one that is being started would wait for ever."""
    manifest = manifest_of(entries_of(3, each=1))
    (tmp_path / INDEX).write_bytes(bytes(manifest.index.bytes))
    before = set(threading.enumerate())
    faults = shard_faults.file_faults(tmp_path, manifest)
    assert next(faults).kind == "missing file"
    assert set(threading.enumerate()) == before
    faults.close()


# ---------------------------------------------------------------------------------------------------------------- some of many


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 700), st.integers(0, 700), st.sampled_from([1, 7, 64, 1 << 18]))
def test_the_first_of_a_permutation_are_those_of_the_whole_one(seed, total, count, stretch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpp.base.rng.STRETCH", stretch)
        found = Draws(seed, 3).first_of_permutation(total, count)
    assert found.dtype == np.int64 and found.tolist() == sorted(Draws(seed, 3).permutation(total)[:count].tolist())


def test_of_equal_keys_the_first_counts(monkeypatch):
    monkeypatch.setattr("mpp.base.rng.STRETCH", 4)
    keys = np.random.default_rng(0).integers(0, 3, 40).astype(np.uint64)
    bits = iter(np.split(keys, 10))
    monkeypatch.setattr(Draws, "bits", lambda self, count: next(bits))
    assert Draws(0, 3).first_of_permutation(40, 9).tolist() == sorted(np.argsort(keys, kind="stable")[:9].tolist())


@pytest.mark.parametrize("pool", [range(5), range(3, 40), range(10**12, 10**12 + 7), np.array([2, 3, 9, 11])])
def test_some_of_a_pool_are_those_of_the_array_of_all(pool):
    data = CropDataset(None, None, 0, pool)  # type: ignore[arg-type]
    everything = np.array(list(pool))
    assert np.array_equal(data.ids, everything) and data.ids.dtype == np.int64
    places = np.array([0, len(pool) - 1, 1])
    assert np.array_equal(data.ids_at(places), everything[places])
    for count in (1, 3, len(pool), len(pool) + 5):
        wanted = np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(np.int64)
        assert np.array_equal(data.spread(count), everything[wanted])


def test_an_entry_is_found_by_its_name_in_any_order_of_the_list(tmp_path):
    entries = entries_of(50)
    random.Random(0).shuffle(entries)
    kept = Kept(FolderOrigin(tmp_path), tmp_path, "key", manifest_of(entries))
    assert [kept.entry(entry.name) for entry in entries] == entries
    assert list(kept.names()) == [entry.name for entry in entries]
    for absent in ("000050.tar", "", "0", "000000.tar.and.more", "zzz.tar"):
        with pytest.raises(KeyError):
            kept.entry(absent)


def test_names_are_those_of_the_file_system(tmp_path):
    name = 'übung %s "a".tar'
    entry = entries_of(1)[0]._replace(name=name)
    found, _ = read_manifest(written(tmp_path, manifest_of([entry])))
    assert found.shards.names == [os.fsencode(name)] and found.shards[0].name == name


def test_an_order_takes_samples_of_any_sequence_and_other_blocks():
    order = Order((3, 4, 5), 4, 2, seed=1)  # type: ignore[arg-type]
    assert order.samples == 12 and replace(order, block=2).samples_per_shard.dtype == np.int64
