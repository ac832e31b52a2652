"""A run folder's copy in a store: in which order it is written and deleted, what of it is believed, who may write, and stores in trouble."""

import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mpp.base.errors import DataError
from mpp.disk.files import seal_of, sha256_of
from mpp.disk.locks import Owner, _began
from mpp.remote import copier, retries, s3
from mpp.remote.copier import BusyError, Copier, Copy, DamagedCopyError
from mpp.remote.retries import Refused
from tests.stores import between, empty, listing, serve_s3

WHERE = "s3://bucket/runs/a"


@pytest.fixture(scope="module")
def moto():
    with serve_s3() as client, pytest.MonkeyPatch.context() as patch, between(client.meta.endpoint_url.removeprefix("http://")) as server:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        client.between = server
        yield client


@pytest.fixture
def store(moto, monkeypatch):
    """The client of an empty bucket, with `between`: the server before it that all requests of mpp go through."""
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=2, read_seconds=0.5, waits=(0, 0, 0.01)))
    for name in ("BEAT_SECONDS", "LOOK_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(copier, name, 0.02)
    monkeypatch.setattr(copier, "DEAD_SECONDS", 0.3)
    moto.between.asked.clear()
    yield moto
    moto.between.behave = lambda method, key: None
    empty(moto)


def commit(run_dir: Path, step: int, kept: bool = False, parts: int = 2, word: str = "") -> dict:
    """A checkpoint as train/checkpoint.py leaves it; returns its record."""
    folder = run_dir / "checkpoints" / f"{step:09d}"
    folder.mkdir(parents=True)
    for rank in range(parts):
        (folder / f"rank{rank:05d}.safetensors").write_bytes(f"{step} {rank} {word}".encode() * 40)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    record = {"step": step, "samples_seen": 4 * step, "config": {"seed": 0}, "files": files, "format": 2} | ({"kept": True} if kept else {})
    record |= {"seal": seal_of(record)}
    (folder / "COMMIT.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def owner(**words) -> Owner:
    return replace(Owner.this_process(), **words)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    for name in (
        "metrics.jsonl",
        "config.yaml",
        "lock",
        "lock.owner",
        ".x.tmp-1",
        "tensorboard/events.1",
        "pictures/1.png",
        "flight/rank0.json",
        "encoder/config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "encoder/model.safetensors").write_text("weights")
    (folder / "features").mkdir()
    (folder / "features/table.npy").write_text("large")
    return folder


@pytest.fixture
def held(store, run_dir):
    copy = Copy(WHERE, run_dir, owner())
    copy.hold()
    return copy


def names(store, prefix: str = "runs/a/checkpoints/") -> set[str]:
    return set(listing(store, prefix))


def test_what_makes_a_checkpoint_exist_is_written_last_and_what_a_resume_needs_before_it(store, held, run_dir):
    commit(run_dir, 10)
    held.put_commit("000000010", 2, [])
    put = [key.removeprefix("runs/a/") for method, key in store.between.asked if method == "PUT"][1:]
    parts = [f"checkpoints/000000010/rank{rank:05d}.safetensors" for rank in (0, 1)]
    beside = [
        "config.yaml",
        "metrics.jsonl",
        "tensorboard/events.1",
        "pictures/1.png",
        "flight/rank0.json",
        "encoder/model.safetensors",
        "encoder/config.json",
    ]
    assert put == [*parts, *beside, "checkpoints/000000010/COMMIT.json"]
    found = listing(store, "runs/a/")
    assert all(found[name] == (run_dir / name).read_bytes() for name in put)
    assert found.keys() == {*put, "lease.json"}


def test_only_what_has_changed_is_copied_again(store, held, run_dir):
    commit(run_dir, 10)
    held.put_commit("000000010", 2, [])
    commit(run_dir, 20)
    store.between.asked.clear()
    (run_dir / "metrics.jsonl").write_text("two lines")
    held.put_commit("000000020", 2, [])
    put = [key for method, key in store.between.asked if method == "PUT" and "checkpoints" not in key]
    assert put == ["runs/a/metrics.jsonl"] and listing(store)["runs/a/metrics.jsonl"] == b"two lines"
    held.put_commit("000000020", 2, [])
    assert put == [key for method, key in store.between.asked if method == "PUT" and "checkpoints" not in key]
    again = Copy(WHERE, run_dir, held.owner)  # a new start
    store.between.asked.clear()
    again.put_beside()
    assert "runs/a/pictures/1.png" not in [key for _, key in store.between.asked]


def test_what_the_flight_recorder_has_removed_goes_in_the_store_too(store, held, run_dir):
    for name in ("rank1.json", "skipped-7.rank0.json"):
        (run_dir / "flight" / name).write_text(name)
    held.put_beside()
    assert names(store, "runs/a/flight/") == {"rank0.json", "rank1.json", "skipped-7.rank0.json"}
    for rank in (0, 1):
        (run_dir / f"flight/rank{rank}.json").unlink()
    held.put_beside()
    assert names(store, "runs/a/flight/") == {"skipped-7.rank0.json"}
    (run_dir / "metrics.jsonl").unlink()
    held.put_beside()
    assert "runs/a/metrics.jsonl" in listing(store)  # nothing else goes because it is not here


def test_a_file_that_is_too_large_for_memory_is_copied_as_it_was_at_one_instant(store, held, run_dir, monkeypatch):
    monkeypatch.setattr(copier, "MEMORY_BYTES", 3)
    real = s3.S3Store.put_file

    def grows(self, path, local, moved):
        (run_dir / "metrics.jsonl").write_text("longer than before")
        return real(self, path, local, moved)

    monkeypatch.setattr(s3.S3Store, "put_file", grows)
    held.put_beside()
    assert listing(store)["runs/a/metrics.jsonl"] in (b"metrics.jsonl", b"longer than before")
    assert not list(run_dir.glob(".metrics*"))


def test_older_checkpoints_are_deleted_by_the_rule_of_the_disk_once_the_newer_is_whole(store, held, run_dir):
    store.put_object(Bucket="bucket", Key="runs/a/checkpoints/000000005/rank00000.safetensors", Body=b"left over")
    for step in (10, 20, 30, 40, 50):
        commit(run_dir, step, kept=step == 20)
        held.put_commit(f"{step:09d}", 2, [])
    assert {name.partition("/")[0] for name in names(store)} == {"000000020", "000000040", "000000050"}
    asked = [(method, key.removeprefix("runs/a/checkpoints/")) for method, key in store.between.asked if method in ("PUT", "DELETE")]
    for old, new in ((5, 10), (10, 30), (30, 50)):
        gone = [each for each in asked if each[0] == "DELETE" and each[1].startswith(f"{old:09d}")]
        assert asked.index(("PUT", f"{new:09d}/COMMIT.json")) < min(map(asked.index, gone))
        assert old == 5 or gone[0] == ("DELETE", f"{old:09d}/COMMIT.json")  # so that a half-deleted one does not exist


def test_a_checkpoint_of_the_same_step_from_another_course_is_replaced_and_never_mixed(store, held, run_dir):
    commit(run_dir, 10, parts=3)
    held.put_commit("000000010", 2, [])
    other = run_dir.with_name("other")
    record = commit(other, 10, parts=2, word="another")
    store.between.asked.clear()
    held.run_dir = other
    held.put_commit("000000010", 2, [])
    assert json.loads(listing(store)["runs/a/checkpoints/000000010/COMMIT.json"]) == record
    assert len(names(store)) == 3
    changed = [
        (method, key.rpartition("/")[2]) for method, key in store.between.asked if method in ("PUT", "DELETE") and "000000010" in key
    ]
    assert changed[0] == ("DELETE", "COMMIT.json") and changed[-1] == ("PUT", "COMMIT.json")


@pytest.mark.parametrize("killed_at", range(5))
def test_a_kill_at_any_write_leaves_the_older_checkpoint_and_nothing_half_named(store, held, run_dir, killed_at, monkeypatch):
    first = commit(run_dir, 10)
    held.put_commit("000000010", 2, [])
    commit(run_dir, 20)
    (run_dir / "metrics.jsonl").write_text("more")
    writes = []

    def dead(method, key):
        writes.append(key) if method in ("PUT", "DELETE") else None
        return 503 if len(writes) > killed_at else None

    store.between.behave = dead
    monkeypatch.setattr(retries, "PATIENCE", replace(retries.PATIENCE, waits=()))
    if killed_at < 4:  # two parts, metrics.jsonl, COMMIT.json
        with pytest.raises(DataError):
            held.put_commit("000000020", 2, [])
    store.between.behave = lambda method, key: None
    found = Copy(WHERE, run_dir, owner()).look()
    if killed_at < 4:
        assert found == {"000000010": first}
        held.put_commit("000000020", 2, [])
    else:
        held.put_commit("000000020", 2, [])
    assert list(Copy(WHERE, run_dir, owner()).look()) == ["000000010", "000000020"]


def test_what_an_earlier_try_has_copied_is_not_sent_again(store, held, run_dir):
    commit(run_dir, 10)
    told = []
    store.between.behave = lambda method, key: 503 if key.endswith("rank00001.safetensors") else None
    with pytest.raises(DataError, match=r"s3://bucket/runs/a/checkpoints/000000010/rank00001\.safetensors: .*still so after several tries"):
        held.put_commit("000000010", 2, [], told.append)
    assert told == ["rank00000.safetensors"]
    store.between.behave = lambda method, key: None
    store.between.asked.clear()
    held.put_commit("000000010", 2, told)
    assert ("PUT", "runs/a/checkpoints/000000010/rank00000.safetensors") not in store.between.asked
    assert list(Copy(WHERE, run_dir, owner()).look()) == ["000000010"]


# ---------------------------------------------------------------- the way back


@pytest.fixture
def copied(store, held, run_dir):
    record = commit(run_dir, 10)
    held.put_commit("000000010", 2, [])
    return record


def test_an_empty_machine_gets_the_checkpoint_byte_for_byte_and_what_a_resume_needs(store, copied, run_dir, tmp_path):
    empty_one = tmp_path / "elsewhere"
    copy, heard = Copy(WHERE, empty_one, owner()), []
    assert copy.look() == {"000000010": copied}
    copy.fetch("000000010", beside=True, said=heard.append)
    there = {path.relative_to(empty_one).as_posix(): path.read_bytes() for path in empty_one.rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard/events.1",
        "pictures/1.png",
        "flight/rank0.json",
    }  # the encoder is written anew at the end
    expected |= {f"checkpoints/000000010/{name}" for name in (*copied["files"], "COMMIT.json")}
    assert there == {name: (run_dir / name).read_bytes() for name in expected}
    assert sum(heard) == sum(facts["bytes"] for facts in copied["files"].values())


def test_a_fetch_that_ends_early_has_fetched_no_checkpoint(store, copied, tmp_path, monkeypatch):
    copy = Copy(WHERE, tmp_path / "elsewhere", owner())
    copy.look()
    monkeypatch.setattr(retries, "PATIENCE", replace(retries.PATIENCE, waits=()))
    for last in ("rank00001.safetensors", "metrics.jsonl"):
        store.between.behave = lambda method, key, last=last: 503 if key.endswith(last) else None
        with pytest.raises(DataError):
            copy.fetch("000000010", beside=True)
        assert not (tmp_path / "elsewhere/checkpoints/000000010/COMMIT.json").exists()


def test_a_part_that_is_not_what_was_committed_is_found_out(store, copied, tmp_path):
    key = "runs/a/checkpoints/000000010/rank00001.safetensors"
    data = listing(store)[key]
    store.put_object(Bucket="bucket", Key=key, Body=data[:-1] + b"!")
    copy = Copy(WHERE, tmp_path / "elsewhere", owner())
    copy.look()
    with pytest.raises(DamagedCopyError, match=r"rank00001\.safetensors is not what was committed \(sha256 differs"):
        copy.fetch("000000010", beside=True)
    assert not (tmp_path / "elsewhere/checkpoints/000000010/COMMIT.json").exists()


def test_what_cannot_be_a_checkpoint_is_passed_over_aloud(store, held, run_dir, capsys):
    for step in (10, 20, 30, 40, 50):
        commit(run_dir, step)
        held.put_commit(f"{step:09d}", 9, [])
    of = lambda step, name: f"runs/a/checkpoints/{step:09d}/{name}"
    there = listing(store)
    store.delete_object(Bucket="bucket", Key=of(10, "rank00000.safetensors"))
    store.put_object(Bucket="bucket", Key=of(20, "rank00000.safetensors"), Body=b"cut")
    store.put_object(Bucket="bucket", Key=of(30, "COMMIT.json"), Body=there[of(30, "COMMIT.json")].replace(b'"seed": 0', b'"seed": 1'))
    evil = json.loads(there[of(40, "COMMIT.json")])
    evil["files"]["../../../evil"] = {"bytes": 1, "sha256": ""}
    store.put_object(Bucket="bucket", Key=of(40, "COMMIT.json"), Body=json.dumps(evil | {"seal": seal_of(evil)}))
    assert list(Copy(WHERE, run_dir, owner()).look()) == ["000000050"]
    said = capsys.readouterr().err
    for words in (
        "has no bytes, 200 were committed",
        "has 3 bytes",
        "does not fit its own seal",
        "does not say what '../../../evil' holds",
    ):
        assert words in said


def test_objects_whose_names_lead_elsewhere_are_not_fetched(store, copied, tmp_path):
    for name in ("../evil", "tensorboard/../../evil", "tensorboard/.hidden", "other/evil"):
        store.put_object(Bucket="bucket", Key=f"runs/a/{name}", Body=b"evil")
    copy = Copy(WHERE, tmp_path / "deep/elsewhere", owner())
    copy.look()
    copy.fetch("000000010", beside=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


def test_one_that_is_set_aside_is_whole_under_its_new_name_and_no_checkpoint_any_more(store, copied, held, run_dir):
    assert held.set_aside("000000010", "aside") == f"{WHERE}/checkpoints/000000010.aside1"
    assert {name.partition("/")[0] for name in names(store)} == {"000000010.aside1"} and len(names(store)) == 3
    assert Copy(WHERE, run_dir, owner()).look() == {}
    held.put_commit("000000010", 2, [])
    assert held.set_aside("000000010", "aside") == f"{WHERE}/checkpoints/000000010.aside2"


# ---------------------------------------------------------------- who may write


def test_who_has_let_go_counts_no_more_not_even_where_a_count_was_under_way(store, held, monkeypatch):
    check, leaving = held.check_lease, threading.Thread(target=held.let_go)

    def looked():
        check()
        leaving.start()
        leaving.join(1)  # which waits for the count; else the lease would be gone now, and written again behind it

    monkeypatch.setattr(held, "check_lease", looked)
    held.count()
    leaving.join()
    monkeypatch.setattr(held, "check_lease", check)
    held.count()
    assert "lease.json" not in listing(store, "runs/a/")


def test_a_second_run_is_refused_while_the_first_one_lives(store, held, run_dir):
    held.let_go()
    parent = os.getppid()
    here = Copy(WHERE, run_dir, owner(pid=parent, began=_began(parent)))
    here.hold()
    with pytest.raises(BusyError, match=rf"copy_to=s3://bucket/runs/a: another run writes there \(process {parent} on {here.owner.host}"):
        held.hold()
    here.let_go()
    elsewhere = Copy(WHERE, run_dir, owner(host="elsewhere", job="SLURM_JOB_ID 7"))
    elsewhere.hold()
    over = threading.Event()

    def live():
        while not over.wait(0.02):
            elsewhere.count()

    threading.Thread(target=live, daemon=True).start()
    try:
        with pytest.raises(BusyError, match="on elsewhere, SLURM_JOB_ID 7"):
            Copy(WHERE, run_dir, owner()).hold()
    finally:
        over.set()


def test_whoever_is_gone_is_succeeded(store, run_dir, capsys):
    Copy(WHERE, run_dir, owner(host="elsewhere")).hold()
    began = time.monotonic()
    Copy(WHERE, run_dir, owner()).hold()
    assert time.monotonic() - began >= copier.DEAD_SECONDS
    said = capsys.readouterr().err
    assert "whether process" in said and "on elsewhere has not counted on for 0 s: its copy is taken over" in said
    ended = Copy(WHERE, run_dir, owner(began="another of this number"))  # of this host
    ended._write_lease()
    Copy(WHERE, run_dir, owner()).hold()
    assert "taken over" not in capsys.readouterr().err


def test_a_lease_that_is_long_out_of_date_is_not_waited_for(store, run_dir, monkeypatch):
    monkeypatch.setattr(copier, "DEAD_SECONDS", 600)
    data = asdict(owner(host="elsewhere")) | {"time": time.time() - 601}
    store.put_object(Bucket="bucket", Key="runs/a/lease.json", Body=json.dumps(data))
    Copy(WHERE, run_dir, owner()).hold()


def test_who_was_taken_over_commits_and_deletes_nothing_any_more(store, held, run_dir):
    commit(run_dir, 10)
    held.put_commit("000000010", 2, [])
    commit(run_dir, 20)
    taken = []

    def behave(method, key):
        if method == "PUT" and key.endswith("000000020/rank00001.safetensors") and not taken:  # in the middle of a copy
            taken.append(key)
            data = asdict(owner(host="elsewhere")) | {"time": time.time()}
            store.put_object(Bucket="bucket", Key="runs/a/lease.json", Body=json.dumps(data))

    store.between.behave = behave
    with pytest.raises(BusyError, match="on elsewhere"):
        held.put_commit("000000020", 1, [])
    assert list(Copy(WHERE, run_dir, owner()).look()) == ["000000010"]
    with pytest.raises(BusyError):
        held.count()
    held.let_go()  # not its own
    assert json.loads(listing(store)["runs/a/lease.json"])["host"] == "elsewhere"


# ---------------------------------------------------------------- stores in trouble


@pytest.mark.parametrize("word", [503, 429, "cut", "stall"])
def test_a_store_that_recovers_gets_all(store, held, run_dir, word):
    commit(run_dir, 10)
    seen = set()

    def once(method, key):
        if (method, key) in seen or method == "HEAD" or not key.endswith(("rank00001.safetensors", ".json")):
            return None
        seen.add((method, key))
        return word

    store.between.behave = once
    held.put_commit("000000010", 2, [])
    assert list(Copy(WHERE, run_dir, owner()).look()) == ["000000010"]


@pytest.mark.parametrize(
    ("word", "kind", "said"),
    [
        (503, DataError, "still so after several tries; check the server and the network"),
        (429, DataError, "still so after several tries"),
        ("stall", DataError, "still so after several tries"),
        (403, Refused, r"may not be read or written with these credentials \(403\)"),
        (404, Refused, "there is no such bucket"),
    ],
)
def test_a_store_that_does_not_recover_is_told_of_in_words_that_hold_no_key(store, held, run_dir, word, kind, said, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", replace(retries.PATIENCE, waits=(0,)))
    commit(run_dir, 10)
    store.between.behave = lambda method, key: word if method == "PUT" else None
    with pytest.raises(kind, match=said) as caught:
        held.put_commit("000000010", 2, [])
    assert "secret" not in str(caught.value)


def test_a_process_whose_store_hangs_says_so_and_is_ended(tmp_path, monkeypatch):
    """Whatever the store does: here it is never asked."""
    left, answers = [], []
    monkeypatch.setattr(copier.os, "_exit", lambda status: (left.append(status), threading.Event().wait()))
    orders = {"where": "memory://a/b", "run_dir": str(tmp_path), "owner": asdict(owner(pid=copier.os.getppid()))}
    orders["patience"] = asdict(replace(retries.PATIENCE, stall_seconds=0.2))
    monkeypatch.setattr(retries, "PATIENCE", retries.PATIENCE)  # which it sets: put back at the end
    process = Copier(orders, None)
    process.answer = answers.append
    process._busy = True
    threading.Thread(target=process._look_around, daemon=True).start()
    for _ in range(100):
        time.sleep(0.05)
        if left:
            break
    assert left == [1] and answers == [{"failed": "memory://a/b: has taken and given nothing for 0.2 s", "kind": "Stalled"}]


def test_the_doctor_learns_what_the_store_takes_and_leaves_nothing(store, run_dir, monkeypatch):
    monkeypatch.setattr(copier, "PROBE_BYTES", 2 << 20)
    found = Copy(WHERE, run_dir, owner()).probe()
    assert found["bytes_per_second"] > 0 and found["held"] is None and listing(store) == {}
    store.between.behave = lambda method, key: 403 if method == "DELETE" else None
    with pytest.raises(Refused, match="403"):
        Copy(WHERE, run_dir, owner()).probe()


def test_of_two_that_begin_in_the_same_instant_one_goes_on(store, run_dir):
    first, second = Copy(WHERE, run_dir, owner(host="first")), Copy(WHERE, run_dir, owner(host="second"))
    first.hold()
    store.delete_object(Bucket="bucket", Key="runs/a/lease.json")  # as the second sees it, who has looked before
    second.hold()
    second.confirm()
    with pytest.raises(BusyError, match="on second"):
        first.confirm()
