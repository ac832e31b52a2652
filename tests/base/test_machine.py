"""What a process may use of its machine, by control groups drawn on a disk and, where the system lets us, by real ones."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mpp.base import machine

POD = "/kubepods/pod7/box"


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Of a machine of 64 cores and 100 GB, 60 of them free: a function that says what /proc tells, and what stands in which file of a group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100 * 10**9, available=60 * 10**9))
    top = tmp_path / "groups"
    monkeypatch.setattr(machine, "GROUPS", top)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")

    def say(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text + "\n")

    return say


V2 = {"cpu.max": "350000 100000", "memory.max": "32000000000", "memory.current": "12000000000"}
V2["memory.stat"] = "anon 1\nactive_file 3000000000\ninactive_file 4000000000\nslab 5"
V1 = {"cpu/cpu.cfs_quota_us": "350000", "cpu/cpu.cfs_period_us": "100000"}
V1 |= {"memory/memory.limit_in_bytes": "32000000000", "memory/memory.usage_in_bytes": "12000000000"}
V1["memory/memory.stat"] = "active_file 9\ntotal_active_file 3000000000\ntotal_inactive_file 4000000000"
BOTH = f"9:name=systemd:/\n4:memory:{POD}\n1:cpu,cpuacct:{POD}\n0::/\n"


def within(controller: str, files: dict[str, str], path: str) -> dict[str, str]:
    return {name.replace(controller, controller + path, 1): text for name, text in files.items()}


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", V2),  # in a container, whose own group stands at the top
        (f"0::{POD}\n", {f"{POD[1:]}/{name}": text for name, text in V2.items()}),  # seen from the machine
        (f"0::{POD}/inner\n", {f"{POD[1:]}/{name}": text for name, text in V2.items()}),  # the limit is of a group around it
        (BOTH, V1),  # v1 in a container: the name is the one outside
        (BOTH, within("cpu", within("memory", V1, POD), POD)),
        (BOTH, {name.replace("cpu/", "cpu,cpuacct/", 1): text for name, text in V1.items()}),
    ],
)
def test_a_container_has_what_its_limits_leave(own, files, groups):
    groups(own, files)
    assert machine.usable_cores() == 3  # whole ones of 3.5
    assert machine.usable_memory() == 32 * 10**9
    assert machine.free_memory() == (32 - 12 + 3 + 4) * 10**9  # files that are merely remembered make room


def test_the_narrowest_of_all_limits_around_a_process_holds(groups):
    inner = {f"{POD[1:]}/cpu.max": "800000 100000", f"{POD[1:]}/memory.max": "max"}
    groups(f"0::{POD}\n", inner | {"kubepods/cpu.max": "600000 100000", "kubepods/memory.max": "50000000000"})
    assert machine.usable_cores() == 6 and machine.usable_memory() == 50 * 10**9
    assert machine.free_memory() == 60 * 10**9  # what that group holds is not told


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {}),
        ("0::/\n", V2 | {"cpu.max": "max 100000", "memory.max": "max"}),
        (BOTH, V1 | {"cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": str(2**63 - 4096)}),
        ("", {}),
    ],
)
def test_without_limits_the_machine_is_all_there_is(own, files, groups):
    groups(own, files)
    assert (machine.usable_cores(), machine.usable_memory(), machine.free_memory()) == (64, 100 * 10**9, 60 * 10**9)


def test_part_of_a_core_is_one(groups):
    groups("0::/\n", {"cpu.max": "20000 100000"})
    assert machine.usable_cores() == 1


def test_a_real_control_group_is_read():
    old, new = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cgroup.subtree_control")
    v1 = old.is_dir()
    group = (old if v1 else new.parent) / f"mpp-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / ("cpu.cfs_quota_us" if v1 else "cpu.max")).write_text("100000" if v1 else "100000 100000")
        except OSError as error:
            pytest.skip(f"its cores cannot be limited: {error}")
        code = f"import os, pathlib; pathlib.Path({str(group / 'cgroup.procs')!r}).write_text(str(os.getpid()))\n"
        code += "from mpp.base.machine import usable_cores; print(usable_cores())"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert found.stdout == "1\n", found.stderr
    finally:
        group.rmdir()
