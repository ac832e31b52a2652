"""How the cores of a machine without a GPU are best used: processes, threads, how long threads spin, ZeRO stages; each on a quiet and on a busy machine.

    python benchmarks/cpu_cores.py --shards SHARDS [--config configs/cifar_mae.yaml] [--rounds 3] [--out FILE] [key=value ...]

Whole runs of mpp/pretrain.py through DeepSpeed's launcher, 40 steps each, one after the other, interleaved over rounds; quoted is the median over
rounds of images a second of the last 20 steps.  Busy: for every core a process that computes without end runs beside.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mpp.base.errors import run_program
from mpp.base.machine import usable_cores
from mpp.train.run_folder import environment

ROOT = Path(__file__).parents[1]
BATCH, STEPS, WARM_UP = 128, 40, 20
LIBGOMPS_OWN = {"GOMP_SPINCOUNT": "300000"}
ROWS: dict[str, tuple[int, int | None, dict[str, str], int]] = {  # processes, threads (None: mpp's own), environment, ZeRO stage
    "1 process, mpp's threads and spins": (1, None, {}, 0),
    "1 process, libgomp's spins": (1, None, LIBGOMPS_OWN, 0),
    "1 process, threads sleep at once": (1, None, {"OMP_WAIT_POLICY": "passive"}, 0),
    "1 process, 1 thread": (1, 1, {}, 0),
    "a process a core, ZeRO 0": (usable_cores(), None, {}, 0),
    "a process a core, ZeRO 1": (usable_cores(), None, {}, 1),
    "a process a core, ZeRO 2": (usable_cores(), None, {}, 2),
    "a process a core, ZeRO 3": (usable_cores(), None, {}, 3),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time training on CPU cores, shared out in several ways.")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--config", default="configs/cifar_mae.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="a JSON file")
    parser.add_argument("words", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(argv)
    found: dict[str, dict[str, list[float]]] = {state: {name: [] for name in ROWS} for state in ("quiet", "busy")}
    for _ in range(options.rounds):
        for state, rates in found.items():
            with busy(usable_cores() if state == "busy" else 0):
                for name in rates:
                    rates[name].append(rate_of(name, options.config, options.shards, options.words))
                    print(f"{state:6}{name:40}{rates[name][-1]:10.0f}", flush=True)
    print(f"{'':40}{'quiet':>10}{'busy':>10}   images/s")
    for name in ROWS:
        print(f"{name:40}" + "".join(f"{np.median(rates[name]):10.0f}" for rates in found.values()))
    if options.out:
        record = {"config": options.config, "batch": BATCH, "images_per_second": found, "environment": environment()}
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
    return 0


def rate_of(name: str, config: str, shards: str, words: Sequence[str]) -> float:
    processes, threads, variables, stage = ROWS[name]
    settings = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    settings |= variables | ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | {"PYTHONPATH": str(ROOT)}
    folder = Path(tempfile.mkdtemp())
    command = [
        Path(sys.executable).with_name("deepspeed"), "--num_gpus", str(processes), "mpp/pretrain.py", "--config", config, f"data.shards={shards}",
        f"run_dir={folder / 'run'}", f"data.global_batch={BATCH}", f"optim.total_samples={BATCH * STEPS}", "optim.warmup_samples=0",
        f"log={{every_steps: {WARM_UP}, holdout_every_steps: 1000, pictures: 0}}", "data.holdout_samples=128", f"system.zero_stage={stage}", *words,
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], cwd=ROOT, env=settings, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    speeds = [row["speed/samples_per_second"] for row in rows if row["step"] > WARM_UP and "speed/samples_per_second" in row]
    return len(speeds) / sum(1 / speed for speed in speeds)  # of so many steps together


@contextmanager
def busy(processes: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    run_program(main)
