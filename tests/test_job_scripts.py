"""What jobs/slurm/run.sbatch and jobs/k8s/node.sh decide, with stand-ins for the programs of a cluster; the real ones: test_slurm.py, test_pods.py."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mpp.base.errors import AGAIN, UNMET

ROOT = Path(__file__).parents[1]
SLURM, POD = ROOT / "jobs/slurm/run.sbatch", ROOT / "jobs/k8s/node.sh"
SRUN = """#!/bin/bash
if [ "$1" = --overlap ]; then echo >>"$BOX/asked"; exit; fi
printf '%s\\n' "$@" >"$BOX/srun"
echo "${SLURM_JOB_END_TIME:-}" >"$BOX/ends"
if [ -n "$COMMITS" ]; then sleep 0.02; mkdir -p "$BOX/run/checkpoints/2"; touch "$BOX/run/checkpoints/2/COMMIT.json"; fi
if [ -n "$WAITS" ]; then touch "$BOX/waits"; for _ in $(seq 400); do [ -e "$BOX/asked" ] && [ "$(wc -l <"$BOX/asked")" -ge "$WAITS" ] && break; sleep 0.05; done; fi
exit "$STATUS"
"""
SCONTROL = """#!/bin/bash
if [ -n "$BUSY" ] && [ "$2" != hostnames ]; then  # the controller gives no answer, so often for each question
  echo >>"$BOX/busy-$1"
  if [ $(($(wc -l <"$BOX/busy-$1") % (BUSY + 1))) != 0 ]; then exit 1; fi
fi
case $1 in
  show) if [ "$2" = hostnames ]; then printf 'node0\\nnode1\\n'; else echo "   JobState=$STATE Reason=None"; fi ;;
  requeue) echo "$2" >>"$BOX/requeued" ;;
esac
"""


@pytest.fixture
def box(tmp_path):
    """A folder with the script's working directory, a run with a commit from before, and stand-ins in bin/."""
    for folder in ("bin", "home/mpp", "run/checkpoints/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "home/mpp/pretrain.py").touch()
    (tmp_path / "run/checkpoints/1/COMMIT.json").touch()
    os.utime(tmp_path / "run/checkpoints/1/COMMIT.json", (1e9, 1e9))
    return tmp_path


def stand_in(box: Path, name: str, text: str) -> None:
    (box / "bin" / name).write_text(text)
    (box / "bin" / name).chmod(0o755)


def batch(box: Path, *words: str, restarts: int = 0, **more: str) -> subprocess.Popen:
    stand_in(box, "srun", SRUN)
    stand_in(box, "scontrol", SCONTROL)
    given = {"BOX": str(box), "PATH": f"{box / 'bin'}:{os.environ['PATH']}", "MPP_HOME": str(box / "home"), "SLURM_JOB_ID": "17"}
    given |= {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "8"}
    given |= {"STATUS": "0", "COMMITS": "", "WAITS": "", "STATE": "RUNNING", "BUSY": "", "CONTROLLER_WAITS": "0.02 0.02 0.02"} | more
    given |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    command = ["bash", str(SLURM), "mpp/pretrain.py", f"run_dir={box / 'run'}", *words]
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def requeued(box: Path) -> bool:
    found = (box / "requeued").exists()
    (box / "requeued").unlink(missing_ok=True)
    return found


@pytest.mark.parametrize(
    ("state", "status", "commits", "again"),
    [
        ("RUNNING", "0", "1", False),  # finished
        ("RUNNING", "75", "1", True),  # ended because of a process on another node
        ("RUNNING", "143", "1", True),
        ("RUNNING", "2", "1", True),  # it has helped once: a disk that is full now, a server that was away
        ("RUNNING", "2", "", False),  # a person must mend it
        ("RUNNING", "1", "", True),  # the first of three
        ("RUNNING", "69", "", True),  # likewise: a node was late, or an address is wrong
        ("COMPLETING", "143", "1", False),  # cancelled
    ],
)
def test_a_batch_job_that_fails_is_queued_again_where_that_may_help(box, state, status, commits, again):
    job = batch(box, STATE=state, STATUS=status, COMMITS=commits)
    text, _ = job.communicate(timeout=60)
    assert job.returncode == int(status), text
    assert requeued(box) == again


@pytest.mark.parametrize("status", [1, UNMET])
def test_a_batch_job_ends_when_it_has_failed_three_times_in_a_row_without_a_commit(box, status):
    (box / "home/.failures-17").write_text("status 1\nstatus 1\n")  # of another job that had this number
    seen = []
    for restarts, commits in enumerate(["", "", "1", "", "", ""]):
        batch(box, STATUS=str(status), COMMITS=commits, restarts=restarts).communicate(timeout=60)
        seen.append(requeued(box))
    assert seen == [True, True, True, True, True, False]
    assert not list((box / "home").glob(".[hf]*"))


@pytest.mark.parametrize(("state", "status", "again"), [("RUNNING", "75", True), ("RUNNING", "0", False), ("COMPLETING", "143", False)])
def test_a_batch_job_that_runs_out_of_time_asks_its_ranks_and_is_queued_again_but_not_one_that_is_cancelled(box, state, status, again):
    job = batch(box, STATE=state, STATUS=status, WAITS="1", ASK_AGAIN_SECONDS="0.5")
    while not (box / "waits").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    if state != "RUNNING":
        time.sleep(0.3)
        assert not (box / "asked").exists()
        (box / "asked").write_text("by SLURM\n")  # which ends the step
    assert job.wait(timeout=60) == int(status)
    assert requeued(box) == again


def test_ranks_that_had_only_begun_when_a_batch_job_was_asked_to_stop_are_asked_again(box):
    job = batch(box, STATUS="75", WAITS="3", ASK_AGAIN_SECONDS="0.1")
    while not (box / "waits").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 75 and len((box / "asked").read_text().splitlines()) >= 3 and requeued(box)


@pytest.mark.parametrize(("busy", "again"), [("3", True), ("999", False)])
def test_a_controller_that_is_too_busy_to_answer_is_asked_again(box, busy, again):
    """Else a job would train on into its time limit, or be taken for one that was cancelled."""
    job = batch(box, STATUS="75", WAITS="1", BUSY=busy, ASK_AGAIN_SECONDS="0.1")
    while not (box / "waits").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    if not again:
        time.sleep(0.5)  # it is never told that the job runs, and so does not ask
        assert not (box / "asked").exists()
        (box / "asked").write_text("\n")  # the job ends
    assert job.wait(timeout=60) == 75 and requeued(box) == again

    failed = batch(box, STATUS="143", COMMITS="1", BUSY=busy)
    assert failed.wait(timeout=60) == 143 and requeued(box) == again


@pytest.mark.parametrize(
    ("told", "said", "ends"),
    [
        ("", "2031-02-03T04:05:06", "1927857906"),
        ("1800000000", "2031-02-03T04:05:06", "1800000000"),  # SLURM's own word
        ("", "N/A", ""),
        ("", "", ""),  # `date` would take it for today
    ],
)
def test_a_run_knows_when_its_job_ends_from_any_slurm(box, told, said, ends):
    stand_in(box, "squeue", f"#!/bin/bash\necho {said}\n")
    more = {"SLURM_JOB_END_TIME": told} if told else {}
    assert batch(box, **more, TZ="UTC").wait(timeout=60) == 0
    assert (box / "ends").read_text().strip() == ends


def test_a_node_that_slurm_ends_waits_until_its_ranks_have_committed(box):
    """SLURM's signal reaches all processes of the node, and where the first of them has ended it kills the rest."""
    launcher = "#!/bin/bash\ntrap 'sleep 0.5; touch committed; exit 1' TERM\ntouch begun\nwhile true; do sleep 0.05; done\n"
    stand_in(box, "deepspeed", launcher)
    given = {"PATH": f"{box / 'bin'}:{os.environ['PATH']}", "SLURM_NODEID": "0", "SLURM_JOB_ID": "17"}
    node = subprocess.Popen(["bash", ROOT / "jobs/slurm/node.sh", ""], env=given, cwd=box, start_new_session=True)
    while not (box / "begun").exists():
        time.sleep(0.02)
    os.killpg(node.pid, signal.SIGTERM)
    assert node.wait(timeout=60) == 1 and (box / "committed").exists()


@pytest.mark.parametrize(("job", "status"), [("17", 1), ("18", 0)])
def test_a_node_whose_launcher_is_killed_and_says_0_has_failed_where_ranks_of_its_job_are_left(box, job, status):
    stand_in(box, "deepspeed", "#!/bin/bash\nexit 0\n")
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--local_rank=0"], env=os.environ | {"SLURM_JOB_ID": job})
    try:
        given = {"PATH": f"{box / 'bin'}:{os.environ['PATH']}", "SLURM_NODEID": "0", "SLURM_JOB_ID": "17"}
        assert subprocess.run(["bash", ROOT / "jobs/slurm/node.sh", ""], env=given, timeout=60).returncode == status
    finally:
        left.kill()
        left.wait()


def test_the_launcher_gets_all_cores_of_its_node_and_the_words_as_they_are(box):
    words = ["mask={name: random, ratio: 0.6}", 'note=$(touch x) `y` "z" *']
    batch(box, *words).communicate(timeout=60)
    given = (box / "srun").read_text().splitlines()
    assert "--cpus-per-task=16" in given and "--kill-on-bad-exit=1" in given
    assert given[-len(words) :] == words


def test_a_batch_job_takes_whole_nodes_and_refuses_less_than_two_cores_a_process(box):
    options = re.findall(r"^#SBATCH (--\S+)", SLURM.read_text(), re.M)
    assert {"--exclusive", "--mem=0", "--requeue", "--open-mode=append"} <= set(options)
    job = batch(box, SLURM_CPUS_PER_TASK="15")
    text, _ = job.communicate(timeout=60)
    assert job.returncode == 2 and "--cpus-per-task=15 is less than two cores" in text and "at least --cpus-per-task=16" in text


def test_a_node_of_a_batch_job_launches_from_its_own_disk_where_there_is_an_image(box):
    stand_in(box, "deepspeed", '#!/bin/bash\nprintf "%s\\n" shared "$@" >"$BOX/words"\n')
    given = {"BOX": str(box), "PATH": f"{box / 'bin'}:{os.environ['PATH']}", "SLURM_NODEID": "3"}
    node = lambda image: subprocess.run(["bash", ROOT / "jobs/slurm/node.sh", image, "--master_port", "1", "a b"], env=given, timeout=60)
    assert node("").returncode == 0
    assert (box / "words").read_text().splitlines() == ["shared", "--no_ssh", "--node_rank", "3", "--master_port", "1", "a b"]

    absent = [name for name in ("mksquashfs", "squashfuse") if not shutil.which(name)]
    if absent or not os.access("/dev/fuse", os.W_OK):
        pytest.skip(f"an image needs {' and '.join(absent) or '/dev/fuse'} (apt-get install squashfs-tools squashfuse fuse3)")
    (box / "venv/bin").mkdir(parents=True)
    (box / "venv/bin/python").symlink_to(sys.executable)
    (box / "venv/pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text() if sys.prefix != sys.base_prefix else "")
    launcher = "#!/elsewhere/python\nimport os, sys\nopen(os.environ['BOX'] + '/words', 'w').write('\\n'.join([sys.prefix, *sys.argv[1:]]))\nsys.exit(75)\n"
    (box / "venv/bin/deepspeed").write_text(launcher)
    subprocess.run(["mksquashfs", box / "venv", box / "venv.sqsh", "-quiet", "-no-progress"], check=True)
    assert node(str(box / "venv.sqsh")).returncode == 75
    prefix, *words = (box / "words").read_text().splitlines()
    assert prefix.startswith(f"{box}/venv.sqsh.") and words == ["--no_ssh", "--node_rank", "3", "--master_port", "1", "a b"]
    assert not list(box.glob("venv.sqsh*"))  # nothing stays on the node's disk, mounted or not


def test_a_batch_job_copies_an_image_to_all_nodes_before_it_starts(box):
    stand_in(box, "sbcast", '#!/bin/bash\nprintf "%s\\n" "$@" >"$BOX/sbcast"\n')
    (box / "home/venv.sqsh").touch()
    assert batch(box, MPP_NODE_DISK="/scratch").wait(timeout=60) == 0
    assert (box / "sbcast").read_text().split() == ["--force", "venv.sqsh", "/scratch/mpp-venv-17.sqsh"]
    assert "/scratch/mpp-venv-17.sqsh" in (box / "srun").read_text().splitlines()


# ------------------------------------------------------------------------------------------------------------------- Kubernetes


def pod(box: Path, deepspeed: str, *words: str, known: int = 2) -> subprocess.Popen:
    stand_in(box, "pgrep", '#!/bin/bash\n[ -e "$BOX/left" ]\n')  # a pod sees its own processes alone, a test those of its neighbours
    stand_in(box, "deepspeed", '#!/bin/bash\nprintf \'%s\\n\' "$@" >"$BOX/words"; cp "$2" "$BOX/hosts"\n' + deepspeed)
    stand_in(box, "getent", f'#!/bin/bash\nnode=${{2%%.*}}; [ "${{node##*-}}" -lt {known} ] || {{ touch "$BOX/waits"; exit 2; }}\n')
    given = {"BOX": str(box), "PATH": f"{box / 'bin'}:{os.environ['PATH']}", "SERVICE": "s", "NODES": "2", "PROCESSES_PER_NODE": "4"}
    command = ["bash", str(POD), "mpp/pretrain.py", f"run_dir={box / 'run'}", *words]
    return subprocess.Popen(command, cwd=box / "home", env=given | {"JOB_COMPLETION_INDEX": "1"}, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("exit 0", 0),
        ('touch "$BOX/left"', 1),  # ranks are left: the launcher was killed
        ("exit 75", 75),
        ("exit 2", 2),
        ("exit 69", 69),  # counts: processes that never meet would meet as little the next time
        ("exit 247", 247),
        ('sleep 0.02; mkdir "$BOX/run/checkpoints/2"; touch "$BOX/run/checkpoints/2/COMMIT.json"; exit 247', 75),  # commits advance
    ],
)
def test_the_status_of_a_pod_says_whether_it_counts_as_a_failure(box, does, status):
    assert pod(box, does).wait(timeout=60) == status


def test_a_pod_starts_its_launcher_with_all_names_and_the_words_as_they_are(box):
    word = 'note=$(touch x) `y` "z" *'
    assert pod(box, "exit 0", word).wait(timeout=60) == 0
    words = (box / "words").read_text().splitlines()
    assert words[2:9] == ["--no_ssh", "--node_rank", "1", "--master_addr", "s-0.s", "--master_port", "29500"]
    assert words[9] == "mpp/pretrain.py" and words[-1] == word
    assert (box / "hosts").read_text() == "s-0.s slots=4\ns-1.s slots=4\n"


def test_a_pod_waits_for_the_name_of_the_last_and_ends_when_it_is_asked_to(box):
    waiting = pod(box, "exit 0", known=1)
    while not (box / "waits").exists():
        time.sleep(0.02)
    waiting.send_signal(signal.SIGTERM)
    try:
        assert waiting.wait(timeout=10) == 75 and not (box / "words").exists()
    finally:
        waiting.kill()


def test_the_manifest_says_the_same_number_of_nodes_everywhere_and_knows_the_statuses_of_its_pods():
    service, policy, job = yaml.safe_load_all((ROOT / "jobs/k8s/pretrain.yaml").read_text())
    ours = {"podSelector": {"matchLabels": {"job-name": job["metadata"]["name"]}}}
    assert policy["spec"] == ours | {"policyTypes": ["Ingress"], "ingress": [{"from": [ours]}]}
    spec = job["spec"]
    inside = spec["template"]["spec"]
    (node,) = inside["containers"]
    given = {each["name"]: each["value"] for each in node["env"]}
    assert spec["completions"] == spec["parallelism"] == int(given["NODES"]) and spec["completionMode"] == "Indexed"
    assert (
        service["metadata"]["name"] == inside["subdomain"] == given["SERVICE"] == job["metadata"]["name"]
        and service["spec"]["clusterIP"] == "None"
    )
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"] and service["spec"]["publishNotReadyAddresses"] is True
    assert node["resources"]["limits"]["nvidia.com/gpu"] == given["PROCESSES_PER_NODE"]
    assert int(node["resources"]["requests"]["cpu"]) >= 2 * int(given["PROCESSES_PER_NODE"])
    ignored = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert [(each["containerName"], each["values"]) for each in ignored] == [(node["name"], [AGAIN])]
    assert inside["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert inside["terminationGracePeriodSeconds"] >= 300 and node["command"][-1] == "jobs/k8s/node.sh"
    shm = next(each for each in inside["volumes"] if each["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory" and {"name": "shm", "mountPath": "/dev/shm"} in node["volumeMounts"]
    assert (ROOT / node["args"][0]).exists() and (ROOT / node["args"][2]).exists()


@pytest.mark.parametrize(
    "path", sorted(path for path in (ROOT / "jobs").rglob("*") if path.suffix in (".sh", ".sbatch")), ids=lambda path: path.name
)
def test_shellcheck_finds_nothing_in_the_scripts(path):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    found = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
