"""The flight recorder: what this rank did in its last steps, written down whenever the run stops before its end.

RUN/flight/rankN.json, some kB:
    format 1   why (it stopped)   at (UTC)   step (begun last)   rank, world
    program, config (the run's), device (cpu or cuda), micro_batch (views), accumulation
    weights    null, or the step after which flight/weights.safetensors was taken: weight/NAME, and ema/NAME of an average
    steps      the last 16, oldest first
        step                        its number; the first of a run is 1
        samples                     [a, b): its positions of the run, of all ranks together
        learning_rate, weight_decay
        noise_seed                  of what the model itself draws (stochastic depth)
        loss, gradient_norm         of this rank; of all.  "nan", "inf"; null where it is not known
        losses                      of each rank, where all stopped together
        micro_batches               position (of the first view), samples (ids), replaced (id asked for -> id shown), masks, pixels (CRC-32)
Crops and masks need no more: they belong to (seed, epoch, sample, view).  `pixels` is of some rows, so that it costs little, and null
where crops are made on a device.

Written on an error, on a signal that is heeded (the run commits, too), on numbers that stay not finite, and when the watchman ends the process; then
without losses and norms, as the device may hang.  SIGKILL leaves nothing.  A run that reaches its end removes the folder.
mpp/replay.py reads such a file.
"""

import json
import math
import shutil
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from mpp import errors
from mpp.data.crop_dataset import Batch
from mpp.files import temporary, write_atomically
from mpp.train.commit import warn
from mpp.world import World

FORMAT = 1
STEPS = 16
ROWS = 4  # of each crop that `pixels_check` looks at, about
WEIGHTS = "weights.safetensors"


def pixels_check(images: Tensor) -> str | None:
    """uint8 [B, C, H, W] as cut, in memory -> CRC-32 of every n-th row; None of what lies on a device."""
    if images.device.type != "cpu":
        return None
    every = max(1, images.shape[-2] // ROWS)
    return f"{zlib.crc32(images.numpy()[:, :, ::every].tobytes()):08x}"


def masks_check(batch: Batch) -> str | None:
    """CRC-32 of what is hidden, and of where swapped patches come from; None of a batch without masks."""
    return f"{zlib.crc32(batch['source'].numpy(), zlib.crc32(batch['kind'].numpy())):08x}" if "kind" in batch else None


@dataclass
class _Noted:
    """One step, on the host."""

    step: int
    known: dict[str, Any]
    batches: list[dict[str, Any]] = field(default_factory=list)


class Flight:
    """Nothing here waits for the device but `losses` and `write`."""

    def __init__(self, run_dir: Path, world: World, about: Mapping[str, Any], views: int, accumulation: int, look_every: int):
        """about: what stands in each dump.  look_every: steps, from one call of `losses` to the next at most."""
        self.folder, self.world, self.about = run_dir / "flight", world, dict(about)
        self.views, self.accumulation = views, accumulation
        self._rows = max(STEPS, look_every + 1)
        self._ring = torch.full((self._rows, 2), math.nan, device=world.device)  # loss of this rank, norm of all; row: step % rows
        self._steps: deque[_Noted] = deque(maxlen=STEPS)
        errors.at_stopping[:] = [self._stopped]  # of the run before in this process: it has closed

    @property
    def path(self) -> Path:
        return self.folder / f"rank{self.world.rank}.json"

    def begin(self, step: int, known: Mapping[str, Any]) -> None:
        """step: its number, from 1 on."""
        self._steps.append(_Noted(step, dict(known)))
        self._ring[step % self._rows] = math.nan

    def note(self, batch: Batch) -> None:
        samples, shown = batch["sample"].numpy(), batch["shown"].numpy()
        self._steps[-1].batches.append(
            {
                "position": batch["position"].numpy()[0],
                "samples": samples[:: self.views],
                "replaced": {int(asked): int(seen) for asked, seen in zip(samples[samples != shown], shown[samples != shown], strict=True)},
                "masks": masks_check(batch),
                "pixels": pixels_check(batch["image"]),
            }
        )

    def lost(self, loss: Tensor) -> None:
        """loss: the mean over a micro-batch, on the device."""
        noted = self._steps[-1]
        row = self._ring[noted.step % self._rows]
        if len(noted.batches) == 1:
            row[0] = 0.0
        row[0] += loss.detach() / self.accumulation

    def stepped(self, norm: Tensor) -> None:
        self._ring[self._steps[-1].step % self._rows, 1].copy_(norm)

    def losses(self, first: int, last: int) -> list[float]:
        """Collective: the mean loss over ranks of the steps from first to last; NaN where one was passed over."""
        sums = self._ring[:, 0].double()
        dist.all_reduce(sums)
        found = (sums / self.world.size).tolist()
        return [found[step % self._rows] for step in range(max(first, last - self._rows + 1), last + 1)]

    def write(self, why: str, losses: Sequence[Sequence[float]] = (), weights: int | None = None, device: bool = True) -> None:
        """losses: the ring's column of each rank.  weights: the step after which they were taken.  device: whether it may be asked."""
        ring: list[list[Any]] = [[None, None]] * self._rows
        if device:
            with suppress(RuntimeError):  # a GPU that is lost says nothing any more
                ring = self._ring.tolist()
        rows = [
            {
                "step": noted.step,
                **noted.known,
                "loss": _figure(ring[noted.step % self._rows][0]) if noted.batches else None,
                "gradient_norm": _figure(ring[noted.step % self._rows][1]),
                **({"losses": [_figure(each[noted.step % self._rows]) for each in losses]} if losses else {}),
                "micro_batches": [
                    {**each, "position": int(each["position"]), "samples": each["samples"].tolist()} for each in list(noted.batches)
                ],
            }
            for noted in list(self._steps)
        ]
        head = {
            "format": FORMAT,
            "why": why,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": rows[-1]["step"] if rows else None,
        }
        head |= {"rank": self.world.rank, "world": self.world.size, **self.about, "weights": weights}
        lines = ",\n".join(json.dumps(row) for row in rows)
        self.folder.mkdir(exist_ok=True)
        write_atomically(self.path, (json.dumps(head)[:-1] + ',\n"steps": [\n' + lines + "\n]}\n").encode())

    def write_together(self, why: str, weights: int | None = None) -> int:
        """Collective, once: a dump of each rank, with the losses of all.  Returns the rank whose loss was the first to be not finite, or 0."""
        own = self._ring[:, 0].contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.world.size)]
        dist.all_gather(gathered, own)
        losses = [each.tolist() for each in gathered]
        self.close(remove=False)
        try:
            self.write(why, losses, weights)
        except OSError as error:  # a full disk: the run's own last words matter more
            warn(f"the flight recorder cannot be written ({error})")
        for noted in self._steps:
            for rank, each in enumerate(losses):
                if noted.batches and not math.isfinite(each[noted.step % self._rows]):
                    return rank
        return 0

    def keep_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Rank 0: of the step at which a run stops, so that it can be looked at.  No commit: nobody goes on from here."""
        self.folder.mkdir(exist_ok=True)
        part = temporary(self.folder / WEIGHTS)
        save_file({name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(part))
        part.rename(self.folder / WEIGHTS)

    def close(self, remove: bool) -> None:
        """remove: the run has reached its end; rank 0 takes what earlier stops have left."""
        if self._stopped in errors.at_stopping:
            errors.at_stopping.remove(self._stopped)
        if remove and self.world.first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stopped(self, why: str, device: bool) -> None:
        self.write(why, device=device)


def _figure(value: float | None) -> float | str | None:
    """JSON has no word for what is not finite."""
    return value if value is None or math.isfinite(value) else str(value)
