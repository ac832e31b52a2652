"""Whole runs of the programs on small noise images, in processes of their own with the environment that a launcher would give them."""

import itertools
import json
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.forks import Forked, run_forked

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 4, width: 32, depth: 2, heads: 2, drop_path: 0.2}",
    "data={global_batch: 12, holdout_samples: 8, crop_scale: [0.5, 1]}",
    "optim={base_lr: 1e-3, warmup_samples: 24, total_samples: 96}",
    "log={every_steps: 1, holdout_every_steps: 4, pictures_every_steps: 4, pictures: 2}",
    "checkpoint={every_samples: 24, keep: 9}",
    "system={precision: fp32, micro_batch_max: 12, workers: 0, compile: false}",  # as runs that never end would
    "decoder={name: linear, head_std: 0.02}",  # with zeros the encoder would get no gradient in the first step
]


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """48 smooth random colour images in two class folders."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(48):
        path = folder / ("dark" if i % 2 else "light") / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = rng.integers(0, 128, (4, 4, 3)) + (0 if i % 2 else 127)
        Image.fromarray(coarse.astype(np.uint8)).resize((24, 20), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="session")
def shards(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    words = ["--labels", "--samples-per-shard", "10", "--quiet", "--workers", "1"]
    made = run_forked(["data_prep/make_shards.py", str(images), str(out), *words], cwd=ROOT, env=os.environ)
    assert made.returncode == 0, made.stderr
    return out / "train"


@dataclass
class Finished:
    status: list[int]
    out: str  # of all ranks
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error")]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    ours = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | {name: str(value) for name, value in ours.items()}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(words: list[str], world: int = 1, program: list[str] | None = None, cwd: Path = ROOT) -> list[Forked]:
    """A process for each rank.  program: what to run instead of mpp/pretrain.py."""
    port = free_port()
    arguments = [*(program or ["mpp/pretrain.py"]), *words]
    return [Forked(arguments, cwd=cwd, env=environment(rank, world, port)) for rank in range(world)]


def finish(processes: list[Forked], timeout: float = 300) -> Finished:
    for process in processes:  # before any is read: rank 0's watchman writes on when rank 0 is dead
        process.wait(timeout=timeout)
    texts = [process.communicate(timeout=timeout) for process in processes]
    return Finished([process.returncode for process in processes], "".join(out for out, _ in texts), "".join(err for _, err in texts))


def pretrain(run_dir: Path, shards: Path, *words: str, world: int = 1, program: list[str] | None = None) -> Finished:
    return finish(start([*TINY, f"data.shards={shards}", f"run_dir={run_dir}", *words], world, program))


def succeed(run_dir: Path, shards: Path, *words: str, world: int = 1) -> Finished:
    finished = pretrain(run_dir, shards, *words, world=world)
    assert finished.status == [0] * world, finished.err[-3000:]
    return finished


def metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    """step -> everything measured there that does not depend on the clock."""
    rows: dict[int, dict[str, float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        rows.setdefault(values["step"], {}).update({name: value for name, value in values.items() if not name.startswith("speed/")})
    return rows


def tensors(run_dir: Path, step: int) -> dict:
    folder = run_dir / "checkpoints" / f"{step:09d}"
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


NUMBERS = itertools.count()  # of pairs of hosts


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a bridge: 10.77.0.1 and 10.77.0.2.  Skips where they may not be made."""
    if not shutil.which("ip"):
        pytest.skip("two hosts need the `ip` program (apt-get install iproute2)")
    own = f"{os.getpid() % 100000}x{next(NUMBERS) % 1000}"  # the system takes its time to give a name free
    names = [f"mpp{own}a", f"mpp{own}b"]
    bridge = f"mppb{own}"
    if not ip("netns", "add", names[0]):
        pytest.skip("network namespaces may not be made here (needs root or CAP_SYS_ADMIN)")
    try:
        ok = ip("netns", "add", names[1]) and ip("link", "add", bridge, "type", "bridge") and ip("link", "set", bridge, "up")
        for i, name in enumerate(names):
            link = f"v{own}{'ab'[i]}"
            ok = ok and ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ok = ok and ip("link", "set", link, "master", bridge, "up")
            ok = ok and ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ok = ok and ip("-n", name, "link", "set", "eth0", "up") and ip("-n", name, "link", "set", "lo", "up")
        if not ok:
            pytest.skip("virtual network links may not be made here")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)
        ip("link", "del", bridge)
