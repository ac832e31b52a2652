"""What workers do to the machine, and what the machine does to them."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mpp.base.errors import ConfigError, DataError
from mpp.data.crop_dataset import CropDataset
from mpp.data.handing_over import PREFETCHED, kill_workers
from mpp.data.loader import batches, default_workers
from mpp.data.order import Parts
from tests.data.masked_images import dataset, sampler
from tests.forks import run_forked


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_disk_stops_the_run_with_one_error_whatever_the_workers(tmp_path, make_shards, monkeypatch, workers):
    folder = make_shards(tmp_path / "train", [6, 8])
    monkeypatch.setattr("mpp.disk.patience.Disks.patience", 0.0)
    data = dataset(folder)
    (folder / "000001.tar").unlink()
    with pytest.raises(DataError, match=r"train/000001.tar.*No such file"):
        list(batches(data, sampler(data, 0, 1), workers, pin_memory=False))


@dataclass(frozen=True)
class Deadly(CropDataset):
    """The worker that is asked for the run's first sample is killed, as by a kernel out of memory, while everybody waits for it."""

    main: int = 0

    def __getitems__(self, keys):
        if os.getpid() != self.main and any(position == 0 for _, _, position in keys):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitems__(keys)


@pytest.fixture(autouse=True)
def none_left():
    """Of a loader that failed, torch waits for ten seconds for each."""
    yield
    kill_workers()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_an_error_and_no_hang(tiny_shards, workers):
    own = dataset(tiny_shards)
    data = Deadly(own.pixels, own.augment, own.seed, own.pool, masking=own.masking, main=os.getpid())
    with pytest.raises(DataError, match="a loader process died"):
        list(batches(data, sampler(data), workers, pin_memory=False))


def test_default_workers_leave_a_core_for_each_rank(monkeypatch):
    for count, local_world, expected in [(16, 1, 15), (64, 1, 16), (16, 4, 3), (2, 1, 1), (1, 1, 1), (8, 8, 1)]:
        monkeypatch.setattr("mpp.data.loader.usable_cores", lambda count=count: count)
        assert default_workers(local_world) == expected


def test_running_out_of_memory_is_an_error_of_the_run_and_no_bad_sample(tiny_shards, monkeypatch):
    data = dataset(tiny_shards)
    monkeypatch.setattr("mpp.data.pixels.cut", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(DataError, match=r"ran out of memory among samples 7, .*lower system.workers.*features.workers"):
        list(batches(data, [[(0, 7, 0)]], 0, pin_memory=False))


@dataclass(frozen=True)
class Faulty(CropDataset):
    def batch(self, keys):
        raise RuntimeError(f"of the program, at {keys[0]}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_in_a_worker_keeps_its_traceback(tiny_shards, workers):
    own = dataset(tiny_shards)
    data = Faulty(own.pixels, own.augment, own.seed, own.pool, masking=own.masking)
    with pytest.raises(RuntimeError, match="of the program, at"):
        list(batches(data, sampler(data), workers, pin_memory=False))


def test_too_little_shared_memory_is_refused_before_workers_start(tiny_shards, monkeypatch):
    monkeypatch.setattr("mpp.data.loader.shutil.disk_usage", lambda _: type("Usage", (), {"free": 20_000}))
    data = dataset(tiny_shards)
    with pytest.raises(
        ConfigError,
        match=r"^2 loader processes .*through /dev/shm, up to [\d.]+ kB, and 20 kB are free; lower system.workers .*features.workers .*shm-size",
    ):
        list(batches(data, sampler(data), 2, pin_memory=False))
    assert len(list(batches(data, sampler(data), 0, pin_memory=False))) == 15
    one = Parts(data.ids, [range(4)])
    monkeypatch.setattr("mpp.data.loader.shutil.disk_usage", lambda _: type("Usage", (), {"free": data.bytes_of(4)}))
    assert len(list(batches(data, one, 2, pin_memory=False))) == 1  # of which no more than one can be in flight


def test_a_worker_writes_its_images_into_shared_memory(tiny_shards, monkeypatch):
    monkeypatch.setattr("mpp.data.crop_dataset.get_worker_info", lambda: "a worker")
    assert dataset(tiny_shards).batch([(0, 7, 0)])["image"].is_shared()
    monkeypatch.setattr("mpp.data.crop_dataset.get_worker_info", lambda: None)
    assert not dataset(tiny_shards).batch([(0, 7, 0)])["image"].is_shared()


def test_batches_of_any_size_share_the_slots_of_shared_memory_and_no_two_in_flight_one(tiny_shards, monkeypatch):
    monkeypatch.setattr("mpp.data.crop_dataset.get_worker_info", lambda: "a worker")
    monkeypatch.setattr("mpp.data.crop_dataset._slots", [])
    data, places = dataset(tiny_shards), []
    for number in range(80):
        count = (1, 3, 4, 2, 4, 1, 3)[number % 7]
        image = data.batch([(0, sample, sample) for sample in range(count)])["image"]
        assert image.shape[0] == count
        places.append(image)  # kept, so that no other can get its memory
    found = [image.untyped_storage().data_ptr() for image in places]
    assert all(len(set(found[first : first + PREFETCHED + 1])) == PREFETCHED + 1 for first in range(76))
    assert len(set(found[40:])) == PREFETCHED + 1


def test_a_batch_takes_no_more_memory_than_is_asked_for(tiny_shards):
    data = dataset(tiny_shards)
    batch = data.batch([(0, sample, sample) for sample in range(4)])
    assert sum(value.nbytes for name, value in batch.items() if name != "bad") <= data.bytes_of(4)


LEAVES = """
import os, sys, tempfile
tempfile.tempdir = None  # whoever forked this program may have asked for it before
from mpp.data.loader import batches
from mpp.base.errors import UserError, at_leaving, run_program
from mpp.processes.watch import leave_at_once
from tests.data.masked_images import dataset, sampler
how, shards = sys.argv[1:]

def main(argv):
    data = dataset(shards)
    own = batches(data, sampler(data), 2, pin_memory=False)
    first = next(own)
    print(sorted(os.listdir(os.environ["TMPDIR"])), flush=True)
    if how == "stops":
        raise UserError("as asked")
    if how == "is_ended":
        leave_at_once(75)
    if how == "is_killed":
        os.kill(os.getpid(), 9)
    return len(list(own)) - 14

if how.endswith("of a job"):
    at_leaving.append(lambda *_: None)
how = how.removesuffix("_in_a_job")
run_program(main)
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder below which a socket has room: pytest's own paths are long."""
    with tempfile.TemporaryDirectory(prefix="mpp-test-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("how", ["finishes", "finishes_in_a_job", "stops", "stops_in_a_job", "is_ended", "is_killed"])
def test_loader_processes_leave_nothing_in_the_folder_for_temporary_files(short_path, tiny_shards, how):
    given = os.environ | {"TMPDIR": str(short_path)}
    done = run_forked(["-c", LEAVES, how, str(tiny_shards)], cwd=Path(__file__).parents[2], env=given)
    (folder,) = eval(done.stdout.splitlines()[0])
    assert folder.startswith("mpp-loaders-")  # one, for both
    if how != "is_killed":
        assert done.returncode == {"finishes": 0, "stops": 2, "is_ended": 75}[how.removesuffix("_in_a_job")] and not list(
            short_path.iterdir()
        )
        return
    assert [path.name for path in short_path.iterdir()] == [folder]  # nobody was left to remove it but the next one
    after = lambda: run_forked(["-c", LEAVES, "finishes", str(tiny_shards)], cwd=Path(__file__).parents[2], env=given)
    lock = short_path / folder / "lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # once its loader processes have seen that it is gone
    os.utime(lock)
    assert after().returncode == 0 and lock.exists()  # its process may only have begun, and hold it next
    os.utime(lock, (1e9, 1e9))
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as its process does, and its loader processes do, while they live
        assert after().returncode == 0 and lock.exists()
    assert after().returncode == 0 and not list(short_path.iterdir())


def test_a_long_path_for_temporary_files_is_none_for_sockets(tmp_path, tiny_shards):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    done = run_forked(
        ["-c", LEAVES, "finishes", str(tiny_shards)], cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": str(long)}, timeout=20
    )
    assert done.returncode == 0, done.stderr  # a socket's path has 107 bytes at most


MANY_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (26, 4096))
from mpp.base.machine import allow_open_files
from mpp.data.loader import batches
from tests.data.masked_images import dataset, sampler
allow_open_files()
data = dataset(sys.argv[1])
print(len({int(i) for batch in batches(data, sampler(data), 2, pin_memory=False) for i in batch["sample"]}))
"""


def test_more_shards_and_batches_than_open_files_are_no_hindrance(tmp_path, make_shards):
    folder = make_shards(tmp_path / "train", [1] * 70)
    finished = run_forked(["-c", MANY_FILES, str(folder)], cwd=Path(__file__).parents[2], env=os.environ, timeout=60)
    assert finished.stdout == "60\n", finished.stderr


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (26, 4096))
from mpp.base.machine import allow_open_files
allow_open_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_on_open_files_is_raised_as_far_as_the_system_lets_it():
    assert run_forked(["-c", FEW_FILES], cwd=Path(__file__).parents[2], env=os.environ).stdout == "(4096, 4096)\n"


@dataclass(frozen=True)
class CountsThreads(CropDataset):
    def __getitems__(self, keys):
        return super().__getitems__(keys) | {"threads": torch.get_num_threads(), "process": os.getpid()}


def test_a_worker_has_one_thread(tiny_shards):
    own = dataset(tiny_shards)
    data = CountsThreads(own.pixels, own.augment, own.seed, own.pool, masking=own.masking)
    torch.set_num_threads(2)
    try:
        found = list(batches(data, sampler(data, 0, 1), 2, pin_memory=False))
    finally:
        torch.set_num_threads(1)
    assert {batch["threads"] for batch in found} == {1}
    assert len({batch["process"] for batch in found} - {os.getpid()}) == 2


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_whose_rank_is_killed_says_nothing_of_what_it_cannot_hand_over_any_more(tmp_path, killed):
    code = (
        "import multiprocessing, os, signal, sys, time\n"
        "from mpp.data.handing_over import _begin_worker\n"
        "def work():\n"
        "    _begin_worker(0)\n"
        "    time.sleep(0.3)\n"
        "    sys.excepthook(OSError, OSError('the other end is gone'), None)\n"
        "worker = multiprocessing.get_context('fork').Process(target=work)\n"
        "worker.start()\n" + ("os.kill(os.getpid(), signal.SIGKILL)" if killed else "worker.join()")
    )
    finished = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)  # ends with the worker, which has it too
    assert ("the other end is gone" in finished.stderr) is not killed
