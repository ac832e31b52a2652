"""SPDL's pipeline: threads of one process, no worker processes.  Interface in loader_child.py.

    python loader_spdl.py ffmpeg ...    decoded, cropped, flipped and resized by its own spdl.io (FFmpeg's MJPEG decoder and swscale, bicubic)
    python loader_spdl.py tensor ...    decoded by torchvision.io.decode_jpeg and cropped as uint8 tensors, in SPDL's threads

As many threads as the others have workers, a batch at a time each.  spdl.io needs the system's FFmpeg libraries (apt-get install ffmpeg).
What it does differently: no masks; no checksums; its pipeline has no state, so batches are dropped to resume.  FFmpeg crops in the JPEG's
own colour planes, so boxes begin at even pixels where chroma is halved.
"""

import math
import random
import sys
from collections.abc import Iterator

import numpy as np
import spdl.io
import torch
from loader_child import CROP, ImageSet, crop_tensor, decoded, main
from spdl.pipeline import PipelineBuilder
from torchvision.io import read_file

FORM = sys.argv.pop(1)


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    paths, crop = images.paths, crop_tensor(images.side)

    def orders() -> Iterator[list[str]]:
        for epoch in range(epochs):
            order = random.Random(epoch).sample(paths, len(paths))
            for first in range(0, len(order) - images.batch + 1, images.batch):
                yield order[first : first + images.batch]

    def by_tensor(batch: list[str]) -> torch.Tensor:
        return torch.stack([crop(decoded(read_file(path))) for path in batch])

    def by_ffmpeg(batch: list[str]) -> torch.Tensor:
        frames = [ffmpeg_crop(path, images.side) for path in batch]
        return torch.from_numpy(np.asarray(spdl.io.to_numpy(spdl.io.convert_frames(frames)))).permute(0, 3, 1, 2)

    load = by_ffmpeg if FORM == "ffmpeg" else by_tensor
    pipeline = PipelineBuilder().add_source(orders()).pipe(load, concurrency=workers).add_sink(2).build(num_threads=workers)
    with pipeline.auto_stop():
        yield from pipeline


def ffmpeg_crop(path: str, side: int) -> "spdl.io.ImageFrames":
    packets = spdl.io.demux_image(path)
    x, y, width, height = box(packets.codec.width, packets.codec.height)
    flip = "hflip," if random.random() < 0.5 else ""
    steps = f"crop={width}:{height}:{x}:{y},{flip}scale={side}:{side}:flags=bicubic,format=pix_fmts=rgb24"
    return spdl.io.decode_packets(packets, filter_desc=steps)


def box(width: int, height: int) -> tuple[int, int, int, int]:
    """left, top, width, height by torchvision's rule, in plain Python: its own function is of tensors and takes longer."""
    low, high = CROP["ratio"]
    for _ in range(10):
        area, ratio = width * height * random.uniform(*CROP["scale"]), math.exp(random.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (width - w) // 2, (height - h) // 2, w, h


if __name__ == "__main__":
    main(["spdl", "torch", "torchvision"], stream)
