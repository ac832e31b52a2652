"""Each phase has its own seconds, since the last look."""

import time

import torch

from mpp.monitor.phases import Phases


def test_seconds_are_summed_by_phase_and_cleared_when_looked_at(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    phases = Phases(torch.device("cpu"))
    for name in ("forward", "backward", "forward"):
        with phases(name):
            pass
    assert phases.look() == {"forward": 4.0, "backward": 2.0} and phases.look() == {}
    with phases("forward"):
        pass
    assert phases.look() == {"forward": 4.0}
