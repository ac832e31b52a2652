"""Whole runs whose folder is kept in an object store: machines that lose their disks, kills, stores that stay away."""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mpp.interop.read_encoder import read_encoder
from mpp.transfer import overlap
from tests.pipeline.conftest import TINY, finish, metrics, pretrain, start, succeed, tensors
from tests.pipeline.test_bad_numbers import poisoned
from tests.stores import between, listing, serve_s3

TO = ["checkpoint.copy_to=s3://bucket/runs/a", "log.samples=true", "system.workers=1"]
# A store is asked again after tenths of a second; all else as users have it.
HASTY = "import sys; from mpp.train import copies; copies.AGAIN_SECONDS = copies.LAST_AGAIN_SECONDS = 0.1; from mpp.pretrain import main; from mpp.base.errors import run_program; sys.argv[1:1] = []; run_program(main)"  # fmt: skip


@pytest.fixture(scope="module")
def store():
    with serve_s3() as client, pytest.MonkeyPatch.context() as patch, between(client.meta.endpoint_url.removeprefix("http://")) as server:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "f0e1d2c3b4a5968778695a4b3c2d1e0f")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIA0123456789ABCDEF")
        client.between = server
        yield client


def logs(run) -> dict[str, list[str]]:
    return {path.name: sorted(path.read_text().splitlines()) for path in run.glob("samples.rank*.tsv")}


def copying(url: str) -> list[str]:
    """Processes that copy to this server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"mpp.remote.copier" in (process / "cmdline").read_bytes() and url.encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


def until(done, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_copy_goes_on_on_an_empty_machine_as_if_nothing_had_happened(store, shards, tmp_path, monkeypatch):
    """Two ranks with loader processes, which were forked."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    succeed(whole, shards, "log.samples=true", "system.workers=1", world=2)

    words = [*TINY, f"data.shards={shards}", f"run_dir={run}", *TO]
    halfway = []

    def hang(method, key):
        if method == "PUT" and "checkpoints" in key and "000000002" not in key and key.endswith("rank00001.safetensors"):
            halfway.append(key)
            return "stall"
        return None

    store.between.behave = hang
    processes = start(words, world=2)
    until(lambda: halfway)
    assert len(copying(store.between.url)) == 1
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(60)
    until(lambda: not copying(store.between.url))  # it does not outlive the run
    store.between.behave = lambda method, key: None
    there = {name.split("/")[1] for name in listing(store, "runs/a/") if name.endswith("COMMIT.json")}
    assert there == {"000000002"} and any("rank00000" in name and "000000002" not in name for name in listing(store, "runs/a/checkpoints/"))

    shutil.rmtree(run)
    done = succeed(run, shards, *TO, world=2)
    assert f"s3://bucket/runs/a holds step 2, {run} none as new: it is fetched" in done.out and "resumes at step 2" in done.out
    assert logs(run) == logs(whole) and len(logs(run)) == 2
    assert metrics(run).keys() == metrics(whole).keys()
    assert [metrics(run)[step]["train/loss"] for step in range(1, 9)] == [metrics(whole)[step]["train/loss"] for step in range(1, 9)]
    ours, theirs = tensors(run, 8), tensors(whole, 8)
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)

    found = listing(store, "runs/a/")
    of_run = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file() and not path.name.startswith("lock")}
    beside = {name for name in of_run if not name.startswith("checkpoints/")}
    assert found.keys() >= beside and all(found[name] == of_run[name].read_bytes() for name in beside)
    assert {"encoder/model.safetensors", "verdict.json", "metrics.jsonl", "config.yaml", "command.txt", "environment.json"} <= found.keys()
    newest = "checkpoints/000000008/COMMIT.json"
    assert found[newest] == of_run[newest].read_bytes() and "lease.json" not in found

    # A reader on another machine gets the encoder of the finished run; another run is refused, and gets nothing.
    elsewhere = tmp_path / "elsewhere"
    done = succeed(elsewhere, shards, *TO)
    assert "already finished at step 8" in done.out and (elsewhere / "encoder/model.safetensors").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert read_encoder("s3://bucket/runs/a").digest == read_encoder(run).digest
    assert overlap.trained_on("s3://bucket/runs/a")[0].path == overlap.trained_on(str(run))[0].path
    exported = finish(start(["s3://bucket/runs/a", str(tmp_path / "out")], program=["mpp/export.py"]))
    assert exported.status == [0] and (tmp_path / "out").exists(), exported.err
    other = pretrain(tmp_path / "other", shards, *TO, "seed=1")
    assert other.status == [2] and len(other.error_lines) == 1
    assert "written with seed=0, this run asks for 1" in other.err
    assert "to be fetched from checkpoint.copy_to=s3://bucket/runs/a" in other.err
    assert not list((tmp_path / "other").rglob("*.safetensors"))
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"].encode(), os.environ["AWS_ACCESS_KEY_ID"].encode()]
    for text in [*found.values(), done.out.encode(), other.err.encode()]:
        assert not any(secret in text for secret in secrets)


@pytest.mark.long
def test_a_run_whose_store_stays_away_commits_to_its_disk_and_ends_with_a_line(store, shards, tmp_path):
    run = tmp_path / "run"
    words = [
        "checkpoint.copy_to=s3://bucket/runs/b",
        "checkpoint.give_up_minutes=0.05",
        "optim.total_samples=1200000",
        "optim.schedule=constant",
    ]
    words += ["checkpoint.every_samples=1200", "log.every_steps=1000", "log.holdout_every_steps=100000", "log.pictures_every_steps=100000"]
    store.between.behave = lambda method, key: 403 if method == "PUT" and "checkpoints" in key else None
    arguments = [*TINY, f"data.shards={shards}", f"run_dir={run}", *words, "evaluate.images=0"]
    done = finish(start(arguments, world=2, program=["-c", HASTY]))
    store.between.behave = lambda method, key: None
    assert done.status[0] == 2 and done.status[1] != 0
    assert "was not copied (s3://bucket/runs/b" in done.err and "tried again in 0 s" in done.err
    assert len(done.error_lines) == 1
    assert "(403): nothing was copied for checkpoint.give_up_minutes=0.05; the run has ended, all of it is in" in done.error_lines[0]
    assert "no checkpoint is in s3://bucket/runs/b" in done.error_lines[0]
    newest = max(int(path.parent.name) for path in (run / "checkpoints").glob("*/COMMIT.json"))
    last = max(metrics(run))
    assert newest == last > 100  # the step in hand
    again = finish(start([*arguments, f"optim.total_samples={12 * (newest + 2)}"], program=["-c", HASTY]))
    assert again.status == [0] and f"resumes at step {newest}" in again.out
    assert f"runs/b/checkpoints/{newest + 2:09d}/COMMIT.json" in listing(store)


@pytest.mark.slow
def test_a_run_that_bad_numbers_have_stopped_leaves_what_tells_why_in_the_store(store, shards, tmp_path):
    words = ["checkpoint.copy_to=s3://bucket/runs/bad", "checkpoint.every_samples=24", "system.max_skipped_steps=0", "evaluate.images=0"]
    done = poisoned(tmp_path / "run", shards, *words, steps="5")
    assert done.status == [2] and "is not finite" in done.err
    found = listing(store, "runs/bad/")
    assert {"flight/rank0.json", "flight/weights.safetensors", "checkpoints/000000004/COMMIT.json"} <= found.keys()
    assert found["flight/rank0.json"] == (tmp_path / "run/flight/rank0.json").read_bytes()


@pytest.mark.long
@pytest.mark.slow
def test_a_run_whose_only_copy_lies_in_a_store_gives_weights_and_branches_as_from_its_folder(store, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trunk, url = tmp_path / "trunk", "s3://bucket/runs/trunk"
    constant = [
        "optim={schedule: constant, total_samples: 48, warmup_samples: 12}",
        "checkpoint={every_samples: 24, keep: 9}",
        "evaluate.images=0",
        "model.drop_path=0",
    ]
    succeed(trunk, shards, *constant, f"checkpoint.copy_to={url}", "checkpoint.keep_at_samples=[24]")
    ends = ["optim={schedule: wsd, total_samples: 48, cooldown_samples: 12, warmup_samples: 12}", *constant[1:]]
    succeed(tmp_path / "by-path", shards, *ends, f"branch_from={trunk}/checkpoints/000000002")
    shutil.rmtree(trunk)

    words = [*ends, f"branch_from={url}/checkpoints/000000002"]
    done = succeed(tmp_path / "by-url", shards, *words, world=2)
    assert f"branches from {url}/checkpoints/000000002 at step 2" in done.out
    ours, theirs = tensors(tmp_path / "by-url", 4), tensors(tmp_path / "by-path", 4)
    assert ours.keys() == theirs.keys() and all(ours[name].allclose(theirs[name], atol=1e-5) for name in ours)
    assert "already finished at step 4" in succeed(tmp_path / "by-url", shards, *words).out  # the same branch
    other = pretrain(tmp_path / "by-url", shards, *ends, f"branch_from={url}")
    assert other.status == [2] and f"branched from {url}/checkpoints/000000002" in other.err

    done = succeed(tmp_path / "next", shards, "optim.total_samples=24", f"init_from={url}")
    assert f"weights from {url} at step 4 | as they are: " in done.out and "begin afresh: " not in done.out
    assert {found.path for found in overlap.trained_on(str(tmp_path / "next"))} == {str(shards)}
    assert [found.problem for found in overlap.trained_on(str(tmp_path / "next"))] == [
        "",
        "",
    ]  # its own set, and that of the run in the store
    absent = pretrain(tmp_path / "absent", shards, "init_from=s3://bucket/runs/none")
    assert absent.status == [2] and absent.error_lines == [
        "error: s3://bucket/runs/none holds no whole checkpoint; give the checkpoint.copy_to of a run, or one of its checkpoints/NNN"
    ]
