"""Numbers that go wrong: gradients that are not finite, whose steps are skipped until there are too many in a row, and losses that jump.

A skipped step changes no weight and no moment (train/engine.py sees to that by itself); here it is counted, written down, told of, and forgiven or not.
All ranks hear of it a step later, when the next may have moved the weights: nobody waits in a step that is finite.  So what is kept of weights is of
the step itself only where that one was heard of at once, or the next was not finite either; else of one step behind it, and the dump says which.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from mpp.base.errors import UserError
from mpp.base.text import say
from mpp.monitor.spikes import Spikes
from mpp.processes.watch import watch
from mpp.train.average import WeightAverage
from mpp.train.commit import Commit, commits
from mpp.train.engine import Engine
from mpp.train.flight import SKIPPED, Flight, Kept
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
        self._kept: Kept | None = None  # of the steps that are skipped just now
        self._keep_again = 0  # how many steps must have been skipped before weights are kept again
        self._listened = commit.step if commit else 0  # up to which losses were looked at

    def taken(self) -> None:
        """A step has changed the weights."""
        self.in_a_row = 0
        self.optimiser_steps += 1

    def skip(self, number: int, rate: float, now: int, moved: bool) -> None:
        """Collective: the gradient of this step was not finite, and so it has changed no weight.  It is written down.  Raises UserError where it is one too
        many in a row, or the run has not taken a step yet; what led there is written down then, and nothing is committed.

        rate: its learning rate.  now: the step in hand, this one or the next; moved: whether that has changed the weights.
        """
        self.in_a_row += 1
        if self.in_a_row == 1:
            self._first, self._first_rate, self._kept = number, rate, None  # in those behind it the weights are still the same
        forgiven = self.in_a_row <= self._allowed and bool(self.optimiser_steps)
        if not forgiven:
            self._finish_saving()  # a checkpoint of before, which is told of if it is the newest
        due = not forgiven or (self.in_a_row == 1 and self.skipped_steps >= self._keep_again)
        if due and not self._kept:
            self._kept = self._keep_weights(now if moved else self._first - 1, now, goes_on=forgiven)
            self._keep_again = self.skipped_steps + SKIPPED  # when the dump of this step goes
        if forgiven:
            self.skipped_steps += 1
            dump = self._flight.write_skipped(number, self._kept)
            if self._flight.world.first:
                positions = f"{(number - 1) * self._global_batch}:{number * self._global_batch}"
                say(
                    f"note: the gradient of step {number} (samples {positions}) is not finite: the step is skipped, it has changed no weight "
                    f"({self.in_a_row} in a row; more than system.max_skipped_steps={self._allowed} end the run); to see where it went wrong: "
                    f"python mpp/replay.py {dump}"
                )
            return
        why = f"the gradient norm of step {self._first} is not finite (learning rate {self._first_rate:.3g})"
        if self.in_a_row > 1:
            why += f", nor is it up to step {number}, {self.in_a_row} in a row"
        dump = self._flight.write_together(why, self._kept)
        raise UserError(
            f"{why}; {way_out(self.run_dir, self._config, self._first - 2, self._repeats)}; to see where it went wrong: "
            f"python mpp/replay.py {dump}"
        )

    @watch.slowly("keeping the weights of a step that is not finite")
    def _keep_weights(self, step: int, now: int, goes_on: bool) -> Kept | None:
        """Collective: keep the weights as they are since that step, and their average as it is now, beside the flight recorder.  None where there is no room
        for them.  goes_on: the run does."""
        found = Kept(step, now if self._average else None)
        first = self._flight.world.first
        kept = self._average.tensors() if self._average else {}
        for name, parameter in self._engine.module.named_parameters():
            whole = self._engine.whole(parameter)  # one at a time: at ZeRO-3 there may be no room for all
            if first:
                kept[f"weight/{name}"] = whole.detach().float().cpu()
        try:
            if first:
                self._flight.keep_weights(kept, found, goes_on)
            room = [True]
        except (OSError, SafetensorError):
            room = [False]
        dist.broadcast_object_list(room, src=0)
        return found if room[0] else None

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
