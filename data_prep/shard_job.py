"""One shard's work, as a worker process of make_shards.py does it: read, decode, check, perhaps shrink, write, note down."""

import hashlib
import io
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sources import Item, Reader

from mpp.data.decode import FORMATS, format_of, open_image, open_upright
from mpp.data.shards import FIELDS, MEAN_STD_IMAGES, Sample, write_shard
from mpp.errors import BadSample
from mpp.files import write_atomically

CONVERTED = ("GIF", "BMP", "TIFF", "PPM")  # Pillow's names; the first frame becomes a PNG
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what a PNG stores without loss
JPEG_QUALITY = 95  # of images shrunk by --resize
JPEG_SIDE = 65_500  # longest side libjpeg writes


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to build one shard."""

    folder: Path
    name: str
    record: Path  # where the finished shard's rows go
    source: Path
    kind: str
    first: int  # ordinal of the first item in its split
    items: list[Item]
    labels: list[int]  # one an item, -1 for none
    resize: int | None  # pixels of the short side, None to copy
    slot: int  # where in the shared array its progress goes


_shared: Any = None  # [whether to stop, images looked at by each job ...]; set by `start_worker`


class Stopped(Exception):
    """The main process asked this worker to give up its shard."""


def start_worker(shared: Any, parent: int) -> None:
    global _shared
    _shared = shared

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    threading.Thread(target=end_with_parent, daemon=True).start()


def build_shard(job: ShardJob) -> dict:
    """Build one shard, or take over the finished one of an earlier run; returns its record, a pure function of the job but for "kept"."""
    if record := _finished(job):
        _shared[job.slot] = len(job.items)
        return record | {"kept": True}
    rejects: list[dict] = []
    colours = np.zeros((3, 256), np.int64)
    counts = Counter(colour_images=0, read_bytes=0, converted=0, resized=0)
    reader = Reader(job.source, job.kind)

    def samples() -> Iterator[Sample]:
        for key, (item, label) in enumerate(zip(job.items, job.labels, strict=True), start=job.first):
            _shared[job.slot] += 1
            if _shared[0]:
                raise Stopped
            try:
                data = reader.read(item)
                stored, field, image = prepare(data, job.resize, counts)
            except BadSample as error:
                rejects.append({"split": job.folder.name, "key": key, "name": item.name, "reason": str(error)})
                continue
            counts["read_bytes"] += len(data)
            if key < MEAN_STD_IMAGES:
                np.add(colours, np.array(image.histogram()).reshape(3, 256), out=colours)
                counts["colour_images"] += 1
            yield Sample(key, field, stored, image.width, image.height, label)

    try:
        entry, rows = write_shard(job.folder, job.name, samples())
    finally:
        reader.close()
    record = {"entry": entry, "rows": rows.tolist(), "rejects": rejects, "colours": colours.tolist(), "counts": counts}
    write_atomically(job.record, json.dumps(record).encode())
    return record | {"kept": False}


def _finished(job: ShardJob) -> dict | None:
    """The record of a shard that an earlier run finished, if the shard is still what the record says."""
    try:
        record = json.loads(job.record.read_bytes())
        if record["entry"]["samples"]:
            with (job.folder / job.name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record["entry"]["sha256"]:
                    return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return record


def prepare(data: bytes, resize: int | None, counts: Counter) -> tuple[bytes, str, Image.Image]:
    """(bytes to store, their field, the RGB image as readers will decode it) from one file's bytes.

    JPEG, PNG and WebP are copied; other kinds become PNG without loss; a short side above `resize` is shrunk to it (bicubic,
    antialiased) and stored as JPEG.  Every image is decoded in full, so that a cut one is found now.  Raises BadSample.
    """
    form = format_of(data, formats=FORMATS + CONVERTED)
    if form in CONVERTED:
        drawn = open_upright(data, formats=CONVERTED)
        data, form = _encode(drawn if drawn.mode in PNG_MODES else open_image(data, formats=CONVERTED), "PNG"), "PNG"
        counts["converted"] += 1
    image = open_image(data)
    if resize and min(image.size) > resize:
        scale = resize / min(image.size)
        size = (max(resize, round(image.width * scale)), max(resize, round(image.height * scale)))
        if max(size) > JPEG_SIDE:
            raise BadSample(f"{image.width}x{image.height} is too narrow to shrink: a JPEG's sides end at {JPEG_SIDE}")
        data, form = _encode(image.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=JPEG_QUALITY), "JPEG"
        image = open_image(data)
        counts["resized"] += 1
    return data, FIELDS[form], image


def _encode(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
