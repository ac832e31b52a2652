"""What a start and a resumption ask of the file system, counted by strace: for the job as a whole, whatever the number of its processes.

S shards, R rows in the index, F files in a checkpoint, W processes (on one host, or on several that share a file system):

    a shard's size is asked for      once                        by rank 0
    index.bin is read                twice, and 40 bytes a row   by rank 0, to hash it and to check its rows; then row by row as images are read
    manifest.json is read            W times
    COMMIT.json is opened            W + 6 times at most         rank 0 also looks now and then which commits there are
    a file of a checkpoint is opened 5 times                     hashed, looked through, read, by the rank in whose share it is (safetensors opens twice)
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpp.data.shard_format import INDEX_DTYPE
from tests.pipeline.conftest import ROOT, TINY, environment, free_port

CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
QUIET = ["evaluate.images=0", "log={every_steps: 100, holdout_every_steps: 1000, pictures_every_steps: 1000}", "log.pictures=0"]
ONE = [
    "data={global_batch: 8, holdout_samples: 4, crop_scale: [0.5, 1]}",
    "optim={warmup_samples: 0, total_samples: 80}",
    "system.micro_batch_max=1",
]


@dataclass
class Asked:
    """Of files by their last two names."""

    opened: Counter
    looked_at: Counter
    bytes_read: Counter


def counted(lines: list[str], below: Path) -> Asked:
    found, pending = Asked(Counter(), Counter(), Counter()), dict[str, str]()
    for line in lines:
        pid = line.split()[0]
        if line.rstrip().endswith("<unfinished ...>"):
            pending[pid] = line.rstrip().removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"^\d+ +<\.\.\. \w+ resumed>(.*)", line):
            line = pending.pop(pid) + resumed[1]
        call = CALL.match(line)
        path = re.search(rf"{re.escape(str(below))}[^\">]*", line)
        if not call or not path or int(call[3]) < 0:
            continue
        name = "/".join(Path(path[0]).parts[-2:])
        if call[1] == "openat":
            found.opened[name] += 1
        elif call[1] in ("read", "pread64"):
            found.bytes_read[name] += int(call[3])
        elif '"' in call[2]:  # by name; of an open file it costs nothing
            found.looked_at[name] += 1
    return found


def asked(folder: Path, world: int, *words: str) -> Asked:
    """By a job of so many processes, of everything below the folder."""
    port, lines, runs = free_port(), list[str](), []
    for rank in range(world):
        strace = [
            "strace",
            "-f",
            "-y",
            "--seccomp-bpf",
            "-e",
            "trace=openat,newfstatat,statx,stat,read,pread64",
            "-o",
            str(folder / f"calls{rank}"),
        ]
        command = [*strace, sys.executable, "mpp/pretrain.py", *TINY, *ONE, *QUIET, *words]
        runs.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment(rank, world, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for run in runs:
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err[-3000:]
    for rank in range(world):
        lines += (folder / f"calls{rank}").read_text(errors="replace").splitlines()
        (folder / f"calls{rank}").unlink()
    return counted(lines, folder)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="counts calls with strace (apt-get install strace)")
@pytest.mark.parametrize(
    "world", [2, pytest.param(1, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long)]
)
def test_a_start_and_a_resumption_ask_the_same_of_the_disk_whatever_the_number_of_processes(tmp_path, make_shards, world):
    shards, rows = 30, 120
    folder = make_shards(tmp_path / "train", [rows // shards] * shards)
    words = [f"data.shards={folder}", f"run_dir={tmp_path / 'run'}"]
    began = asked(tmp_path, world, *words)
    for number in range(shards):
        assert began.looked_at[f"train/{number:06d}.tar"] == 1
    assert began.opened["train/manifest.json"] == world
    assert began.bytes_read["train/manifest.json"] == world * (folder / "manifest.json").stat().st_size
    assert began.opened["train/index.bin"] <= world + 2
    index = rows * INDEX_DTYPE.itemsize
    assert 2 * index <= began.bytes_read["train/index.bin"] <= 2 * index + INDEX_DTYPE.itemsize * 4 * (80 + 4 * world + 512)

    more = asked(tmp_path, world, *words, "optim.total_samples=96")
    (last,) = [name for name in more.opened if re.fullmatch(r"0000000\d\d/COMMIT.json", name) and int(name[:9]) == 10]
    assert world <= more.opened[last] <= world + 6
    of_commit = {name: times for name, times in more.opened.items() if name.startswith("000000010/rank")}
    assert len(of_commit) == 2 * world and set(of_commit.values()) == {5}, of_commit
