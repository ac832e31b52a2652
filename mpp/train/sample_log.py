"""samples.rankN.tsv: what stood at each position of a run, to see that two clusters trained on the same samples.

    cat runs/a/samples.rank*.tsv | sort -n | cmp - <(cat runs/b/samples.rank*.tsv | sort -n)

A line a view: position, sample asked for, sample shown (another where that one was bad), left, top, right, bottom of the crop, pose
(0 as cut, 1 flipped, the rest in data/poses.py), CRC-32 of the mask, CRC-32 of the pixels as cut.  Where a run has several sources, sources.json says which
samples are of which.
"""

import zlib
from pathlib import Path

import torch

from mpp.data.crop_dataset import Batch
from mpp.disk.files import append


class SampleLog:
    def __init__(self, run_dir: Path, rank: int):
        self.path = run_dir / f"samples.rank{rank}.tsv"

    def note(self, batch: Batch) -> None:
        images = batch["image"].cpu()
        masks = torch.stack([batch["kind"], batch["source"]], dim=1)
        columns = zip(
            *(batch[name].tolist() for name in ("position", "sample", "shown", "box", "pose")), masks.numpy(), images.numpy(), strict=True
        )
        lines = []
        for position, sample, shown, box, pose, mask, image in columns:
            checks = f"{zlib.crc32(mask):08x}\t{zlib.crc32(image):08x}"
            lines.append("\t".join(map(str, (position, sample, shown, *box, pose, checks))) + "\n")
        append(self.path, "".join(lines))
