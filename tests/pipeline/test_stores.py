"""Whole programs whose images lie in an object store: equal to the same programs on a disk, sample by sample and number by number."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_shards
from tests.object_store import ObjectStore
from tests.pipeline.conftest import TINY, finish, metrics, pretrain, start, succeed

BLOCKS = ("data.streams=2", "data.block=12", "log.samples=true")  # eight shards at most are in hand, of sixteen
SECRET = "hush-hush"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("made") / "train", [12] * 16)


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    shutil.copytree(made, tmp_path / "store" / "bucket" / "train")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with ObjectStore(tmp_path / "store") as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


def samples(run: Path) -> list[dict]:
    """What its sample logs say, in the order of the run."""
    lines = [json.loads(line) for file in run.glob("samples.rank*.jsonl") for line in file.read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], json.dumps(line)))


def cache_of(tmp_path: Path, made: Path, shards: float) -> tuple[str, ...]:
    """Words for a cache with room for so many shards."""
    largest = max(path.stat().st_size for path in made.glob("*.tar"))
    return f"system.cache={tmp_path / 'cache'}", f"system.cache_gb={shards * largest * 1e-9:.9f}"


@pytest.fixture(scope="module")
def near(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("near") / "run"
    succeed(run, made, *BLOCKS, world=2)
    return run


def test_a_run_from_a_store_through_a_cache_smaller_than_the_set_is_the_run_from_the_disk(store, made, near, tmp_path):
    words = cache_of(tmp_path, made, 9)
    finished = succeed(tmp_path / "run", "s3://bucket/train", *BLOCKS, *words, "system.workers=1", world=2)
    assert samples(tmp_path / "run") == samples(near) and metrics(tmp_path / "run") == metrics(near)
    assert "shards come through" in finished.out and "in hand of this machine up to 8 shards" in finished.out
    held = sum(path.stat().st_size for path in (tmp_path / "cache").glob("sets/*/*.tar"))
    assert 0 < held <= 9 * max(path.stat().st_size for path in made.glob("*.tar"))
    for file in (path for folder in ("run", "cache") for path in (tmp_path / folder).rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file


def test_a_run_that_is_killed_again_and_again_while_its_store_misbehaves_is_the_run_from_the_disk(store, made, near, tmp_path):
    words = [
        f"run_dir={tmp_path / 'run'}",
        "data.shards=s3://bucket/train",
        *BLOCKS,
        *cache_of(tmp_path, made, 9),
        "checkpoint.every_samples=12",
    ]
    store.latency = 0.01
    store.faults.cut("*.tar", skip=1)
    store.faults.flip("*5.tar")
    store.faults.status("*.tar", 503, skip=2)
    for commits in (1, 3, 5):
        processes = start([*TINY, *words], 2)
        end = time.monotonic() + 120
        while len(list((tmp_path / "run").glob("checkpoints/*/COMMIT.json"))) < commits:
            assert time.monotonic() < end and all(process.poll() is None for process in processes)
            time.sleep(0.02)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        finish(processes)
    succeed(tmp_path / "run", "s3://bucket/train", *words[2:], world=2)
    assert samples(tmp_path / "run") == samples(near)


def test_an_object_that_is_lost_during_a_run_ends_it_with_one_line_and_it_resumes(store, made, near, tmp_path):
    words = (*BLOCKS, *cache_of(tmp_path, made, 16), "system.disk_patience_seconds=1", "checkpoint.every_samples=12")
    lost = store.faults.status("bucket/train/000004.tar", 404, times=None)
    finished = pretrain(tmp_path / "run", "s3://bucket/train", *words, world=2)
    assert set(finished.status) <= {2, 75} and lost.met
    assert len(finished.error_lines) == 1 and "s3://bucket/train/000004.tar: is not there (404)" in finished.error_lines[0]
    store.faults.clear()
    succeed(tmp_path / "run", "s3://bucket/train", *words, world=2)
    assert samples(tmp_path / "run") == samples(near)


def test_what_no_cache_can_hold_is_refused_before_anything_is_fetched(store, made, tmp_path):
    finished = pretrain(tmp_path / "run", "s3://bucket/train", "log.samples=true", *cache_of(tmp_path, made, 4))
    [line] = finished.error_lines
    assert finished.status == [2] and "and the cache holds" in line and "data.block=" in line
    assert not store.fetched("*.tar")


def test_a_folder_on_a_far_disk_is_read_through_the_cache_where_one_is_named(made, near, tmp_path):
    succeed(tmp_path / "run", made, *BLOCKS, *cache_of(tmp_path, made, 16), world=2)
    assert samples(tmp_path / "run") == samples(near)
    assert len(list((tmp_path / "cache").glob("sets/*/*.tar"))) >= 12
