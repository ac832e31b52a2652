"""Where the time of training goes: seconds by phase, of this process."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """On a GPU the device's own seconds, which are read when they are looked at: the host does not wait for it in between."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((phase, begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - began

    def look(self) -> dict[str, float]:
        """Since the last look; waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
        for phase, begin, end in self._events:
            self._seconds[phase] += begin.elapsed_time(end) / 1000
        found = dict(self._seconds)
        self._seconds.clear()
        self._events.clear()
        return found
