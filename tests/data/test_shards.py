import contextlib
import hashlib
import json
import multiprocessing
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpp.data.shards as module
from mpp.base.errors import BadSample, DataError
from mpp.data import shard_faults
from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.order import Order
from mpp.data.pixels import StoredPixels
from mpp.data.shard_faults import row_faults
from mpp.data.shard_format import INDEX_DTYPE, read_manifest
from mpp.data.shards import ShardSet
from mpp.data.write_shards import Sample, mean_and_std, write_manifest, write_shard
from mpp.disk.files import seal_of, sha256_of

SIZES = [700, 0, 512, 1, 1025, 90]  # bytes; around a tar's block of 512


def contents(key: int) -> bytes:
    return np.random.default_rng(key).bytes(SIZES[key % len(SIZES)] + 3)


def make(folder: Path, shards: int = 3, per_shard: int = 4, classes: int = 2) -> Path:
    folder.mkdir(parents=True)
    parts = []
    for shard in range(shards):
        keys = range(shard * 10, shard * 10 + per_shard)
        samples = [Sample(key, "jpg", contents(key), 30 + key, 40, key % classes if classes else -1) for key in keys]
        parts.append(write_shard(folder, f"{shard:06d}.tar", samples))
    colours = np.arange(768).reshape(3, 256)
    names = [f"class {label}" for label in range(classes)]
    write_manifest(
        folder,
        split=folder.name,
        shards=parts,
        classes=names,
        colours=colours,
        colour_images=1,
        rejects=0,
        source={"name": "test"},
    )
    return folder


@pytest.fixture
def split(tmp_path):
    return make(tmp_path / "out" / "train")


def edit(path: Path, **changes) -> None:
    """Another manifest, sealed as if it had been written so."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content | {"check": seal_of(content, "check")}))


def test_every_sample_comes_back_by_id(split):
    shards = ShardSet.open(split)
    keys = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert len(shards) == 12
    assert [shards.read(sample) for sample in range(12)] == [contents(key) for key in keys]
    assert shards.index["key"].tolist() == keys
    assert shards.index["width"].tolist() == [30 + key for key in keys]
    assert shards.labels.tolist() == [key % 2 for key in keys]
    assert shards.labels.dtype == np.int32
    assert shards.labelled
    assert shards.classes == ["class 0", "class 1"]
    assert shards.samples_per_shard.tolist() == [4, 4, 4]
    assert shards.manifest_hash == hashlib.sha256((split / "manifest.json").read_bytes()).hexdigest()
    assert shards.where(5) == f"train/000001.tar: 000000000011 (offset {shards.index['offset'][5]})"
    for entry in read_manifest(split)[0].shards:
        assert entry.sha256 == sha256_of(split / entry.name)


def test_without_labels_there_is_no_cls_field(tmp_path):
    shards = ShardSet.open(make(tmp_path / "train", classes=0))
    assert not shards.labelled
    assert set(shards.labels.tolist()) == {-1}
    with tarfile.open(tmp_path / "train" / "000000.tar") as tar:
        assert tar.getnames() == [f"{key:012d}.jpg" for key in range(4)]


def test_a_shard_is_plain_ustar_that_names_nobody(split):
    with tarfile.open(split / "000001.tar") as tar:
        members = tar.getmembers()
        assert [info.name for info in members] == [f"{key:012d}.{field}" for key in range(10, 14) for field in ("jpg", "cls")]
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in members} == {(0, 0, 0, "", "", 0o644)}
        assert tar.extractfile(members[3]).read() == b"1"
    assert (split / "000001.tar").read_bytes()[257:265] == b"ustar\x0000"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=1500), st.integers(-1, 12)), min_size=1, max_size=8))
def test_index_rows_point_at_the_bytes(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("shard")
    made = [Sample(key * 7, "png", data, 1, 1, label) for key, (data, label) in enumerate(samples)]
    entry, rows = write_shard(folder, "a.tar", made)
    data = (folder / "a.tar").read_bytes()
    assert entry == {"name": "a.tar", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "samples": len(samples)}
    for row, sample in zip(rows, made, strict=True):
        assert data[row["offset"] :][: row["size"]] == sample.data
        assert (row["crc32"], row["label"], row["key"]) == (zlib.crc32(sample.data), sample.label, sample.key)
    assert [path.name for path in folder.iterdir()] == ["a.tar"]


def test_no_samples_make_no_file(tmp_path):
    entry, rows = write_shard(tmp_path, "a.tar", [])
    assert (entry["samples"], len(rows), list(tmp_path.iterdir())) == (0, 0, [])


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def samples():
        yield Sample(0, "jpg", b"abc", 1, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path, "a.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_returns_other_bytes_is_noticed_before_the_rename(tmp_path, monkeypatch):
    sync = os.fsync

    def lose_a_bit(handle):
        sync(handle)
        os.pwrite(handle, b"\xff", 513)

    monkeypatch.setattr(os, "fsync", lose_a_bit)
    with pytest.raises(DataError, match=r"read back differs"):
        write_shard(tmp_path, "a.tar", [Sample(0, "jpg", bytes(100), 1, 1)])
    assert list(tmp_path.iterdir()) == []


def test_mean_and_std_are_those_of_the_pixels():
    pixels = np.random.default_rng(3).integers(0, 256, (5000, 3))
    mean, std = mean_and_std(np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]))
    np.testing.assert_allclose(mean, pixels.mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0) / 255, rtol=1e-12)


def damage_missing_folder(split):
    return split / "nowhere"


def damage_parent(split):
    return split.parent


def damage_no_manifest(split):
    (split / "manifest.json").unlink()


def damage_not_json(split):
    (split / "manifest.json").write_text("{")


def damage_version(split):
    edit(split / "manifest.json", version=2)


def damage_lost_key(split):
    manifest = json.loads((split / "manifest.json").read_text())
    del manifest["mean"]
    (split / "manifest.json").write_text(json.dumps(manifest))


def damage_total(split):
    edit(split / "manifest.json", samples=11)


def damage_outside_name(split):
    manifest = json.loads((split / "manifest.json").read_text())
    manifest["shards"][0]["name"] = "../train/000000.tar"
    (split / "manifest.json").write_text(json.dumps(manifest))


def damage_no_index(split):
    (split / "index.bin").unlink()


def damage_index(split):
    data = bytearray((split / "index.bin").read_bytes())
    data[-1] ^= 1
    (split / "index.bin").write_bytes(data)


def damage_no_shard(split):
    (split / "000001.tar").unlink()


def damage_cut_shard(split):
    os.truncate(split / "000002.tar", (split / "000002.tar").stat().st_size - 512)


def damage_swapped_counts(split):
    manifest = json.loads((split / "manifest.json").read_text())
    manifest["shards"][0]["samples"] += 1
    manifest["shards"][1]["samples"] -= 1
    edit(split / "manifest.json", shards=manifest["shards"])


def reindex(split, change):
    """A wrong index whose hash is right."""
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    change(index)
    index.tofile(split / "index.bin")
    sha256 = hashlib.sha256(index.tobytes()).hexdigest()
    edit(split / "manifest.json", index={"name": "index.bin", "bytes": index.nbytes, "sha256": sha256})


def damage_offset(split):
    reindex(split, lambda index: index["offset"].__setitem__(5, 1 << 40))


def damage_size(split):
    reindex(split, lambda index: index["size"].__setitem__(5, (1 << 32) - 1))


def damage_label(split):
    reindex(split, lambda index: index["label"].__setitem__(5, 2))


def damage_overlap(split):
    reindex(split, lambda index: index["offset"].__setitem__(5, index["offset"][4] + 512))


def damage_alignment(split):
    reindex(split, lambda index: index["offset"].__setitem__(5, index["offset"][5] + 2))


def damage_first_offset(split):
    reindex(split, lambda index: index["offset"].__setitem__(4, 0))


def damage_key(split):
    reindex(split, lambda index: index["key"].__setitem__(5, 10))


def damage_no_bytes(split):
    reindex(split, lambda index: index["size"].__setitem__(5, 0))


def damage_no_width(split):
    reindex(split, lambda index: index["width"].__setitem__(5, 0))


def damage_too_many_pixels(split):
    reindex(split, lambda index: index["width"].__setitem__(5, 1 << 31))


def damage_unsealed(split):
    manifest = json.loads((split / "manifest.json").read_text())
    manifest["classes"].reverse()
    (split / "manifest.json").write_text(json.dumps(manifest, indent=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            damage_missing_folder,
            r"nowhere: no such folder of shards; give one that is there, or make it with python data_prep/make_shards.py",
        ),
        (damage_parent, r"did you mean .*out/train\?"),
        (damage_no_manifest, r"has no manifest.json.*make_shards.py"),
        (damage_not_json, r"is not a JSON object"),
        (damage_version, r"version 2, this mpp reads 'mpp-shards' version 1"),
        (damage_lost_key, r"mean: Field required"),
        (damage_total, r"says 11 samples, but its parts add up to 12"),
        (damage_outside_name, r"shards.0.name: String should match"),
        (damage_no_index, r"index.bin: is missing"),
        (damage_index, r"index.bin: sha256 is"),
        (damage_no_shard, r"000001.tar: is missing"),
        (damage_cut_shard, r"000002.tar: has \d+ bytes, the manifest says \d+: cut or changed"),
        (damage_swapped_counts, r"rows are not those of the manifest"),
        (damage_offset, r"row 5 points outside"),
        (damage_size, r"row 5 points outside"),
        (damage_label, r"row 5 has label 2, for 2 classes"),
        (damage_overlap, r"row 5 points to byte \d+, where its header or the sample before it must lie"),
        (damage_alignment, r"row 5 points to byte \d+, not to the start of a block of 512"),
        (damage_first_offset, r"row 4 points to byte 0, where its header"),
        (damage_key, r"row 5 has key 10, which is not above that of the row before it"),
        (damage_no_bytes, r"row 5 has no bytes"),
        (damage_no_width, r"row 5 has 0x40 pixels"),
        (damage_too_many_pixels, r"row 5 has 2147483648x40 pixels"),
        (damage_unsealed, r"manifest.json: was changed after it was written"),
    ],
)
def test_open_names_what_is_wrong(split, damage, message):
    with pytest.raises(DataError, match=message) as caught:
        ShardSet.open(damage(split) or split)
    assert "\n" not in str(caught.value)


def test_a_manifest_may_be_laid_out_otherwise_and_name_its_content_in_another_order(split):
    content = json.loads((split / "manifest.json").read_text())
    (split / "manifest.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert len(ShardSet.open(split)) == 12


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 100])
def test_rows_are_checked_alike_in_stretches_of_any_length(split, monkeypatch, rows):
    manifest, _ = read_manifest(split)
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    monkeypatch.setattr(shard_faults, "ROWS", rows)
    assert list(row_faults(split, manifest, index)) == []
    index["offset"][4], index["offset"][6], index["key"][8], index["shard"][3] = 0, index["offset"][5], 13, 1
    index["size"][11] = 1 << 31
    found = [(fault.kind, fault.shard, fault.key) for fault in row_faults(split, manifest, index)]
    assert sorted(found) == [
        ("row of another shard", "000000.tar", 3),
        ("row outside its shard", "000002.tar", 23),
        ("row that overlaps", "000001.tar", 10),
        ("row that overlaps", "000001.tar", 12),
        ("row with a key out of order", "000002.tar", 13),
    ]


def test_many_wrong_rows_are_all_counted_and_few_are_told(tmp_path):
    split = make(tmp_path / "train", shards=4, per_shard=10)
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    index["width"] = 0
    found = list(row_faults(split, read_manifest(split)[0], index))
    assert (len(found), sum(1 + fault.more for fault in found)) == (shard_faults.LISTED, 40)


@settings(max_examples=60)
@given(data=st.data())
def test_opening_a_set_with_wrong_rows_or_a_wrong_manifest_ends_well_or_in_one_line(tmp_path_factory, data):
    split = make(tmp_path_factory.mktemp("out") / "train", shards=2, per_shard=2)
    path = split / "manifest.json"
    if data.draw(st.booleans()):
        field = data.draw(st.sampled_from(INDEX_DTYPE.names))
        limits = np.iinfo(INDEX_DTYPE[field])
        value, row = data.draw(st.integers(limits.min, limits.max)), data.draw(st.integers(0, 3))
        reindex(split, lambda index: index[field].__setitem__(row, value))
    elif data.draw(st.booleans()):
        content = json.loads(path.read_text())
        place, name = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(place[name], (dict, list)) and place[name] and data.draw(st.booleans()):
            place = place[name]
            name = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        numbers = st.integers(-1, 2**70) | st.sampled_from([-(10**400), 10**400])
        place[name] = data.draw(
            numbers | st.none() | st.floats() | st.text(max_size=9) | st.sampled_from(["..", "a\0.tar", "x" * 300, [], {}])
        )
        path.write_text(json.dumps(content | {"check": seal_of(content, "check")}))
    else:
        text = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9) | st.just(b"[" * 100_000))
        path.write_bytes(text)
    try:
        assert len(ShardSet.open(split)) == 4
    except DataError as error:
        assert "\n" not in str(error)
        assert str(split) in str(error)


def test_a_flipped_byte_is_found_when_its_sample_is_read(split):
    shards = ShardSet.open(split)
    offset = int(shards.index["offset"][6])
    with (split / "000001.tar").open("r+b") as file:
        file.seek(offset + 2)
        byte = file.read(1)[0]
        file.seek(offset + 2)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(BadSample, match=r"^CRC-32 is"):
        shards.read(6)
    assert shards.read(5) == contents(11)


def test_a_shard_cut_after_opening_is_a_bad_sample(split):
    shards = ShardSet.open(split)
    os.truncate(split / "000000.tar", int(shards.index["offset"][2]) + 5)
    with pytest.raises(BadSample, match=r"^the shard has 5125 bytes now, not 10240: it ends after 5 of the image's 515"):
        shards.read(2)


def test_system_errors_are_retried_and_then_stop_the_run(split, monkeypatch):
    shards = ShardSet.open(split)
    waits, failures, fails_at = [], [OSError(5, "Input/output error")] * 3, [len(contents(10))]
    pread = os.pread

    def sometimes(handle, size, offset):
        if failures and size in fails_at:
            raise failures.pop()
        return pread(handle, size, offset)

    monkeypatch.setattr(module.os, "pread", sometimes)
    monkeypatch.setattr("mpp.disk.patience.time.sleep", waits.append)
    assert shards.read(4) == contents(10) and len(waits) == 3
    failures.extend([OSError(5, "Input/output error")] * 40)
    with pytest.raises(
        DataError, match=r"train/000001.tar: 000000000010 .*Input/output error.*also when tried again; check the disk"
    ) as caught:
        shards.read(4)
    assert caught.value.of_this_rank and sum(waits[3:]) == pytest.approx(300)
    fails_at[:] = [INDEX_DTYPE.itemsize]  # of the index
    failures[:] = [OSError(116, "Stale file handle")] * 3
    assert shards.read(4) == contents(10)
    failures.extend([OSError(116, "Stale file handle")] * 40)
    with pytest.raises(DataError, match=r"train/index.bin: .*Stale file handle; check the disk"):
        shards.read(4)


def test_an_index_that_is_cut_under_a_run_is_an_error_and_no_bus_error(split):
    shards = ShardSet.open(split)
    os.truncate(split / "index.bin", 5 * INDEX_DTYPE.itemsize + 7)
    assert shards.read(4) == contents(10)
    with pytest.raises(DataError, match=r"train/index.bin: ends at row 5 of 12: it was cut"):
        shards.read(5)


def test_the_index_answers_as_an_array_of_its_rows(split):
    shards = ShardSet.open(split)
    rows = np.fromfile(split / "index.bin", INDEX_DTYPE)
    assert [shards.index.row(sample) for sample in range(12)] == [tuple(row) for row in rows.tolist()]
    for what in ("key", "offset", 3, slice(2, 9), slice(1, 12, 3), range(4, 7), [7, 1, 1], np.array([0, 11])):
        np.testing.assert_array_equal(shards.index[what], rows[what])
    for beyond in (-1, 12):
        with pytest.raises(IndexError):
            shards.index.row(beyond)


def open_descriptors(folder: Path) -> int:
    """How many of the shards below a folder this process has open; other tests' sets may still await the garbage collector."""
    opened = 0
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the collector may close one meanwhile
            path = handle.readlink()
            opened += path.suffix == ".tar" and path.is_relative_to(folder)
    return opened


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_few_files_stay_open_and_none_outlives_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN_FILES", 4)
    shards = ShardSet.open(make(tmp_path / "train", shards=10, per_shard=1))
    for _ in range(2):
        assert [shards.read(sample) for sample in range(10)] == [contents(key) for key in range(0, 100, 10)]
    assert open_descriptors(tmp_path) == 4
    del shards
    assert open_descriptors(tmp_path) == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_as_many_stay_open_as_a_process_will_read_within_half_of_its_limit_also_in_a_copy(tmp_path, monkeypatch):
    shards = ShardSet.open(make(tmp_path / "train", shards=10, per_shard=1))
    monkeypatch.setattr(module.resource, "getrlimit", lambda which: (14, 14))
    assert [shards.keep_open(wanted) for wanted in (7, 8, 300, 5)] == [7, 7, 7, 5]
    copy = pickle.loads(pickle.dumps(shards))
    for one in (shards, copy):
        for sample in [*range(10), *range(10)]:
            one.read(sample)
    assert open_descriptors(tmp_path) == 2 * 5
    del shards, one
    assert open_descriptors(tmp_path) == 5
    assert "lie in 300 shards, and it may keep 7 open" in module.few_open_files(300, 7)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_the_samples_of_a_batch_are_asked_for_together_before_the_first_is_read(tiny_shards, monkeypatch):
    shards, calls, read = ShardSet.open(tiny_shards), [], ShardSet.read
    advise = lambda handle, *place: calls.append((Path(f"/proc/self/fd/{handle}").readlink(), *place))
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(ShardSet, "read", lambda self, sample: calls.append(sample) or read(self, sample))
    samples = (39, 2, 20)
    data = CropDataset(StoredPixels(shards, 10**6), Centre(8, 1.0), 0, range(40))
    data.batch([(0, sample, place) for place, sample in enumerate(samples)])
    rows = [shards.index.row(sample) for sample in samples]
    asked = [(shards.path / shards.shard_name(row.shard), row.offset, row.size, os.POSIX_FADV_WILLNEED) for row in rows]
    assert calls == [*asked, *samples]


def test_what_cannot_be_fetched_ahead_is_left_to_the_read(split, monkeypatch):
    shards = ShardSet.open(split)
    (split / "000001.tar").unlink()
    shards.ahead([5, 0])
    assert shards.read(0) == contents(0)


def test_pickling_carries_no_data_and_notices_a_changed_manifest(split):
    shards = ShardSet.open(split)
    shards.read(0)
    sent = pickle.dumps(shards)
    assert len(sent) < 1000
    assert pickle.loads(sent).read(7) == contents(13)
    edit(split / "manifest.json", rejects=5)
    with pytest.raises(DataError, match=r"changed while the program was running"):
        pickle.loads(sent)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(split, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    shards = ShardSet.open(split)
    first = shards.read(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(shards.read, range(12)) == [shards.read(sample) for sample in range(12)]
    assert first == contents(0)


def test_webdataset_reads_the_same_samples(split):
    webdataset = pytest.importorskip("webdataset")
    shards = ShardSet.open(split)
    urls = [str(split / shards.shard_name(shard)) for shard in range(3)]
    found = [(int(sample["__key__"]), sample["jpg"], int(sample["cls"])) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert found == [(int(shards.index["key"][sample]), shards.read(sample), int(shards.labels[sample])) for sample in range(len(shards))]


def test_the_same_samples_make_the_same_bytes(tmp_path):
    one, two = make(tmp_path / "one" / "train"), make(tmp_path / "two" / "train")
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    assert str(tmp_path) not in (one / "manifest.json").read_text()


@pytest.mark.parametrize(("world", "block", "kept"), [(1, None, 3), (2, None, 3), (4, None, 2)])
def test_a_run_keeps_the_shards_in_its_reach_open(tiny_shards, world, block, kept):
    shards = ShardSet.open(tiny_shards)
    order = Order(tuple(shards.samples_per_shard), 8, 8, 0, block)
    assert shards.keep_open(order.shards_in_reach(world)) == kept
