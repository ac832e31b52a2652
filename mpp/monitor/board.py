"""What a run writes down for people: TensorBoard, metrics.jsonl with the same numbers, and pictures.  The x-axis is samples seen."""

import errno
import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from mpp.base.text import say
from mpp.disk.files import append, write_atomically, writing
from mpp.disk.patience import patiently
from mpp.monitor.layout import FINAL, REFERENCE, Layout, hyper_parameters
from mpp.monitor.projector import write_projector
from mpp.monitor.reference import Reference
from mpp.monitor.signs import Signs
from mpp.processes.watch import watch


class Board:
    """Of rank 0.  Opening it at `samples_seen` cuts away whatever was written after that point."""

    def __init__(self, run_dir: Path, samples_seen: int):
        self.run_dir = run_dir
        self.metrics = run_dir / "metrics.jsonl"
        self._cut_back(samples_seen)
        self._signs: Signs | None = None
        self._reference: Reference | None = None
        self._ending: list[Any] = []  # what is written last
        self.events = Events(run_dir / "tensorboard", samples_seen + 1 if samples_seen else 0)  # a run that begins has no past

    @watch.slowly("writing logs")
    def scalars(self, samples_seen: int, step: int, values: Mapping[str, float | None]) -> None:
        """None: a figure that is not defined, which is not written down.  One that is not finite is null in metrics.jsonl: JSON has no word for it."""
        known = {name: value for name, value in values.items() if value is not None}
        finite = {name: value if math.isfinite(value) else None for name, value in known.items()}
        append(self.metrics, json.dumps({"samples": samples_seen, "step": step} | finite, allow_nan=False) + "\n")
        beside = self._reference.beside(samples_seen, list(known)) if self._reference else {}
        self.events.add(samples_seen, *(summary.scalar(name, value) for name, value in known.items()))
        self.events.add(samples_seen, *(summary.scalar(f"{REFERENCE}/{name}", value) for name, value in beside.items()))
        for line in self._signs.see({"samples": samples_seen} | finite) if self._signs else []:
            say(line)

    @watch.slowly("writing logs")
    def describe(self, layout: Layout, config: Mapping[str, Any], reference: Reference | None) -> None:
        """How TensorBoard lays the run out, its row among the hyper-parameters, and the curves that its own are drawn on from now on."""
        experiment, start, end = summary.hparams(hyper_parameters(config), dict.fromkeys(FINAL))
        self.events.add(0, summary.custom_scalars(layout), experiment, start)
        self._ending, self._reference = [end], reference

    @watch.slowly("writing logs")
    def project(self, samples_seen: int, values: np.ndarray, words: Sequence[str], images: Tensor) -> None:
        """Features float32 [n, D] of images uint8 [n, 3, H, W], for the projector; words: of each, such as its class."""
        write_projector(self.run_dir / "tensorboard", f"features at {samples_seen:,} samples", values, words, images)

    def explain(self, signs: Signs) -> None:
        """From now on what figures mean is said; not again what an earlier start of this run has said."""
        signs.see_again(rows_of(self.run_dir))
        self._signs = signs

    @watch.slowly("writing logs")
    def picture(self, samples_seen: int, name: str, image: Image.Image) -> Path:
        self.events.add(samples_seen, summary.image(name, np.asarray(image), dataformats="HWC"))
        folder = self.run_dir / "pictures"
        folder.mkdir(exist_ok=True)
        path = folder / f"{samples_seen:012d}-{name.rpartition('/')[2]}.png"
        with writing(path):
            image.save(path)
        return path

    def close(self) -> None:
        self.events.add(0, *self._ending)
        self.events.close()

    def _cut_back(self, samples_seen: int) -> None:
        if self.metrics.exists():
            lines = self.metrics.read_text(errors="replace").split("\n") if samples_seen else []  # a run that begins has no past
            kept = [line for line in lines if _samples(line) <= samples_seen]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())
        for picture in (self.run_dir / "pictures").glob("*.png"):
            if int(picture.stem.partition("-")[0]) > samples_seen:
                picture.unlink()


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, in order; none where there is no such file."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(errors="replace").split("\n") if file.exists() else []
    return [json.loads(line) for line in lines if math.isfinite(_samples(line))]


def logged(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Those that have this figure."""
    return [row for row in rows_of(run_dir) if name in row]


class Events:
    """An event file of TensorBoard, written at once and by this thread: what was seen before an error or a kill is there, and a full disk is an
    OSError here (torch's SummaryWriter writes in a thread, which would print a traceback)."""

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files by name: a later one has a later second, whatever the clock of this machine says.
        stamps = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.iterdir()]
        seconds = max([int(time.time()), *(1 + int(stamp[1]) for stamp in stamps if stamp)])
        self.path = folder / f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
        with writing(self.path):
            self.file = self.path.open("ab", buffering=0)
        self.records = RecordWriter(self)
        self._put(Event(wall_time=time.time(), step=purge_step, file_version="brain.Event:2"))
        self._put(
            Event(wall_time=time.time(), step=purge_step, session_log=SessionLog(status=SessionLog.START))
        )  # what lies beyond is void

    def add(self, samples_seen: int, *summaries: Any) -> None:
        if not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))  # it would go on into a deleted file
        for each in summaries:
            self._put(Event(wall_time=time.time(), step=samples_seen, summary=each))

    def close(self) -> None:
        with writing(self.path):
            self.file.close()

    def write(self, data: bytes) -> None:
        """Of a record, all of it: on a disk that fills up the system takes a part at first, and one that fails for a while is asked again."""
        end = self.file.tell()

        def put() -> None:
            left = memoryview(data)
            while left:
                left = left[self.file.write(left) :]

        def open_again() -> None:
            self.file = self.path.open("ab", buffering=0)
            self.file.truncate(end)

        patiently(put, str(self.path), open_again)

    def _put(self, event: Any) -> None:
        with writing(self.path):
            self.records.write(event.SerializeToString())


def _samples(line: str) -> float:
    try:
        return float(json.loads(line)["samples"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short
