"""samples.rankN.tsv: what stood at each position of a run, to see that two clusters trained on the same samples.

    cat runs/a/samples.rank*.tsv | sort -n | cmp - <(cat runs/b/samples.rank*.tsv | sort -n)

A line a view: position, sample asked for, sample shown (another where that one was bad), left, top, right, bottom of the crop, flip,
CRC-32 of the mask, CRC-32 of the pixels.
"""

import zlib
from pathlib import Path

import torch

from mpp.data.loader import Batch
from mpp.files import write_atomically


class SampleLog:
    def __init__(self, run_dir: Path, rank: int):
        self.path = run_dir / f"samples.rank{rank}.tsv"

    def note(self, batch: Batch) -> None:
        images = batch["image"].permute(0, 2, 3, 1).contiguous().cpu()
        masks = torch.stack([batch["kind"], batch["source"]], dim=1)
        columns = zip(
            *(batch[name].tolist() for name in ("position", "sample", "shown", "box", "flip")), masks.numpy(), images.numpy(), strict=True
        )
        with self.path.open("a") as file:
            for position, sample, shown, box, flip, mask, image in columns:
                checks = f"{zlib.crc32(mask):08x}\t{zlib.crc32(image):08x}"
                file.write("\t".join(map(str, (position, sample, shown, *box, int(flip), checks))) + "\n")


def cut_back(run_dir: Path, position: int) -> None:
    """Drop what a run that was stopped had logged beyond the position it resumes from; other ranks' logs too."""
    for path in sorted(run_dir.glob("samples.rank*.tsv")):
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and int(line.split("\t")[0]) < position]
        write_atomically(path, "".join(lines).encode())
