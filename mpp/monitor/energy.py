"""What the machine's own counters say of energy: processor packages (Linux powercap, where it may be read) and NVIDIA's GPUs (NVML, where pynvml is there).

Of the whole machine, whoever else works on it; memory, fans and losses of the power supply are not in it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Counters of this machine, read from now on."""

    def __init__(self) -> None:
        self._gpus = list(_gpus())
        self._last = self._read()

    def look(self) -> float | None:
        """Joules since the last look; None where no counter can be read."""
        now = self._read()
        shared = [(now[name], self._last[name]) for name in now.keys() & self._last.keys()]
        self._last = now
        if not shared:
            return None
        return sum(
            (new - old) if new >= old else new + (whole - old) for (new, whole), (old, _) in shared
        )  # a counter begins anew when it is full

    def _read(self) -> dict[str, tuple[float, float]]:
        """By counter: joules so far, and how many it counts before it begins anew."""
        found = {}
        for folder in sorted(POWERCAP.glob("intel-rapl:*")):  # the name for AMD's, too
            if folder.name.count(":") == 1:  # a package: what lies below is part of it
                with contextlib.suppress(OSError, ValueError):
                    found[folder.name] = _microjoules(folder / "energy_uj"), _microjoules(folder / "max_energy_range_uj")
        for name, gpu, nvml in self._gpus:
            with contextlib.suppress(nvml.NVMLError):
                found[name] = nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3, 0.0
        return found


def _microjoules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _gpus() -> Iterator[tuple[str, Any, Any]]:
    try:
        import pynvml as nvml  # comes with some installations of torch

        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except Exception:  # no package, no driver, no right: there is no counter then
        return
    for number in range(count):
        yield f"gpu {number}", nvml.nvmlDeviceGetHandleByIndex(number), nvml
