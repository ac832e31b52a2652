"""Numbers that go wrong: gradients that are not finite, whose steps are skipped until there are too many in a row, and losses that jump.

A skipped step changes no weight and no moment (train/engine.py sees to that by itself); here it is counted, told of, and forgiven or not.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from mpp.errors import UserError
from mpp.monitor.spikes import Spikes
from mpp.text import say
from mpp.train.average import WeightAverage
from mpp.train.commit import Commit, commits
from mpp.train.engine import Engine
from mpp.train.flight import Flight
from mpp.train.resume import way_out


class BadNumbers:
    """Since the run began: skipped_steps; optimiser_steps, that changed weights (neither skipped nor passed over); spikes.  in_a_row: skipped just now."""

    def __init__(
        self,
        run_dir: Path,
        config: dict[str, Any],
        global_batch: int,
        repeats: int,
        commit: Commit | None,
        engine: Engine,
        average: WeightAverage | None,
        flight: Flight,
        finish_saving: Callable[[], None],
    ):
        """config: the run's, as a dict.  repeats: of which the run is one.  commit: that it goes on from.  finish_saving: collective; a checkpoint that is on
        its way becomes a commit."""
        self.run_dir, self._config, self._global_batch, self._repeats = run_dir, config, global_batch, repeats
        self._engine, self._average, self._flight, self._finish_saving = engine, average, flight, finish_saving
        self._allowed: int = config["system"]["max_skipped_steps"]
        self.skipped_steps: int = commit.record.get("skipped_steps", 0) if commit else 0
        self.optimiser_steps = commit.optimiser_steps if commit else 0
        self.spikes = Spikes(**commit.record.get("spikes", {})) if commit else Spikes()
        self.in_a_row = 0
        self._listened = commit.step if commit else 0  # up to which losses were looked at

    def taken(self) -> None:
        """A step has changed the weights."""
        self.in_a_row = 0
        self.optimiser_steps += 1

    def skip(self, number: int, rate: float) -> None:
        """Collective: the gradient of this step was not finite, and so it has changed no weight.  Raises UserError where it is one too many in a row, or
        the run has not taken a step yet; what led there is written down, and nothing is committed.  rate: its learning rate."""
        self.in_a_row += 1
        if self.in_a_row == 1:
            self._first, self._first_rate = number, rate
        if self.in_a_row <= self._allowed and self.optimiser_steps:
            self.skipped_steps += 1
            if self._flight.world.first:
                positions = f"{(number - 1) * self._global_batch}:{number * self._global_batch}"
                say(
                    f"note: the gradient of step {number} (samples {positions}) is not finite: the step is skipped, it has changed no weight "
                    f"({self.in_a_row} in a row; more than system.max_skipped_steps={self._allowed} end the run)"
                )
            return
        why = f"the gradient norm of step {self._first} is not finite (learning rate {self._first_rate:.3g})"
        if self.in_a_row > 1:
            why += f", nor is it up to step {number}, {self.in_a_row} in a row"
        self._finish_saving()  # a checkpoint of before, which is told of if it is the newest
        rank = self._flight.write_together(why, self._weights_at_stop(self._first - 1))
        raise UserError(
            f"{why}; {way_out(self.run_dir, self._config, self._first - 2, self._repeats)}; to see where it went wrong: "
            f"python mpp/replay.py {self._flight.folder}/rank{rank}.json"
        )

    def _weights_at_stop(self, step: int) -> int | None:
        """Collective: keep the weights, and their average, as they are since that step, beside the flight recorder.  Returns the step; None where there is
        no room for them."""
        first = self._flight.world.first
        kept = self._average.tensors() if self._average else {}
        for name, parameter in self._engine.module.named_parameters():
            whole = self._engine.whole(parameter)  # one at a time: at ZeRO-3 there may be no room for all
            if first:
                kept[f"weight/{name}"] = whole.detach().float().cpu()
        try:
            if first:
                self._flight.keep_weights(kept)
        except (OSError, SafetensorError):
            step = -1
        told = [step]
        dist.broadcast_object_list(told, src=0)
        return told[0] if told[0] >= 0 else None

    def listen(self, number: int) -> None:
        """Collective: hear the losses of the steps up to this one, the mean over ranks; a spike is told once."""
        for step, loss in enumerate(self._flight.losses(self._listened + 1, number), self._listened + 1):
            if math.isfinite(loss) and (deviations := self.spikes.see(loss)) and self._flight.world.first:
                first, end = (step - 1) * self._global_batch, step * self._global_batch
                before = next((each.step for each in commits(self.run_dir) if each.step < step), None)
                left = f"data.skip_samples={first}:{end}" + (
                    f" resume={before}, the newest checkpoint before it" if before else ", afresh in another run_dir"
                )
                say(
                    f"note: loss spike: {loss:.4g} in step {step}, {deviations:.1f} standard deviations above what it was. If it does not come down again, "
                    f"leave out what it has seen: {left}"
                )
        self._listened = number

    def record(self) -> dict[str, Any]:
        """What a commit keeps, and a resumed run goes on counting from."""
        return {
            "skipped_steps": self.skipped_steps,
            "optimiser_steps": self.optimiser_steps,
            "spikes": dataclasses.asdict(self.spikes),
        }

    def figures(self) -> dict[str, float]:
        return {"train/skipped_steps": float(self.skipped_steps), "train/loss_spikes": float(self.spikes.count)}
