"""Runs that are killed, stopped, poisoned and starved by chance end as if nothing had happened (tests/chaos.py); hosts that lose each other."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import ROOT, TINY, ip

ENDLESS = ["optim.total_samples=1200000", "checkpoint.every_samples=240", "system.patience_seconds=3", "log.every_steps=10"]
ENDLESS += ["log.holdout_every_steps=1000000", "log.pictures_every_steps=1000000", "evaluate.images=0"]


@pytest.mark.slow
def test_runs_killed_by_chance_end_with_every_sample_once_and_the_bits_of_an_uninterrupted_run(tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("a failing disk needs gcc (apt-get install gcc)")
    command = [sys.executable, "-m", "tests.chaos", "--kills", "5", "--seed", "9", "--folder", str(tmp_path / "chaos")]
    apart = {"MPP_TEST_FORK_SERVER", "LD_PRELOAD"}  # it needs a server of its own, with the failing disk in it
    environment = {name: value for name, value in os.environ.items() if name not in apart} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["kills"] >= 5 and found["runs_of_one_topology"] >= 1 and found["runs"] >= 2
    assert (found["samples_lost"], found["samples_repeated"], found["samples_otherwise"]) == (0, 0, 0)
    assert found["samples_compared"] == found["runs"] * 1200 and found["wrong"] == []


def on_host(name: str, rank: int, port: int, words: list[str], code: Path = ROOT) -> subprocess.Popen:
    place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": port}
    settings = {key: str(value) for key, value in place.items()}
    settings |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(code)}
    command = ["ip", "netns", "exec", name, sys.executable, "mpp/pretrain.py", *words]
    return subprocess.Popen(command, cwd=code, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(hosts: list[subprocess.Popen]) -> tuple[list[int], list[str], list[list[str]]]:
    """Statuses, what was printed, and the lines of error of each host."""
    texts = [host.communicate(timeout=200) for host in hosts]
    return [host.returncode for host in hosts], [out for out, _ in texts], [[line for line in err.splitlines() if line.startswith("error")] for _, err in texts]  # fmt: skip


@pytest.mark.long
def test_hosts_that_lose_each_other_both_end_with_a_line_and_the_same_command_goes_on(two_hosts, shards, tmp_path):
    run = tmp_path / "run"
    words = [*TINY, *ENDLESS, f"data.shards={shards}", f"run_dir={run}", "optim.schedule=constant"]
    hosts = [on_host(name, rank, 29741, words) for rank, name in enumerate(two_hosts)]
    ends = time.monotonic() + 100
    while not any((run / "checkpoints").glob("*/COMMIT.json")):
        assert time.monotonic() < ends and all(host.poll() is None for host in hosts), ended(hosts)
        time.sleep(0.05)
    link = f"v{two_hosts[1].removeprefix('mpp')}"
    assert ip("link", "set", link, "down")
    cut = time.monotonic()
    status, _, lines = ended(hosts)
    assert time.monotonic() - cut < 60 and all(status)
    assert len(lines[0]) == 1 and "nothing was heard of rank 1 (host " in lines[0][0] and "the network to it is down" in lines[0][0], lines
    assert len(lines[1]) == 1 and "nothing was heard of rank 0 (10.77.0.1)" in lines[1][0] and "the network to it is down" in lines[1][0], (
        lines
    )

    assert ip("link", "set", link, "up")
    step = max(int(path.parent.name) for path in (run / "checkpoints").glob("*/COMMIT.json"))
    words.append(f"optim.total_samples={12 * (step + 20)}")
    hosts = [on_host(name, rank, 29742, words) for rank, name in enumerate(two_hosts)]
    status, out, lines = ended(hosts)
    assert status == [0, 0], lines
    assert f"resumes at step {step}" in out[0]


@pytest.mark.long
def test_a_host_with_another_version_of_the_code_is_named_before_anything_is_trained(two_hosts, shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "mpp", other / "mpp", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "mpp" / "base" / "rng.py").open("a") as file:
        file.write("# another version\n")
    words = [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    hosts = [on_host(name, rank, 29743, words, other if rank else ROOT) for rank, name in enumerate(two_hosts)]
    status, _, lines = ended(hosts)
    assert status == [2, 2] and lines[1] == [], lines
    (line,) = lines[0]
    assert "are not alike: rank 1 (host " in line and "has mpp=" in line and "have the same files of mpp on all hosts" in line
    assert not (tmp_path / "run" / "checkpoints").exists()
