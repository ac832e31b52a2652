"""Whole programs whose images lie in an object store: equal to the same programs on a disk, sample by sample and number by number."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_shards
from tests.object_store import ObjectStore
from tests.pipeline.conftest import ROOT, TINY, environment, finish, metrics, pretrain, start, succeed

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


def samples(run: Path) -> list[str]:
    """Lines of its sample logs: one for each sample seen, in the order of the run."""
    lines = sorted(line for file in run.glob("samples.rank*.tsv") for line in file.read_text().splitlines())
    assert len(lines) == 96
    return lines


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


@pytest.mark.long
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


@pytest.mark.long
def test_an_object_that_is_lost_during_a_run_ends_it_with_one_line_and_it_resumes(store, made, near, tmp_path):
    words = (*BLOCKS, *cache_of(tmp_path, made, 16), "system.disk_patience_seconds=1", "checkpoint.every_samples=12")
    lost = store.faults.status("bucket/train/000004.tar", 404, times=None)
    finished = pretrain(tmp_path / "run", "s3://bucket/train", *words)
    assert finished.status == [2] and lost.met
    assert len(finished.error_lines) == 1 and "s3://bucket/train/000004.tar: is not there (404)" in finished.error_lines[0]
    store.faults.clear()
    succeed(tmp_path / "run", "s3://bucket/train", *words)
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


@pytest.mark.parametrize("weights", [pytest.param("", marks=pytest.mark.long), "data.weights=[1, 2]"])
def test_a_mix_of_a_set_in_a_store_and_one_on_the_disk_is_the_mix_of_both_on_the_disk(store, made, tmp_path, weights):
    other = write_shards(tmp_path / "other" / "train", [9] * 5)
    words = [*BLOCKS, *filter(None, [weights]), "system.workers=1"]
    succeed(tmp_path / "near", f"[{made}, {other}]", *words)  # type: ignore[arg-type]
    finished = succeed(tmp_path / "far", f"[s3://bucket/train, {other}]", *words, *cache_of(tmp_path, made, 24))  # type: ignore[arg-type]
    assert samples(tmp_path / "far") == samples(tmp_path / "near") and "shards come through" in finished.out
    assert set(store.fetched("bucket/train/*.tar").values()) == {1}


QUICK = [
    "features.workers=1", "features.batch=16", "linear.epochs=2", "linear.learning_rates=[0.1]", "logistic.strengths=[1]", "knn.k=[3]",
    "few_shot.shots=[1]", "baselines=false",
]  # fmt: skip


def test_a_probe_and_a_fine_tuning_of_images_in_a_store_are_those_of_the_disk(store, made, near, tmp_path):
    told, tuned = {}, {}
    for name, train in {"near": str(made), "far": "s3://bucket/train"}.items():
        cache = [f"shard_cache={tmp_path}/cache", "shard_cache_gb=0.002"] if name == "far" else []
        words = [f"encoder={near}", f"train={train}", f"out={tmp_path / name}", *QUICK, *cache]
        finished = finish(start(words, 2, ["mpp/linear_probe.py"]))
        assert finished.status == [0, 0], finished.err[-3000:]
        results = json.loads((tmp_path / name / "results.json").read_text())
        del results["rows"]["pretrained"]["seconds"]
        told[name] = {key: results[key] for key in ("rows", "fit_images", "classes", "rank_images", "verdict", "reported_images")}
        words = [
            f"encoder={near}",
            f"train={train}",
            f"run_dir={tmp_path / name}-tuned",
            "data.global_batch=8",
            "optim.epochs=1",
            "system.workers=1",
        ]
        words += [word.replace("shard_", "system.") for word in cache]
        finished = finish(start([*words, "optim.warmup_epochs=0", "data.holdout_fraction=0.2"], 1, ["mpp/finetune.py"]))
        assert finished.status == [0], finished.err[-3000:]
        tuned[name] = metrics(tmp_path / f"{name}-tuned")
    assert told["near"] == told["far"] and tuned["near"] == tuned["far"]
    assert set(store.fetched("bucket/train/*.tar").values()) == {1}, "the fine-tuning finds what the probe has fetched"


@pytest.mark.long
def test_two_hosts_with_a_cache_each_fetch_their_shares_and_train_the_run_from_the_disk(two_hosts, made, near, tmp_path):
    (tmp_path / "store").mkdir()
    shutil.copytree(made, tmp_path / "store" / "bucket" / "train")
    command = ["ip", "netns", "exec", two_hosts[0], sys.executable, "tests/object_store.py", str(tmp_path / "store"), "--host", "10.77.0.1"]
    server = subprocess.Popen([*command, "--port", "9797", "--seconds", "200"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout and "10.77.0.1:9797" in server.stdout.readline()
        words = [*TINY, *BLOCKS, "data.shards=s3://bucket/train", f"run_dir={tmp_path / 'run'}", *cache_of(tmp_path, made, 9)[1:]]
        hosts = []
        for rank, name in enumerate(two_hosts):
            place = environment(rank, 2, 29745) | {
                "MASTER_ADDR": "10.77.0.1",
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            place |= {
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_ENDPOINT_URL": "http://10.77.0.1:9797",
                "PYTHONPATH": str(ROOT),
            }
            inside = f'hostname node{rank}; exec {sys.executable} mpp/pretrain.py "$@"'  # a machine of its own name
            host = [
                "ip",
                "netns",
                "exec",
                name,
                "unshare",
                "--uts",
                "sh",
                "-c",
                inside,
                "sh",
                *words,
                f"system.cache={tmp_path / f'cache{rank}'}",
            ]
            hosts.append(subprocess.Popen(host, cwd=ROOT, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        told = [host.communicate(timeout=200) for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], told
    finally:
        server.kill()
    assert samples(tmp_path / "run") == samples(near)
    held = [{path.name for path in (tmp_path / f"cache{rank}").glob("sets/*/*.tar")} for rank in range(2)]
    assert all(held) and held[0] != held[1], "each fetches what its own streams are made of"
