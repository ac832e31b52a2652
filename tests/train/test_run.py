from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.train.run import Step
from mpp.train.speed import Speed


@given(st.integers(1, 60), st.integers(1, 60))
def test_what_is_done_every_so_many_samples_is_due_in_the_step_that_reaches_each_multiple(batch, every):
    steps = [SimpleNamespace(run=SimpleNamespace(global_batch=batch), samples_seen=batch * number) for number in range(1, 40)]
    due = [step.samples_seen for step in steps if Step.crosses(step, every)]
    reached = {-(-multiple // batch) * batch for multiple in range(every, batch * 39 + 1, every)}
    assert due == sorted(reached)
    assert not any(Step.crosses(step, None) for step in steps)


@pytest.mark.parametrize(
    ("waited", "on_device", "share", "data", "rest"),
    [(3.0, 2.0, 0.3, 300, 500), (3.0, 9.5, 0.05, 50, 0), (0.0, 4.0, 0.0, 0, 600), (3.0, 12.0, 0.0, 0, 0)],
)
def test_what_a_gpu_does_in_the_meantime_is_no_waiting(waited, on_device, share, data, rest):
    """Of ten seconds and ten steps the process waited for some, while the device may have worked on."""
    phases = SimpleNamespace(look=lambda: {"forward": on_device / 4, "backward": on_device * 3 / 4, "measuring": 100.0})
    speed = Speed(phases, SimpleNamespace(device=torch.device("cpu"), first=False), 10, 8, (), None, None)
    speed._waited, speed._busy = waited, 10.0
    found = speed.figures(20, logs=True)
    assert found["speed/samples_per_second"] == 8
    assert found["speed/wait_share"] == pytest.approx(share)
    assert (found["speed/data_ms"], found["speed/rest_ms"]) == (pytest.approx(data), pytest.approx(rest))
    assert found["speed/forward_ms"] == pytest.approx(25 * on_device) and "speed/measuring_ms" not in found
