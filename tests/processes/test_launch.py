"""What launchers say in the environment: rank and size of every process, or one line about what is missing or cannot be."""

import re

import pytest

from mpp.base.errors import ConfigError
from mpp.processes import world
from mpp.processes.launch import PORT, Launch, launch_of

POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456"}
FULL = POD | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
STEP = {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "123456",
}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def without(said: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in said.items() if name not in names}


@pytest.mark.parametrize(
    "said, launch",
    [
        ({}, Launch()),
        ({"LOCAL_RANK": "3", "MASTER_PORT": "x", "RANK": " "}, Launch()),  # leftovers that say nothing of a job
        (FULL, Launch(1, 2, 1, 2, "master-0", 23456)),
        (POD, Launch(1, 2, 0, None, "master-0", 23456)),  # one process a machine
        (POD | {"LOCAL_WORLD_SIZE": "1"}, Launch(1, 2, 0, 1, "master-0", 23456)),
        (without(FULL, "LOCAL_WORLD_SIZE") | {"LOCAL_SIZE": "2"}, Launch(1, 2, 1, 2, "master-0", 23456)),  # DeepSpeed's word
        (without(POD, "MASTER_PORT"), Launch(1, 2, 0, None, "master-0", PORT)),
        (without(FULL, "MASTER_ADDR"), Launch(1, 2, 1, 2, "127.0.0.1", 23456)),  # all on one machine
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29711"}, Launch(0, 1, 0, 1)),
        ({"WORLD_SIZE": "1"}, Launch(0, 1, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "garbage"}, Launch(0, 1, 0, 1)),  # it meets nobody
        (STEP, Launch(4, 5, 0, 1, "gpu07", 20000 + 3456)),
        (STEP | {"SLURM_STEP_NODELIST": "alpha,beta[1-3]"}, Launch(4, 5, 0, 1, "alpha", 23456)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Launch()),
        (without(STEP, "SLURM_STEP_ID"), Launch()),  # a batch script is one process, whatever its job's size
        (STEP | FULL, Launch(1, 2, 1, 2, "master-0", 23456)),  # a launcher inside of the step
        (MPI, Launch(1, 2, 1, 2, "127.0.0.1", PORT)),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, Launch()),
    ],
)
def test_a_launch_is_what_the_launcher_says_or_the_only_one_that_can_be(said, launch):
    assert launch_of(said) == launch


@pytest.mark.parametrize(
    "said, words",
    [
        (without(FULL, "WORLD_SIZE"), "WORLD_SIZE is not set and RANK=1 is"),
        (without(FULL, "RANK"), "RANK is not set and WORLD_SIZE=2 is"),
        (without(POD, "MASTER_ADDR"), "MASTER_ADDR is not set and WORLD_SIZE=2"),
        (without(FULL, "LOCAL_RANK"), "LOCAL_RANK is not set and LOCAL_WORLD_SIZE=2"),
        (FULL | {"RANK": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1 must be below WORLD_SIZE=1"),
        (FULL | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 must be below LOCAL_WORLD_SIZE=2"),
        (FULL | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 exceeds WORLD_SIZE=2"),
        (FULL | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536 must be from 1 to 65535"),
        (FULL | {"MASTER_PORT": "0"}, "MASTER_PORT=0 must be a whole number from 1 on"),
        *((FULL | {name: "two"}, f"{name}=two must be a whole number") for name in FULL if name != "MASTER_ADDR"),
        *((FULL | {name: "-1"}, f"{name}=-1 must be a whole number") for name in FULL if name != "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0 must be a whole number from 1 on"),
        (STEP | {"SLURM_PROCID": "x"}, "RANK=x must be a whole number"),
        (without(MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"), "MASTER_ADDR is not set"),
    ],
)
def test_what_is_missing_or_cannot_be_is_one_line(said, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        launch_of(said)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("present", range(64))
def test_every_subset_of_a_launchers_words_is_a_launch_or_a_line(present):
    said = {name: value for bit, (name, value) in enumerate(FULL.items()) if present >> bit & 1}
    try:
        launch = launch_of(said)
    except ConfigError:
        assert "RANK" in said or said.get("WORLD_SIZE")
        return
    assert 0 <= launch.rank < launch.size
    assert launch == Launch() or {"RANK", "WORLD_SIZE"} <= said.keys()


@pytest.mark.parametrize(("cores", "local_size", "threads"), [(8, 1, 4), (4, 2, 2), (3, 1, 3), (1, 1, 1), (2, 4, 1)])
def test_a_process_has_its_share_of_the_usable_cores_as_threads_and_no_more_than_torch_would_take(cores, local_size, threads, monkeypatch):
    set_to = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(world, "usable_cores", lambda: cores)
    monkeypatch.setattr(world.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(world.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(world.torch, "set_num_threads", set_to.append)
    assert world.local_device(0, local_size).type == "cpu" and set_to == [threads]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # has the last word
    world.local_device(0, local_size)
    assert set_to == [threads]
