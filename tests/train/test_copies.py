"""What rank 0 asks of the process that copies: from where a run goes on, what is copied next, and for how long a store may take nothing."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from mpp.base.errors import UNMET, CheckpointError, ConfigError, UserError
from mpp.config.pretrain import KeptCheckpointConfig, PretrainConfig
from mpp.config.schema import load
from mpp.disk.files import sha256_of
from mpp.remote import retries
from mpp.train import copies
from mpp.train.branch import check_branch, find_trunk
from mpp.train.commit import Commit, checkpoint_folder, commits, prune, write_commit
from mpp.train.copies import Copies, CopyError, fetched
from tests.stores import between, empty, listing, serve_s3

CHILD = "from mpp.remote import copier; copier.SETTLE_SECONDS = copier.LOOK_SECONDS = 0.02; copier.main()"


@pytest.fixture(scope="module")
def moto():
    with serve_s3() as client:
        yield client


@pytest.fixture
def store(moto, monkeypatch):
    """As in tests/remote/test_copier.py."""
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=2, read_seconds=5, waits=()))
    monkeypatch.setattr(copies, "COMMAND", [sys.executable, "-P", "-c", CHILD])
    monkeypatch.setattr(copies, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(copies, "LAST_AGAIN_SECONDS", 0.1)
    with between(moto.meta.endpoint_url.removeprefix("http://")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        moto.between = server
        yield moto
    empty(moto)


def commit(run_dir: Path, step: int, kept: bool = False, seed: int = 0) -> Commit:
    folder = checkpoint_folder(run_dir, step)
    folder.mkdir(parents=True)
    path = folder / "rank00000.safetensors"
    path.write_bytes(b"%d" % step * 50)
    record = {"step": step, "samples_seen": 4 * step, "config": {"seed": seed, "data": {"global_batch": 4}}, "manifests": {}}
    record |= {"files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}}} | ({"kept": True} if kept else {})
    return write_commit(folder, record)


def begun(run_dir: Path, **words) -> Copies:
    return Copies(KeptCheckpointConfig(copy_to="s3://bucket/runs/a", **words), run_dir)


def until(done, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.02)


def steps(store) -> set[int]:
    return {int(name.partition("/")[0]) for name in listing(store, "runs/a/checkpoints/") if name.endswith("COMMIT.json")}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def copied(store, run_dir):
    """Steps 10 and 20 lie in the store."""
    of = begun(run_dir)
    of.begin([commit(run_dir, 10)])
    until(lambda: steps(store) == {10})
    of.take(commit(run_dir, 20))
    of.finish()
    return run_dir


def test_all_is_there_when_the_run_has_ended_and_the_place_is_let_go(store, run_dir):
    run = begun(run_dir)
    run.begin([])
    (run_dir / "metrics.jsonl").write_text("a")
    run.take(commit(run_dir, 10))
    until(lambda: steps(store) == {10})
    (run_dir / "verdict.json").write_text("b")
    run.finish()
    found = listing(store, "runs/a/")
    assert found["verdict.json"] == b"b" and steps(store) == {10} and "lease.json" not in found


@pytest.mark.parametrize(("here", "goes_on"), [([], 20), ([10], 20), ([20], 20), ([30], 30)])
def test_the_newest_commit_of_disk_and_store_is_gone_on_from(copied, tmp_path, here, goes_on, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for step in here:
        commit(other, step)
    run = begun(other)
    assert run.find("auto").step == run.find("must").step == goes_on
    assert run.find(20).step == 20
    found = run.bring("auto")
    assert found == commits(other)[0] and found.step == goes_on and found.fault([]) is None
    assert sha256_of(found.folder / "rank00000.safetensors") == found.record["files"]["rank00000.safetensors"]["sha256"]
    said = capsys.readouterr().out
    assert ("s3://bucket/runs/a holds step 20" in said and "none as new: it is fetched" in said) == (goes_on == 20 and here != [20])
    assert (f"holds step 30, s3://bucket/runs/a step 20: the run goes on from the one in {other}" in said) == (goes_on == 30)
    run.close()


@pytest.mark.long
def test_a_step_that_is_asked_for_comes_from_the_store_where_the_disk_has_none(copied, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    commit(other, 10)
    run = begun(other)
    with pytest.raises(CheckpointError, match=r"resume=15: .* has no checkpoint of step 15"):
        run.find(15)
    assert run.bring(10).step == 10 and not (other / "checkpoints/000000020").exists()
    shutil.rmtree(other / "checkpoints")
    assert run.bring(10).step == 10
    run.set_aside_after(10)
    assert "a newer checkpoint is set aside: s3://bucket/runs/a/checkpoints/000000020.aside1" in capsys.readouterr().out
    run.close()
    assert begun(other).find("auto").step == 10


def test_a_damaged_copy_is_set_aside_and_the_one_before_is_fetched(copied, store, tmp_path, capsys):
    key = "runs/a/checkpoints/000000020/rank00000.safetensors"
    store.put_object(Bucket="bucket", Key=key, Body=listing(store)[key][::-1])
    other = tmp_path / "other"
    run = begun(other)
    other.mkdir()
    with pytest.raises(
        CheckpointError, match=r"resume=20: s3://bucket/runs/a/checkpoints/000000020 is damaged: rank00000\.safetensors is not"
    ):
        run.bring(20)
    assert run.bring("auto").step == 10
    assert "is set aside as s3://bucket/runs/a/checkpoints/000000020.damaged1" in capsys.readouterr().err
    key = "runs/a/checkpoints/000000010/rank00000.safetensors"
    store.put_object(Bucket="bucket", Key=key, Body=listing(store)[key][::-1])
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoint there is whole \(000000010: rank00000"):
        run.bring("auto")
    run.close()


def test_a_damaged_commit_of_the_disk_makes_way_for_that_of_the_store(copied, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    here = commit(other, 20)
    (here.folder / "rank00000.safetensors").write_bytes(b"cut")
    run = begun(other)
    assert run.bring("auto").step == 20 and commits(other)[0].step == 20
    assert "000000020.damaged1" in capsys.readouterr().err
    run.close()


def test_another_runs_copies_are_refused_whichever_is_newer(copied, tmp_path):
    for step in (10, 30):
        other = tmp_path / f"other{step}"
        found = commit(other, step, seed=1)
        run = begun(other)
        if step == 30:
            with pytest.raises(CheckpointError, match=r"copy_to=s3://bucket/runs/a holds another run's checkpoints \(seed=0 there, 1 in "):
                run.refuse_other_run(found)
        run.refuse_other_run(commit(tmp_path / f"same{step}", step))
        run.close()


def test_the_one_in_hand_stays_on_the_disk_and_the_newest_comes_next_with_those_that_are_kept(store, run_dir, monkeypatch):
    """A store that is slower than the run."""
    run, let = begun(run_dir, keep=2), []
    real = run._helper.ask

    def slow(do, *more, **words):
        if do == "copy":
            until(lambda: words["folder"] in let)
        return real(do, *more, **words)

    monkeypatch.setattr(run._helper, "ask", slow)
    run.begin([])
    for step in (10, 20, 30, 40, 50, 60):
        found = commit(run_dir, step, kept=step == 30)
        began = time.monotonic()
        run.take(found)
        assert time.monotonic() - began < 1  # never waits
        if step == 10:
            until(lambda: run._in_hand)
        prune(run_dir, 2, run.in_hand)
    assert [each.step for each in commits(run_dir)] == [60, 50, 30, 10]
    let += ["000000010", "000000030", "000000060"]  # else it would wait for ever
    run.finish()
    assert steps(store) == {30, 60} and run.in_hand == set()
    put = [key.split("/")[3] for method, key in store.between.asked if method == "PUT" and key.endswith("COMMIT.json")]
    assert put == ["000000010", "000000030", "000000060"]


def test_a_store_that_fails_for_a_while_is_told_of_and_gets_the_newest_when_it_is_back(store, run_dir, capsys):
    run = begun(run_dir)
    store.between.behave = lambda method, key: 503 if method == "PUT" else None
    run.begin([])
    run.take(commit(run_dir, 10))
    until(lambda: run._failing_since)
    run.take(commit(run_dir, 20))
    time.sleep(0.5)
    assert not run.given_up and steps(store) == set()
    store.between.behave = lambda method, key: None
    until(lambda: steps(store) == {20})
    run.finish()
    said = capsys.readouterr().err
    assert "warning: step 10 was not copied (s3://bucket/runs/a/" in said and "tried again in 0 s, for up to 30 min" in said
    assert "secret" not in said and steps(store) == {20}


def test_a_store_that_stays_away_ends_the_run_after_as_long_as_was_said(store, run_dir):
    run = begun(run_dir, give_up_minutes=0.02)
    run.begin([commit(run_dir, 10)])
    until(lambda: steps(store) == {10})
    store.between.behave = lambda method, key: 403 if method == "PUT" else None
    run.take(commit(run_dir, 20))
    until(lambda: run._failing_since)
    began = run._failing_since
    until(lambda: run.given_up)
    assert 1.2 <= time.monotonic() - began < 15
    with pytest.raises(
        CheckpointError,
        match=r"may not be read or written with these credentials \(403\): nothing was copied for checkpoint\.give_up_minutes=0\.02; .*step 10 is in s3://bucket/runs/a",
    ):
        run.finish()


def test_a_place_that_another_run_holds_may_be_tried_again(store, run_dir):
    """It may be the start before this one, on a machine that the scheduler has given up and that copies still."""
    first = begun(run_dir)
    with pytest.raises(CopyError, match="another run writes there") as caught:
        begun(run_dir)
    assert caught.value.status == UNMET
    first.close()


def test_a_branch_begins_at_a_run_in_a_store_or_at_one_of_its_checkpoints_and_is_the_same_from_any_folder(
    copied, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = commits(copied)
    shutil.rmtree(copied)
    assert find_trunk("s3://bucket/runs/a").record == there[0].record
    trunk = find_trunk("s3://bucket/runs/a/checkpoints/000000010")
    assert trunk.step == 10 and trunk.folder.is_relative_to(tmp_path / "cache")
    asked = "s3://bucket/runs/a/checkpoints/000000010"
    begun = Commit(tmp_path, {"branched_from": {"asked": asked}})
    monkeypatch.chdir(tmp_path)
    check_branch(tmp_path, begun, asked + "/")
    with pytest.raises(CheckpointError, match=rf"branched from {asked}"):
        check_branch(tmp_path, begun, "s3://bucket/runs/a")


@pytest.mark.parametrize("url", ["https://host/runs/a", "s3://", "memory://a/b", "ftp://host/a"])
def test_what_is_no_place_for_a_run_is_an_error_of_one_line(url):
    with pytest.raises(UserError, match=r"cannot be read as a run: .*(is no place in an object store|names nothing)"):
        fetched(url)


@pytest.mark.long
def test_a_store_that_comes_back_while_the_run_ends_still_gets_all(store, run_dir):
    run = begun(run_dir)
    fails = [503] * 3
    store.between.behave = lambda method, key: fails.pop() if method == "PUT" and fails else None
    run.begin([])
    run.take(commit(run_dir, 10))
    run.finish()
    assert steps(store) == {10} and not fails


def test_a_run_whose_place_was_taken_over_gives_up_at_once(store, run_dir):
    run = begun(run_dir)
    run.begin([])
    lease = json.loads(listing(store)["runs/a/lease.json"])
    taken = json.dumps(lease | {"token": "another", "host": "elsewhere"}).encode()
    store.put_object(Bucket="bucket", Key="runs/a/lease.json", Body=taken)
    run.take(commit(run_dir, 10))
    until(lambda: run.given_up)
    assert "another run writes there" in run.given_up and steps(store) == set()
    with pytest.raises(CheckpointError, match="another run writes there"):
        run.finish()


@pytest.mark.long
def test_a_process_that_dies_is_started_again_and_sends_only_what_is_missing(store, run_dir, capsys):
    run = begun(run_dir)
    killed = []

    def kill(method, key):
        if key.endswith("000000010/COMMIT.json") and not killed:
            killed.append(run._helper._process.pid)
            run._helper._process.kill()
            return 503
        return None

    store.between.behave = kill
    run.begin([commit(run_dir, 10)])
    until(lambda: steps(store) == {10})
    run.finish()
    assert "the process that copies has ended, with exit status -9" in capsys.readouterr().err
    assert [key for method, key in store.between.asked if method == "PUT"].count("runs/a/checkpoints/000000010/rank00000.safetensors") == 1


def test_a_store_that_cannot_be_used_is_refused_before_anything_begins(store, run_dir):
    store.between.behave = lambda method, key: 403
    with pytest.raises(CopyError, match=r"^s3://bucket/runs/a: .*\(403\)"):
        begun(run_dir)
    with pytest.raises(CopyError, match="there is no such bucket"):
        store.between.behave = lambda method, key: 404
        begun(run_dir)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://AKIAKEY:s3cr3t@bucket/runs", "s3://bucket/runs holds a name, a key or a signature"),
        ("s3://bucket/runs?X-Amz-Signature=s3cr3t", r"s3://bucket/runs\?\.\.\. holds a name, a key or a signature"),
        ("/mnt/copies", "/mnt/copies is no place in an object store; give one of s3://"),
        ("https://host/runs", "https://host/runs is no place in an object store"),
        ("s3://", "names nothing"),
        ("simplecache::s3://bucket/runs", "is a chain of URLs"),
        ("file:///mnt/copies", "is a local file"),
    ],
)
def test_a_place_that_cannot_be_one_is_refused_and_no_key_is_shown(url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load(PretrainConfig, None, [f"checkpoint.copy_to={json.dumps(url)}"])
    assert "s3cr3t" not in str(caught.value)


def test_a_place_is_let_go_although_a_fork_holds_the_pipe(store, run_dir):
    run = begun(run_dir)
    child = os.fork()
    if not child:  # as a loader process does
        time.sleep(60)
        os._exit(0)
    began = time.monotonic()
    run.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert "runs/a/lease.json" not in listing(store) and time.monotonic() - began < copies.LEAVE_SECONDS


@pytest.mark.long
def test_a_reader_gets_the_newest_whole_commit_once_and_into_the_cache(copied, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = fetched("s3://bucket/runs/a/")
    assert run.name == "a" and run.is_relative_to(tmp_path / "cache/mpp/runs") and [each.step for each in commits(run)] == [20]
    assert commits(run)[0].record == commits(copied)[0].record and not (run / "metrics.jsonl").exists()
    store.between.asked.clear()
    assert fetched("s3://bucket/runs/a") == run
    assert not [key for _, key in store.between.asked if key.endswith(".safetensors")]
    assert [each.step for each in commits(fetched("s3://bucket/runs/a/checkpoints/000000010"))] == [10]
    assert "lease.json" not in "".join(listing(store))

    key = "runs/a/checkpoints/000000020/rank00000.safetensors"
    store.put_object(Bucket="bucket", Key=key, Body=listing(store)[key][::-1])
    shutil.rmtree(run)
    assert [each.step for each in commits(fetched("s3://bucket/runs/a"))] == [10]
    assert "s3://bucket/runs/a/checkpoints/000000020 is passed over, damaged" in capsys.readouterr().err
    for url in ("s3://bucket/runs/none", "s3://bucket/runs/a/checkpoints/000000099"):
        with pytest.raises(CheckpointError, match=f"{url} holds no whole checkpoint"):
            fetched(url)
