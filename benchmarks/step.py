"""How fast a recipe trains: images a second, peak memory and the share of time spent waiting for data, over N steps.

    deepspeed benchmarks/step.py --config configs/mpp_b16.yaml --steps 200 [key=value ...]                  one batch again and again
    deepspeed benchmarks/step.py --config configs/mpp_b16.yaml --steps 200 data.shards=SHARDS [key=value ...]    real shards

The same engine, loader and loss as mpp/pretrain.py.  The first tenth of the steps is a warm-up and is not counted; each rank runs
`--batch` images a step.  Prints one JSON object, on rank 0, also into --out.
`--profile FILE` writes the table of kernels.
"""

import argparse
import itertools
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mpp.base.errors import run_program
from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import Batch
from mpp.data.loader import batches, default_workers
from mpp.data.order import OrderSampler
from mpp.data.training_set import open_training_set
from mpp.interop.lent import bring
from mpp.model.tokens import fuses_attention
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.engine import Engine, start_distributed
from mpp.train.optim import build_optimiser
from mpp.train.run_folder import environment
from mpp.train.step import masked_images

EVERY = 5  # steps between two looks at the clock


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the training step of a recipe.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256, help="images a process takes at once")
    parser.add_argument("--out", help="a JSON file")
    parser.add_argument("--profile", help="a text file: what the kernels of one more step take, the largest first")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(argv)
    real = any(word.startswith("data.shards=") for word in options.words)

    world = start_distributed()
    sizes = [
        f"data.global_batch={options.batch * world.size}",
        f"system.micro_batch_max={options.batch}",
        f"data.streams={world.size}",
        "data.holdout_samples=1",
    ]
    config = load(PretrainConfig, options.config, [*options.words, *sizes])
    plan = plan_batch(config.data.global_batch, config.data.streams, world.size, config.system.micro_batch_max, config.data.views)
    masking = Masking(config.model.grid, config.mask, config.corruption)
    fused = fuses_attention(config.system)
    brought = bring(config, None, fused)
    model = build_model(config, fused, brought.lent).to(world.device)
    brought.lent.to(world.device)
    engine = Engine(model, build_optimiser(model, config.optim), plan, world, config.system, config.optim.clip_norm)
    workers = config.system.workers if config.system.workers is not None else default_workers(world.local_size)
    if real:
        sets = open_training_set(config)
        sampler = OrderSampler(sets.order(config, plan), plan, world.rank, world.size, 0, options.steps)
        placed = sets.placed(config, world.device, world.local_size)
        stream: Iterator[Batch] = batches(placed, sampler, workers, world.device.type == "cuda", world.local_size)
    else:
        stream = itertools.repeat(synthetic_batch(config, masking, options.batch))

    warm_up = max(1, options.steps // 10)
    times, waited = [], 0.0
    began = time.perf_counter()

    def take(batch: Batch) -> tuple[Tensor, Tensor]:
        _, loss, *_ = engine.forward(*masked_images(batch, world.device))
        engine.backward(loss.mean())
        return loss, engine.update(1e-4)

    for step in range(warm_up + options.steps // EVERY * EVERY):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        loss, norm = take(batch)
        done = step + 1 - warm_up
        if done >= 0 and done % EVERY == 0:  # as in training, the process waits for its device now and then, not in every step
            float(norm)
            if done:
                times.append((time.perf_counter() - began) / EVERY)
            else:
                waited = 0.0
            began = time.perf_counter()
    on_gpu = world.device.type == "cuda"
    if options.profile:
        kernels = profiled(lambda: take(batch), on_gpu)
        if world.first:
            Path(options.profile).write_text(kernels + "\n")
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "config": options.config,
        "data": config.data.shards if real else "synthetic",
        "batch_a_process": options.batch,
        "processes": world.size,
        "loader_processes": workers if real else 0,
        "images_per_second": round(config.data.global_batch / float(np.median(times)), 1),
        "images_per_second_mean": round(config.data.global_batch * len(times) / sum(times), 1),
        "wait_share": round(waited / (EVERY * sum(times)), 4),
        "peak_memory_gb": round(peak / 1e9, 2),
        "steps_timed": EVERY * len(times),
        "loss": round(float(loss.mean()), 4),
        "environment": environment(),
    }
    if world.first:
        text = json.dumps(result, indent=1)
        print(text, flush=True)
        if options.out:
            Path(options.out).write_text(text + "\n")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def profiled(take: Callable[[], Any], on_gpu: bool) -> str:
    """The table of kernels of one step, with their shapes."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as found:
        take()
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return found.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=40, max_name_column_width=60)


def synthetic_batch(config: PretrainConfig, masking: Masking, batch: int) -> Batch:
    """Noise images with real masks, made once."""
    side = config.model.image_size
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    masks = masking.draw_all([Draws(0, MASK, 0, i, 0) for i in range(batch)])
    tensors = {name: torch.from_numpy(getattr(masks, name)) for name in ("kind", "source", "visible", "predicted")}
    return tensors | {"image": torch.from_numpy(pixels), "pose": torch.zeros(batch, dtype=torch.int64), "bad": []}


if __name__ == "__main__":
    run_program(main)
