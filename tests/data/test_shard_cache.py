"""Shards that are read through a folder of this machine's disk: the same bytes, fetched once, in the order of need, within the limit, whatever the
store does."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mpp.base.errors import BadSample, ConfigError, DataError
from mpp.data.cache_folder import CacheFolder
from mpp.data.keeping import BEGUN
from mpp.data.order import EveryOnce, Order
from mpp.data.shard_cache import _keepers, cached_set, caching, end_keepers
from mpp.data.shards import ShardSet
from mpp.disk.patience import disks
from mpp.processes.watch import watch
from mpp.processes.watchman import process_state
from tests.conftest import write_shards
from tests.object_store import ObjectStore

SHARDS, SAMPLES = 8, 6  # of the set; of a shard
KEYS = "bucket/set/train/*.tar"
TWO = "bucket/set/train/00000[25].tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("made") / "train", [SAMPLES] * SHARDS)


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """It holds a copy of the set at s3://bucket/set/train; keepers look at the patience of a second."""
    shutil.copytree(made, tmp_path / "store" / "bucket" / "set" / "train")
    monkeypatch.setattr(disks, "patience", 2.0)
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush-hush"}.items():
        monkeypatch.setenv(name, value)
    with ObjectStore(tmp_path / "store") as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    caching.use(str(tmp_path / "cache"), 1.0)
    yield tmp_path / "cache"
    end_keepers()
    caching.use(None, None)


def opened(limit: float | None = None, where: str = "s3://bucket/set/train") -> ShardSet:
    """limit: shards' worth of room."""
    if limit is not None:
        caching.use(caching.folder, limit * 1e-9 * largest())
    return ShardSet.open(where)


def largest() -> int:
    return 60_000


def images_of(shards: ShardSet) -> list[bytes]:
    return [shards.read(sample) for sample in range(len(shards))]


def held(cache: Path) -> int:
    """Bytes of all shards there, counted while none comes or goes."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in cache.glob("sets/*/*.tar"))


def tars(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("sets/*/*.tar"))


def wait_for(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------ the same set


def test_a_store_a_web_server_and_a_far_disk_give_what_the_folder_gives_and_each_shard_is_fetched_once(store, made, tmp_path):
    caching.use(None, None)
    near = ShardSet.open(made)
    caching.use(str(tmp_path / "cache"), 1.0)
    for where in ("s3://bucket/set/train", f"{store.endpoint}/bucket/set/train", str(made)):
        end_keepers()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        store.forget()
        far = ShardSet.open(where)
        assert images_of(far) == images_of(near)
        assert far.identity == near.identity and (far.samples_per_shard == near.samples_per_shard).all()
        assert (far.labels == near.labels).all() and far.where(7) == near.where(7)
        if where != str(made):
            fetched = store.fetched("bucket/set/train/*")
            assert len(fetched) == SHARDS + 2 and set(fetched.values()) <= {1, 2}, "web servers are asked for sizes, by their first bytes"
            assert store.sent("*.tar").total() <= sum(path.stat().st_size for path in made.glob("*.tar")) + SHARDS
    assert tars(tmp_path / "cache") == [f"{number:06d}.tar" for number in range(SHARDS)]


def test_a_shard_without_a_byte_is_there_at_once(store, tmp_path, monkeypatch):
    split = write_shards(tmp_path / "store" / "bucket" / "odd", [SAMPLES])
    manifest = json.loads((split / "manifest.json").read_text())
    manifest["shards"].append({"name": "000001.tar", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest(), "samples": 0})
    (split / "manifest.json").write_text(json.dumps(manifest))
    (split / "000001.tar").touch()
    monkeypatch.setattr(watch, "slow", 10.0)
    for where in (str(split), "s3://bucket/odd"):
        end_keepers()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        cached_set(where).want(["000001.tar"])
        assert tars(tmp_path / "cache") == ["000001.tar"]


def test_what_is_there_from_an_earlier_job_is_not_fetched_again(store, cache):
    images_of(opened())
    end_keepers()
    store.forget()
    images_of(opened())
    assert store.fetched(KEYS).total() == 0 and store.fetched("*index.bin").total() == 0 and store.fetched("*manifest.json").total() == 1


def test_two_processes_of_a_machine_fetch_each_shard_once(store, cache):
    far = opened()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            try:
                images_of(far)
                os._exit(0)
            except BaseException:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert store.fetched(KEYS) == dict.fromkeys([f"bucket/set/train/{number:06d}.tar" for number in range(SHARDS)], 1)


def test_two_jobs_with_one_cache_fetch_each_shard_once_between_them(store, cache, made):
    code = (
        "import sys; from mpp.data.shards import ShardSet; from mpp.data.shard_cache import caching\n"
        f"caching.use({str(cache)!r}, 1.0); far = ShardSet.open('s3://bucket/set/train')\n"
        "print(sum(len(far.read(sample)) for sample in range(len(far))))"
    )
    store.rate = 400_000  # so that both are at work at once
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {job.communicate(timeout=120)[0].strip() for job in jobs}
    assert len(told) == 1 and int(told.pop()) > 0
    assert set(store.fetched(KEYS).values()) == {1} and tars(cache) == [f"{number:06d}.tar" for number in range(SHARDS)]


# ------------------------------------------------------------------------------------------------ order, room


def sampler(ids: list[int], batch: int = 1) -> EveryOnce:
    return EveryOnce(np.array(ids), batch, 0, 1)


def test_shards_come_in_the_order_of_need_before_anybody_asks(store, cache):
    far = opened()
    wanted = [5, 7, 6, 2, 4, 0, 3, 1]
    done = far.expects(sampler([shard * SAMPLES for shard in wanted]))
    wait_for(lambda: len(tars(cache)) == len(wanted))
    asked = [int(answer.key[-5]) for answer in store.log if answer.method == "GET" and answer.key.endswith(".tar")]
    assert set(asked) == set(wanted)
    for place, shard in enumerate(asked):  # of BEGUN that are on their way together, any may come first
        assert wanted.index(shard) < place + BEGUN
    done(-1)


def test_a_cache_smaller_than_the_set_holds_what_is_needed_next_and_each_shard_is_fetched_once_an_epoch(store, cache):
    far = opened(limit=3)
    ids = [shard * SAMPLES + nth for shard in (3, 1, 6, 0, 7, 2, 5, 4) for nth in range(SAMPLES)]
    done = far.expects(sampler(ids))
    for number, sample in enumerate(ids):
        done(number)
        far.ahead([sample])
        assert far.read(sample)
        assert held(cache) <= 3 * largest()
    assert set(store.fetched(KEYS).values()) == {1}
    done(-1)


def test_the_shard_that_makes_way_is_the_one_needed_last(store, cache):
    sizes = sorted(store.path(f"bucket/set/train/{number:06d}.tar").stat().st_size for number in range(SHARDS))
    far = opened(limit=(sizes[-1] + sizes[-2]) * 1.01 / largest())
    order = [0, 1, 0, 2, 0, 3, 0, 1, 0]  # shard 0 is always needed next but one
    ids = [shard * SAMPLES for shard in order]
    done = far.expects(sampler(ids))
    for number, sample in enumerate(ids):
        done(number)
        far.ahead([sample])
        far.read(sample)
    assert store.fetched("*000000.tar").total() == 1
    done(-1)


def test_a_shard_that_made_way_takes_no_room_any_more(store, cache):
    far = opened(limit=3)
    for sample in range(0, len(far), SAMPLES):
        far.ahead([sample])
        far.read(sample)
    far.ahead([len(far) - 1])
    held = [str(handle.readlink()) for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
    assert not [path for path in held if path.endswith(".tar (deleted)")]


def test_a_cache_in_which_nothing_fits_is_refused_with_what_would(store):
    far = opened(limit=3)
    with pytest.raises(
        ConfigError,
        match=r"s3://bucket/set/train: a machine reads from up to 8 shards, [\d.]+ kB in an epoch, and the cache holds [\d.]+ kB",
    ):
        far.in_hand(Order(tuple(far.samples_per_shard), 12, 12, 0), 1, 1)


def test_jobs_that_cannot_have_their_shards_in_hand_together_are_told_who_has_the_room(store, cache):
    far = opened(limit=5)
    done = far.expects(sampler([0]), 3 * largest())
    other = CacheFolder(cache, 5 * largest() * 1e-9)
    other.claim(3 * largest(), [])
    with pytest.raises(
        DataError, match=rf"other jobs here \(processes {os.getpid()}\) have up to [\d.]+ kB in hand and this one [\d.]+ kB"
    ):
        far.expects(sampler([0]), 0)
    other.close()
    done(-1)
    far.expects(sampler([0]), 0)(-1)


def test_a_keeper_that_waits_for_its_folder_keeps_nobody_who_has_his_shards(store, cache):
    """As where the keeper of another job was suspended while it held the folder of both."""
    far = opened()
    first = far.read(0)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = far.expects(sampler(list(range(SHARDS * SAMPLES))))
        time.sleep(0.5)  # it looks for a shard to fetch, and waits
        for number in range(2000):
            done(number // 50)
        assert far.read(0) == first
        ends = threading.Timer(2.5, fcntl.flock, (lock, fcntl.LOCK_UN))
        ends.start()
        done(-1)  # which is waited for
        ends.join()
    assert len(images_of(far)) == SHARDS * SAMPLES


# ------------------------------------------------------------------------------------------------ stores that misbehave


FAULTS = {
    "stalls": lambda faults: faults.stall(TWO, 3.0, together=True, times=1),
    "cuts": lambda faults: faults.cut(TWO, times=1),
    "announces more than it sends": lambda faults: faults.length(TWO, 50, times=1),
    "announces less than it sends": lambda faults: faults.length(TWO, -50, times=1),
    "is asked too often": lambda faults: faults.status(TWO, 429, times=1),
    "slows down": lambda faults: faults.status(TWO, 503, times=1),
    "flips a bit": lambda faults: faults.flip(TWO, times=1),
    "forbids for a moment": lambda faults: faults.status(TWO, 403, times=1, together=True),
    "loses and finds an object": lambda faults: faults.status(TWO, 404, times=1, together=True),
    "gives all for a range": lambda faults: faults.whole(TWO),
}


@pytest.mark.parametrize("scheme", ["s3", pytest.param("http", marks=pytest.mark.long)])
@pytest.mark.parametrize("what", FAULTS, ids=lambda what: what.replace(" ", "-"))
def test_a_store_that_misbehaves_for_a_while_changes_nothing(store, made, what, scheme, cache):
    far = opened(where="s3://bucket/set/train" if scheme == "s3" else f"{store.endpoint}/bucket/set/train")
    fault = FAULTS[what](store.faults)
    caching.use(None, None)
    assert images_of(far) == images_of(ShardSet.open(made))
    assert fault.met and not list(cache.glob("sets/*/.*.part"))


def test_what_has_its_name_in_the_cache_is_what_the_manifest_says(store, cache, made):
    far = opened()
    store.faults.flip(KEYS)
    done = far.expects(sampler(list(range(len(far)))))
    wait_for(lambda: len(tars(cache)) == SHARDS)
    assert all(path.read_bytes() == (made / path.name).read_bytes() for path in cache.glob("sets/*/*.tar"))
    done(-1)


def test_a_store_that_cannot_be_reached_for_a_while_is_waited_for(store, monkeypatch):
    monkeypatch.setattr(disks, "patience", 8.0)
    far = opened()
    store.refuse(2.5)
    assert far.read(0) and far.read(len(far) - 1)


@pytest.mark.parametrize(
    "fault, words",
    [
        (lambda faults: faults.vanish("bucket/set/train/000003.tar"), r"s3://bucket/set/train/000003.tar: is not there \(404\)"),
        pytest.param(
            lambda faults: faults.status("bucket/set/train/000003.tar", 403, times=None),
            r"000003.tar: may not be read .* \(403\)",
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda faults: faults.status("bucket/set/train/000003.tar", 503, times=None),
            r"000003.tar: .*(SlowDown|503|reduce)",
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda faults: faults.stall("bucket/set/train/000003.tar", 60, times=None),
            r"000003.tar: .*([Tt]ime|timed out)",
            marks=pytest.mark.long,
        ),
        pytest.param(lambda faults: faults.cut("bucket/set/train/000003.tar", times=None), r"000003.tar: ", marks=pytest.mark.long),
    ],
    ids=["lost", "forbidden", "overloaded", "stalled", "cut"],
)
def test_a_shard_that_cannot_be_had_is_named_by_whoever_needs_it_and_others_still_come(store, fault, words, cache):
    far = opened()
    fault(store.faults)
    done = far.expects(sampler(list(range(len(far)))))
    assert all(far.read(sample) for sample in range(len(far)) if sample // SAMPLES != 3)
    with pytest.raises(DataError, match=words) as raised:
        far.read(3 * SAMPLES)
    assert "hush" not in str(raised.value) and ";" in str(raised.value)
    store.faults.clear()
    assert far.read(3 * SAMPLES), "who asks again has it tried again"
    assert not list(cache.glob("sets/*/.*.part"))
    done(-1)


def test_credentials_that_are_rotated_are_looked_for_anew(store, tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "patience", 8.0)
    file = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = hush-hush\n")
    store.credentials = {"OLD"}
    far = opened()
    assert far.read(0)
    store.rotate("NEW")
    threading.Timer(1.0, lambda: file.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = hush-hush\n")).start()
    assert far.read(len(far) - 1)


def test_bytes_that_are_not_the_manifests_also_when_fetched_again_are_judged_sample_by_sample_as_on_a_disk(store, made, tmp_path):
    tar = store.path("bucket/set/train/000002.tar")
    data = bytearray(tar.read_bytes())
    caching.use(None, None)
    near = ShardSet.open(made)
    row = near.index.row(2 * SAMPLES + 1)
    data[row.offset + row.size // 2] ^= 1
    tar.write_bytes(data)
    caching.use(str(tmp_path / "cache"), 1.0)
    far = opened()
    with pytest.raises(BadSample, match="CRC-32 is"):
        far.read(2 * SAMPLES + 1)
    assert far.read(2 * SAMPLES) == near.read(2 * SAMPLES) and far.read(2 * SAMPLES + 2) == near.read(2 * SAMPLES + 2)
    assert store.fetched("*000002.tar").total() == 2


def test_wrong_bytes_that_are_others_each_time_are_fetched_until_they_are_right(store, made, cache, monkeypatch):
    monkeypatch.setattr(disks, "patience", 20.0)
    far = opened()
    wrong = [store.faults.flip("*000002.tar", at=at) for at in (0.2, 0.5)]
    caching.use(None, None)
    assert images_of(far) == images_of(ShardSet.open(made)) and all(fault.met for fault in wrong)
    assert (cache / "sets" / far.cached.key / "000002.tar").read_bytes() == (made / "000002.tar").read_bytes()


def test_a_set_that_another_has_taken_the_place_of_is_named_as_that(store, tmp_path):
    far = opened()
    other = write_shards(tmp_path / "other", [SAMPLES - 1] * SHARDS)
    tar = store.path("bucket/set/train/000002.tar")
    tar.write_bytes(bytes(tar.stat().st_size))
    shutil.copy(other / "manifest.json", store.path("bucket/set/train/manifest.json"))
    with pytest.raises(DataError, match=r"000002\.tar: is another file now, and so is the manifest\.json beside it"):
        far.read(2 * SAMPLES)


@pytest.mark.parametrize("left", ["one bit is another", "its end is missing", "only zeros", "nothing"])
def test_a_copy_that_rots_in_the_cache_or_was_half_written_when_a_machine_failed_is_fetched_anew(store, cache, left):
    far = opened()
    good = images_of(far)
    copy = next(cache.glob("sets/*/000004.tar"))
    data = bytearray(copy.read_bytes())
    row = far.index.row(4 * SAMPLES)
    data[row.offset + 9] ^= 4
    kept = {"one bit is another": data, "its end is missing": data[: row.offset + 5], "only zeros": bytes(len(data)), "nothing": b""}
    far.ahead([0])
    copy.write_bytes(kept[left])
    assert far.read(4 * SAMPLES) == good[4 * SAMPLES] and store.fetched("*000004.tar").total() == 2


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda store: store.faults.vanish("bucket/set/train/000001.tar"), r"train/000001.tar: is missing, the manifest lists it"),
        (lambda store: store.faults.size("bucket/set/train/000001.tar", -7), r"train/000001.tar: has \d+ bytes, the manifest says \d+"),
        (lambda store: store.faults.vanish("bucket/set/train/manifest.json"), r"train: has no manifest.json"),
        (lambda store: store.faults.vanish("bucket/set/train/index.bin"), r"index.bin: (is not there \(404\)|the server answers 404)"),
        (lambda store: store.faults.flip("bucket/set/train/index.bin", times=None), r"index.bin: sha256 is .*, the manifest says"),
        (
            lambda store: store.faults.status("*", 403, times=None, methods=("GET", "LIST", "HEAD")),
            r"(may not be read .*\(403\)|the server answers 403)",
        ),
    ],
    ids=["lost-shard", "another-size", "no-manifest", "no-index", "damaged-index", "forbidden"],
)
@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_set_that_is_not_whole_is_refused_when_it_is_opened(store, spoil, words, scheme):
    if scheme == "http" and "has" in words.split():
        return  # a web server tells sizes with the bytes
    spoil(store)
    with pytest.raises(DataError, match=words):
        opened(where="s3://bucket/set/train" if scheme == "s3" else f"{store.endpoint}/bucket/set/train")


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_store_that_is_in_trouble_while_a_set_is_opened_is_waited_for(store, monkeypatch, scheme):
    monkeypatch.setattr(disks, "patience", 4.0)
    fault = store.faults.status("*manifest.json", 503, methods=("GET", "HEAD"), times=5, together=True)
    assert opened(where="s3://bucket/set/train" if scheme == "s3" else f"{store.endpoint}/bucket/set/train").read(0)
    assert fault.met == 5, "more than one round of tries"


def test_a_web_server_that_limits_how_often_it_is_asked_need_not_tell_sizes(store):
    fault = store.faults.status("*.tar", 429, times=None)
    assert len(opened(where=f"{store.endpoint}/bucket/set/train")) == SHARDS * SAMPLES and fault.met


def test_a_listing_that_lags_behind_is_not_believed(store, cache):
    store.faults.status("bucket/set/train/00000[25].tar", 404, methods=("ENTRY",), times=None)
    assert len(images_of(opened())) == SHARDS * SAMPLES


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_page_of_somebody_elses_is_told_with_the_address_and_leaves_nothing(store, cache, scheme):
    store.path("bucket/set/train/manifest.json").write_text("<html>please log in</html>")
    where = "s3://bucket/set/train" if scheme == "s3" else f"{store.endpoint}/bucket/set/train"
    with pytest.raises(DataError, match=rf"^{where}/manifest\.json: is not a JSON object"):
        opened(where=where)
    assert not list((cache / "sets").iterdir())


def test_an_address_that_is_none_is_refused_and_one_that_ends_in_a_query():
    with pytest.raises(DataError, match=r"https://\[::1/train: is no address of a server \(Invalid IPv6 URL\)"):
        ShardSet.open("https://[::1/train")
    with pytest.raises(DataError, match=r"https://host/train\?x=1: ends in \?x=1, and files are looked for below an address"):
        ShardSet.open("https://host/train?x=1")


KEYS_IN_ADDRESSES = (
    "https://user:hush@host/train",
    "https://host/train?X-Amz-Signature=hush",
    "https://host/train?sv=2024-11-04&sr=c&se=2027-01-01&sp=rl&sig=hush",
    "s3://key:hush@bucket/train",
)


@pytest.mark.parametrize("url", KEYS_IN_ADDRESSES)
def test_an_address_with_a_key_in_it_is_refused_and_not_told(url):
    with pytest.raises(DataError, match="carries a password, key or signature") as raised:
        ShardSet.open(url)
    assert "hush" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ a machine that misbehaves


def test_a_cache_that_is_deleted_under_a_job_is_told_as_that_and_not_as_the_stores_fault(store, cache):
    far = opened()
    assert far.read(0)
    shutil.rmtree(cache)
    with pytest.raises(
        DataError,
        match=rf"^system\.cache={cache}: {cache}/.* was deleted or renamed under the program.* or give another folder; then resume$",
    ):
        images_of(far)
    end_keepers()
    assert len(images_of(opened())) == SHARDS * SAMPLES


def test_shards_that_are_deleted_under_a_job_with_their_folder_are_fetched_again(store, cache):
    far = opened()
    good = images_of(far)
    shutil.rmtree(cache / "sets" / far.cached.key)
    far.ahead([0])
    assert images_of(far) == good


def test_who_waits_for_a_stopped_keeper_ends_with_the_process_it_works_for(store, cache):
    code = (
        "import multiprocessing, os, signal, time\n"
        "from mpp.data.shards import ShardSet\n"
        "from mpp.data.shard_cache import caching, _keepers\n"
        f"caching.use({str(cache)!r}, 1.0); far = ShardSet.open('s3://bucket/set/train'); [(keeper, _)] = _keepers.values()\n"
        "keeper.send_signal(signal.SIGSTOP)\n"
        "workers = [multiprocessing.get_context('fork').Process(target=far.read, args=[0]) for _ in range(2)]\n"
        "[worker.start() for worker in workers]; time.sleep(0.5)\n"
        "print(keeper.pid, *[worker.pid for worker in workers], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert job.stdout
    keeper, *workers = map(int, job.stdout.readline().split())
    try:
        wait_for(lambda: all(process_state(worker)[0] in ("", "Z") for worker in workers))
    finally:
        for pid in (keeper, *workers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.wait()


def test_a_keeper_that_gets_no_socket_is_one_line(tmp_path):
    code = (
        "import errno, tempfile\n"
        "def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device', '/tmp/x')\n"
        "tempfile.mkdtemp = full\n"
        "from mpp.data.keeper import main\n"
        f'main([\'{{"folder": "{tmp_path}/cache", "gigabytes": 1.0, "patience": 1.0}}\'])'
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not told.stderr and json.loads(told.stdout)["error"] == (
        "TMPDIR, where the keeper of the cache has its socket: /tmp/x cannot be written or read (No space left on device): make room there; or set it "
        "to another folder"
    )


def test_a_killed_download_leaves_nothing_that_counts_and_the_next_job_fetches_it_whole(store, cache):
    far = opened()
    store.faults.stall(KEYS, 30, times=None)
    done = far.expects(sampler(list(range(len(far)))))
    wait_for(lambda: list(cache.glob("sets/*/.*.part")))
    for process, _ in _keepers.values():
        process.kill()
        process.wait()
    with pytest.raises(DataError, match="the keeper of the cache, a process of this machine, is gone"):
        far.read(0)
    assert not tars(cache)
    del done
    store.faults.clear()
    again = opened()
    assert len(images_of(again)) == SHARDS * SAMPLES and not list(cache.glob("sets/*/.*.part")) and len(tars(cache)) == SHARDS


def test_the_keeper_ends_with_its_job_and_takes_its_socket_with_it(store, cache):
    code = (
        "import os, signal; from mpp.data.shards import ShardSet; from mpp.data.shard_cache import caching, _keepers\n"
        f"caching.use({str(cache)!r}, 1.0); ShardSet.open('s3://bucket/set/train')\n"
        "[(process, address)] = _keepers.values(); print(process.pid, address, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout.split()
    try:
        wait_for(lambda: not Path(told[1]).parent.exists())
        wait_for(lambda: process_state(int(told[0]))[0] in ("", "Z"))
        assert list((cache / "keepers").iterdir()) == []
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(told[0]), signal.SIGKILL)


def test_a_request_to_stop_that_reaches_all_processes_leaves_the_keeper_at_work(store):
    far = opened()
    [(process, _)] = _keepers.values()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process.send_signal(number)
    assert far.read(0) and process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small disk is mounted, which needs root")
def test_a_full_disk_is_told_with_what_is_free_and_a_run_goes_on_when_there_is_room(store, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        caching.use(str(small / "cache"), 1.0)
        far = ShardSet.open("s3://bucket/set/train")
        (small / "others").write_bytes(bytes(300_000))
        with pytest.raises(
            DataError, match=r"has no room for s3://bucket/set/train/00000\d.tar .*: the disk has [\d.]+ kB left; make room"
        ):
            images_of(far)
        assert not list(small.glob("cache/sets/*/.*.part"))
        (small / "others").unlink()
        assert len(images_of(far)) == SHARDS * SAMPLES, "with less room than the limit says, others make way"
    finally:
        end_keepers()
        far.ahead([])
        del far
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_the_sockets_of_a_keeper_that_was_killed_go_when_the_next_one_begins_and_those_of_one_that_lives_stay(made, tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="mpp-test-") as short:  # a socket's path has 107 bytes at most
        monkeypatch.setenv("TMPDIR", short)
        homes = lambda: {path for path in Path(short).iterdir() if path.name.startswith("mpp-keeper-")}
        cached_set(str(made))
        (killed,) = homes()
        end_keepers()
        cached_set(str(made))
        (lives,) = homes() - {killed}
        for home in (killed, lives):
            os.utime(home / "lock", (1e9, 1e9))
        caching.use(str(tmp_path / "other"), 1.0)
        cached_set(str(made))
        assert killed not in homes() and lives in homes() and len(homes()) == 2
        end_keepers()
