"""The launch lines of the README, with the real launchers: one node, torchrun, and two hosts (network namespaces)."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import ROOT, TINY, metrics, succeed

BIN = Path(sys.executable).parent
SHORT = ["optim.total_samples=36", "optim.warmup_samples=12", "model.drop_path=0"]

pytestmark = pytest.mark.slow


def run(command: list[str], **more) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, **more)


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """The same run in one process: what every launcher must reproduce."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    succeed(folder, shards, *SHORT)
    return metrics(folder)


def assert_the_same_run(run_dir: Path, alone: dict) -> None:
    found = metrics(run_dir)
    assert found.keys() == alone.keys()
    for step in alone:
        assert found[step]["train/loss"] == pytest.approx(alone[step]["train/loss"], rel=1e-4)
        assert found[step]["optim/gradient_norm"] == pytest.approx(alone[step]["optim/gradient_norm"], rel=1e-3)


@pytest.mark.parametrize(
    "launcher",
    [
        ["deepspeed", "--num_gpus", "2", "--master_port", "29731"],
        ["torchrun", "--nproc_per_node", "2", "--master_port", "29732"],
        ["python"],
    ],
    ids=lambda launcher: launcher[0],
)
def test_every_launcher_trains_the_same_run(launcher, alone, shards, tmp_path):
    finished = run([*launcher, "mpp/pretrain.py", *TINY, *SHORT, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"])
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert "done" in finished.stdout
    assert_the_same_run(tmp_path / "run", alone)
    assert not list(Path("/dev/shm").glob("*_29731_*"))  # nor does DeepSpeed leave its buffers


def test_a_config_error_under_the_deepspeed_launcher_is_one_line_and_a_failure(shards, tmp_path):
    words = [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "optim.base_lrr=1"]
    finished = run(["deepspeed", "--num_gpus", "2", "--master_port", "29733", "mpp/pretrain.py", *words])
    assert finished.returncode != 0
    assert [line for line in finished.stderr.splitlines() if line.startswith("error")] != []
    assert "Traceback" not in finished.stderr and finished.stderr.count("optim.base_lrr") <= 2


def test_two_hosts_without_ssh_train_the_same_run(two_hosts, alone, shards, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
    words = [*TINY, *SHORT, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    hosts = []
    for rank, name in enumerate(two_hosts):
        launch = ["--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(rank), "--master_addr", "10.77.0.1", "--master_port", "29734"]
        settings = {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0"}
        command = ["ip", "netns", "exec", name, "deepspeed", *launch, "mpp/pretrain.py", *words]
        hosts.append(
            subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    texts = [host.communicate(timeout=400)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(text[-2000:] for text in texts)
    assert "2 processes" in texts[0]
    assert_the_same_run(tmp_path / "run", alone)


SSHD = """
Port 22
HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
"""


@pytest.fixture
def ssh_hosts(two_hosts):
    """The two hosts, with a real sshd on each that lets root in from the other by a key; node0 and node1 are their names."""
    absent = [name for name in ("sshd", "ssh", "ssh-keygen", "pdsh") if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
    if absent:
        pytest.skip(f"launching over ssh needs {', '.join(absent)} (apt-get install openssh-server openssh-client pdsh)")
    folders = [Path("/etc/netns") / name for name in two_hosts]  # `ip netns exec` shows what is there in /etc
    daemons = []
    try:
        Path("/run/sshd").mkdir(exist_ok=True)
        for i, folder in enumerate(folders):
            (folder / "ssh").mkdir(parents=True)
            own = f"10.77.0.{i + 1} {socket.gethostname()}"
            (folder / "hosts").write_text(f"{own}\n10.77.0.1 node0\n10.77.0.2 node1\n127.0.0.1 localhost\n")
            (folder / "ssh/sshd_config").write_text(SSHD)
            lines = ["IdentityFile /etc/ssh/key", "StrictHostKeyChecking no", "UserKnownHostsFile /dev/null", "LogLevel ERROR"]
            (folder / "ssh/ssh_config").write_text("\n".join(lines) + "\n")
            if i == 0:
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "ssh/key"], check=True)
            else:
                for name in ("key", "key.pub"):
                    shutil.copy(folders[0] / "ssh" / name, folder / "ssh" / name)
        daemons = [
            subprocess.Popen(["ip", "netns", "exec", name, "/usr/sbin/sshd", "-D", "-e"], stderr=subprocess.DEVNULL) for name in two_hosts
        ]
        ends = time.monotonic() + 30
        while any(
            subprocess.run(["ip", "netns", "exec", two_hosts[0], "ssh", host, "true"], capture_output=True).returncode
            for host in ("node0", "node1")
        ):
            assert time.monotonic() < ends and all(daemon.poll() is None for daemon in daemons), "sshd does not answer"
            time.sleep(0.2)
        yield two_hosts
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(timeout=20)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_deepspeed_starts_the_other_host_by_ssh_and_trains_the_same_run(ssh_hosts, alone, shards, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node0 slots=1\nnode1 slots=1\n")
    launch = ["--hostfile", str(hostfile), "--venv_script", str(BIN / "activate"), "--master_port", "29735"]
    finished = run(
        [
            "ip",
            "netns",
            "exec",
            ssh_hosts[0],
            "deepspeed",
            *launch,
            "mpp/pretrain.py",
            *TINY,
            *SHORT,
            f"data.shards={shards}",
            f"run_dir={tmp_path / 'run'}",
        ]
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "2 processes" in finished.stdout
    assert_the_same_run(tmp_path / "run", alone)
