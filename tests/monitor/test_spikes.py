"""Which losses are spikes."""

import dataclasses
import json

import numpy as np
import pytest

from mpp.monitor.spikes import DEVIATIONS, WINDOW, Spikes


def seen(spikes, losses):
    """Of each loss, whether a spike begins."""
    return [spikes.see(float(loss)) is not None for loss in losses]


def noise(count, mean=2.0, deviation=0.1, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, count)


def test_noise_and_a_loss_that_falls_hold_no_spike():
    assert not any(seen(Spikes(), noise(5000)))
    assert not any(seen(Spikes(), 2 + 4 * np.exp(-np.arange(2000) / 300) + noise(2000, 0, 0.05)))
    assert not any(seen(Spikes(), np.full(200, 1.0)))  # no deviation at all
    assert not any(seen(Spikes(), [*np.full(200, 1.0), 1.04]))  # and less than 5 % above


def test_a_step_far_below_is_none():
    losses = noise(200)
    losses[150] = 0.1
    assert not any(seen(Spikes(), losses))


def test_a_spike_is_told_where_it_begins_once_and_how_far_it_stands_above():
    spikes, losses = Spikes(), noise(200)
    losses[120:124] = [3.5, 9.0, 8.0, 3.2]
    assert [step for step, each in enumerate(seen(spikes, losses)) if each] == [120] and spikes.count == 1
    spikes = Spikes()
    seen(spikes, losses[:120])
    assert spikes.see(3.5) == pytest.approx((3.5 - 2) / 0.1, rel=0.3)


def test_mean_and_variance_are_those_of_all_at_first():
    spikes, losses = Spikes(), noise(WINDOW)
    seen(spikes, losses)
    assert spikes.mean == pytest.approx(losses.mean(), rel=1e-12)
    assert spikes.variance == pytest.approx(losses.var(), rel=1e-9)


def test_the_first_steps_conclude_nothing():
    assert not any(seen(Spikes(), [*noise(WINDOW - 1), 50.0]))
    assert any(seen(Spikes(), [*noise(WINDOW), 50.0]))


def test_one_spike_hides_no_other_and_a_level_that_stays_is_learned():
    losses = noise(300)
    losses[100], losses[130] = 40.0, 6.0
    assert [step for step, each in enumerate(seen(Spikes(), losses)) if each] == [100, 130]
    spikes = Spikes()
    told = seen(spikes, [*noise(100), *noise(400, 5.0)])
    assert sum(told) == 1 and told[100] and spikes.mean == pytest.approx(5.0, rel=0.05) and not spikes.inside


def test_just_below_the_threshold_is_none():
    spikes = Spikes()
    seen(spikes, noise(500))
    limit = spikes.mean + DEVIATIONS * spikes.variance**0.5
    assert dataclasses.replace(spikes).see(limit - 1e-9) is None
    assert dataclasses.replace(spikes).see(limit + 1e-9) is not None


def test_what_stands_in_a_commit_goes_on_to_the_same_bits():
    whole, half, losses = Spikes(), Spikes(), noise(300)
    losses[250] = 9.0
    told = seen(whole, losses)
    seen(half, losses[:200])
    half = Spikes(**json.loads(json.dumps(dataclasses.asdict(half))))
    assert seen(half, losses[200:]) == told[200:] and half == whole
