"""How fast a run is: where the time of its steps goes, how long it still takes, and how close it comes to the limit of the machine."""

import time
from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from mpp.base.machine import peak_gigabytes
from mpp.config.sections import SystemConfig
from mpp.monitor.arithmetic import matrix_rate
from mpp.monitor.energy import Energy
from mpp.monitor.phases import Phases
from mpp.processes.watch import watch
from mpp.processes.world import World
from mpp.train.engine import MEASURING

TIMED_STEPS = 100  # from which on a run is held against the machine's limit: to measure that takes a quarter of a second


def rate_of_all(system: SystemConfig, world: World) -> float:
    """Collective: FLOP/s of large matrix products, at the precision of the run, of all processes at once."""
    with watch.slowly("measuring the machine"):
        own = torch.tensor(
            system.matrix_tflops * 1e12
            if system.matrix_tflops
            else matrix_rate(world.device, torch.bfloat16 if system.precision == "bf16" else torch.float32),
            dtype=torch.float64,
            device=world.device,
        )
        dist.all_reduce(own)
    return float(own)


class Speed:
    """The clock of one start's training: from now on, over steps that each go from `step_begins` to `step_ends`."""

    def __init__(
        self,
        phases: Phases,
        world: World,
        first_step: int,
        global_batch: int,
        passed: Container[int],
        flop_per_image: float | None,
        rate_of_all: float | None,
    ):
        """passed: steps (0 is the first) that see no batch.  flop_per_image: of training; rate_of_all: FLOP/s of all processes; None: not known."""
        self._began = time.perf_counter()
        self._phases, self._device, self._first_step, self._global_batch = phases, world.device.type, first_step, global_batch
        self._passed, self._flop_per_image, self._rate_of_all = passed, flop_per_image, rate_of_all
        self._busy, self._waited, self._logged_step, self._first_seconds = 0.0, 0.0, first_step, 0.0
        phases.look()  # the empty step of a resumed run is not counted
        self._energy = Energy() if world.first else None

    @property
    def seconds(self) -> float:
        """Of this start's training, so far."""
        return time.perf_counter() - self._began

    def step_begins(self) -> None:
        self._step_began = time.perf_counter()

    def step_ends(self) -> None:
        self._busy += time.perf_counter() - self._step_began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For a batch."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def figures(self, number: int, logs: bool) -> dict[str, float]:
        """Of the steps up to this one, since the last that logged.  Samples a second; the share of time without a batch; memory; how close to the limit of
        matrix products, where that is known; on a step that logs also the milliseconds of each phase of a step."""
        trained, steps, waited = self._trained(number), number - self._logged_step, self._waited
        found: dict[str, float] = {}
        if self._flop_per_image and self._rate_of_all:
            rate = self._flop_per_image * trained * self._global_batch / self._busy
            found |= {"speed/tflops": rate / 1e12, "speed/mfu": rate / self._rate_of_all}
        if logs:
            seconds = self._phases.look()
            seconds.pop(MEASURING, None)  # between steps
            # Beside a GPU a process may wait for a batch while the device still works on the one before: only what the device does nothing in counts.
            idle = max(0.0, self._busy - sum(seconds.values()))
            waited = min(waited, idle)
            seconds |= {"data": waited, "rest": idle - waited}
            found |= {f"speed/{phase}_ms": 1000 * each / steps for phase, each in seconds.items()}
        whole = {
            "speed/samples_per_second": trained * self._global_batch / self._busy,
            "speed/wait_share": waited / self._busy,
            "speed/peak_gb": peak_gigabytes(self._device),
        }
        return whole | found

    def _trained(self, last: int) -> int:
        """Steps since the last that logged that saw a batch."""
        return sum(done not in self._passed for done in range(self._logged_step, last))

    def joules(self) -> dict[str, float | None]:
        """Of all steps since the last that logged, on rank 0, where the machine counts them."""
        return {"speed/energy_joules": self._energy.look()} if self._energy else {}

    def seconds_left(self, number: int, total_steps: int) -> float:
        """Behind this step."""
        timed = number - self._first_step - 1
        seconds_a_step = (self.seconds - self._first_seconds) / timed if timed else self.seconds
        return seconds_a_step * (total_steps - number)

    def shown(self, number: int, logs: bool) -> None:
        """The figures of this step have been told: those of the next begin here, if it logs or is the first."""
        first = number == self._first_step + 1
        if first:  # in it memory is asked for, files are opened, and maybe all is compiled: it is no part of later figures
            self._first_seconds = self.seconds
            self._phases.look()
        if logs or first:
            self._busy, self._waited, self._logged_step = 0.0, 0.0, number
