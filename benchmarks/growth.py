"""How time and memory grow with the number of images, with image size, model size and processes; a panel of a plot each.

    python benchmarks/growth.py [--of images shards samples size model processes] [--rounds 3] [--out FILE] [--plot docs/growth.png]
    python benchmarks/growth.py --drawn benchmarks/results/cpu2-growth.json --plot docs/growth.png        # the plot alone

images      a set of so many samples in shards of a thousand (holes in place of images), in a process of its own: seconds to open it (rank 0, which
            checks it; another rank, for which it is checked), to place the first batch of 4,096, the memory that a rank takes for both, and what a
            forked loader process has of its own after placing another; a hundred million take 4 GB of /tmp
shards      a manifest of so many shards, without an index or tars: its size, CPU seconds and memory to read it, to check its seal, and what stays of it in a
            rank (ShardSet, Order, two epochs) and in the keeper of a cache
samples     so many samples in a thousand shards, the index a hole: CPU seconds and memory of what a rank of 8 places and chooses at its start, and of what is
            by the sample: labels, a hold-out by class, prints (up to 10 million; a fine-tuning or a probe needs them, pretraining does not)
size        MAE ViT-S/16 at so many pixels a side, batches of 8: milliseconds an image of a training step, bytes of the step's tensors
model       MAE at 224 pixels with encoders from Ti to L, batches of 4: the same, and what parameters and moments take
processes   cifar_mae in batches of 32 a process on the cores of this machine: images/s of all of them, megabytes of each process

Medians over rounds.  Memory of shards and samples is what Python and numpy have asked for (tracemalloc), at most and kept, and times are of
another run; memory of images is the process's (RSS, and what a loader process shares with nobody).
"""

import argparse
import functools
import gc
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
import torch
from bare_step import CONFIGS, S16, engine_side
from loader_limits import empty_set, write_empty_manifest
from matplotlib.figure import Figure
from step import synthetic_batch

from mpp.base.errors import run_program
from mpp.base.machine import usable_cores
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.augment import Centre
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.keeping import Kept
from mpp.data.order import Order, OrderSampler
from mpp.data.origins import FolderOrigin
from mpp.data.pixels import StoredPixels
from mpp.data.shard_format import INDEX, INDEX_DTYPE, MANIFEST, check_of, read_manifest
from mpp.data.shard_table import ShardEntry, ShardTable
from mpp.data.shards import ShardSet
from mpp.data.training_set import TrainingSet, without_last
from mpp.mains.pretrain import micro_step_bytes
from mpp.processes.world import World
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.engine import start_distributed
from mpp.train.run_folder import environment
from mpp.train.step import masked_images
from mpp.transfer.split import REPORT, hold_out
from mpp.transfer.while_training import choose

ROOT = Path(__file__).parents[1]
IMAGES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)
SHARDS = (10**3, 10**4, 10**5, 10**6)
SAMPLES = (10**6, 10**7, 10**8, 10**9)
BY_SAMPLE = 10**7
EACH = 1000  # samples a shard
PIXELS = (64, 96, 128, 160, 192, 224, 288, 384)
MODELS = {"Ti": "vit_tiny_patch16_224", "S": "vit_small_patch16_224", "B": "vit_base_patch16_224", "L": "vit_large_patch16_224"}
Rows = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Growth of time and memory.")
    parser.add_argument("--of", nargs="+", default=list(GROWING), choices=list(GROWING))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="a JSON file")
    parser.add_argument("--plot", help="a PNG file")
    parser.add_argument("--drawn", help="the record of another time, to draw")
    parser.add_argument(
        "--row", nargs=3, help=argparse.SUPPRESS
    )  # of what, a folder, its number: what the process of one row is called with
    options = parser.parse_args(argv)
    if options.row:
        of, folder, count = options.row
        print(json.dumps(ROW[of](folder, int(count))))
        return 0
    if options.drawn:
        found = json.loads(Path(options.drawn).read_text())
    else:
        found = {"environment": environment()}
        for name in options.of:
            found[name] = GROWING[name](options.rounds)
            if options.out:  # what is known is known, whatever becomes of the rest
                Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
            for row in found[name]:
                print(
                    f"{name:10} " + "  ".join(f"{key} {value:,.6g}" if not isinstance(value, str) else value for key, value in row.items())
                )
    if options.plot:
        draw(found).savefig(options.plot, dpi=90)
    return 0


def of_images(rounds: int) -> Rows:
    rows: Rows = []
    for count in IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            empty_set(Path(folder), EACH, count // EACH)
            rows.append({"images": count} | in_processes("images", folder, count, rounds))
    return rows


def in_processes(of: str, folder: str, count: int, rounds: int) -> dict[str, float]:
    """Medians over processes, one after the other."""
    command = [sys.executable, __file__, "--row", of, folder, str(count)]
    tries = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout) for _ in range(rounds)]
    return {key: float(np.median([each[key] for each in tries])) for key in tries[0]}


def of_shards(rounds: int) -> Rows:
    rows: Rows = []
    for count in SHARDS:
        with tempfile.TemporaryDirectory() as folder:
            entry = lambda number: ShardEntry(f"{number:06d}.tar", 108_000_000 + number, hashlib.sha256(b"%d" % number).hexdigest(), EACH)
            write_empty_manifest(Path(folder), ShardTable(map(entry, range(count))), "0" * 64)
            (Path(folder) / INDEX).touch()
            rows.append(
                {"shards": count, "manifest_mb": (Path(folder) / MANIFEST).stat().st_size / 1e6}
                | in_processes("shards", folder, count, rounds)
            )
    return rows


def taken(name: str, make: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of one call, and megabytes that another one keeps, and takes at most."""
    gc.collect()
    began = time.process_time()
    made = make()
    seconds = time.process_time() - began
    del made
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return {f"{name}_cpu_seconds": seconds, f"{name}_mb": kept / 1e6, f"{name}_most_mb": most / 1e6}


def manifest_read(folder: str, count: int) -> dict[str, float]:
    path = Path(folder)
    found = taken("read", lambda: read_manifest(path))
    manifest, digest = read_manifest(path)
    check = taken("check", lambda: check_of(manifest))

    def rank() -> tuple:
        manifest, _ = read_manifest(path)
        shards = ShardSet(path, manifest, digest, 0)
        del manifest
        order = Order(without_last(shards.samples_per_shard, 256), min(4096, count), min(1024, count), seed=0)
        for epoch in range(3):
            order.sample_ids(order.places(epoch * order.steps_per_epoch, 0, 1))
        return shards, order

    keeper = lambda: Kept(FolderOrigin(path), path, "key", read_manifest(path)[0])
    return found | check | taken("rank", rank) | taken("keeper", keeper)


def of_samples(rounds: int) -> Rows:
    rows: Rows = []
    for count in SAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            entry = lambda number, each=count // 1000: ShardEntry(f"{number:06d}.tar", 1024 * each, "0" * 64, each)
            write_empty_manifest(Path(folder), ShardTable(map(entry, range(1000))), "0" * 64)
            with (Path(folder) / INDEX).open("wb") as index:
                index.truncate(count * INDEX_DTYPE.itemsize)
            rows.append({"samples": count} | in_processes("samples", folder, count, rounds))
    return rows


def samples_held(folder: str, count: int) -> dict[str, float]:
    manifest, digest = read_manifest(Path(folder))
    shards = ShardSet(Path(folder), manifest.model_copy(update={"classes": ["a", "b"]}), digest, 0)
    config = load(PretrainConfig, None, ["data={shards: none, global_batch: 4096, holdout_samples: 1024}"])
    crops = lambda pool: CropDataset(StoredPixels(shards, 1), Centre((224, 224), 1.0), 0, pool)

    def begin() -> tuple:
        trained = without_last(shards.samples_per_shard, 1024)
        first = int(trained.sum())
        sets = TrainingSet(crops(range(first)), crops(range(first, len(shards))), trained, None, {}, shards, shards)  # type: ignore[arg-type]
        plan = plan_batch(4096, None, 8, 64)
        order = sets.order(config, plan)
        keys = next(iter(OrderSampler(order, plan, 0, 8, 0, 1)))
        return sets, order, keys, choose(config, sets, 4000), sets.some_training(10_000)

    found = taken("begin", begin)
    if count <= BY_SAMPLE:
        found |= taken("labels", lambda: shards.index.column("label"))
        labels = np.arange(count, dtype=np.int32) % 1000
        found |= taken("hold_out", lambda: hold_out(labels, 0.1, 0, REPORT))
        found |= taken("prints", lambda: ShardSet(Path(folder), manifest, digest, 0).prints)
    return found


def opened(folder: str, count: int) -> dict[str, float]:
    memory = psutil.Process().memory_info().rss
    began = time.perf_counter()
    shards = ShardSet.open(folder)
    read = time.perf_counter()
    batch = min(4096, 2 ** int(math.log2(count)))
    order = Order(shards.samples_per_shard, batch, min(1024, batch), seed=0)
    _, ids = order.sample_ids(order.places(0, 0, 1))
    sizes = [shards.size_of(int(sample)) for sample in ids]
    placed = time.perf_counter()
    assert len(sizes) == len(ids)
    found = {"open_seconds": read - began, "first_batch_seconds": placed - read, "mb": (psutil.Process().memory_info().rss - memory) / 1e6}
    gc.collect()
    gc.freeze()
    ours, theirs = os.pipe()
    if not os.fork():
        _, ids = order.sample_ids(order.places(1, 0, 1))
        assert all(shards.size_of(int(sample)) for sample in ids)
        os.write(theirs, f"{psutil.Process().memory_full_info().uss / 1e6}".encode())
        os._exit(0)
    os.wait()
    began = time.perf_counter()
    manifest, digest = read_manifest(Path(folder))
    ShardSet(Path(folder), manifest, digest, 0)
    return found | {"worker_mb": float(os.read(ours, 100)), "other_rank_open_seconds": time.perf_counter() - began}


@functools.cache
def joined() -> World:
    return start_distributed()


def of_size(rounds: int) -> Rows:
    words = lambda pixels: [*S16, f"model.image_size={pixels}"]
    return stepped([(pixels, words(pixels), 8) for pixels in PIXELS], "pixels", rounds)


def of_model(rounds: int) -> Rows:
    return stepped([(name, [f"model.arch={arch}"], 4) for name, arch in MODELS.items()], "encoder", rounds)


def stepped(shapes: Sequence[tuple[Any, list[str], int]], key: str, rounds: int) -> Rows:
    """Steps of one process, shape after shape in every round: a model of every shape at once would not fit."""
    times: list[list[float]] = [[] for _ in shapes]
    world = joined()
    rows: Rows = []
    for number in range(rounds):
        for place, (value, words, batch) in enumerate(shapes):
            given = [*words, "data.shards=none", f"data.global_batch={batch}", "data.streams=1"]
            config = load(PretrainConfig, str(CONFIGS / "mae_b16.yaml"), given)
            masking = Masking(config.model.grid, config.mask, config.corruption)
            if number == 0:
                model = build_model(config)
                count = sum(each.numel() for each in model.parameters())
                held = micro_step_bytes(model, config, masking, batch, torch.device("cpu"))
                rows.append({key: value, "batch": batch, "parameters": count, "step_gb": held / 1e9, "state_gb": 12 * count / 1e9})
            times[place].append(seconds_of(config, masking, batch, world))
    for row, seconds in zip(rows, times, strict=True):
        row["ms_an_image"] = 1000 * float(np.median(seconds)) / row["batch"]
    return rows


def seconds_of(config: PretrainConfig, masking: Masking, batch: int, world: World) -> float:
    inputs = synthetic_batch(config, masking, batch)
    take: Callable[[], None] = engine_side(config, lambda: masked_images(inputs, world.device), world, "")
    take()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        take()
        seconds.append(time.perf_counter() - began)
    del take
    gc.collect()
    return float(np.median(seconds))


def of_processes(rounds: int) -> Rows:
    counts = [1, 2, 4, 8]
    tries: dict[int, list[dict]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "step.json"
                launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(count)]
                program = [
                    str(ROOT / "benchmarks" / "step.py"),
                    "--config",
                    str(CONFIGS / "cifar_mae.yaml"),
                    "--batch",
                    "32",
                    "--steps",
                    "30",
                ]
                finished = subprocess.run([*launcher, *program, "--out", str(out)], capture_output=True, text=True, env=of_no_job())
                if finished.returncode:
                    raise RuntimeError(finished.stdout[-2000:] + finished.stderr[-2000:])
                tries[count].append(json.loads(out.read_text()))
    return [
        {
            "processes": count,
            "cores": usable_cores(),
            "images_per_second": float(np.median([each["images_per_second"] for each in found])),
            "gb_a_process": float(np.median([each["peak_memory_gb"] for each in found])),
        }
        for count, found in tries.items()
    ]


def of_no_job() -> dict[str, str]:
    """The environment without the place that `joined` has given this process."""
    return {name: value for name, value in os.environ.items() if not re.fullmatch(r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)", name)}


GROWING: dict[str, Callable[[int], Rows]] = {
    "images": of_images, "shards": of_shards, "samples": of_samples, "size": of_size, "model": of_model, "processes": of_processes
}  # fmt: skip
ROW: dict[str, Callable[[str, int], dict[str, float]]] = {"images": opened, "shards": manifest_read, "samples": samples_held}


def draw(found: dict[str, Any]) -> Figure:
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False}):
        figure = Figure(figsize=(11, 10.8), layout="constrained")
        axes = figure.subplots(3, 2)
        left, right = "#0072B2", "#D55E00"

        def panel(at, title: str, rows: Rows, x: str, lines: dict[str, str], memory: str, unit: str, log: bool) -> None:
            beside = at.twinx()
            places, held = [row[x] for row in rows], [row[memory] for row in rows]
            for (key, label), style in zip(lines.items(), ("-o", "--s"), strict=False):
                at.plot(places, [row[key] for row in rows], style, color=left, label=label, markersize=4)
            beside.plot(places, held, ":^", color=right, label=unit, markersize=4)
            if log:
                at.set(yscale="log", **({} if isinstance(places[0], str) else {"xscale": "log"}))
                beside.set(yscale="log")
                if max(held) < 3 * min(held):  # flat, and to be seen as such
                    beside.set(ylim=(min(held) / 10, max(held) * 10))
            else:
                at.set(ylim=(0, None))
                beside.set(ylim=(0, None))
            beside.grid(False)
            at.set(title=title, xlabel=x)
            at.set_ylabel(" / ".join(lines.values()), color=left)
            beside.set_ylabel(unit, color=right)
            if len(lines) > 1:
                at.legend(loc="upper left", frameon=False)

        told: list[tuple[str, Callable[[Any, Rows], None]]] = [
            ("images", lambda at, rows: panel(at, "images in the set", rows, "images", {"open_seconds": "opening, s", "first_batch_seconds": "first batch, s"}, "mb", "memory, MB", True)),
            ("shards", lambda at, rows: panel(at, "shards of a manifest", rows, "shards", {"read_cpu_seconds": "reading, s of a core", "check_cpu_seconds": "checking, s of a core"}, "rank_mb", "memory of a rank, MB", True)),
            ("samples", lambda at, rows: panel(at, "images, a rank's start (labelled, 1,000 shards)", rows, "samples", {"begin_cpu_seconds": "drawing images to look at, s of a core"}, "begin_most_mb", "memory for that moment, MB", True)),
            ("size", lambda at, rows: panel(at, "image size (MAE ViT-S/16)", rows, "pixels", {"ms_an_image": "step, ms an image"}, "step_gb", "tensors of a step on 8 images, GB", False)),
            ("model", lambda at, rows: panel(at, "encoder (MAE, 224 px, patches of 16)", rows, "encoder", {"ms_an_image": "step, ms an image"}, "state_gb", "parameters and moments, GB", True)),
            ("processes", lambda at, rows: panel(at, f"processes on {rows[0]['cores']} cores (cifar_mae, 32 each)", rows, "processes", {"images_per_second": "images/s of all"}, "gb_a_process", "memory of each, GB", False)),
        ]  # fmt: skip
        for at, (name, show) in zip(axes.flat, told, strict=True):
            if name in found:
                show(at, found[name])
            else:
                at.set_axis_off()
        return figure


if __name__ == "__main__":
    run_program(main)
