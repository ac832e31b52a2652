"""A loader under measurement: this process asks it for batches as a trainer would, does nothing with them, and notes time and work.

    python loader_PEER.py prepare SET                            stores the images of SET as this peer wants them
    python loader_PEER.py rate WORKERS SET WARM_UP IMAGES ...    for one set after another: WARM_UP images, then IMAGES that count
    python loader_PEER.py first WORKERS SET                      when the first batch arrived
    python loader_PEER.py resume WORKERS SET BATCHES ...         when the first batch after so many of an epoch arrived; ascending
    python loader_PEER.py epochs WORKERS SET EPOCHS              when each epoch ended, for whoever watches the memory

SET is a folder made by ../loader_sets.py.  Each loader_PEER.py brings a `stream`: whole batches, uint8 [B, 3, S, S], of which every image
was decoded, cropped as torchvision's RandomResizedCrop does (CROP) and resized with an antialiased bicubic filter.
The last line that begins with a brace is the result, as JSON, with the packages' versions.  All times are of the monotonic clock, which processes share.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

CROP = {"scale": (0.05, 1.0), "ratio": (3 / 4, 4 / 3)}
LOOKED_AT = 4  # batches of the warm-up whose pixels are compared between the tools


@dataclass(frozen=True)
class ImageSet:
    """files: entries JPEGs, 1000 to a folder; shards: tars with the same; once: the `unique` ones among them, `copies` times in the others."""

    folder: Path
    side: int  # pixels of a crop
    batch: int
    entries: int
    unique: int
    copies: int

    @classmethod
    def read(cls, folder: str) -> "ImageSet":
        return cls(Path(folder), **json.loads((Path(folder) / "set.json").read_text()))

    @property
    def paths(self) -> list[str]:
        return sorted(map(str, (self.folder / "files").rglob("*.jpg")))

    @property
    def unique_paths(self) -> list[Path]:
        return sorted((self.folder / "once").glob("*.jpg"))


# set, workers, epochs, the batch of the first epoch to begin with (0 unless the peer resumes) -> batches
Stream = Callable[[ImageSet, int, int, int], Iterator[torch.Tensor]]


def main(packages: list[str], stream: Stream, prepare: Callable[[ImageSet], None] | None = None, resumes: bool = False) -> None:
    """resumes: `stream` can begin at any batch; else those before it are fetched and dropped."""
    imported = time.monotonic()
    torch.set_num_threads(1)
    what, *words = sys.argv[1:]
    if what == "prepare":
        if prepare:
            prepare(ImageSet.read(words[0]))
        result: dict = {}
    elif what == "rate":
        result = {"sets": [rate(stream, int(words[0]), *words[nth : nth + 3]) for nth in range(1, len(words), 3)]}
    elif what in ("first", "resume"):
        images, after = ImageSet.read(words[1]), list(map(int, words[2:])) or [0]
        result = {"arrived": arrivals(stream, int(words[0]), images, after, resumes)}
    else:
        result = epochs(stream, int(words[0]), ImageSet.read(words[1]), int(words[2]))
    result |= {"imported": imported, "versions": {name: version(name) for name in packages}}
    print("\n" + json.dumps(result), flush=True)


def arrivals(stream: Stream, workers: int, images: ImageSet, after: list[int], resumes: bool) -> list[float]:
    """Seconds from the moment a loader is asked for, until the first batch after each number of batches is there."""
    found = []
    for skipped in after if resumes else after[:1]:
        asked = time.monotonic()
        batches = stream(images, workers, 1, skipped if resumes else 0)
        if resumes:
            checked(next(batches), images)
            found.append(time.monotonic() - asked)
        else:
            for number in range(after[-1] + 1):
                batch = next(batches)
                if number in after:
                    checked(batch, images)
                    found.append(time.monotonic() - asked)
        batches.close()  # type: ignore[attr-defined]
        gc.collect()
    return found


def epochs(stream: Stream, workers: int, images: ImageSet, count: int) -> dict:
    """When each epoch ended."""
    ends: list[float] = []
    seen = 0
    for batch in stream(images, workers, count, 0):
        seen += len(checked(batch, images))
        if seen >= (len(ends) + 1) * (images.entries - images.batch * max(1, workers)):  # loaders leave out what fills no batch
            ends.append(time.monotonic())
    if len(ends) != count:
        raise SystemExit(f"{seen} images in {count} epochs of {images.entries}")
    return {"ends": ends, "images": seen}


def rate(stream: Stream, workers: int, folder: str, warm_up: str, count: str) -> dict:
    """images, seconds, CPU seconds of this process and its workers between two batches of steady work; and how the pixels are spread."""
    images = ImageSet.read(folder)
    batches, looked_at, seen = stream(images, workers, 1, 0), [], 0
    while seen < int(warm_up):
        batch = checked(next(batches), images)
        seen += len(batch)
        if len(looked_at) < LOOKED_AT:
            looked_at.append(batch.clone())
    processes, spent, began, counted = *cpu_seconds(), time.perf_counter(), 0
    while counted < int(count):
        counted += len(next(batches))
    seconds = time.perf_counter() - began
    processes_then, spent_then = cpu_seconds()
    if processes_then != processes:
        raise SystemExit("worker processes came or went while they were measured")
    batches.close()  # type: ignore[attr-defined]
    del batches
    gc.collect()  # workers of this set end before the next set begins
    return {"images": counted, "seconds": seconds, "cpu_seconds": spent_then - spent, "pixels": pixels(looked_at)}


def cpu_seconds() -> tuple[set[int], float]:
    """The worker processes, and user and system time of them and of this process with its threads."""
    own, processes = resource.getrusage(resource.RUSAGE_SELF), psutil.Process().children(recursive=True)
    times = [process.cpu_times() for process in processes]
    return {process.pid for process in processes}, own.ru_utime + own.ru_stime + sum(used.user + used.system for used in times)


def checked(batch: torch.Tensor, images: ImageSet) -> torch.Tensor:
    if batch.dtype != torch.uint8 or tuple(batch.shape) != (images.batch, 3, images.side, images.side):
        raise SystemExit(f"a batch is {batch.dtype} {tuple(batch.shape)}")
    return batch


def pixels(batches: list[torch.Tensor]) -> dict[str, float]:
    """mean, standard deviation; step: mean difference of neighbours in a row, which tells a sharp filter from a smooth one (0..255)."""
    values = [batch.float() for batch in batches]
    steps = sum(float((value[..., 1:] - value[..., :-1]).abs().mean()) for value in values) / len(values)
    means = [float(value.mean()) for value in values]
    squares = sum(float(value.square().mean()) for value in values) / len(values)
    mean = sum(means) / len(means)
    return {"mean": mean, "std": (squares - mean**2) ** 0.5, "step": steps}


def crop_tensor(side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """uint8 [3, H, W] -> uint8 [3, S, S], cropped and flipped: what peers without a way of their own use."""
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(side, **CROP, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def decoded(data: torch.Tensor) -> torch.Tensor:
    """uint8 bytes -> uint8 [3, H, W], RGB."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(data, mode=ImageReadMode.RGB)
