"""What probing costs at ImageNet's size: 1,281,167 images, 1,000 classes, features 768 wide after each of 13 layers.

    python benchmarks/probe_scale.py --images 4096 --out benchmarks/results/DEVICE-probe_scale.json

Each probe is timed on so many random rows of a table of that width on the disk, and its time is multiplied up by the number of images; what is
per probe and not per image (the head's weights, an eigendecomposition) is measured as it is.  Memory is the peak of this process beyond what it
had before; the table itself is a map of a file and counts only as far as the system keeps it.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mpp.base.errors import Parser, run_program
from mpp.train.run_folder import environment
from mpp.transfer.probes.knn import KnnProbe, nearest
from mpp.transfer.probes.linear import Block, LinearProbe, groups, train_heads
from mpp.transfer.probes.logistic import LogisticProbe, fit_path

IMAGES, QUERIES, CLASSES, WIDTH, LAYERS = 1_281_167, 50_000, 1000, 768, 13
EPOCH, PASSES, SEARCH = "linear, 13 rates x 13 layers, an epoch", "logistic regression, 768 columns", "k-NN, 512 queries"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    count, device = options.images, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        table = np.lib.format.open_memmap(Path(folder) / "features.npy", "w+", np.float32, (count, WIDTH * LAYERS))
        for row in range(0, count, 256):
            table[row : row + 256] = rng.standard_normal((min(256, count - row), WIDTH * LAYERS), dtype=np.float32)
        values, rows, labels = torch.from_numpy(table), np.arange(count), np.arange(count) % CLASSES
        columns = [torch.arange(layer * WIDTH, (layer + 1) * WIDTH) for layer in range(LAYERS)]
        linear, path, k = LinearProbe(), LogisticProbe(), max(KnnProbe().k)
        blocks = [Block(own, rates) for own in columns for rates in groups(linear.learning_rates, CLASSES)]
        shape = {"epochs": 1, "batch": linear.batch, "weight_decay": 0.0, "seed": 0, "device": device}
        passes: list[int] = []

        def regress() -> None:
            passes.extend(fit_path(values, rows, labels, CLASSES, columns[0], path.strengths[:2], most_passes=5, device=device).passes)

        asked = values[:512, :WIDTH]
        measured = {
            EPOCH: timed(lambda: train_heads(values, rows, labels, CLASSES, blocks, **shape)),
            PASSES: timed(regress),
            SEARCH: timed(lambda: nearest(asked, values, rows, columns[0], k, device)),
        }
    seconds = {name: part["seconds"] for name, part in measured.items()}
    grow = IMAGES / count
    estimate = {
        "table_gigabytes_one_pooling": 4 * IMAGES * WIDTH * LAYERS / 1e9,
        "linear_hours": seconds[EPOCH] * grow * linear.epochs / 3600,
        "logistic_hours_of_200_passes": seconds[PASSES] / sum(passes) * grow * 200 / 3600,
        "knn_hours": seconds[SEARCH] * grow * QUERIES / 512 / 3600,
    }
    found = {"images": count, "measured": measured, "passes": sum(passes), "imagenet": estimate, "environment": environment()}
    for name, part in measured.items():
        print(f"{name}: {part['seconds']:.2f} s for {count} images, peak +{part['megabytes']:.0f} MB")
    print("ImageNet: " + ", ".join(f"{name} {value:.1f}" for name, value in estimate.items()))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def timed(work: Callable[[], object]) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.perf_counter() - began, "megabytes": (peak - before) / 1024}


if __name__ == "__main__":
    run_program(main)
