"""What a run writes down for people: TensorBoard, metrics.jsonl with the same numbers, and pictures.  The x-axis is samples seen."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from mpp.files import write_atomically


class Board:
    """Of rank 0.  Opening it at `samples_seen` cuts away whatever was written after that point."""

    def __init__(self, run_dir: Path, samples_seen: int):
        self.run_dir = run_dir
        self.metrics = run_dir / "metrics.jsonl"
        self._cut_back(samples_seen)
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=samples_seen + 1)

    def scalars(self, samples_seen: int, step: int, values: Mapping[str, float | None]) -> None:
        """None: a figure that is not defined, which is not written down.  One that is not finite is null in metrics.jsonl: JSON has no word for it."""
        known = {name: value for name, value in values.items() if value is not None}
        finite = {name: value if math.isfinite(value) else None for name, value in known.items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps({"samples": samples_seen, "step": step} | finite, allow_nan=False) + "\n")
        for name, value in known.items():
            self.writer.add_scalar(name, value, samples_seen)
        self.writer.flush()  # what was seen before an error or a kill is there

    def picture(self, samples_seen: int, name: str, image: Image.Image) -> Path:
        self.writer.add_image(name, np.asarray(image), samples_seen, dataformats="HWC")
        self.writer.flush()
        folder = self.run_dir / "pictures"
        folder.mkdir(exist_ok=True)
        path = folder / f"{samples_seen:012d}.png"
        image.save(path)
        return path

    def text(self, name: str, text: str) -> None:
        self.writer.add_text(name, text)

    def close(self) -> None:
        self.writer.close()

    def _cut_back(self, samples_seen: int) -> None:
        if self.metrics.exists():
            kept = [line for line in self.metrics.read_text(errors="replace").split("\n") if _samples(line) <= samples_seen]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())
        for picture in (self.run_dir / "pictures").glob("*.png"):
            if int(picture.stem) > samples_seen:
                picture.unlink()


def _samples(line: str) -> float:
    try:
        return float(json.loads(line)["samples"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short
