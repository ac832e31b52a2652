"""What the guards of a run cost: those of every step, and a checkpoint, by its size.

    python benchmarks/guards.py [--shapes mae_ti4 mae_s16] [--saves mae_ti4 mae_s16 mae_b16] [--rounds 7] [--folder FOLDER] [--out FILE]

A step's guards are the flight recorder (mpp/train/flight.py), the sum in which ranks agree (mpp/train/shared_sum.py) and what is told to the watchman
(mpp/processes/watch.py).  They are timed by themselves, 200 times a round, turn by turn with steps of the same batch; one process, so that no wait for another rank is
counted.  Quoted are medians over rounds.

A checkpoint: seconds that training waits for its copy, then until it is written and committed, which a run does while it trains.  FOLDER: the disk.
"""

import argparse
import json
import mmap
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_step import CONFIGS, RATE, SHAPES
from step import synthetic_batch

from mpp.base.errors import run_program
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.processes import watchman
from mpp.processes.watch import watch
from mpp.processes.world import World
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.checkpoint import Saving
from mpp.train.engine import Engine, start_distributed
from mpp.train.flight import Flight
from mpp.train.optim import build_optimiser
from mpp.train.run_folder import environment
from mpp.train.shared_sum import SharedSum
from mpp.train.step import masked_images

TIMES = 200  # of the guards, in a round


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time what guards a run: each step's, and checkpoints by their size.")
    parser.add_argument("--shapes", nargs="+", default=["mae_ti4", "mae_s16"], choices=list(SHAPES))
    parser.add_argument("--saves", nargs="*", default=["mae_ti4", "mae_s16", "mae_b16"], choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="on the disk to write to; else a temporary one")
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args(argv)
    world = start_distributed()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        steps = {name: of_a_step(name, options.rounds, world, folder) for name in options.shapes}
        saves = {name: of_a_save(name, options.rounds, world, folder) for name in options.saves}
    finally:
        shutil.rmtree(folder)
    print(f"{'shape':10}{'batch':>6}{'step, ms':>10}{'guards, ms':>12}{'share':>9}")
    for name, row in steps.items():
        print(f"{name:10}{row['batch']:6}{row['step_ms']:10.1f}{row['guards_ms']:12.3f}{row['share']:9.3%}")
    print(f"{'shape':10}{'MB':>8}{'waits, s':>10}{'written, s':>12}{'MB/s':>8}")
    for name, row in saves.items():
        print(f"{name:10}{row['megabytes']:8.0f}{row['wait_seconds']:10.3f}{row['seconds']:12.2f}{row['megabytes'] / row['seconds']:8.0f}")
    if options.out:
        Path(options.out).write_text(json.dumps({"steps": steps, "saves": saves, "environment": environment()}, indent=1) + "\n")
    return 0


def built(name: str, world: World) -> tuple[Callable[[], None], Engine, Any, int]:
    """One training step; the engine; the batch it takes; its size."""
    config_name, words, size = SHAPES[name]
    words = [*words, "data.shards=none", f"data.global_batch={size}", "data.streams=1"]
    config = load(PretrainConfig, str(CONFIGS / f"{config_name}.yaml"), words)
    batch = synthetic_batch(config, Masking(config.model.grid, config.mask, config.corruption), size)
    batch |= {key: torch.arange(size) for key in ("position", "sample", "shown")}
    model = build_model(config, world.device.type == "cuda").to(world.device)
    engine = Engine(model, build_optimiser(model, config.optim), plan_batch(size, 1, 1, size), world, config.system, config.optim.clip_norm)

    def take() -> None:
        _, loss, *_ = engine.forward(*masked_images(batch, world.device))
        engine.backward(loss.mean())
        engine.update(RATE)

    take()
    take()  # what is allocated at first is not timed
    return take, engine, batch, size


def of_a_step(name: str, rounds: int, world: World, folder: Path) -> dict[str, Any]:
    take, engine, batch, size = built(name, world)
    flight = Flight(folder, world, {}, 1, 1, look_every=100)
    loss, norm = torch.ones((), device=world.device), torch.ones((), device=world.device)
    watch.memory = mmap.mmap(-1, watchman.BOARD_BYTES)  # where a watchman would read; one process has none
    unread: SharedSum | None = None

    def guards(number: int) -> None:
        nonlocal unread
        watch.moved(step=number)
        flight.begin(number, {"samples": [0, size], "learning_rate": RATE, "weight_decay": 0.05, "noise_seed": 0})
        flight.note(batch)
        flight.lost(loss)
        flight.stepped(norm)
        before, unread = unread, SharedSum([~torch.isfinite(norm), False, False, 0, False], world)
        if before:
            before.read()  # as in a run: a step later

    of_steps, of_guards = [], []
    for _ in range(rounds):
        of_steps.append(seconds(lambda _: take(), 4, world))
        of_guards.append(seconds(guards, TIMES, world))
    flight.close(remove=True)
    watch.memory = None
    engine.close()
    step, guard = float(np.median(of_steps)), float(np.median(of_guards))
    return {"batch": size, "step_ms": 1000 * step, "guards_ms": 1000 * guard, "share": guard / step}


def of_a_save(name: str, rounds: int, world: World, folder: Path) -> dict[str, Any]:
    _, engine, _, _ = built(name, world)
    waits, whole = [], []
    for number in range(min(rounds, 5)):
        record = {"step": number + 1, "samples_seen": number + 1, "config": {"data": {"global_batch": 1}}}
        began = time.perf_counter()
        saving = Saving(folder, engine, world, record)
        waits.append(time.perf_counter() - began)
        commit = saving.commit()
        whole.append(time.perf_counter() - began)
        size = sum(fact["bytes"] for fact in commit.record["files"].values())
        shutil.rmtree(commit.folder)
    engine.close()
    return {"megabytes": size / 1e6, "wait_seconds": float(np.median(waits)), "seconds": float(np.median(whole))}


def seconds(work: Callable[[int], None], times: int, world: World) -> float:
    """Of one, on average."""
    began = time.perf_counter()
    for number in range(times):
        work(number + 1)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    run_program(main)
