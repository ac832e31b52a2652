"""The linear probe's search, by one process and by several that divide it: seconds, and whether they find the same to the digit.

Seconds pass also while a shared machine does other things; those of the CPU, of the process that had most, say how even the shares are.

    python benchmarks/divided_grid.py --out benchmarks/results/DEVICE-divided_grid.json

The table is generated: so many images of an encoder of 12 blocks, 384 columns wide after each of 13 layers, class token and mean, on the disk.
The grid is the whole default one, 30 places x 13 learning rates; two epochs stand for the 30, so that what is done once (mean and deviation of
each column, the hold-out) counts for more than in a probe.  Each process has one thread.  In each round
every number of processes has its turn.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mpp.base.errors import Parser, UserError, run_program
from mpp.base.machine import usable_cores
from mpp.base.text import say
from mpp.train.run_folder import environment
from mpp.transfer.features import Features, FeatureSpec, Layout, Variant
from mpp.transfer.probes.contract import Train
from mpp.transfer.probes.divided import find
from mpp.transfer.probes.linear import LinearProbe
from mpp.transfer.split import CHOOSE, Split, hold_out

WIDTH, LAYERS = 384, 13
OWN = Variant((12,), "mean")
ENCODER = SimpleNamespace(first=0, depth=LAYERS - 1, class_tokens=1, predictor=None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for classes in options.classes:
            make_table(Path(folder), options.images, classes)
            seconds: dict[int, list[float]] = {number: [] for number in options.processes}
            of_cpu: dict[int, list[float]] = {number: [] for number in options.processes}
            scores = {}
            for _ in range(options.rounds):
                for number in options.processes:
                    took, busy, scores[number] = searched(Path(folder), classes, number, options.epochs)
                    seconds[number].append(took)
                    of_cpu[number].append(busy)
            middle = {number: statistics.median(took) for number, took in seconds.items()}
            middle_of_cpu = {number: statistics.median(took) for number, took in of_cpu.items()}
            alike = len({json.dumps(each) for each in scores.values()}) == 1
            found[str(classes)] = {
                "seconds": {str(number): [round(one, 2) for one in took] for number, took in seconds.items()},
                "cpu_seconds": {str(number): [round(one, 2) for one in took] for number, took in of_cpu.items()},
                "median": {str(number): round(took, 2) for number, took in middle.items()},
                "cpu_median": {str(number): round(took, 2) for number, took in middle_of_cpu.items()},
                "alike": alike,
            }
            words = ", ".join(
                f"{number} process{'es' if number > 1 else ''} {took:.1f} s (CPU {middle_of_cpu[number]:.1f})"
                for number, took in middle.items()
            )
            say(f"{classes} classes: {words}; {'the same' if alike else 'OTHER'} scores of {len(next(iter(scores.values())))} heads")
    about = {"images": options.images, "columns": WIDTH * LAYERS * 2, "epochs": options.epochs, "cores": usable_cores()}
    if options.out:
        options.out.write_text(json.dumps(about | {"classes": found, "environment": environment()}, indent=1) + "\n")
    return 0


def make_table(folder: Path, count: int, classes: int) -> None:
    """Normal numbers about a centre for each class, which tells a little."""
    rng = np.random.default_rng(0)
    columns = WIDTH * LAYERS * 2
    labels = np.arange(count) % classes
    table = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (count, columns))
    centres = 0.1 * rng.standard_normal((classes, columns), dtype=np.float32)
    for row in range(0, count, 256):
        here = labels[row : row + 256]
        table[row : row + 256] = centres[here] + rng.standard_normal((len(here), columns), dtype=np.float32)
    table.flush()
    np.save(folder / "labels.npy", labels)


def searched(folder: Path, classes: int, processes: int, epochs: int) -> tuple[float, float, list[float]]:
    """Seconds from when all were ready to when all knew all scores; of the CPU, of the process that had most; and the scores."""
    (folder / "store").unlink(missing_ok=True)
    spawn = multiprocessing.get_context("spawn")
    told: Any = spawn.Queue()
    started = [spawn.Process(target=work, args=(folder, classes, rank, processes, epochs, told)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise UserError("a process has failed; its words stand above")
    return told.get()


def work(folder: Path, classes: int, rank: int, processes: int, epochs: int, told: Any) -> None:
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=processes)
    labels = np.load(folder / "labels.npy")
    values = torch.from_numpy(np.load(folder / "features.npy", mmap_mode="r+"))
    places = [(part, layer) for part in ("cls", "mean") for layer in range(LAYERS)]
    layout = Layout({place: i * WIDTH for i, place in enumerate(places)}, dict.fromkeys(places, WIDTH))
    spec = FeatureSpec("generated", tuple(range(LAYERS)), ("cls", "mean"), 224, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32")
    probe = LinearProbe(epochs=epochs)
    names = [str(label) for label in range(classes)]
    train = Train(
        Features(spec, layout, values), OWN, labels, names, Split(*hold_out(labels, 0.1, 0, CHOOSE)), 0, torch.device("cpu"), widen=False,
        variants=probe.variants(OWN, ENCODER), last=LAYERS - 1,  # type: ignore[arg-type]
    )  # fmt: skip

    def share(own: Any) -> list[Any]:
        given: list[Any] = [None] * processes
        dist.all_gather_object(given, own())
        return given

    dist.barrier()
    began, began_on_cpu = time.perf_counter(), time.process_time()
    (found,) = find([probe.search(train)], rank, processes, share)
    busy = time.process_time() - began_on_cpu
    dist.barrier()
    seconds = time.perf_counter() - began
    most = torch.tensor(busy)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if rank == 0:
        told.put((seconds, float(most), [head["holdout_score"] for head in found.fit().about["grid"]]))
    dist.destroy_process_group()


if __name__ == "__main__":
    run_program(main)
