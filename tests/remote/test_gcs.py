"""gs:// through gcsfs, beside an emulator of Google's storage on loopback, which ignores generations; and what else fsspec finds."""

import hashlib
import logging
import socket
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep import make_shards, verify_shards
from mpp.base.errors import DataError
from mpp.data.shard_cache import caching, end_keepers
from mpp.data.shards import ShardSet
from mpp.remote import retries, stores, through_fsspec
from mpp.remote.retries import Refused
from tests.conftest import picture
from tests.stores import between

pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")

BODY = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(scope="module")
def front():
    """A server before the emulator that misbehaves when it is told to."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    server._api._httpd.handle_error = lambda request, address: None  # of clients that do not wait for an answer's end
    with pytest.MonkeyPatch.context() as patch, between(f"127.0.0.1:{port}") as before:
        patch.setenv("STORAGE_EMULATOR_HOST", before.url)
        patch.setattr(through_fsspec, "_file_systems", {})
        patch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=2, read_seconds=2, waits=(0,)))
        yield before
    server.stop()


@pytest.fixture
def store(front):
    yield stores.store_for("gs")
    front.behave = lambda method, key: None


def test_what_is_put_is_read_whole_in_part_and_listed(store, tmp_path):
    store.put("bucket/a/b ü.bin", BODY)
    (tmp_path / "file").write_bytes(BODY[:1000])
    sent = store.put_file("bucket/a/deep/file", tmp_path / "file")
    assert store.read("bucket/a/b ü.bin", 0, len(BODY)) == BODY
    assert store.read("bucket/a/b ü.bin", 10, 20) == BODY[10:20] and store.read("bucket/a/deep/file", 990, 2000) == BODY[990:1000]
    info = store.info("bucket/a/b ü.bin")
    assert (info.path, info.size) == ("bucket/a/b ü.bin", len(BODY)) and store.read_listed(info) == BODY
    assert list(store.items("bucket/a")) == [info, sent] and list(store.items("bucket/a", deep=False)) == [info]
    assert store.info("bucket/a") is None
    store.copy("bucket/a/deep/file", "bucket/b/file")
    assert store.read("bucket/b/file", 0, 1000) == BODY[:1000]
    store.remove(["bucket/a/deep/file", "bucket/a/never"])
    for path in ("bucket/a/deep/file", "nowhere/x"):
        with pytest.raises(Refused) as refused:
            store.info(path)
        assert refused.value.absent


def test_a_listing_goes_on_behind_its_first_page(monkeypatch):
    """As Google's API describes pages; the emulator gives all at once."""
    entries = [{"name": f"pages/{number}", "size": "1", "generation": "7"} for number in range(5)]

    def call(method, path, bucket, prefix, maxResults, json_out, pageToken="0"):
        assert (method, path, bucket, prefix, json_out) == ("GET", "b/{}/o", "bucket", "pages/", True)
        end = int(pageToken) + maxResults
        return {"items": entries[int(pageToken) : end]} | ({"nextPageToken": str(end)} if end < len(entries) else {})

    monkeypatch.setattr(through_fsspec, "file_system", lambda protocol: SimpleNamespace(call=call))
    monkeypatch.setattr(stores, "PAGE", 2)
    found = list(stores.store_for("gs").items("bucket/pages"))
    assert found == [stores.Info(f"bucket/pages/{number}", 1, "7") for number in range(5)]


def test_an_object_that_was_replaced_has_another_tag(store):
    store.put("bucket/tagged", b"one")
    before = store.info("bucket/tagged")
    store.put("bucket/tagged", b"two")
    assert store.info("bucket/tagged").tag != before.tag


def test_what_was_fetched_is_compared_with_the_md5_that_the_store_tells(store, tmp_path):
    store.put("bucket/sum", BODY)
    (tmp_path / "whole").write_bytes(BODY)
    (tmp_path / "other").write_bytes(BODY[::-1])
    assert hashlib.md5(BODY).digest() and not store.differs("bucket/sum", tmp_path / "whole")
    assert "has md5" in store.differs("bucket/sum", tmp_path / "other")


@pytest.mark.parametrize("word", [503, "cut"])
def test_an_answer_that_fails_is_asked_for_again(store, front, word):
    store.put("bucket/again", BODY)
    words = [word]
    front.behave = lambda method, key: words.pop() if words and method == "GET" else None
    assert store.read("bucket/again", 0, len(BODY)) == BODY
    assert not words


def test_one_that_may_not_be_read_is_refused(store, front):
    store.put("bucket/mine", BODY)
    front.behave = lambda method, key: 403
    with pytest.raises(Refused, match="may not be read or written"):
        store.read("bucket/mine", 0, 10)


def test_shards_made_in_the_bucket_are_those_of_a_disk_and_are_read_through_a_cache(store, tmp_path, capfd):
    photos = tmp_path / "photos"
    for number in range(12):
        path = photos / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, 20, None))
    options = ["--labels", "--samples-per-shard", "4", "--workers", "1"]
    make_shards.main([str(photos), str(tmp_path / "out"), *options])
    make_shards.main([str(photos), "gs://bucket/out", *options])
    assert "next:     deepspeed mpp/pretrain.py --config configs/small_32.yaml data.shards=gs://bucket/out/train" in capfd.readouterr().out
    near = tmp_path / "out" / "train"
    assert {info.path.removeprefix("bucket/out/train/"): info.size for info in store.items("bucket/out/train")} == {
        path.name: path.stat().st_size for path in near.iterdir()
    }
    assert verify_shards.main(["gs://bucket/out/train", "--full", "--workers", "1"]) == 0
    caching.use(str(tmp_path / "cache"), 0.1)
    try:
        far, here = ShardSet.open("gs://bucket/out/train"), ShardSet.open(near)
        assert [far.read(sample) for sample in range(len(here))] == [here.read(sample) for sample in range(len(here))]
    finally:
        end_keepers()
        caching.use(None, None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense://b/x", r"nonsense://: is neither read nor written; give s3://, gs:// or https://.* \(Protocol not known: nonsense\)"),
        (
            "ftp://host/x",
            r"ftp://: is neither read nor written; give s3://, gs:// or https://, or what else fsspec finds by a bucket and a path",
        ),
        ("sftp://user@host/x", r"sftp://(: is neither| needs a package \()"),
    ],
)
def test_protocols_that_a_bucket_and_a_path_do_not_lead_to_are_refused(url, said):
    protocol, _, path = url.partition("://")
    with pytest.raises(DataError, match=said):
        stores.store_for(protocol).info(path)
