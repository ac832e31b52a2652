"""The flight recorder: what this rank did in its last steps, written down whenever the run stops before its end, and in a step that is skipped.

RUN/flight/rankN.json (a stop) and RUN/flight/skipped-STEP.rankN.json (a step whose gradient was not finite), some kB each:
    format 2   why   at (UTC)   step (begun last, or skipped)   rank, world
    program, config (the run's), depends_on (sha256 of shards, encoder ...), device (cpu or cuda), micro_batch (views), accumulation
    weights    null, or the step after which flight/weights.safetensors was taken: weight/NAME, and ema/NAME of an average
    average    of that average: the step after which it was taken
    steps      the last 16, oldest first; or the one that was skipped
        step                        its number; the first of a run is 1
        samples                     [a, b): its positions of the run, of all ranks together
        learning_rate, weight_decay
        noise_seed                  of what the model itself draws (stochastic depth)
        loss, gradient_norm         of this rank; of all.  "nan", "inf"; null where it is not known
        losses                      of each rank, where all stopped, or skipped, together
        micro_batches               position (of the first view), samples (ids), replaced (id asked for -> id shown), masks, labels, pixels (CRC-32)
Crops and masks need no more: they belong to (seed, epoch, sample, view).  `pixels` is of some rows, so that it costs little, and null
where crops are made on a device.  `masks` and `labels` (with what is mixed and erased) are null where there are none.

Written on an error, on a signal that is heeded (the run commits, too), on numbers that stay not finite, and when the watchman ends the process; then
without losses and norms, as the device may hang.  SIGKILL leaves nothing.  A run that reaches its end removes what stops have left.  Of skipped steps
the newest 4 stay, of every fourth with weights: one file, the newest, whose metadata say after which step.  So all are some kB a rank, and one model.
mpp/replay.py reads such a file.
"""

import errno
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

from mpp.base import errors
from mpp.data.crop_dataset import Batch
from mpp.disk.files import sync_path, temporary, write_atomically
from mpp.processes.world import World
from mpp.train.commit import warn

FORMAT = 2
STEPS = 16
ROWS = 4  # of each crop that `pixels_check` looks at, about
SKIPPED = 4  # steps of which dumps stay
CHECKPOINT = 3  # times as large as the weights and their average, at most: two moments
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


def labels_check(batch: Batch) -> str | None:
    """CRC-32 of the labels, and of what is erased and mixed; None of a batch without labels."""
    parts = [batch[name].numpy().tobytes() for name in ("label", "erase", "noise", "share", "paste") if name in batch]
    return f"{zlib.crc32(b''.join(parts)):08x}" if "label" in batch else None


@dataclass
class _Noted:
    """One step, on the host."""

    step: int
    known: dict[str, Any]
    batches: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Kept:
    """What weights.safetensors holds: the weights as they are since this step, and their average, where there is one, likewise."""

    step: int
    average: int | None


def skipped_dumps(folder: Path) -> dict[int, list[Path]]:
    """By the step that was skipped: the dumps of all ranks, also of runs before with more of them."""
    found: dict[int, list[Path]] = {}
    for path in folder.glob("skipped-*.rank*.json"):
        found.setdefault(int(path.name.removeprefix("skipped-").partition(".")[0]), []).append(path)
    return found


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
                "samples": samples[:: self.views].copy(),  # a view would keep all numbers of the batch, masks too, as long as it is noted
                "replaced": {int(asked): int(seen) for asked, seen in zip(samples[samples != shown], shown[samples != shown], strict=True)},
                "masks": masks_check(batch),
                "labels": labels_check(batch),
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

    def skipped_path(self, step: int, rank: int) -> Path:
        return self.folder / f"skipped-{step}.rank{rank}.json"

    def write(
        self,
        why: str,
        losses: Sequence[Sequence[float]] = (),
        weights: Kept | None = None,
        device: bool = True,
        skipped: int | None = None,
    ) -> None:
        """losses: the ring's column of each rank.  device: whether it may be asked.  skipped: a step that is, and is written alone."""
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
            if skipped in (None, noted.step)
        ]
        head = {
            "format": FORMAT,
            "why": why,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": rows[-1]["step"] if rows else None,
        }
        head |= {"rank": self.world.rank, "world": self.world.size, **self.about}
        head |= {"weights": weights.step, "average": weights.average} if weights else {"weights": None, "average": None}
        lines = ",\n".join(json.dumps(row) for row in rows)
        self.folder.mkdir(exist_ok=True)
        path = self.path if skipped is None else self.skipped_path(skipped, self.world.rank)
        write_atomically(path, (json.dumps(head)[:-1] + ',\n"steps": [\n' + lines + "\n]}\n").encode())

    def write_together(self, why: str, weights: Kept | None = None) -> Path:
        """Collective, once: a dump of each rank, with the losses of all.  Returns that of the rank whose loss was the first to be not finite, or of 0."""
        losses = self._losses_of_ranks()
        self.close(remove=False)
        self._try_to_write(why, losses, weights)
        for noted in self._steps:
            for rank, each in enumerate(losses):
                if noted.batches and not math.isfinite(each[noted.step % self._rows]):
                    return self.folder / f"rank{rank}.json"
        return self.folder / "rank0.json"

    def write_skipped(self, step: int, weights: Kept | None) -> Path:
        """Collective: a dump of this step by each rank, with the losses of all; those of the oldest skipped steps go.  Returns that of the rank whose loss
        was not finite, or of 0 where it was on none."""
        losses = self._losses_of_ranks()
        self._try_to_write(f"the gradient of step {step} was not finite: it was skipped", losses, weights, skipped=step)
        if self.world.first:
            dumps = skipped_dumps(self.folder)
            for old in sorted(dumps.keys() - {step})[: max(0, len(dumps) - SKIPPED)]:
                for path in dumps[old]:
                    path.unlink(missing_ok=True)
        at_fault = (rank for rank, each in enumerate(losses) if not math.isfinite(each[step % self._rows]))
        return self.skipped_path(step, next(at_fault, 0))

    def _losses_of_ranks(self) -> list[list[float]]:
        """Collective: the ring's column of each."""
        own = self._ring[:, 0].contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.world.size)]
        dist.all_gather(gathered, own)
        return [each.tolist() for each in gathered]

    def _try_to_write(self, why: str, losses: Sequence[Sequence[float]], weights: Kept | None, skipped: int | None = None) -> None:
        try:
            self.write(why, losses, weights, skipped=skipped)
        except OSError as error:  # a full disk: the run itself matters more, and its own last words
            warn(f"the flight recorder cannot be written ({error})")

    def keep_weights(self, tensors: Mapping[str, Tensor], kept: Kept, goes_on: bool) -> None:
        """Rank 0: those near a step that was not finite, so that it can be looked at.  No commit: nobody goes on from here.  goes_on: the run does, and its
        next checkpoint must find room, too.  Raises OSError where it would not, and SafetensorError."""
        self.folder.mkdir(exist_ok=True)
        part = temporary(self.folder / WEIGHTS)
        copies = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()}
        needed = sum(tensor.nbytes for tensor in copies.values())
        if goes_on and shutil.disk_usage(self.folder).free < (1 + CHECKPOINT) * needed:
            raise OSError(errno.ENOSPC, "the next checkpoint needs the room", str(self.folder))
        save_file(copies, str(part), {"step": str(kept.step)})
        sync_path(part)
        part.rename(self.folder / WEIGHTS)

    def close(self, remove: bool) -> None:
        """remove: the run has reached its end; rank 0 takes what earlier stops have left, and leaves what belongs to a step that was skipped."""
        if self._stopped in errors.at_stopping:
            errors.at_stopping.remove(self._stopped)
        if remove and self.world.first:
            if not skipped_dumps(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
            for path in self.folder.glob("rank*.json"):
                path.unlink(missing_ok=True)

    def _stopped(self, why: str, device: bool) -> None:
        self.write(why, device=device)


def _figure(value: float | None) -> float | str | None:
    """JSON has no word for what is not finite."""
    return value if value is None or math.isfinite(value) else str(value)
