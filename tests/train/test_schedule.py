import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.config.sections import OptimConfig
from mpp.train.schedule import learning_rate, rate_words, small_rate_note, stable_until, weight_decay

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
    assert OptimConfig(base_lr=1.5e-4, lr_batch=256).peak_rate(4096) == pytest.approx(2.4e-3)
    assert OptimConfig(base_lr=1.5e-4, lr_batch=256).peak_rate(128) == pytest.approx(0.75e-4)
    assert OptimConfig(base_lr=2e-4).peak_rate(4096) == 2e-4
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


# ------------------------------------------------------------------------------------------------------------- other schedules

IJEPA = OptimConfig(
    base_lr=1e-3, start_lr=2e-4, final_lr=1e-6, weight_decay=0.04, final_weight_decay=0.4, warmup_samples=400, total_samples=3000
)
CAPI = OptimConfig(base_lr=1e-3, cosine_share=0.8, warmup_samples=500, total_samples=5000)
WSD = OptimConfig(schedule="wsd", base_lr=1e-3, final_lr=1e-5, warmup_samples=400, cooldown_samples=800, total_samples=4000)


def torchs_rates(warmup: LinearLR | None, rest: list, milestones: list[int], optimiser, steps: int) -> list[float]:
    schedule = SequentialLR(optimiser, [warmup, *rest], milestones) if warmup else rest[0]
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def optimiser_at(rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def test_ijepas_rates_are_those_of_torchs_own_schedulers():
    optimiser = optimiser_at(1e-3)
    warmup = LinearLR(optimiser, start_factor=0.2, end_factor=1.0, total_iters=10)
    theirs = torchs_rates(warmup, [CosineAnnealingLR(optimiser, T_max=65, eta_min=1e-6)], [10], optimiser, 75)
    assert [learning_rate(40 * step, IJEPA, 40) for step in range(75)] == pytest.approx(theirs, rel=1e-9)
    assert theirs[0] == pytest.approx(2e-4) and theirs[10] == pytest.approx(1e-3)


def test_capis_cosine_is_cut_at_its_share_of_what_follows_warm_up():
    """As a table of CAPI's own formula: cos(pi * 0.8 * i / n) for i of the n steps after warm-up."""
    rates = [learning_rate(step, CAPI, 1) for step in range(500, 5000, 450)]
    assert rates == pytest.approx([1e-3 * 0.5 * (1 + math.cos(math.pi * 0.8 * i / 10)) for i in range(10)], rel=1e-12)
    assert learning_rate(5000, CAPI, 1) == pytest.approx(1e-3 * 0.0954915, rel=1e-6)


def test_a_linear_cool_down_is_torchs_and_the_trunk_before_it_has_the_peak_to_the_bit():
    linear = WSD.model_copy(update={"cooldown_shape": "linear", "final_lr": 0.0})
    optimiser = optimiser_at(1e-3)
    falls = LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=20)
    theirs = torchs_rates(None, [falls], [], optimiser, 20)
    assert [learning_rate(3200 + 40 * step, linear, 40) for step in range(20)] == pytest.approx(theirs, rel=1e-9, abs=1e-15)
    assert {learning_rate(40 * step, WSD, 40) for step in range(10, 81)} == {1e-3}


@pytest.mark.parametrize(
    ("samples", "share"),
    [(3200, 1.0), (3208, 0.9), (3400, 0.5), (3650, 0.25), (4000, 0.0), (4400, 0.0)],
)
def test_a_cool_down_is_one_less_the_root_of_what_is_done_by_default(samples, share):
    assert learning_rate(samples, WSD, 40) == pytest.approx(1e-5 + 9.9e-4 * share, rel=1e-9)


@given(st.integers(0, 4000), st.integers(400, 4000))
def test_a_trunk_does_not_know_where_it_ends(samples, cooldown):
    trunk = OptimConfig(schedule="constant", base_lr=1e-3, warmup_samples=400, total_samples=9999)
    branch = trunk.model_copy(update={"schedule": "wsd", "total_samples": 4000 + cooldown, "cooldown_samples": cooldown, "final_lr": 1e-5})
    assert stable_until(branch.model_dump()) == 4000 and stable_until(trunk.model_dump()) == 9999
    assert learning_rate(samples, trunk, 40) == learning_rate(samples, branch, 40)
    assert learning_rate(4000 + cooldown, branch, 40) == 1e-5


@pytest.mark.parametrize(
    ("samples", "decay"),
    [(0, 0.04), (750, 0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi / 4))), (1500, 0.22), (3000, 0.4), (3040, 0.4)],
)
def test_ijepas_weight_decay_rises_by_half_a_cosine_over_the_run(samples, decay):
    assert weight_decay(samples, IJEPA) == pytest.approx(decay, rel=1e-12)


def test_weight_decay_is_torchs_cosine_over_samples_of_its_own_where_they_are_given_and_else_constant():
    optim = IJEPA.model_copy(update={"weight_decay_samples": 1000})
    optimiser = optimiser_at(0.04)
    theirs = torchs_rates(None, [CosineAnnealingLR(optimiser, T_max=25, eta_min=0.4)], [], optimiser, 25)
    assert [weight_decay(40 * step, optim) for step in range(25)] == pytest.approx(theirs, rel=1e-9)
    assert weight_decay(1000, optim) == weight_decay(2999, optim) == pytest.approx(0.4)
    assert weight_decay(3500, optim, began=3000) == pytest.approx(0.4)  # does not begin again
    assert {weight_decay(samples, OPTIM) for samples in (0, 1000, 2000)} == {0.05}
    longer = IJEPA.model_copy(update={"total_samples": 5000})
    assert weight_decay(4000, longer, began=3000) == pytest.approx(0.22)  # over the whole cycle


def test_the_peak_is_said_with_how_it_came_about_and_a_small_batch_is_told():
    mae = OptimConfig(base_lr=1.5e-4, lr_batch=256)
    assert rate_words(mae, 4096) == "peak learning rate 0.0024 = base_lr 0.00015 x batch 4096 / 256"
    assert rate_words(OptimConfig(), 32) == "peak learning rate 0.0002 (base_lr, at any batch)"
    note = small_rate_note(mae, 32)
    assert note and "scaled to this batch of 32 it is 1.9e-05" in note and "data.global_batch=512" in note and "optim.lr_batch=null" in note
    assert small_rate_note(mae, 512) is small_rate_note(mae, 4096) is small_rate_note(OptimConfig(base_lr=2e-5), 32) is None
    assert small_rate_note(OptimConfig(base_lr=1e-3, lr_batch=256), 32) is None  # 1.25e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("optim.schedule=wsd optim.cosine_share=0.8", r"cosine_share=0.8 is of schedule=cosine, not of schedule=wsd"),
        ("optim.cooldown_samples=4", r"cooldown_samples=4 is of schedule=wsd, not of schedule=cosine"),
        ("optim.schedule=wsd optim.cooldown_samples=90", r"warmup_samples=20 and cooldown_samples=90 together exceed total_samples=100"),
        ("optim.weight_decay_samples=9", r"weight_decay_samples=9 needs final_weight_decay"),
        ("optim.schedule=constant optim.final_weight_decay=0.4", r"give it in samples, such as weight_decay_samples=100"),
        (
            "optim.base_lr=1e-3 optim.lr_batch=256 optim.start_lr=1e-3",
            r"start_lr=0.001, where warm-up begins, exceeds the peak of 1.56e-05",
        ),
        ("optim.base_lr=2 target={name: features, ema_schedule: lr}", r"below 0 at the peak of 2; lower optim.base_lr"),
        ("optim.schedule=wsd target={name: features, ema_samples: null}", r"such as target.ema_samples=100"),
        ("init_from=a branch_from=b", r"init_from=a takes weights alone and branch_from=b all of a run's state"),
    ],
)
def test_what_no_schedule_has_is_refused_by_name(words, said):
    base = ["data.global_batch=4", "optim.warmup_samples=20", "optim.total_samples=100"]
    words = words.replace("target={", "target=<").split(" target=<")
    with pytest.raises(ConfigError, match=said):
        load(PretrainConfig, None, [*base, *words[0].split(), *(f"target={{{word}" for word in words[1:])])
