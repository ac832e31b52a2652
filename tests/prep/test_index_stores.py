"""index_shards.py of tars in an object store: the manifest and the index of the same tars in a folder, each fetched once, whatever the store does."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_prep import index_shards
from mpp.base.errors import DataError, UserError
from mpp.data.shard_cache import caching, end_keepers
from mpp.data.shards import ShardSet
from mpp.disk import files
from mpp.prep import fetching, indexing, workers
from mpp.remote import urls
from tests.object_store import ObjectStore
from tests.prep.tars import tar

COUNTS = (5, 4, 3, 2)  # images of the tars
TARS = "bucket/deep/tars/*.tar"
NAMES = [f"part-{number}.tar" for number in range(len(COUNTS))]
PREFIX = "s3://bucket/deep/tars"


@pytest.fixture(scope="module")
def made(tmp_path_factory, picture) -> Path:
    """A folder with tars, JPEG and PNG, classes 0, 1, 2; indexed with --labels, and what was said."""
    folder, number = tmp_path_factory.mktemp("made") / "tars", 0
    for name, count in zip(NAMES, COUNTS, strict=True):
        members = []
        for _ in range(count):
            members += [(f"no{number}.{'jpg' if number % 2 else 'png'}", picture(number, "JPEG" if number % 2 else "PNG"))]
            members += [(f"no{number}.cls", b"%d" % (number % 3)), (f"no{number}.txt", b"words")]
            number += 1
        tar(folder / name, members)
    assert index_shards.main([str(folder), "--labels", "--quiet", "--workers", "1"]) == 0
    return folder


@pytest.fixture
def store(server: ObjectStore, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """It holds the tars below PREFIX, without manifest and index, and things beside and below them."""
    folder = server.folder / "bucket" / "deep" / "tars"
    (folder / "more").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(made / name, folder / name)
    for name in ("notes.txt", ".hidden.tar", "more/other.tar"):
        (folder / name).write_bytes(b"is none of its business")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.writable = True
    server.faults.clear()
    server.forget()
    for bucket in server.folder.iterdir():
        shutil.rmtree(bucket)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "mpp"


def index(*words: str, labels: bool = True, workers: int = 1) -> None:
    labelled = ["--labels"] if labels else []
    assert index_shards.main([PREFIX, *labelled, "--quiet", "--workers", str(workers), *words]) == 0


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "manifest.json").read_bytes(), (folder / "index.bin").read_bytes()


def held(store: ObjectStore) -> set[str]:
    """What lies at the prefix beyond what was there."""
    there = {*NAMES, "notes.txt", ".hidden.tar", "more/other.tar"}
    return {key.removeprefix("deep/tars/") for key in store.keys("bucket")} - there


def of(store: ObjectStore) -> Path:
    return store.path("bucket/deep/tars")


def left_in(scratch: Path) -> set[str]:
    return {path.name for path in scratch.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ the same set


@pytest.mark.parametrize("workers", [1, 3])
def test_tars_in_a_store_get_the_manifest_and_the_index_of_their_folder_and_each_is_fetched_once(store, made, scratch, workers, capsys):
    index(workers=workers)
    assert held(store) == {"manifest.json", "index.bin"} and results(of(store)) == results(made)
    assert store.fetched(TARS) == dict.fromkeys([f"bucket/deep/tars/{name}" for name in NAMES], 1)
    assert not left_in(scratch)
    puts = [answer.key.removeprefix("bucket/deep/tars/") for answer in store.log if answer.method == "PUT"]
    assert puts[-2:] == ["index.bin", "manifest.json"] and Counter(puts)["manifest.json"] == 1
    said = capsys.readouterr().out
    assert f"{PREFIX}: 14 images in 4 tars" in said and f"data.shards={PREFIX}" in said and "hush" not in said
    with pytest.raises(
        DataError, match=rf"{PREFIX}: has a manifest.json already, so it can be trained on as it is \(data.shards={PREFIX}\)"
    ):
        index()


def test_training_opens_what_was_indexed_and_every_image_is_that_of_the_folder(store, made, tmp_path):
    index()
    caching.use(str(tmp_path / "shards"), 1.0)
    try:
        far, near = ShardSet.open(PREFIX), ShardSet.open
        images, labels = [far.read(sample) for sample in range(len(far))], far.labels.tolist()
    finally:
        end_keepers()
        caching.use(None, None)
    shards = near(made)
    assert images == [shards.read(sample) for sample in range(len(shards))] and labels == shards.labels.tolist()
    assert far.identity == shards.identity


def test_a_whole_bucket_may_hold_the_tars(store, made, tmp_path):
    shutil.copytree(of(store), store.path("tars"))
    assert index_shards.main(["s3://tars/", "--labels", "--quiet", "--workers", "1", "--scratch", str(tmp_path / "other")]) == 0
    assert results(store.path("tars")) == results(made) and not left_in(tmp_path / "other")


def test_other_stores_are_indexed_through_fsspec(made, tmp_path):
    memory = fsspec.filesystem("memory")
    for name in (*NAMES, "more/other.tar"):
        memory.pipe_file(f"/bucket/tars/{name}", (made / name).read_bytes() if name in NAMES else b"is none of its business")
    try:
        index_shards.main(["memory://bucket/tars", "--labels", "--quiet", "--workers", "1", "--scratch", str(tmp_path)])
        assert {path.rpartition("/")[2] for path in memory.find("/bucket/tars")} == {*NAMES, "other.tar", "manifest.json", "index.bin"}
        assert (memory.cat("/bucket/tars/manifest.json"), memory.cat("/bucket/tars/index.bin")) == results(made)
    finally:
        memory.rm("/bucket", recursive=True)


def test_rejects_are_listed_in_the_store(store, made, picture, tmp_path):
    for folder in (of(store), tmp_path / "tars"):
        folder.mkdir(exist_ok=True)
        tar(folder / "part-1.tar", [("a.gif", picture(0, "GIF")), ("b.jpg", picture(1))])
    for name in ("part-0.tar", "part-2.tar", "part-3.tar"):
        shutil.copy(made / name, tmp_path / "tars" / name)
    with pytest.raises(
        DataError, match=rf"1 of 12 files .* first 'part-1.tar/a.gif' .*; {PREFIX}/rejects.jsonl lists them all; run again with"
    ):
        index(labels=False)
    store.forget()
    index("--max-rejects", "0.2", labels=False)
    assert not store.fetched(TARS)
    assert index_shards.main([str(tmp_path / "tars"), "--quiet", "--max-rejects", "0.2"]) == 0
    assert results(of(store)) == results(tmp_path / "tars")
    assert (of(store) / "rejects.jsonl").read_bytes() == (tmp_path / "tars" / "rejects.jsonl").read_bytes()


# ------------------------------------------------------------------------------------------------ killed


def test_killed_it_goes_on_with_the_tars_it_lacks_and_ends_with_the_same_bytes(store, made, scratch, tmp_path):
    store.faults.stall("bucket/deep/tars/part-2.tar", 60)
    process = subprocess.Popen([sys.executable, index_shards.__file__, PREFIX, "--labels", "--quiet", "--workers", "2"])
    try:
        end = time.monotonic() + 60
        waits = lambda: len([name for name in held(store) if name.endswith(".done")]) < 3
        while waits() or any(name.endswith(".tar") for name in left_in(scratch)):  # a tar goes when its record is there
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert held(store) == {f".work/{name}.done" for name in (NAMES[0], NAMES[1], NAMES[3])}
    assert {name for name in left_in(scratch) if name.endswith((".tar", ".part"))} <= {".part-2.tar.part"}
    store.faults.clear()
    store.forget()
    index(workers=2)
    assert store.fetched(TARS) == {"bucket/deep/tars/part-2.tar": 1}
    assert results(of(store)) == results(made) and held(store) == {"manifest.json", "index.bin"} and not left_in(scratch)


def test_another_machine_goes_on_from_the_records_in_the_store(store, made, scratch, tmp_path):
    fault = store.faults.cut("bucket/deep/tars/part-3.tar", times=None)
    with pytest.raises(DataError, match=r"part-3.tar: .* still so after several tries.*: what is done is kept"):
        index()
    assert fault.met and held(store) == {f".work/{name}.done" for name in NAMES[:3]}
    store.faults.clear()
    store.forget()
    index("--scratch", str(tmp_path / "elsewhere"))
    assert store.fetched(TARS) == {"bucket/deep/tars/part-3.tar": 1} and results(of(store)) == results(made)


def test_what_was_fetched_of_a_tar_before_the_kill_is_not_fetched_again(store, made, scratch, monkeypatch):
    monkeypatch.setattr(urls, "RANGE_BYTES", 4096)
    size, key = (made / "part-0.tar").stat().st_size, "bucket/deep/tars/part-0.tar"
    store.faults.status(key, 403, skip=1, times=None)
    with pytest.raises(DataError, match=r"part-0.tar: .* \(403\), at byte 4096 of"):
        index()
    store.faults.clear()
    store.forget()
    index()
    assert store.sent(key)[key] == size - 4096 and results(of(store)) == results(made)


def test_a_run_killed_while_it_cleaned_up_is_complete(store, made, capsys):
    index()
    (of(store) / ".work" / "part-0.tar.done").write_bytes(b"")
    store.forget()
    index()
    assert "is already complete: 14 images; nothing to do" in capsys.readouterr().out
    assert held(store) == {"manifest.json", "index.bin"} and results(of(store)) == results(made) and not store.fetched(TARS)


# ------------------------------------------------------------------------------------------------ tars that change, stores that misbehave


def test_a_tar_that_changes_while_it_is_fetched_or_later_is_noticed_and_read_anew(store, made, scratch, monkeypatch, picture):
    def change(name: str) -> None:
        tar(of(store) / name, [("x.png", picture(77, "PNG")), ("x.cls", b"0")])

    before = {name: (of(store) / name).read_bytes() for name in NAMES}
    real = fetching.download

    def download(url, *rest):
        real(url, *rest) if not url.endswith("part-1.tar") else change("part-1.tar")
        real(url, *rest)

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"part-1.tar: changed while it was fetched"):
        patch.setattr(fetching, "download", download)
        index()
    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match=r"deep/tars/part-0.tar: vanished or changed meanwhile; run the same"),
    ):
        patch.setattr(indexing, "run_jobs", lambda *all: (*workers.run_jobs(*all), change("part-0.tar")))
        index()
    assert not held(store) & {"manifest.json", "index.bin"}
    for name, data in before.items():
        if (of(store) / name).read_bytes() != data:
            (of(store) / name).write_bytes(data)
    store.forget()
    index()
    assert set(store.fetched(TARS)) == {"bucket/deep/tars/part-1.tar"}, "part-0's record is of the tar that is there again"
    assert results(of(store)) == results(made) and not left_in(scratch)


FAULTS = {
    "cuts": lambda faults: faults.cut(TARS),
    "announces more than it sends": lambda faults: faults.length(TARS, 50),
    "slows down": lambda faults: faults.status("*part-1.tar*", 503, methods=("GET", "HEAD", "PUT")),
    "flips a bit": lambda faults: faults.flip("bucket/deep/tars/part-[02].tar"),
    "lists it late": lambda faults: faults.status("bucket/deep/tars/", 500, methods=("LIST",)),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_store_that_misbehaves_for_a_while_changes_nothing(store, made, scratch, what):
    fault = FAULTS[what](store.faults)
    index()
    assert fault.met and results(of(store)) == results(made) and held(store) == {"manifest.json", "index.bin"} and not left_in(scratch)


def test_a_tar_that_never_comes_as_the_store_says_it_is_is_named(store):
    store.faults.flip("*part-1.tar", times=None)
    with pytest.raises(DataError, match=rf"{PREFIX}/part-1.tar: has ETag \w+, what came has \w+, 3 times; check the network"):
        index()
    assert "index.bin" not in held(store)


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_one_line_and_leaves_nothing(store, scratch, tmp_path):
    for folder in ("other/empty", "other/out/train", "other/out/.work"):
        store.path(folder).mkdir(parents=True)
    store.path("other/empty/a.txt").write_bytes(b"x")
    store.path("other/out/.work/plan.json").write_bytes(b"{}")
    shutil.copy(of(store) / NAMES[0], store.path("other/out/train") / NAMES[0])
    for words, message in (
        (["s3://nowhere/tars"], r"s3://nowhere/tars: there is no such bucket; check the bucket and your access to it: its tars are listed"),
        (["s3://other/empty"], r"s3://other/empty: holds no .tar at its top level; give the prefix"),
        (["s3://bucket/none/such"], r"s3://bucket/none/such: holds no .tar at its top level"),
        (["s3://other/out/train"], r"is made by make_shards.py"),
        ([f"{store.endpoint}/bucket/tars"], r"a web server cannot be asked what it has; give s3://bucket/prefix.* or fetch the tars"),
        (["ftp://host/tars"], r"ftp://: is neither read nor written"),
        ([str(tmp_path), "--scratch", str(tmp_path)], r"--scratch .*: is for tars of a URL"),
        ([PREFIX, "--label-field", "json"], r"give --labels with it"),
        ([PREFIX, "--labels", "--label-field", "txt"], rf"{PREFIX}/part-0.tar: no0.png has the label 'words', and only class numbers"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            index_shards.main([*words, "--quiet", "--workers", "1"])
        assert "\n" not in str(caught.value) and str(scratch) not in str(caught.value)
    assert not held(store) and not left_in(scratch)


def test_a_cut_tar_is_named_by_its_url_and_taken_away_the_others_are_not_read_again(store, made, scratch):
    os.truncate(of(store) / NAMES[2], 2000)
    with pytest.raises(DataError, match=rf"^{PREFIX}/part-2.tar: is cut short or damaged"):
        index()
    assert held(store) == {f".work/{name}.done" for name in NAMES[:2]} and "part-2.tar" not in left_in(scratch)
    shutil.copy(made / NAMES[2], of(store) / NAMES[2])
    store.forget()
    index()
    assert set(store.fetched(TARS)) == {f"bucket/deep/tars/{name}" for name in NAMES[2:]} and results(of(store)) == results(made)


def test_a_store_that_may_not_be_written_to_is_known_before_a_tar_is_fetched(store, scratch):
    store.writable = False
    with pytest.raises(
        DataError, match=rf"^{PREFIX}: may not be read or written with these credentials \(403\); check the bucket and your access"
    ):
        index()
    assert not held(store) and not store.fetched(TARS) and not left_in(scratch)


def test_a_scratch_disk_too_small_for_the_tars_of_all_workers_is_refused_with_what_fits(store, monkeypatch):
    largest = sorted(((of(store) / name).stat().st_size for name in NAMES), reverse=True)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, largest[0] + largest[1]))
    with pytest.raises(DataError, match=r"3 workers may take [\d.]+ kB, a tar each; give --scratch on a larger disk, or --workers 2"):
        index(workers=3)
    assert not store.fetched(TARS)
    index(workers=2)


def test_a_scratch_disk_that_fills_up_is_one_line_and_no_server_in_trouble(store, made, scratch, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        if path.name == ".part-1.tar.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        files.write_atomically(path, data)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"part-1.tar: No space left on device; free some space, then run the same"),
    ):
        patch.setattr(urls, "write_atomically", full)
        index()
    assert held(store) == {".work/part-0.tar.done"}
    index()
    assert results(of(store)) == results(made) and not left_in(scratch)


def test_no_more_than_a_tar_a_worker_lies_in_scratch(store, scratch, monkeypatch):
    seen = []
    real = indexing.index_tar

    def look(work, job, tick):
        seen.append({path.name for path in (scratch).rglob("*.tar")})
        real(work, job, tick)

    monkeypatch.setattr(indexing, "index_tar", look)
    index()
    assert seen == [{name} for name in NAMES]


def test_notes_of_other_options_are_not_used(store, made):
    os.truncate(of(store) / NAMES[3], 2000)
    with pytest.raises(DataError, match="cut short"):
        index(labels=False)
    shutil.copy(made / NAMES[3], of(store) / NAMES[3])
    index()
    assert results(of(store)) == results(made) and json.loads((of(store) / "manifest.json").read_bytes())["source"]["name"] == "tars"
