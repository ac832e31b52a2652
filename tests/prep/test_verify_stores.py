"""verify_shards.py and inspect_shards.py of shards in an object store: what they say of the same shards in a folder."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep import index_shards, inspect_shards, verify_shards
from mpp.base.errors import DataError, UserError
from mpp.data.shard_cache import caching, end_keepers
from mpp.prep import fetching, verify_shard
from tests.object_store import ObjectStore
from tests.prep.tars import tar
from tests.prep.test_verify_shards import make

SET = "s3://bucket/set/train"
TARS = "bucket/set/train/*.tar"
NAMES = [f"{number:06d}.tar" for number in range(3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "train", ((0, 1, 3), (4, 5, 6, 7), (8, 9)))


@pytest.fixture
def store(server: ObjectStore, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """It holds a copy of the set."""
    shutil.copytree(made, server.folder / "bucket" / "set" / "train")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.faults.clear()
    server.forget()
    for bucket in server.folder.iterdir():
        shutil.rmtree(bucket)


@pytest.fixture
def said(capsys) -> Callable[..., tuple[int, dict]]:
    """said(where, word, ...): the exit status and the findings of verify_shards.py, but for the time and the place."""

    def run(where: object, *words: str) -> tuple[int, dict]:
        status = verify_shards.main([str(where), "--json", "--quiet", "--workers", "1", *words])
        found = json.loads(capsys.readouterr().out)
        for name in ("seconds", "megabytes_per_second"):
            del found[name]
        for split in found["splits"]:
            del split["folder"]
        return status, found

    return run


def of(store: ObjectStore) -> Path:
    return store.path("bucket/set/train")


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("mpp/*"))


def spoil(folder: Path, what: str) -> None:
    if what == "a bit that turned":
        with (folder / NAMES[1]).open("r+b") as file:
            file.seek(2000)
            byte = file.read(1)[0]
            file.seek(2000)
            file.write(bytes([byte ^ 1]))
    elif what == "a cut shard":
        os.truncate(folder / NAMES[1], 9000)
    elif what == "a lost shard":
        (folder / NAMES[1]).unlink()
    elif what == "a lost index":
        (folder / "index.bin").unlink()
    elif what == "a cut index":
        os.truncate(folder / "index.bin", 100)
    elif what == "an edited manifest":
        (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes().replace(b'"bee"', b'"bug"'))
    elif what == "a lost manifest":
        (folder / "manifest.json").unlink()
    elif what == "a stray tar":
        tar(folder / "stray.tar", [("a.txt", b"x")])


SPOILT = [
    "nothing",
    "a bit that turned",
    "a cut shard",
    "a lost shard",
    "a lost index",
    "a cut index",
    "an edited manifest",
    "a lost manifest",
    "a stray tar",
]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("what", SPOILT)
def test_what_is_found_in_a_store_is_what_is_found_in_a_folder(store, made, tmp_path, said, what, full):
    near = Path(shutil.copytree(made, tmp_path / "train"))
    spoil(near, what)
    spoil(of(store), what)
    words = ["--full"] if full else []
    expected, found = said(near, *words), said(SET, *words)
    if what == "a lost manifest":
        for _, facts in (expected, found):
            facts["splits"][0]["listed"][0].pop("message")
    assert found == expected and found[0] == (what != "nothing") and not left(tmp_path)
    whole = set(store.fetched(TARS).values()) if full else set()
    assert whole <= {1}, "each is fetched once"


def test_without_full_no_shard_is_fetched_whole_and_with_it_no_more_than_one_a_worker_lies_in_scratch(
    store, made, said, monkeypatch, tmp_path
):
    said(SET, "--sample", "2")
    assert store.sent(TARS).total() < sum((made / name).stat().st_size for name in NAMES) / 2 and store.fetched(TARS).total() == 2
    seen = []
    real = verify_shard.ShardCheck.whole

    def look(self, rows):
        seen.append({path.name for path in (tmp_path / "cache").rglob("*.tar")})
        return real(self, rows)

    monkeypatch.setattr(verify_shard.ShardCheck, "whole", look)
    assert said(SET, "--full")[0] == 0
    assert seen == [{name} for name in NAMES]


def test_all_splits_of_an_out_are_looked_at_and_more_workers_say_the_same(store, made, said, capsys):
    shutil.copytree(made, store.path("bucket/set") / "val")
    shutil.copytree(made, store.path("bucket/set") / ".work")
    assert len(said("s3://bucket/set/", "--full")[1]["splits"]) == 2
    assert said(SET, "--full", "--workers", "2") == said(made, "--full")
    verify_shards.main([SET, "--quiet", "--workers", "1"])
    assert capsys.readouterr().out.startswith(f"{SET}: 9 images in 3 shards, all looked at: no fault\n")


def test_a_tar_beside_indexed_ones_is_a_fault_if_it_holds_images(store, picture, said, capsys):
    folder = store.path("bucket/set/train")
    shutil.rmtree(folder)
    tar(folder / "a.tar", [("a.jpg", picture(0))])
    assert index_shards.main([SET, "--quiet", "--workers", "1"]) == 0
    capsys.readouterr()
    tar(folder / "text.tar", [("a.txt", b"x")])
    assert said(SET)[0] == 0
    tar(folder / "b.tar", [("b.jpg", picture(1))])
    status, found = said(SET)
    assert status == 1 and found["splits"][0]["listed"][0]["message"].startswith(
        "is not in the manifest, and holds images, such as 'b.jpg'"
    )


def test_bad_input_is_one_line(store, said, tmp_path, monkeypatch):
    for words, message in (
        (["s3://nowhere/x"], r"s3://nowhere/x: there is no such bucket; check the address and your access"),
        (["s3://bucket/none"], r"s3://bucket/none: holds neither shards nor splits"),
        (
            [f"{store.endpoint}/bucket/set/train"],
            r"a web server cannot be asked what it has; give .*, or copy the set to a folder and give that",
        ),
        ([str(tmp_path), "--scratch", str(tmp_path)], r"--scratch .*: is for shards of a URL"),
    ):
        with pytest.raises(UserError, match=message):
            verify_shards.main([*words, "--quiet"])
    store.faults.cut("*000001.tar", times=None)
    with pytest.raises(DataError, match=r"set/train/000001.tar: .*still so after several tries"):
        said(SET, "--full")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(DataError, match=r"has 1 kB free, and 1 worker may take [\d.]+ kB, a tar each; give --scratch on a larger disk"):
        said(SET, "--full")
    assert not left(tmp_path)


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_inspect_says_of_a_url_what_it_says_of_a_folder(store, made, tmp_path, capsys, monkeypatch, scheme):
    def facts(where: object) -> tuple[dict, bytes]:
        assert inspect_shards.main([str(where), "--json", "--quiet", "--out", str(tmp_path / "pictures")]) == 0
        found = json.loads(capsys.readouterr().out)["splits"][0]
        del found["folder"]
        return found, Path(found["picture"]).read_bytes()

    near, where = facts(made), SET if scheme == "s3" else f"{store.endpoint}/bucket/set/train"
    caching.use(str(tmp_path / "shards"), 1.0)
    try:
        assert facts(where) == near
        assert inspect_shards.main([str(where), "--config"]) == 0 and "configs/small_32.yaml" in capsys.readouterr().out
        monkeypatch.chdir(tmp_path)
        inspect_shards.main([str(where), "--quiet", "--images", "1"])
    finally:
        end_keepers()
        caching.use(None, None)
    assert (tmp_path / "inspect-train.png").exists()
    if scheme == "s3":  # a web server is asked for sizes by first bytes
        assert set(store.fetched(TARS).values()) == {1}, "each is fetched once"
