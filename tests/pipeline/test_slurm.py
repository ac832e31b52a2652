"""jobs/slurm/*.sbatch on a real two-node SLURM, both nodes on this machine.  Skips where SLURM is not installed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from mpp.base.machine import usable_cores
from mpp.config.sections import ModelConfig
from mpp.data.shards import ShardSet
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from tests.pipeline.conftest import ROOT, TINY, free_port, metrics, succeed

pytestmark = pytest.mark.slow
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ONE = ["--nodes=1", "--gpus-per-node=0", "--cpus-per-task=2", "--mem=100"]
CONF = """
ClusterName=mpptest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
KillWait=30
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port1} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port2} CPUs=2 RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment variables under which the SLURM commands talk to a two-node cluster."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
    if absent or os.geteuid():
        pytest.skip(
            f"a real SLURM needs root and {', '.join(absent) or 'its programs'} (apt-get install slurmctld slurmd slurm-client munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    conf = folder / "slurm.conf"
    (folder / "state").mkdir()
    ports = {"port": free_port(), "port1": free_port(), "port2": free_port()}
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], folder=folder, **ports))
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    Path("/run/munge").mkdir(exist_ok=True)
    if not Path("/etc/munge/munge.key").exists():
        subprocess.run(["mungekey", "--create"], env=environment, check=False, capture_output=True)
    munge = None
    if subprocess.run(["munge", "-n"], env=environment, capture_output=True).returncode:
        shutil.chown("/run/munge", "munge", "munge")
        munge = subprocess.Popen(
            ["runuser", "-u", "munge", "--", "munged", "--foreground"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    commands = [["slurmctld", "-D", "-f", str(conf)], *(["slurmd", "-D", "-f", str(conf), "-N", node] for node in ("n1", "n2"))]
    daemons = []
    try:
        time.sleep(1)
        daemons = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
        for _ in range(60):
            idle = subprocess.run(["sinfo", "-h", "-o", "%t %D"], env=environment, capture_output=True, text=True).stdout
            if idle.split() == ["idle", "2"]:
                break
            time.sleep(0.5)
        else:
            pytest.skip(f"SLURM did not start here: sinfo says {idle!r}")
        yield environment
    finally:
        for daemon in [*daemons[::-1], *([munge] if munge else [])]:
            daemon.terminate()
            daemon.wait(timeout=20)


def state_of(job: str, environment: dict) -> str:
    """The job's state; a controller too busy to answer (`scontrol` then fails) is asked again for two minutes."""
    for _ in range(60):
        shown = subprocess.run(["scontrol", "show", "job", job], env=environment, capture_output=True, text=True)
        if found := re.search(r"JobState=(\w+)", shown.stdout):
            return found[1]
        time.sleep(2)
    log = Path(environment["SLURM_CONF"]).with_name("ctld.log")
    raise AssertionError(f"scontrol: {shown.stderr.strip()}\nslurmctld's log ends: {log.read_text()[-2000:]}")


def submit(environment: dict, out: Path, script: str, options: Sequence[str], words: Sequence[str], home: Path = ROOT) -> str:
    settings = {
        "PROCESSES_PER_NODE": environment.get("PROCESSES_PER_NODE", "1"),
        "OMP_NUM_THREADS": "1",
        "MPP_HOME": str(home),
        "MASTER_ADDR": "127.0.0.1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["sbatch", f"--output={out}", "--parsable", f"--chdir={ROOT}", *options, f"jobs/slurm/{script}", *words]
    sent = subprocess.run(command, cwd=ROOT, env=environment | settings, capture_output=True, text=True)
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.strip()


def wait_for(job: str, environment: dict, out: Path) -> None:
    while (state := state_of(job, environment)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
        time.sleep(0.5)
    assert state == "COMPLETED", out.read_text()[-3000:]


def wait_until(true: Callable[[], object], out: Path, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, out.read_text()[-3000:] if out.exists() else "no output"
        time.sleep(0.5)


def test_the_batch_script_trains_on_two_nodes_as_one_process_does(slurm, shards, tmp_path):
    short = ["optim.total_samples=36", "optim.warmup_samples=12", "model.drop_path=0"]
    succeed(tmp_path / "alone", shards, *short)
    out = tmp_path / "slurm.out"
    options = [
        "--nodes=2",
        "--gpus-per-node=0",
        "--cpus-per-task=2",
        "--mem=100",
        "--threads-per-core=1",
    ]  # the last has SLURM bind to cores
    words = ["mpp/pretrain.py", *TINY, *short, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    wait_for(submit(slurm, out, "run.sbatch", options, words), slurm, out)
    assert "2 processes" in out.read_text()
    ours, theirs = metrics(tmp_path / "alone"), metrics(tmp_path / "run")
    assert ours.keys() == theirs.keys()
    for step in ours:
        assert theirs[step]["train/loss"] == pytest.approx(ours[step]["train/loss"], rel=1e-4)
    assert not list(ROOT.glob(".hostfile-*"))
    usable = min(2, usable_cores())
    assert (
        json.loads((tmp_path / "run" / "environment.json").read_text())["cpus"] == usable
    )  # SLURM binds tasks here, to all they were given


def test_a_job_with_less_than_two_cores_for_each_process_says_what_it_needs(slurm, tmp_path):
    out = tmp_path / "slurm.out"
    few = slurm | {"PROCESSES_PER_NODE": "2"}
    job = submit(few, out, "run.sbatch", ONE, ["mpp/pretrain.py"])
    wait_until(lambda: state_of(job, slurm) == "FAILED", out)
    assert out.read_text() == (
        "error: --cpus-per-task=2 is less than two cores (itself, its loader) for each of the 2 processes of a node; give sbatch at least "
        "--cpus-per-task=4\n"
    )


@pytest.mark.long
def test_fine_tuning_that_runs_out_of_time_commits_is_queued_again_and_goes_on(slurm, shards, tmp_path):
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    write_encoder(tmp_path / "encoder", build_encoder(model, 5).vit.state_dict(), model, (0.5,) * 3, (0.5,) * 3, "tiny")
    out, run = tmp_path / "slurm.out", tmp_path / "run"
    words = [
        "mpp/finetune.py",
        f"encoder={tmp_path / 'encoder'}",
        f"train={shards}",
        f"run_dir={run}",
        "optim={steps: 100000, warmup_steps: 1}",
    ]
    words += ["data={global_batch: 4, holdout_fraction: 0.2}", "log={every_steps: 10, holdout_every_epochs: 100000}"]
    words += ["system={precision: fp32, workers: 1}", "checkpoint.every_minutes=null"]
    job = submit(slurm, out, "run.sbatch", ONE, words)

    wait_until(lambda: re.search(r"step [1-9]\d*/100000", out.read_text() if out.exists() else ""), out)
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)  # as SLURM does shortly before the end
    wait_until(lambda: "queued again" in out.read_text(), out)
    stopped = int(re.findall(r"stopped as asked at step (\d+)", out.read_text())[-1])
    assert [int(folder.name) for folder in (run / "checkpoints").iterdir()] == [stopped]
    start_now(job, slurm, out)
    wait_until(lambda: f"resumes at step {stopped}" in out.read_text(), out)
    subprocess.run(["scancel", job], env=slurm, check=True)


def start_now(job: str, environment: dict, out: Path, times: int = 1) -> None:
    """A job that has been queued again so often; by itself SLURM lets two minutes pass."""
    wait_until(lambda: out.exists() and out.read_text().count("queued again") == times, out)
    wait_until(lambda: state_of(job, environment) == "PENDING", out)

    def started() -> bool:
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=environment, capture_output=True)
        return state_of(job, environment) != "PENDING"

    wait_until(started, out)


def ranks_of(run: Path) -> list[int]:
    """Processes of a run, oldest first."""
    found = subprocess.run(["pgrep", "-f", f"pretrain.py --local_rank.*run_dir={run}"], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


@pytest.mark.long
def test_a_job_that_fails_after_a_commit_is_queued_again_and_one_that_is_cancelled_is_not(slurm, shards, tmp_path):
    out, run = tmp_path / "slurm.out", tmp_path / "run"
    endless = ["optim.total_samples=1200000", "checkpoint.every_samples=1200"]
    job = submit(slurm, out, "run.sbatch", ONE, ["mpp/pretrain.py", *TINY, *endless, f"data.shards={shards}", f"run_dir={run}"])
    wait_until(lambda: list(run.glob("checkpoints/*/COMMIT.json")), out)
    os.kill(ranks_of(run)[0], signal.SIGKILL)
    start_now(job, slurm, out)
    wait_until(lambda: re.search(r"resumes at step [1-9]", out.read_text()), out)
    assert out.read_text().count("queued again") == 1
    wait_until(lambda: len(list(run.glob("checkpoints/*/COMMIT.json"))) > 2, out)
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait_until(lambda: state_of(job, slurm) == "CANCELLED" and not ranks_of(run), out)
    time.sleep(3)
    assert state_of(job, slurm) == "CANCELLED" and out.read_text().count("queued again") == 1


@pytest.mark.long
def test_a_job_that_fails_without_a_commit_ends_the_third_time_and_one_that_a_person_must_mend_at_once(slurm, tmp_path):
    out, fails = tmp_path / "slurm.out", tmp_path / "fails.py"
    fails.write_text("import sys\nprint('attempt', flush=True)\nsys.exit(int(sys.argv[-1]))\n")
    (tmp_path / "run/checkpoints/000000001").mkdir(parents=True)
    (tmp_path / "run/checkpoints/000000001/COMMIT.json").write_text("{}")  # from before
    os.utime(tmp_path / "run/checkpoints/000000001/COMMIT.json", (1e9, 1e9))
    job = submit(slurm, out, "run.sbatch", ONE, [str(fails), f"run_dir={tmp_path / 'run'}", "7"])
    for times in (1, 2):
        start_now(job, slurm, out, times)
    wait_until(lambda: state_of(job, slurm) == "FAILED", out)
    assert out.read_text().count("\nattempt") + out.read_text().startswith("attempt") == 3
    assert not list(ROOT.glob(".failures-*"))

    once = tmp_path / "once.out"
    job = submit(slurm, once, "run.sbatch", ONE, [str(fails), f"run_dir={tmp_path / 'run'}", "2"])
    wait_until(lambda: state_of(job, slurm) == "FAILED", once)
    assert once.read_text().count("attempt") == 1


@pytest.mark.long
def test_plain_srun_trains_as_one_process_does(slurm, shards, tmp_path):
    short = ["optim.total_samples=36", "optim.warmup_samples=12", "model.drop_path=0"]
    succeed(tmp_path / "alone", shards, *short)
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1"}  # as the nodes' names are no hosts here
    command = [
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=2",
        "--mem=100",
        "--mpi=none",
        sys.executable,
        "mpp/pretrain.py",
    ]
    words = [*TINY, *short, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    finished = subprocess.run([*command, *words], cwd=ROOT, env=slurm | settings, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "2 processes" in finished.stdout
    ours, theirs = metrics(tmp_path / "alone"), metrics(tmp_path / "run")
    assert ours.keys() == theirs.keys()
    for step in ours:
        assert theirs[step]["train/loss"] == pytest.approx(ours[step]["train/loss"], rel=1e-4)


@pytest.mark.long
def test_a_virtual_environment_in_one_file_is_copied_to_the_node_and_trains_there(slurm, shards, tmp_path):
    absent = [name for name in ("mksquashfs", "squashfuse") if not shutil.which(name)]
    if absent or not os.access("/dev/fuse", os.W_OK):
        pytest.skip(f"an image needs {' and '.join(absent) or '/dev/fuse'} (apt-get install squashfs-tools squashfuse fuse3)")
    home, disk, venv = tmp_path / "home", tmp_path / "disk", tmp_path / "venv"
    inside = venv / f"lib/python3.{sys.version_info.minor}/site-packages"
    for folder in (home, disk, venv / "bin", inside):
        folder.mkdir(parents=True)
    for part in ("mpp", "jobs", "configs"):
        (home / part).symlink_to(ROOT / part)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    shutil.copy(Path(sys.executable).with_name("deepspeed"), venv / "bin")
    (venv / "bin/python").symlink_to(Path(sys.executable).resolve())
    (inside / "this.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )  # what is large stays where it is
    subprocess.run(["mksquashfs", venv, home / "venv.sqsh", "-quiet", "-no-progress"], check=True)

    out, run = tmp_path / "slurm.out", tmp_path / "run"
    words = ["mpp/pretrain.py", *TINY, "optim.total_samples=36", "optim.warmup_samples=12", f"data.shards={shards}", f"run_dir={run}"]
    job = submit(slurm | {"MPP_NODE_DISK": str(disk)}, out, "run.sbatch", ONE, words, home)
    wait_for(job, slurm, out)
    assert f"cmd = {disk}/mpp-venv-{job}.sqsh." in out.read_text()  # the launcher's python, and so that of the ranks
    assert max(metrics(run)) == 3 and list(disk.iterdir()) == []


def test_a_batch_job_without_a_program_says_what_it_needs(slurm, tmp_path):
    out = tmp_path / "slurm.out"
    job = submit(slurm, out, "run.sbatch", ONE, ["--config", "x.yaml"])
    wait_until(lambda: state_of(job, slurm) == "FAILED", out)
    assert "the first word is '--config' and must be a program" in out.read_text()


def test_an_array_of_parts_and_a_job_that_waits_for_it_make_one_set(slurm, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(40):
        Image.new("L", (8, 8), number).save(tmp_path / "photos" / f"{number}.png")
    words = [str(tmp_path / "photos"), str(tmp_path / "shards"), "--samples-per-shard=4", "--workers=1"]
    small = ["--cpus-per-task=1", "--mem-per-cpu=100"]
    array = submit(slurm, tmp_path / "part-%a.out", "make_shards.sbatch", ["--array=0-2", *small], words)
    out = tmp_path / "finish.out"
    wait_for(submit(slurm, out, "make_shards.sbatch", [f"--dependency=afterok:{array}", *small], words), slurm, out)
    assert "kept from an earlier run: 10 of 10 shards" in out.read_text()
    assert all(f"part {part}/3 is done" in (tmp_path / f"part-{part}.out").read_text() for part in range(3))
    assert len(ShardSet.open(tmp_path / "shards" / "train")) == 40
