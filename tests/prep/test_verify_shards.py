"""verify_shards.py: whatever is wrong with a set is found, named and counted, and nothing else is."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.verify_shards import main
from mpp.base.errors import DataError
from mpp.data.decode import open_image
from mpp.data.shard_format import BLOCK, INDEX_DTYPE, read_manifest
from mpp.data.shard_table import ShardTable
from mpp.data.shards import ShardSet
from mpp.data.write_shards import Sample, write_manifest, write_shard
from mpp.disk.files import seal_of
from mpp.prep import verify_shard, verifying
from mpp.prep.source import FOREIGN
from mpp.prep.splits import spread

FILES = ("000000.tar", "000001.tar", "index.bin", "manifest.json")
FORMS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def picture(key: int) -> tuple[str, bytes, int, int]:
    form = list(FORMS)[key % 3]
    pixels = np.random.default_rng(key).integers(0, 256, (6 + key, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, lossless=True)
    return FORMS[form], buffer.getvalue(), 9, 6 + key


def make(folder: Path, shards: tuple[tuple[int, ...], ...] = ((0, 1, 3), (4, 5)), labels: bool = True, source: str = "folder") -> Path:
    """A split whose every claim is true; key 2 was rejected."""
    folder.mkdir(parents=True)
    colours, images, parts = np.zeros((3, 256), np.int64), 0, []
    for number, keys in enumerate(shards):
        samples = []
        for key in keys:
            field, data, width, height = picture(key)
            colours += np.array(open_image(data).histogram()).reshape(3, 256)
            images += 1
            samples.append(Sample(key, field, data, width, height, key % 3 if labels else -1))
        parts.append(write_shard(folder, f"{number:06d}.tar", samples))
    write_manifest(
        folder,
        split=folder.name,
        shards=parts,
        classes=["ant", "bee", "cat"] if labels else [],
        colours=colours,
        colour_images=images,
        rejects=1,
        source={"name": "test", "kind": source},
    )
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A sound split; a test puts back what it changes."""
    return make(tmp_path_factory.mktemp("sound") / "train")


@pytest.fixture
def split(tmp_path, sound) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out" / "train"))


@pytest.fixture
def verify(capsys):
    """verify(folder, word, ...): the exit status and the findings."""

    def run(*words: object) -> tuple[int, dict]:
        capsys.readouterr()
        status = main([*map(str, words), "--quiet", "--json", "--workers", "1"])
        return status, json.loads(capsys.readouterr().out)

    return run


def listed(found: dict) -> list[dict]:
    return [fault for split in found["splits"] for fault in split["listed"]]


def kinds(found: dict) -> set[str]:
    return {fault["kind"] for fault in listed(found)}


def rewrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def trust(split: Path, content: dict | None = None) -> None:
    """Bring every size and sha256 in the manifest, and its check, up to date with the files: what is left must be found by content."""
    content = content or json.loads((split / "manifest.json").read_text())
    for entry in (content["index"], *content["shards"]):
        data = (split / entry["name"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content["bytes"] = sum(entry["bytes"] for entry in content["shards"])
    content["check"] = seal_of(content, "check")
    (split / "manifest.json").write_bytes(json.dumps(content, indent=1).encode() + b"\n")


@pytest.mark.parametrize("words", [(), ("--full",), ("--sample", 1), ("--sample", 0)])
@pytest.mark.parametrize("labels", [True, False])
def test_a_sound_set_has_no_fault(tmp_path, verify, words, labels):
    make(tmp_path / "out" / "train", labels=labels)
    make(tmp_path / "out" / "val", shards=((0, 1),), labels=labels)
    status, found = verify(tmp_path / "out", *words)
    assert (status, found["faults"], listed(found)) == (0, 0, [])
    expected = {(): [5, 2], ("--full",): [5, 2], ("--sample", 1): [1, 1], ("--sample", 0): [0, 0]}[words]
    assert [split["images_checked"] for split in found["splits"]] == expected


def test_worker_processes_find_the_same_in_the_same_order(tmp_path, verify, capsys):
    split = make(tmp_path / "train", shards=tuple((3 * shard, 3 * shard + 1, 3 * shard + 3) for shard in range(6)))
    for entry in sorted(split.glob("*.tar"))[1::2]:
        rewrite(entry, 600, b"?????")
    _, one = verify(split, "--full")
    assert main([str(split), "--full", "--quiet", "--json", "--workers", "3"]) == 1
    three = json.loads(capsys.readouterr().out)
    assert [split.pop("bytes_read") for split in one["splits"]] == [split.pop("bytes_read") for split in three["splits"]]
    assert one["splits"] == three["splits"]
    assert one["faults"] >= 6


@settings(max_examples=150)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found_and_its_place_named(sound, verify, data):
    name = data.draw(st.sampled_from(FILES))
    path = sound / name
    byte = data.draw(st.integers(0, path.stat().st_size - 1), label="byte")
    bit = data.draw(st.integers(0, 7), label="bit")
    index = np.fromfile(sound / "index.bin", INDEX_DTYPE)
    before = path.read_bytes()
    rewrite(path, byte, bytes([before[byte] ^ 1 << bit]))
    try:
        status, found = verify(sound, "--full")
    finally:
        path.write_bytes(before)
    assert status == 1
    named = [fault for fault in listed(found) if fault["file"] == name]
    assert named
    if name.endswith(".tar"):
        assert {fault["shard"] for fault in listed(found) if fault["shard"]} == {name}
        rows = index[index["shard"] == int(name[:6])]
        for row in rows[(rows["offset"] <= byte) & (byte < rows["offset"] + rows["size"])]:
            assert ("CRC-32", row["key"], row["offset"]) in {(fault["kind"], fault["key"], fault["offset"]) for fault in named}


@settings(max_examples=60)
@given(data=st.data())
def test_a_file_cut_at_any_length_is_found(sound, verify, data):
    name = data.draw(st.sampled_from(FILES))
    path = sound / name
    length = data.draw(st.integers(0, path.stat().st_size - 1), label="length")
    full = data.draw(st.booleans(), label="full")
    before = path.read_bytes()
    os.truncate(path, length)
    try:
        status, found = verify(sound, *(["--full"] if full else []))
    finally:
        path.write_bytes(before)
    assert status == 1
    assert name in {fault["file"] for fault in listed(found)}


@settings(max_examples=80)
@given(data=st.data())
def test_a_wrong_row_is_found_though_every_hash_fits(sound, verify, data):
    field = data.draw(st.sampled_from(INDEX_DTYPE.names))
    number = data.draw(st.integers(0, 4))
    limits = np.iinfo(INDEX_DTYPE[field])
    kept = {name: (sound / name).read_bytes() for name in FILES}
    index = np.fromfile(sound / "index.bin", INDEX_DTYPE)
    near = int(index[field][number])
    value = data.draw(
        st.integers(limits.min, limits.max)
        | st.integers(max(limits.min, near - 1024), min(limits.max, near + 1024))
        | st.just(near ^ BLOCK)
    )
    assume(value != near)
    index[field][number] = value
    index.tofile(sound / "index.bin")
    trust(sound)
    try:
        status, found = verify(sound, "--full")
    finally:
        for name, content in kept.items():
            (sound / name).write_bytes(content)
    assert status == 1
    shard = f"{number // 3:06d}.tar"
    assert shard in {fault["shard"] for fault in listed(found)} or field == "key"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x" * 300 + ".tar", "..", "a\0.tar", 2**62]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FREE = ("source", "mpp", "split", "rejects", "classes")  # follow from nothing else


@settings(max_examples=80)
@given(data=st.data())
def test_a_changed_manifest_is_found_or_says_only_what_follows_from_nothing_else(sound, verify, data):
    path = sound / "manifest.json"
    before = path.read_bytes()
    content = json.loads(before)
    top = data.draw(st.sampled_from(sorted(content)))
    place, name = content, top
    while isinstance(place[name], (dict, list)) and place[name] and data.draw(st.booleans()):
        place = place[name]
        name = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if data.draw(st.booleans()):
        place[name] = data.draw(JSON)
    else:
        del place[name]
    sealed = data.draw(st.booleans())
    if sealed and top != "check":
        content["check"] = seal_of(content, "check")
    changed = json.dumps(content, indent=1).encode() + b"\n"
    assume(changed != before)
    path.write_bytes(changed)
    try:
        status, found = verify(sound, "--full")
    finally:
        path.write_bytes(before)
    assert status == 1 or (sealed and top in FREE)
    assert bool(listed(found)) == (status == 1)


def smuggle(split: Path, kind: bytes, name: str = "000000000009.jpg", behind_the_mark: bool = False) -> None:
    """Put one more member into the first shard, at the end."""
    path = split / "000000.tar"
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    data = bytearray(path.read_bytes())
    at = len(bytes(data).rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    if behind_the_mark:
        at += 2 * BLOCK
    data[at : at + BLOCK] = info.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)


@pytest.mark.parametrize("behind_the_mark", [False, True])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE, tarfile.DIRTYPE])
def test_a_member_that_the_index_does_not_list_is_a_fault_though_every_hash_fits(split, verify, kind, behind_the_mark):
    smuggle(split, kind, behind_the_mark=behind_the_mark)
    trust(split)
    assert verify(split)[0] == 0
    status, found = verify(split, "--full")
    assert (status, kinds(found)) == (1, {"unlisted member"})
    assert listed(found)[0]["shard"] == "000000.tar"
    assert "000000000009.jpg" in listed(found)[0]["message"]


def test_a_member_between_two_samples_is_a_fault(split, verify):
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    path, at = split / "000000.tar", int(index["offset"][1]) - BLOCK
    data = path.read_bytes()
    extra = tarfile.TarInfo("000000000000.json").tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes((data[:at] + extra + data[at:])[: len(data)])
    index["offset"][1:3] += BLOCK
    index.tofile(split / "index.bin")
    trust(split)
    status, found = verify(split, "--full")
    assert (status, kinds(found), listed(found)[0]["offset"]) == (1, {"unlisted member"}, at)


def test_bytes_in_the_padding_and_odd_header_fields_are_faults_though_every_hash_fits(split, verify):
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    place = int(index["offset"][1] + index["size"][1])
    rewrite(split / "000000.tar", place + 3, b"x")
    header = tarfile.TarInfo("000000000004.png")
    header.size, header.mtime = int(index["size"][3]), 1_700_000_000
    rewrite(split / "000001.tar", int(index["offset"][3]) - BLOCK, header.tobuf(tarfile.USTAR_FORMAT))
    trust(split)
    status, found = verify(split, "--full")
    assert status == 1
    assert [(fault["kind"], fault["shard"], fault["key"]) for fault in listed(found)] == [
        ("padding", "000000.tar", 1),
        ("header", "000001.tar", 4),
    ]
    assert f"byte {place + 3}" in listed(found)[0]["message"]
    assert kinds(verify(split)[1]) == {"header"}


def test_a_manifest_that_was_laid_out_anew_opens_but_is_not_as_it_was_written(split, verify):
    content = json.loads((split / "manifest.json").read_text())
    (split / "manifest.json").write_text(json.dumps(content))
    assert len(ShardSet.open(split)) == 5
    status, found = verify(split)
    assert (status, kinds(found)) == (1, {"manifest"})


def test_labels_are_compared_with_the_cls_members(split, verify):
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    index["label"][1], index["label"][4] = 2, -1
    index.tofile(split / "index.bin")
    trust(split)
    status, found = verify(split, "--full")
    assert status == 1
    assert [(fault["kind"], fault["key"]) for fault in listed(found)] == [("label", 1), ("unlisted member", None)]
    assert "class 1" in listed(found)[0]["message"] and "'000000000005.cls'" in listed(found)[1]["message"]
    assert kinds(verify(split)[1]) == {"label"}


def test_the_fast_check_finds_a_bit_in_a_sampled_image(split, verify):
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    rewrite(split / "000001.tar", int(index["offset"][4]) + 5, b"\xaa")
    status, found = verify(split, "--sample", 4)  # the first and the last of each shard
    assert (status, [(fault["kind"], fault["shard"], fault["key"]) for fault in listed(found)]) == (1, [("CRC-32", "000001.tar", 5)])


def test_wrong_claims_about_the_images_are_found_though_the_manifest_is_sealed(split, verify):
    content = json.loads((split / "manifest.json").read_text())
    for name, value in {
        "mean": [content["mean"][0] + 0.001, *content["mean"][1:]],
        "std": [*content["std"][:2], 0.1],
        "mean_std_images": 4,
        "short_sides": [[1, 4], [32, 1]],
        "rejects": 0,
    }.items():
        trust(split, content | {name: value})
        status, found = verify(split, "--full")
        assert status == 1
        assert kinds(found) == {"manifest's claims"}
        assert {"mean_std_images": "of 4 images"}.get(name, name) in listed(found)[0]["message"]


def test_an_image_that_is_stored_well_but_cannot_be_decoded_is_a_fault(tmp_path, verify):
    split = tmp_path / "train"
    split.mkdir()
    data = picture(1)[1]
    rows = write_shard(split, "000000.tar", [Sample(0, "png", data, 9, 7), Sample(1, "png", data[: len(data) // 2], 9, 7)])
    colours = np.array(open_image(data).histogram()).reshape(3, 256)
    write_manifest(split, split="train", shards=[rows], classes=[], colours=colours, colour_images=2, rejects=0, source={"name": "x"})
    status, found = verify(split, "--full")
    assert (status, kinds(found)) == (1, {"image", "manifest's claims"})
    assert "not compared" in listed(found)[1]["message"]


def test_a_foreign_set_may_have_names_and_members_of_its_own(tmp_path, verify):
    split = make(tmp_path / "train", source=FOREIGN)
    smuggle(split, tarfile.REGTYPE, "n01440764/fish.json")
    index = np.fromfile(split / "index.bin", INDEX_DTYPE)
    header = tarfile.TarInfo("n01440764/fish.jpeg")
    header.size = int(index["size"][0])
    rewrite(split / "000000.tar", 0, header.tobuf(tarfile.PAX_FORMAT))
    (split / "999999.tar").touch()
    trust(split)
    assert verify(split, "--full")[0] == verify(split)[0] == 0
    content = json.loads((split / "manifest.json").read_text())
    trust(split, content | {"mean": [0.1, 0.2, 0.3]})
    assert verify(split, "--full")[0] == 0  # key 2 was rejected, so nobody knows which images the mean is of
    assert "mean and std" in verify(split, "--full")[1]["splits"][0]["unchecked"]
    rewrite(split / "000000.tar", int(index["offset"][1]) + 5, b"\xaa")
    status, found = verify(split, "--full")
    assert (status, kinds(found)) == (1, {"CRC-32", "shard sha256"})


def test_mean_and_std_of_a_foreign_set_without_rejects_are_worked_out_anew(tmp_path, verify):
    split = make(tmp_path / "train", shards=((0, 1, 2), (3, 4)), source=FOREIGN)
    content = json.loads((split / "manifest.json").read_text()) | {"rejects": 0}
    trust(split, content)
    status, found = verify(split, "--full")
    assert (status, found["splits"][0]["unchecked"]) == (0, "")
    trust(split, content | {"mean": [0.1, 0.2, 0.3]})
    assert kinds(verify(split, "--full")[1]) == {"manifest's claims"}


def test_all_faults_are_counted_and_few_of_a_kind_are_told(tmp_path, verify, capsys):
    split = make(tmp_path / "train", shards=(tuple(range(30)),))
    with (split / "000000.tar").open("r+b") as file:
        for row in np.fromfile(split / "index.bin", INDEX_DTYPE):
            file.seek(int(row["offset"]) + 4)
            file.write(b"\xaa\x55")
    _, found = verify(split, "--full")
    assert found["splits"][0]["kinds"]["CRC-32"] == 30
    assert [fault["kind"] for fault in listed(found)].count("CRC-32") == verify_shard.KEPT
    assert main([str(split), "--full", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert f"CRC-32: and {30 - verify_shard.KEPT} more" in out
    assert "CRC-32: 000000.tar: 000000000003 (offset " in out


def test_lost_and_stray_files_are_faults(split, verify):
    (split.parent / "val").mkdir()
    (split.parent / "val" / "000000.tar").touch()  # a split that lost its manifest
    (split / "000001.tar").rename(split / "000002.tar")
    status, found = verify(split.parent, "--full")
    assert status == 1
    assert [(fault["kind"], fault["file"]) for fault in listed(found)] == [
        ("missing file", "000001.tar"),
        ("unlisted file", "000002.tar"),
        ("manifest's claims", "manifest.json"),
        ("manifest", "manifest.json"),
    ]


def test_without_an_index_the_shards_are_still_read(split, verify):
    (split / "index.bin").unlink()
    rewrite(split / "000001.tar", 700, b"\xaa\x55")
    _, found = verify(split, "--full")
    assert {(fault["kind"], fault["file"]) for fault in listed(found)} >= {("missing file", "index.bin"), ("shard sha256", "000001.tar")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks descriptors up in /proc")
def test_a_system_error_is_a_fault_and_the_other_shards_are_still_checked(split, verify, monkeypatch):
    fstat = os.fstat

    def fail_on_the_first(handle):
        if Path(f"/proc/self/fd/{handle}").readlink().name == "000000.tar":
            raise OSError(5, "Input/output error")
        return fstat(handle)

    monkeypatch.setattr(verify_shard.os, "fstat", fail_on_the_first)
    _, found = verify(split, "--full")
    assert next((fault["kind"], fault["shard"]) for fault in listed(found)) == ("unreadable file", "000000.tar")
    assert found["splits"][0]["images_checked"] == 2


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_what_is_no_set_at_all_is_a_usage_error(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=place):
        main([str(tmp_path / place), "--quiet"])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.integers(0, 300), st.integers(0, 9), st.booleans())
def test_chosen_samples_are_spread_over_all_shards_and_repeatable(samples_per_shard, budget, seed, with_edges):
    total = sum(samples_per_shard)
    chosen = spread(samples_per_shard, budget, seed, with_edges=with_edges)
    assert chosen == spread(samples_per_shard, budget, seed, with_edges=with_edges) == sorted(set(chosen))
    assert len(chosen) <= budget and all(0 <= sample < total for sample in chosen)
    if not with_edges:
        assert len(chosen) == min(budget, total)
        edges = [0, *chosen, total]
        assert budget == 0 or max(np.diff(edges)) <= 2 * total / budget + 1
    elif 2 * len(samples_per_shard) <= budget:
        ends = np.cumsum(samples_per_shard)
        assert {int(end) - 1 for end, count in zip(ends, samples_per_shard, strict=True) if count} <= set(chosen)
        assert {int(end) - count for end, count in zip(ends, samples_per_shard, strict=True) if count} <= set(chosen)


def test_what_verify_finds_sound_opens(sound):
    assert len(ShardSet.open(sound)) == 5


@pytest.mark.parametrize("full", [True, False])
def test_jobs_are_made_when_they_are_asked_for_and_only_of_shards_with_something_to_look_at(tiny_shards, monkeypatch, full):
    manifest, asked, entry_of = read_manifest(tiny_shards)[0], [], ShardTable.__getitem__
    index = verifying.open_index(tiny_shards, manifest)
    monkeypatch.setattr(ShardTable, "__getitem__", lambda table, number: asked.append(number) or entry_of(table, number))
    jobs, _ = verifying.plan(manifest, index, SimpleNamespace(full=full, sample=0 if full else 3, seed=0))
    count = len(jobs)
    assert not asked and 0 < count <= len(manifest.shards)
    made = list(jobs)
    assert len(made) == len(set(asked)) == count
    for number, job in zip(asked, made, strict=True):
        assert job.first == sum(manifest.shards.samples[:number]) and job.entry == entry_of(manifest.shards, number)
        assert job.picks is None if full else job.picks and all(0 <= pick < job.entry.samples for pick in job.picks)
