"""jobs/k8s/pretrain.yaml: its pods, each a process tree of its own (pid 1 is the pod's command) on a host of its own, with the pod's environment.

What the Job controller does, the test does: it starts a pod anew.  Skips where namespaces may not be made.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import ROOT, TINY, metrics, succeed

pytestmark = [pytest.mark.slow, pytest.mark.long]
SERVICE, _, JOB = yaml.safe_load_all((ROOT / "jobs/k8s/pretrain.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(NODE,) = POD["containers"]
AGAIN = 75


class Pod:
    def __init__(self, host: str, index: int, words: list[str], log: Path):
        given = {each["name"]: each["value"] for each in NODE["env"]} | {"PROCESSES_PER_NODE": "1", "JOB_COMPLETION_INDEX": str(index)}
        given |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *NODE["command"], *words]
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", host, *inside], cwd=ROOT, env=os.environ | given, stdout=file, stderr=subprocess.STDOUT
            )

    def below(self) -> dict[int, str]:
        """The processes of the pod, outermost first, with their command lines."""
        found, todo = {}, [self.process.pid]
        while todo:
            pid = todo.pop(0)
            try:
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def signal_first(self, number: int) -> None:
        """To pid 1 of the pod, as the kubelet does."""
        os.kill(next(pid for pid, line in self.below().items() if line.startswith("bash ")), number)

    def rank(self) -> int:
        return next(pid for pid, line in self.below().items() if "mpp/pretrain.py --local_rank" in line)

    def ended(self) -> int:
        return self.process.wait(timeout=120)


@pytest.fixture
def job(two_hosts, tmp_path):
    """job(index, words): that pod, which knows the names of both."""
    if not shutil.which("unshare"):
        pytest.skip("pods need `unshare` (apt-get install util-linux)")
    pods: list[Pod] = []
    folders = [Path("/etc/netns") / name for name in two_hosts]  # `ip netns exec` shows these in place of /etc/hosts
    for folder in folders:
        folder.mkdir(parents=True)
        name = SERVICE["metadata"]["name"]
        lines = [f"10.77.0.{i + 1} {name}-{i}.{name}" for i in range(JOB["spec"]["completions"])]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")

    def start(index: int, words: list[str]) -> Pod:
        pods.append(Pod(two_hosts[index], index, words, tmp_path / f"pod{index}.log"))
        return pods[-1]

    yield start
    for pod in pods:
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()
    for folder in folders:
        shutil.rmtree(folder)


def when(true: Callable[[], object], *pods: Pod) -> None:
    ends = time.monotonic() + 120
    while not true():
        assert time.monotonic() < ends and all(pod.process.poll() is None for pod in pods), [pod.log.read_text()[-3000:] for pod in pods]
        time.sleep(0.05)


def commits(run: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in run.glob("checkpoints/*/COMMIT.json"))


def test_sigterm_to_one_pod_is_one_commit_and_both_pods_come_back_and_go_on(job, shards, tmp_path):
    run = tmp_path / "run"
    words = [
        "mpp/pretrain.py",
        *TINY,
        "optim.total_samples=7200",
        "checkpoint.every_samples=null",
        f"data.shards={shards}",
        f"run_dir={run}",
    ]
    pods = [job(index, words) for index in range(2)]
    when(lambda: (run / "metrics.jsonl").exists(), *pods)
    pods[1].signal_first(signal.SIGTERM)
    assert [pod.ended() for pod in pods] == [AGAIN, AGAIN], [pod.log.read_text()[-3000:] for pod in pods]
    (step,) = commits(run)
    assert f"stopped as asked at step {step}" in pods[0].log.read_text()

    again = [job(index, words) for index in range(2)]
    assert [pod.ended() for pod in again] == [0, 0], [pod.log.read_text()[-3000:] for pod in again]
    assert f"resumes at step {step}" in pods[0].log.read_text() and max(metrics(run)) == 600


def test_a_pod_whose_rank_is_killed_takes_the_other_along_and_both_meet_again(job, shards, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    words = [*TINY, "optim.total_samples=3600", "checkpoint.every_samples=120", "system.patience_seconds=5", "model.drop_path=0"]
    succeed(alone, shards, *words[len(TINY) :])
    words = ["mpp/pretrain.py", *words, f"data.shards={shards}", f"run_dir={run}"]
    pods = [job(index, words) for index in range(2)]
    when(lambda: len(commits(run)) > 1, *pods)
    os.kill(pods[1].rank(), signal.SIGKILL)
    assert [pod.ended() for pod in pods] == [AGAIN, AGAIN], [pod.log.read_text()[-3000:] for pod in pods]  # commits have advanced
    assert "rank 1 (host" in pods[0].log.read_text()

    first = job(0, words)  # waits for the other, which comes later
    time.sleep(3)
    again = [first, job(1, words)]
    assert [pod.ended() for pod in again] == [0, 0], [pod.log.read_text()[-3000:] for pod in again]
    ours, theirs = metrics(alone), metrics(run)
    assert ours.keys() == theirs.keys()
    assert theirs[300]["train/loss"] == pytest.approx(ours[300]["train/loss"], rel=1e-2)


def test_a_pod_that_fails_before_any_commit_says_so_by_its_status(job, tmp_path):
    pod = job(0, ["mpp/pretrain.py", *TINY, "optim.base_lrr=1", f"run_dir={tmp_path / 'run'}"])
    assert pod.ended() == 2
    assert "optim.base_lrr" in pod.log.read_text()
