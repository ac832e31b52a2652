"""SOURCE and OUT behind URLs: servers that misbehave, and object stores that must give what a local folder gives."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry
from PIL import Image

from data_prep import make_shards
from mpp.base.errors import BadSample, DataError, UserError
from mpp.base.text import sized
from mpp.data.shards import ShardSet
from mpp.prep import destination
from mpp.prep.source import Item
from mpp.prep.sources import open_source
from mpp.remote import retries, stores, through_fsspec, urls
from mpp.remote import s3 as s3_store
from tests.stores import empty, listing, serve_s3

PROGRAM = Path(make_shards.__file__)
BODY = np.random.default_rng(0).bytes(5000)


# ---------------------------------------------------------------- a web server that misbehaves


class Handler(BaseHTTPRequestHandler):
    """Behaves as the next word of `server.script` says, and well once that is used up; the last word may be "always ...".

    What was asked for is in `server.asked`.
    """

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, body = self.server, self.server.body
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, len(body))) if asked else (0, len(body))
        server.asked.append((start, end))
        word = server.script.pop(0) if server.script else "well"
        if word.startswith("always "):
            server.script.insert(0, word)
            word = word.removeprefix("always ")
        if word.isdecimal():
            self.send_error(int(word))
            return
        if word.startswith("to "):
            self.send_response(302)
            self.send_header("Location", word.removeprefix("to "))
            self.end_headers()
            return
        if word in ("no ranges", "no length"):
            asked, start, end = None, 0, len(body)
        if word == "more":
            end += 7
        if word == "shifted":
            start += 1
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        if word != "no length":
            self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", '"2"' if word == "changed" else server.tag)
        self.end_headers()
        if word in ("cut", "stall"):
            self.wfile.write(body[start : (start + end) // 2])
            if word == "stall":
                time.sleep(1)
            return
        self.wfile.write(body[start:end])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=2, read_seconds=0.2, waits=(0, 0, 0.01)))
    monkeypatch.setattr(urls, "RANGE_BYTES", 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.script, server.asked, server.tag = BODY, [], [], '"1"'
    server.url = f"http://127.0.0.1:{server.server_port}/photos.tar?key=secret"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Bar:
    """Counts; raises KeyboardInterrupt after so many bytes."""

    def __init__(self, limit: int = 1 << 60):
        self.done, self.limit = 0, limit

    def update(self, count: int) -> None:
        self.done += count
        if self.done > self.limit:
            raise KeyboardInterrupt


def fetch(server, folder: Path, limit: int = 1 << 60) -> bytes:
    bar = Bar(limit)
    urls.download(server.url, urls.stat(server.url), folder / "photos.tar", lambda what, total: nullcontext(bar))
    assert bar.done == len(server.body)
    return (folder / "photos.tar").read_bytes()


def test_what_is_noted_as_fetched_is_on_the_disk(server, tmp_path, flushed):
    fetch(server, tmp_path)
    files = [name.partition(".tmp-")[0] for name in flushed if name != tmp_path.name]
    assert files == [".photos.tar.part", "..photos.tar.json"] * (len(files) // 2) and files


@pytest.mark.parametrize(
    "words",
    [
        ["well"],
        ["500", "503"],
        ["cut"],
        ["stall"],
        ["more"],
        ["shifted"],
        ["429", "cut", "500"],
        ["no ranges"],
        ["always no ranges"],
        ["cut"] * 5,
    ],
)
@pytest.mark.parametrize("good_ones_first", [1, 3])
def test_a_download_survives_a_server_that_recovers(server, tmp_path, words, good_ones_first):
    server.script = ["well"] * good_ones_first + [word for each in words for word in (each, "well")][: 2 * len(words)]
    if len(words) == 2:
        server.script = ["well"] * good_ones_first + words
    assert fetch(server, tmp_path) == BODY


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "500",
            "the server answers 500 Internal Server Error, at byte 2000 of 5000, still so after several tries; check the server and the network",
        ),
        ("cut", "IncompleteRead(500 bytes read, 500 more expected)"),
        ("stall", "Read timed out"),
        ("more", "asked for bytes 2000 to 3000, the server sends 'bytes 2000-3006/5000'"),
        ("404", "the server answers 404 Not Found, at byte 2000"),
        ("changed", 'changed while it was fetched (5000 bytes "1" then, 5000 bytes "2" now)'),
    ],
)
def test_a_download_from_a_server_that_does_not_recover_is_an_error_that_names_it(server, tmp_path, word, said):
    server.script = ["well"] * 3 + [f"always {word}"]
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        fetch(server, tmp_path)
    assert server.url.replace("key=secret", "...") in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "photos.tar").exists()


def test_messages_hold_no_passwords_and_no_signatures():
    assert retries.shown("https://me:pass@host/a/b.tar?X-Amz-Signature=1f&x=2 (3 tries)") == "https://host/a/b.tar?... (3 tries)"
    assert retries.shown("https://host/a@b?id=3") == "https://host/a@b?id=3"


def test_a_full_disk_is_not_taken_for_a_server_in_trouble(server, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(urls, "write_atomically", full)
        fetch(server, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        retries.patiently(server.url, lambda: full(tmp_path, b""))


def test_a_killed_download_goes_on_where_it_was(server, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, limit=3500)
    server.asked.clear()
    assert fetch(server, tmp_path) == BODY
    assert server.asked == [(0, 1), (3000, 4000), (4000, 5000), (0, 1)]  # its size and tag, before and after
    server.asked.clear()
    assert fetch_again(server, tmp_path) == BODY
    assert server.asked == [(0, 1)]


def fetch_again(server, folder: Path) -> bytes:
    urls.download(server.url, urls.stat(server.url), folder / "photos.tar", lambda what, total: pytest.fail("fetches again"))
    return (folder / "photos.tar").read_bytes()


def test_what_was_fetched_of_a_file_that_has_changed_since_is_thrown_away(server, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, limit=3500)
    server.body, server.tag = BODY[::-1], '"2"'
    assert fetch(server, tmp_path) == BODY[::-1]
    server.body, server.tag = BODY, '"3"'
    assert fetch(server, tmp_path) == BODY


def test_a_file_that_changes_after_its_last_range_is_named(server, tmp_path):
    server.script = ["well"] * 6 + ["changed"]
    with pytest.raises(DataError, match="changed while it was fetched"):
        fetch(server, tmp_path)
    assert not (tmp_path / "photos.tar").exists()


def test_a_file_that_was_another_one_for_a_while_is_named(server, tmp_path):
    server.script = ["well"] * 3 + ["changed"]
    with pytest.raises(DataError, match="changed while it was fetched"):
        fetch(server, tmp_path)
    assert not (tmp_path / "photos.tar").exists()


def test_a_server_that_hides_the_size_is_refused(server):
    server.script = ["no length"]
    with pytest.raises(DataError, match="does not say how large it is, so a cut would go unnoticed"):
        urls.stat(server.url)


@pytest.mark.parametrize("word", ["404", "403", "410", "400", "to file:///etc/passwd", "to ftp://x/y", "always to /again"])
def test_a_row_whose_server_refuses_is_a_bad_sample(server, word):
    server.script = [word]
    with pytest.raises(BadSample, match=r"answers 4|leads to|redirects more than"):
        urls.read_url(server.url)


@pytest.mark.parametrize("words", [[], ["500", "503"], ["cut"], ["stall", "429"], ["to /elsewhere"]])
def test_a_row_is_read_whole_from_a_server_that_recovers(server, words):
    server.script = words
    assert urls.read_url(server.url) == BODY


def test_a_row_of_a_dead_server_stops_the_run(server):
    server.script = ["always 503"]
    with pytest.raises(DataError, match=r"answers 503.*check the server and the network, then run the same command again"):
        urls.read_url(server.url)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x\.jpg: cannot be reached \(Connection refused\)"):
        urls.read_url("http://127.0.0.1:9/x.jpg")


def test_a_row_is_read_up_to_the_limit_and_no_further(server, monkeypatch):
    monkeypatch.setattr(urls, "MAX_FILE_BYTES", len(BODY))
    assert urls.read_url(server.url) == BODY
    monkeypatch.setattr(urls, "MAX_FILE_BYTES", len(BODY) - 1)
    for words in ([], ["no length"]):
        server.script = words
        with pytest.raises(BadSample, match=f"is larger than {sized(len(BODY) - 1)}$"):
            urls.read_url(server.url)
    server.body = b""
    with pytest.raises(BadSample, match="an empty file"):
        urls.read_url(server.url)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "/etc/passwd", "ftp://a/b", "local://x", "simplecache::s3://b/k", "s3://b/zip://x::file:///etc/passwd", ""),
        *("s3://bucket", "gs://bucket/", "http://", "http://[::1", "http://a..b/", "https://.", "s3://no_{}_bucket/x"),
    ],
)
def test_a_row_may_name_no_other_protocol(url):
    with pytest.raises(BadSample, match=r"is no (URL of http, https, s3, gs|address)"):
        urls.read_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("zip://x.jpg::s3://b/photos.zip", "is a chain of URLs"),
        ("simplecache::s3://b/photos.zip", "is a chain of URLs"),
        ("file:///tmp/photos", "is a local file; give its path"),
        ("s3://", "names nothing"),
        ("ftp://host/photos", "ftp://: is neither read nor written; give s3://, gs:// or https://"),
        ("nonsense://b/photos", "nonsense://: is neither read nor written; give s3://, gs:// or https://"),
    ],
)
def test_urls_that_cannot_be_right_are_named(url, said, tmp_path):
    for source, out in ((url, tmp_path / "out"), (tmp_path, url)):
        with pytest.raises(UserError, match=re.escape(said)):
            make_shards.main([str(source), str(out)])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(s3_store, "_clients", {})
    for package, module, url in (("boto3", "boto3.session", "s3://b/x"), ("gcsfs", "gcsfs", "gs://b/x")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
        with pytest.raises(DataError, match=f"pip install {package}"):
            urls.stat(url)


# ---------------------------------------------------------------- an object store


@pytest.fixture(scope="module")
def s3_client():
    with serve_s3() as client:
        yield client


@pytest.fixture
def s3(s3_client, monkeypatch, tmp_path):
    """A client of an empty bucket."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield s3_client
    empty(s3_client)


def files(count: int = 12) -> dict[str, bytes]:
    found = {}
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 20, 3), np.uint8)).save(buffer, "JPEG")
        found[f"{'abc'[number % 3]}/{number:02d} ü.jpg"] = buffer.getvalue()
    return found | {"notes.txt": b"x", ".hidden/x.jpg": b"x", "a/b/deep.jpg": found["a/00 ü.jpg"]}


def lay_out(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def upload(client, prefix: str, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        client.put_object(Bucket="bucket", Key=prefix + name, Body=data)


OPTIONS = ["--labels", "--val", "3", "--samples-per-shard", "4", "--workers", "1", "--quiet"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return lay_out(tmp_path_factory.mktemp("local") / "photos", files())


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("made") / "out"
    subprocess.run([sys.executable, PROGRAM, photos, out, *OPTIONS], check=True, capture_output=True)
    return snapshot(out)


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


def published(client, prefix: str = "out/") -> dict[str, bytes]:
    """OUT in the store; its work folder holds only the plan."""
    found = listing(client, prefix)
    assert [name for name in found if name.startswith(".work/")] == [".work/plan.json"]
    return {name: data for name, data in found.items() if not name.startswith(".work/")}


def test_a_prefix_gives_the_shards_of_its_folder(s3, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stores, "PAGE", 5)
    upload(s3, "deep/photos/", {**files(), "empty/": b""})
    make_shards.main(["s3://bucket/deep/photos/", str(tmp_path / "out"), *OPTIONS])
    assert "ignored:  2 ((hidden) 1, .txt 1)" in capsys.readouterr().out
    assert snapshot(tmp_path / "out") == expected


def test_a_folder_goes_to_a_bucket_and_stays_whole_there(s3, photos, expected, tmp_path, capsys, monkeypatch):
    make_shards.main([str(photos), "s3://bucket/out/", *OPTIONS])
    assert published(s3) == expected
    assert "s3://bucket/out/train: 10 images in 3 shards" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {"lock", "lock-plan"}
    make_shards.main([str(photos), "s3://bucket/out", *OPTIONS])
    assert "s3://bucket/out is already complete: train, val; nothing to do" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"s3://bucket/out: is complete, but by another command \(seed was 0, is 1\)"):
        make_shards.main([str(photos), "s3://bucket/out", *OPTIONS, "--seed", "1"])
    s3.put_object(Bucket="bucket", Key="out/train/000001.tar", Body=b"cut")
    with pytest.raises(DataError, match=r"s3://bucket/out/train/000001\.tar: has 3 bytes, the manifest says"):
        make_shards.main([str(photos), "s3://bucket/out", *OPTIONS])
    with pytest.raises(DataError, match="is not empty and was not begun by make_shards"):
        make_shards.main([str(photos), "s3://bucket/out/train", *OPTIONS])


def test_rejects_are_listed_in_the_bucket(s3, tmp_path):
    folder = lay_out(tmp_path / "photos", files(3) | {"a/bad.jpg": b"bad"})
    with pytest.raises(DataError, match=r"1 of 5 files .* first 'a/bad.jpg' .*; s3://bucket/out/rejects\.jsonl lists them all"):
        make_shards.main([str(folder), "s3://bucket/out", "--quiet", "--workers", "1"])
    made = heads(s3)["out/train/000000.tar"]["LastModified"]
    make_shards.main([str(folder), "s3://bucket/out", "--quiet", "--workers", "1", "--max-rejects", "0.5"])
    assert heads(s3)["out/train/000000.tar"]["LastModified"] == made
    assert json.loads(published(s3)["rejects.jsonl"])["name"] == "a/bad.jpg"


def test_an_archive_in_a_bucket_goes_to_the_same_bucket(s3, photos, tmp_path):
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(photos, ".")
    s3.upload_file(str(tmp_path / "photos.tar.gz"), "bucket", "photos.tar.gz")
    make_shards.main([str(tmp_path / "photos.tar.gz"), str(tmp_path / "out"), *OPTIONS])
    make_shards.main(["s3://bucket/photos.tar.gz", "s3://bucket/out", "--scratch", str(tmp_path / "scratch"), *OPTIONS])
    assert published(s3) == snapshot(tmp_path / "out")


def test_parts_made_on_many_machines_meet_in_the_bucket(s3, photos, expected, tmp_path):
    for part in ("1/2", "0/2"):
        make_shards.main([str(photos), "s3://bucket/out", "--part", part, "--scratch", str(tmp_path / part[0]), *OPTIONS])
    assert not any(name.endswith("manifest.json") for name in listing(s3, "out/"))
    made = {name: entry["LastModified"] for name, entry in heads(s3).items() if name.endswith(".tar")}
    assert len(made) == 4
    s3.put_object(Bucket="bucket", Key="out/train/000001.tar", Body=b"damaged meanwhile")
    del made["out/train/000001.tar"]
    make_shards.main([str(photos), "s3://bucket/out", "--scratch", str(tmp_path / "2"), *OPTIONS])
    assert published(s3) == expected
    assert {name: entry["LastModified"] for name, entry in heads(s3).items() if name in made} == made  # not made again


def heads(client) -> dict[str, dict]:
    return {entry["Key"]: entry for entry in client.list_objects_v2(Bucket="bucket", Prefix="out/").get("Contents", [])}


def test_another_machine_whose_source_differs_is_refused(s3, photos, tmp_path):
    make_shards.main([str(photos), "s3://bucket/out", "--part", "0/2", "--scratch", str(tmp_path / "1"), *OPTIONS])
    other = lay_out(tmp_path / "photos", files(11))
    with pytest.raises(DataError, match=r"is half done, but by another command \(the files of photos changed\)"):
        make_shards.main([str(other), "s3://bucket/out", "--part", "1/2", "--scratch", str(tmp_path / "2"), *OPTIONS])


def test_a_bucket_emptied_and_begun_anew_does_not_meet_an_old_listing(s3, photos, tmp_path):
    folder = lay_out(tmp_path / "photos", files(8))
    words = [str(folder), "s3://bucket/out", *OPTIONS]
    make_shards.main([*words, "--part", "0/2"])
    for name in listing(s3, "out/"):
        s3.delete_object(Bucket="bucket", Key=f"out/{name}")
    lay_out(folder, files(12))
    make_shards.main(words)
    assert json.loads(published(s3)["train/manifest.json"])["samples"] == 10


def test_killed_at_work_the_same_command_ends_with_the_same_bytes(s3, photos, expected):
    command = [sys.executable, str(PROGRAM), str(photos), "s3://bucket/out", *OPTIONS]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not any(name.endswith(".done") for name in heads(s3)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not any(name.endswith("train/manifest.json") for name in heads(s3))
    make_shards.main(command[2:])
    assert published(s3) == expected


def test_workers_forked_after_the_parent_listed_can_read(s3):
    upload(s3, "photos/", files())
    source = open_source("s3://bucket/photos/", "")
    items = list(source.items(Counter()))
    assert s3_store._clients
    assert not through_fsspec.loop_runs()
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        read = list(pool.map(source.reader().read, items, timeout=20))
    assert {item.name: data for item, data in zip(items, read, strict=True)} == {
        name: data for name, data in files().items() if name.endswith(".jpg") and "hidden" not in name
    }


def test_an_object_that_changed_after_it_was_listed_is_named(s3):
    upload(s3, "photos/", {"a.jpg": b"123", "b.jpg": b"123", "c.jpg": b"123"})
    source = open_source("s3://bucket/photos/", "")
    items = list(source.items(Counter()))
    upload(s3, "photos/", {"a.jpg": b"124", "b.jpg": b"1234"})
    s3.delete_object(Bucket="bucket", Key="photos/c.jpg")
    for item in items:
        with pytest.raises(DataError, match=rf"s3://bucket/photos/{item.name}: has changed since it was listed"):
            source.reader().read(item)


def test_other_stores_list_and_read_through_fsspec():
    memory = fsspec.filesystem("memory")
    for name, data in files().items():
        memory.pipe_file(f"/bucket/photos/{name}", data)
    memory.pipe_file("/bucket/photos/out/x.jpg", b"x")
    source = open_source("memory://bucket/photos", "memory://bucket/photos/out")
    items = {item.name: item for item in source.items(Counter())}
    assert {name: source.reader().read(item) for name, item in items.items()} == {
        name: data for name, data in files().items() if name.endswith(".jpg") and "hidden" not in name
    }
    with pytest.raises(DataError, match="has changed since it was listed"):
        source.reader().read(Item(next(iter(items)), 1, ("",)))
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("wrong", [b"short", b"x" * 1000])
def test_an_upload_that_did_not_arrive_as_it_was_is_found(s3, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(waits=(0,)))
    out = destination.StoreDestination("s3://bucket/out", tmp_path)
    out.folder("train").mkdir(parents=True)
    (out.folder("train") / "000000.tar").write_bytes(bytes(1000))
    monkeypatch.setattr(s3, "upload_fileobj", lambda file, Bucket, Key, **options: s3.put_object(Bucket=Bucket, Key=Key, Body=wrong))
    monkeypatch.setattr(s3_store, "client", lambda: s3)
    with pytest.raises(DataError, match="after an upload of"):
        out.publish("train", "000000.tar")
    assert (out.folder("train") / "000000.tar").exists()


def test_a_published_shard_can_be_read_in_part_and_removed(s3, tmp_path):
    out = destination.StoreDestination("s3://bucket/out", tmp_path)
    out.folder("train").mkdir(parents=True)
    (out.folder("train") / "000000.tar").write_bytes(BODY)
    out.publish("train", "000000.tar")
    assert out.state("train", "000000.tar")[0] == len(BODY)
    assert out.read("train", "000000.tar", 1000, 50) == BODY[1000:1050]
    out.discard("train", "000000.tar")
    out.look()
    assert out.state("train", "000000.tar") is None
    out.discard("train", "000000.tar")


def test_a_large_upload_is_compared_by_the_etag_of_its_parts(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 << 20)
    (tmp_path / "big").write_bytes(np.random.default_rng(1).bytes(11 << 20))
    info = stores.store_for("s3").put_file("bucket/big", tmp_path / "big")
    assert info.size == 11 << 20
    assert info.tag.endswith("-3")


def test_missing_credentials_and_buckets_are_one_line(s3, photos, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"s3://nowhere-at-all/x: there is no such bucket; check the address"):
        make_shards.main(["s3://nowhere-at-all/x", str(tmp_path / "out")])
    with pytest.raises(DataError, match=r"s3://nowhere-at-all/out: there is no such bucket; check the bucket and your access"):
        make_shards.main([str(photos), "s3://nowhere-at-all/out", "--quiet"])
    with pytest.raises(DataError, match="is no file but a prefix"):
        make_shards.main(["s3://bucket/none/", str(tmp_path / "out"), "--format", "zip"])
    with pytest.raises(DataError, match="holds no images"):
        make_shards.main(["s3://bucket/none/", str(tmp_path / "out"), "--quiet"])
    monkeypatch.setattr(s3_store, "_clients", {})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"no valid credentials .*set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"):
        make_shards.main(["s3://bucket/x/", str(tmp_path / "out"), "--quiet"])
    assert not (tmp_path / "out").exists()


def test_a_half_fetched_source_outlives_a_dead_server(server, photos, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, ".")
    server.body = (tmp_path / "photos.tar").read_bytes()
    server.script = ["well"] * 4 + ["always 500"]
    with pytest.raises(DataError, match="what is done is kept"):
        make_shards.main([server.url, str(tmp_path / "out"), *OPTIONS])
    server.script, server.asked = [], []
    make_shards.main([server.url, str(tmp_path / "out"), *OPTIONS])
    assert server.asked[1][0] == 3000
    assert len(ShardSet.open(tmp_path / "out" / "train")) == 10
    assert "secret" not in (tmp_path / "out" / "train" / "manifest.json").read_text()
