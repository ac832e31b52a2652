"""mpp/doctor.py as people give it: alone, on two real processes, with faults planted; and nothing of a run is begun or changed."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mpp.base.errors import ConfigError, UserError
from mpp.checks import images, links, recipe
from mpp.doctor import main
from mpp.mains import doctor
from tests.data.tars import write_tars
from tests.forks import Forked
from tests.pipeline.conftest import ROOT, TINY, environment, finish, free_port, start, succeed

ALL = {
    "processes", "program", "versions", "device", "cores", "compilers", "open files", "shards", "batch", "samples", "shared memory", "run folder", "other runs",
    "learning rate", "start", "disk", "target", "memory", "step", "loader", "length", "clocks",
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(images, "TIMED_SECONDS", 0.02)
    monkeypatch.setattr(recipe, "STEP_SECONDS", 0.05)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def examined(capsys, *words: str) -> tuple[int, dict]:
    capsys.readouterr()
    status = main([*TINY, "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def of(told: dict, name: str) -> dict:
    (found,) = [each for each in told["checks"] if each["name"] == name]
    return found


def below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_run_that_would_go_well_is_told_so_and_nothing_is_left(shards, tmp_path, capsys):
    status, told = examined(capsys, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}")
    assert (status, told["failed"], told["processes"]) == (0, 0, 1)
    assert {each["name"] for each in told["checks"]} == ALL
    assert "40 training images, 3 steps of 12 an epoch in 12 streams, 2.4 passes" in of(told, "samples")["found"]
    assert of(told, "start")["found"] == "starts, 8 steps in all"
    assert list(tmp_path.iterdir()) == []


def test_a_stream_is_examined_and_what_is_weaker_is_said(tmp_path, capsys):
    tars = f"{write_tars(tmp_path / 'tars', [9, 20, 9])}/{{000..002}}.tar"
    status, told = examined(capsys, f"data.shards={tars}", f"run_dir={tmp_path / 'run'}", "system.workers=3")
    assert (status, told["failed"]) == (0, 0) and {each["name"] for each in told["checks"]} == ALL
    assert of(told, "shards")["found"].startswith(f"3 tars as a stream, from {tmp_path}/tars/000.tar on")
    assert "as many images on 1, 2, 3" in of(told, "batch")["found"] and "the same" not in of(told, "batch")["found"]
    assert of(told, "samples")["verdict"] == "warning" and "2 tars for 3 readers" in of(told, "samples")["found"]
    assert of(told, "target")["verdict"] == "ok"
    assert examined(capsys, f"data.shards={tars}", "optim.epochs=3")[0] == 1


def test_lines_are_told_for_people_and_end_in_a_count(shards, tmp_path, capsys):
    assert main([*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "data.global_batch=12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    warned = next(number for number, line in enumerate(lines) if line.startswith("warning  "))
    assert lines[warned + 1].split()[0] == "->"
    assert "finding" in lines[-1] and lines[-1].endswith(", 0 failed")


@pytest.mark.parametrize(
    ("words", "name", "found", "fix"),
    [
        (["data.shards=nowhere/train"], "shards", "no such folder of shards", "make_shards.py"),
        (["data.global_batch=60", "optim.total_samples=960", "data.streams=7"], "batch", "data.streams=7 must divide", "leave it null"),
        (["data.global_batch=48", "optim.total_samples=96"], "samples", "exceeds the 40 training samples", "a batch of 40 or fewer"),
        (["data.holdout_samples=500"], "samples", "must be fewer than the 48 samples", "lower it"),
        (["resume=must"], "start", "holds no commit", "resume=auto"),
        (["init_from=nowhere"], "start", "nowhere", ""),
        (["run_dir=/proc/run"], "run folder", "cannot be written", "a disk that you may write to"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_each_fault_is_one_failed_check_with_its_fix(words, name, found, fix, shards, tmp_path, capsys):
    status, told = examined(capsys, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", *words)
    assert status == 1
    failed = {each["name"]: each for each in told["checks"] if each["verdict"] == "failed"}
    assert name in failed and found in failed[name]["found"] and fix in failed[name]["fix"] and failed[name]["fix"], failed
    assert list(tmp_path.iterdir()) == []


def test_shards_that_are_not_as_the_manifest_says_fail(shards, tmp_path, capsys):
    copy = shutil.copytree(shards, tmp_path / "train")
    (copy / "000002.tar").write_bytes((copy / "000002.tar").read_bytes()[:-512])
    status, told = examined(capsys, f"data.shards={copy}", f"run_dir={tmp_path / 'run'}")
    found = of(told, "shards")
    assert status == 1 and "000002.tar" in found["found"] and "cut or changed" in found["found"]
    assert {"learning rate", "disk", "memory", "step"} <= {each["name"] for each in told["checks"]}  # what needs no images


def test_a_wrong_command_has_a_status_of_its_own(tmp_path):
    with pytest.raises(UserError, match="base_lrr"):
        main([*TINY, "optim.base_lrr=1"])
    for words in (
        ["--gpus", "12", "--per-node", "8"],
        ["--gpus", "8", "--gpu", "abacus"],
        ["--gpus", "0"],
        ["--gpu", "h200"],
        ["--cores", "8"],
    ):
        with pytest.raises(UserError):
            main([*TINY, *words])


def test_on_a_login_machine_the_machines_that_are_meant_are_looked_at(shards, tmp_path, capsys):
    words = [f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "--gpus", "4", "--per-node", "2", "--gpu", "h100"]
    status, told = examined(capsys, *words)
    assert status == 0
    assert of(told, "lost nodes")["found"] == "of 2 nodes x 2: with 1 lost the other goes on"
    assert "an H100, by arithmetic" in of(told, "memory")["found"] and "2 GPUs that take" in of(told, "loader")["found"]
    status, told = examined(capsys, *words[:2], "--gpus", "8")
    assert status == 1 and "cannot be shared equally by 8 processes" in of(told, "batch")["found"]


def test_a_preset_and_a_budget_are_settled_as_the_run_would(shards, tmp_path, capsys):
    words = [f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "system.workers=0", "model={image_size: 16, patch_size: 4}", "--json"]
    assert main(["--config", "configs/small_32.yaml", "budget=2h", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "46 training images" in of(told, "samples")["found"] and of(told, "length")["found"].startswith("budget=2h: up to ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    succeed(run_dir, shards, "optim.total_samples=24")
    return run_dir


@pytest.mark.slow
def test_a_run_that_goes_on_is_told_and_one_that_may_not_fails(finished, shards, capsys):
    before = below(finished)
    same = [f"data.shards={shards}", f"run_dir={finished}"]
    status, told = examined(capsys, *same, "optim.total_samples=96")
    assert status == 0 and "step 2" in of(told, "start")["found"]
    status, told = examined(capsys, *same, "optim.total_samples=96", "mask.ratio=0.25")
    assert status == 1 and "mask.ratio=0.5" in of(told, "start")["found"] and "give another run_dir" in of(told, "start")["fix"]
    assert below(finished) == before


@pytest.mark.slow
def test_a_run_that_trains_is_told_and_goes_on(shards, tmp_path, capsys):
    run_dir = tmp_path / "run"
    (process,) = start(
        [*TINY, f"data.shards={shards}", f"run_dir={run_dir}", "optim.total_samples=1200000", "checkpoint.every_samples=null"]
    )
    try:
        while not (run_dir / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.1)
        status, told = examined(capsys, f"data.shards={shards}", f"run_dir={run_dir}", "optim.total_samples=1200000")
        assert status == 1
        assert f"a run trains in {run_dir} now (process {process.pid} on " in of(told, "other runs")["found"]
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def doctors(*words: str, world: int = 2, each: dict[int, list[str]] | None = None):
    port = free_port()
    arguments = lambda rank: ["mpp/doctor.py", *TINY, *words, *(each or {}).get(rank, [])]
    return finish([Forked(arguments(rank), cwd=ROOT, env=environment(rank, world, port)) for rank in range(world)])


@pytest.mark.slow
def test_two_processes_look_at_themselves_and_exchange_tensors(shards, tmp_path):
    found = doctors(f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "--json", "system.workers=1")
    assert found.status == [0, 0], found.err
    told = json.loads(found.out)  # of rank 0 alone
    assert {each["name"] for each in told["checks"]} == ALL | {"all-reduce"} and told["processes"] == 2
    assert "works between 2 processes of" in of(told, "all-reduce")["found"]
    assert "all 2 processes see it" in of(told, "run folder")["found"] and "seen by all 2" in of(told, "shards")["found"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_that_were_started_otherwise_are_told_before_they_ask_each_other_anything(shards, tmp_path):
    found = doctors(f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "--json", each={1: ["seed=1"]})
    assert found.status == [1, 1]
    wrong = of(json.loads(found.out), "versions")
    assert wrong["verdict"] == "failed" and "has config.seed=1, rank 0 0" in wrong["found"] and "the same command" in wrong["fix"]


@pytest.mark.long
def test_shards_that_one_host_lacks_fail_on_all(shards, tmp_path):
    """A folder of each process's own under the same name, as on two hosts."""
    for rank in (0, 1):
        (tmp_path / f"host{rank}").mkdir()
    shutil.copytree(shards, tmp_path / "host0" / "train")
    port = free_port()

    words = [str(ROOT / "mpp/doctor.py"), *TINY, "data.shards=train", "run_dir=run", "--json"]
    made = [Forked(words, cwd=tmp_path / f"host{rank}", env=environment(rank, 2, port) | {"PYTHONPATH": str(ROOT)}) for rank in (0, 1)]
    found = finish(made)
    assert found.status == [1, 1], found.err
    told = json.loads(found.out)
    assert "train: no such folder" in of(told, "shards")["found"]
    assert "rank 1 (host" in of(told, "run folder")["found"] and "does not see what rank 0 writes there" in of(told, "run folder")["found"]
    assert of(told, "all-reduce")["verdict"] in ("ok", "warning")  # the rest is looked at


def test_an_exchange_that_gives_wrong_sums_fails():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert links._timed(None, [0], 0, torch.device("cpu"), 8) == 0.0  # nothing is sent
        with pytest.raises(RuntimeError, match="the sum over 2 processes is 1 to 1, not 3"):
            links._timed(None, [0, 1], 0, torch.device("cpu"), 8)
    finally:
        dist.destroy_process_group()


def test_processes_that_do_not_meet_are_a_failed_check(capsys, monkeypatch, tmp_path):
    def nobody(seconds: float) -> None:
        raise ConfigError("rank 3 of 4 has not come to n0:29500 within 120 s; start as many processes as WORLD_SIZE says")

    monkeypatch.setattr(doctor, "meet", nobody)
    status, told = examined(capsys, f"run_dir={tmp_path / 'run'}")
    (found,) = told["checks"]
    assert status == 1 and found["name"] == "processes" and found["fix"] == "start as many processes as WORLD_SIZE says"


def test_a_disk_that_fails_under_a_check_is_a_finding_and_the_others_follow(shards, tmp_path, capsys, monkeypatch):
    def broken(*_) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "/there")

    monkeypatch.setattr(doctor.folder, "room", broken)
    status, told = examined(capsys, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}")
    assert status == 1 and of(told, "disk")["fix"] == "the file server has lost it: mount it again"
    assert {each["name"] for each in told["checks"]} == ALL


@pytest.mark.long
def test_on_several_hosts_an_exchange_is_told_inside_and_between_them_and_clocks_are_compared(shards, tmp_path):
    """Two processes on each of two hosts that have a name of their own, and the network of this one."""
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode:
        pytest.skip("a host's name may not be changed here (needs root or CAP_SYS_ADMIN)")
    port, words = free_port(), [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "--json"]
    ranks = []
    for rank in range(4):
        own = environment(rank, 4, port) | {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank % 2)}
        command = ["unshare", "--uts", "sh", "-c", f'hostname node{rank // 2}; exec "$@"', "sh", sys.executable, "mpp/doctor.py", *words]
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    texts = [process.communicate(timeout=200) for process in ranks]
    assert [process.returncode for process in ranks] == [0] * 4, texts
    told = json.loads(texts[0][0])
    assert told["hosts"] == ["node0", "node1"]
    assert re.search(
        r"4 processes of node0, node1: .* inside a host .* between hosts, one process of each, ", of(told, "all-reduce")["found"]
    )
    assert of(told, "clocks")["found"].startswith("2 hosts, the farthest from rank 0's clock is node1's by ")
    assert of(told, "lost nodes")["found"] == "of 2 nodes x 2: with 1 lost the other goes on"


DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from mpp import doctor
from mpp.checks import links
from mpp.base.errors import UserError, run_program
how, real = sys.argv[2], links.clocks
def clocks(peers):
    if peers.rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if peers.rank == 1 and how == "left":
        raise UserError("its clock is broken; mend it")
    if peers.rank == 0:
        peers.heard("clock/0/1")  # as on two hosts
    return real(peers)
links.clocks = clocks
del sys.argv[1:3]
run_program(doctor.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "found", "fix"),
    [
        ("killed", -signal.SIGKILL, "was killed by SIGKILL, as the system does for want of memory, comparing clocks, exchanging tensors", "mend it"),
        pytest.param("left", 2, "its clock is broken", "mend it", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_process_that_dies_while_clocks_are_compared_is_a_failed_check_that_names_it(how, status, found, fix, shards, tmp_path):
    port, began = free_port(), time.monotonic()
    words = ["-c", DIES, str(ROOT), how, *TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "--json"]
    done = finish([Forked(words, cwd=ROOT, env=environment(rank, 2, port)) for rank in (0, 1)])
    assert done.status == [1, status] and time.monotonic() - began < doctor.MEETING_SECONDS, done.err
    told = json.loads(done.out)
    said = [each for each in told["checks"] if each["name"] == "processes" and each["verdict"] == "failed"]
    assert len(said) == 1 and said[0]["found"].startswith("rank 1 (host ") and found in said[0]["found"] and fix in said[0]["fix"]
    assert told["failed"] == 1 and {"memory", "step", "length"} <= {each["name"] for each in told["checks"]}  # what was found before
    assert "Traceback" not in done.err and "error" not in done.err and list(tmp_path.iterdir()) == []
