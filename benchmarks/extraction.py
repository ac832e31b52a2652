"""Feature extraction against the bare forward pass of the same encoder on the same device: what reading, decoding, cropping and writing cost.

    python benchmarks/extraction.py encoder=timm:vit_base_patch16_224@random train=SHARDS/train --images 256 --rounds 3 --out benchmarks/results/DEVICE-extraction.json

Both sides in one run, taking turns; the forward pass has its images in memory.  The table holds every layer's class token and mean, as the probe
makes it.  Prints images a second, the ratio, and what a table for ImageNet would take.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mpp.base.errors import Parser, run_program
from mpp.config.probe import ProbeConfig
from mpp.config.schema import load
from mpp.data.labelled import open_labelled
from mpp.data.order import Parts
from mpp.interop.read_encoder import read_encoder
from mpp.processes.world import join_processes
from mpp.train.run_folder import environment
from mpp.transfer.extraction import centre_crops, extract
from mpp.transfer.rows import encoder_row

IMAGENET = 1_281_167  # training images


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="key=value", help="as mpp/linear_probe.py: encoder= train= features.precision= ...")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args(argv)
    config, world = load(ProbeConfig, None, options.words), join_processes()
    loaded, images = read_encoder(config.encoder), open_labelled(config.train, "train")
    row = encoder_row(loaded.net, loaded.digest, loaded, config.cached(), config.features, world)
    samples = np.arange(options.images) % len(images)
    crops = centre_crops(images, samples, row.extractor.spec, config.features)
    parts = np.array_split(np.arange(len(samples)), -(-len(samples) // config.features.batch))
    batches = [crops.batch(keys)["image"].to(world.device) for keys in Parts(samples, parts)]
    row.extractor(batches[0])
    bare, whole = [], []
    for _ in range(options.rounds):
        began = time.perf_counter()
        for batch in batches:
            row.extractor(batch)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        bare.append(len(samples) / (time.perf_counter() - began))
        folder = Path(tempfile.mkdtemp())
        made = extract(images, samples, {"encoder": row.extractor}, config.features, folder, world)["encoder"]
        whole.append(made.images / made.seconds)
        shutil.rmtree(folder)
    width = row.extractor.layout.width
    found = {
        "words": options.words,
        "images": len(samples),
        "resolution": row.extractor.spec.resolution,
        "columns": width,
        "forward_images_per_second": bare,
        "extraction_images_per_second": whole,
        "ratio_of_medians": statistics.median(whole) / statistics.median(bare),
        "imagenet_table_gigabytes": 4 * width * IMAGENET / 1e9,
        "environment": environment(),
    }
    print(
        f"forward pass {statistics.median(bare):.1f}, extraction {statistics.median(whole):.1f} images/s, {found['ratio_of_medians']:.3f} of it"
    )
    print(
        f"{width} columns: {found['imagenet_table_gigabytes']:.1f} GB for {IMAGENET:,} images; forward passes {IMAGENET / statistics.median(bare) / 3600:.1f} h here"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
