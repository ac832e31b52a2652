import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.config.sections import OptimConfig
from mpp.train.schedule import learning_rate, peak_rate

OPTIM = OptimConfig(base_lr=1e-3, warmup_samples=400, total_samples=2000, final_lr=1e-5)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),  # of the first step: warm-up begins at nothing
        (1, 1e-3 * 40 / 400),
        (5, 5e-4),
        (9, 9e-4),
        (10, 1e-3),  # the peak, exactly where warm-up ends
        (20, 1e-5 + 9.9e-4 * 0.5 * (1 + math.cos(math.pi / 4))),
        (30, 1e-5 + 9.9e-4 * 0.5),  # half of the cosine
        (40, 1e-5 + 9.9e-4 * 0.5 * (1 - math.cos(math.pi / 4))),
        (49, 1e-5 + 9.9e-4 * 0.5 * (1 + math.cos(math.pi * 1560 / 1600))),  # of the last step
        (50, 1e-5),
        (70, 1e-5),
    ],
)
def test_the_rate_of_each_step_is_exactly_this(step, rate):
    assert learning_rate(step * 40, OPTIM, 40) == pytest.approx(rate, rel=1e-12, abs=1e-15)


def test_the_papers_schedule():
    optim = OptimConfig()
    for step, rate in [(0, 0.0), (2500, 5e-5), (5000, 1e-4), (10_000, 2e-4), (505_000, 1e-4), (1_000_000, 0.0)]:
        assert learning_rate(step * 4096, optim, 4096) == pytest.approx(rate, rel=1e-9, abs=1e-12)


def test_maes_peak_is_scaled_by_the_batch_and_the_papers_is_not():
    assert peak_rate(OptimConfig(base_lr=1.5e-4, lr_batch=256), 4096) == pytest.approx(2.4e-3)
    assert peak_rate(OptimConfig(base_lr=1.5e-4, lr_batch=256), 128) == pytest.approx(0.75e-4)
    assert peak_rate(OptimConfig(base_lr=2e-4), 4096) == 2e-4
    assert learning_rate(40, OptimConfig(base_lr=1e-3, lr_batch=256, warmup_samples=80, total_samples=100), 512) == pytest.approx(1e-3)


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(0, OptimConfig(base_lr=1e-3, warmup_samples=0, total_samples=100), 10) == 1e-3


def test_warm_up_may_last_the_whole_run():
    optim = OptimConfig(base_lr=1e-3, warmup_samples=100, total_samples=100)
    assert learning_rate(90, optim, 10) == pytest.approx(9e-4)
    assert learning_rate(100, optim, 10) == pytest.approx(1e-3)


@given(st.integers(0, 3000), st.integers(1, 500))
def test_the_clock_is_samples_and_not_steps(samples, batch):
    assert learning_rate(samples, OPTIM, batch) == learning_rate(samples, OPTIM, 40)


@given(st.integers(0, 2999))
def test_the_rate_rises_then_falls_and_never_leaves_its_bounds(samples):
    here, next_one = learning_rate(samples, OPTIM, 40), learning_rate(samples + 1, OPTIM, 40)
    assert (next_one > here) if samples < 400 else (next_one <= here)
    assert 0 <= here <= 1e-3
    if samples >= 400:
        assert here >= 1e-5


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (2000, 1e-5),  # where the run had ended
        (2040, 1e-5 + 9.9e-4 * 40 / 80),  # up again in a tenth of the extension, which is less than the warm-up
        (2080, 1e-3),
        (2440, 1e-5 + 9.9e-4 * 0.5),
        (2760, 1e-5 + 9.9e-4 * 0.5 * (1 + math.cos(math.pi * 680 / 720))),
        (2800, 1e-5),
    ],
)
def test_the_rate_of_an_extension_is_exactly_this(samples, rate):
    longer = OPTIM.model_copy(update={"total_samples": 2800})
    assert learning_rate(samples, longer, 40, began=2000) == pytest.approx(rate, rel=1e-12)


def test_a_long_extension_warms_up_as_the_run_did_and_one_without_warm_up_not_at_all():
    longer = OPTIM.model_copy(update={"total_samples": 12_000})
    assert learning_rate(2200, longer, 40, began=2000) == pytest.approx(1e-5 + 9.9e-4 / 2)
    assert learning_rate(2400, longer, 40, began=2000) == 1e-3
    assert learning_rate(2000, longer.model_copy(update={"warmup_samples": 0}), 40, began=2000) == 1e-3
