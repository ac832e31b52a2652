"""Several sources by weight, against an implementation that counts one place after the other with exact fractions."""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.base.rng import SOURCES, Draws, seed_of
from mpp.data.batch_plan import plan_batch
from mpp.data.mixed_order import MixedOrder, exact_weights
from mpp.data.order import Order, OrderSampler


def mixed(sources, weights, batch, streams, seed=0, block=None) -> MixedOrder:
    """sources: samples a shard of each."""
    every, names = sum(map(tuple, sources), ()), tuple("abcdefgh"[: len(sources)])
    return MixedOrder(every, batch, streams, seed, block, shards=tuple(map(len, sources)), weights=exact_weights(weights), names=names)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def mixes(draw):
    streams = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 12, 15]))
    batch = streams * draw(st.sampled_from([1, 1, 2, 3, 7]))
    sources = []
    for _ in range(draw(st.integers(2, 5))):
        shards = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
        sources.append([*shards, max(1, streams - sum(shards)) + draw(st.integers(0, 9))])
    sources[0].append(batch)  # an epoch of the mix has a step
    weights = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 0.7, 0.1, 0.25, 1e-3]), min_size=len(sources), max_size=len(sources)))
    return mixed(sources, weights, batch, streams, draw(st.integers(0, 2**63 - 1)), draw(st.one_of(st.none(), st.integers(1, 9))))


def digits(number: int, base: int) -> list[int]:
    """The last one first."""
    return [] if number == 0 else [number % base, *digits(number // base, base)]


def base_of(streams: int) -> int:
    return next(prime for prime in (3, 5, 7, 11) if streams % prime)


def by_hand(order: MixedOrder, steps: int) -> list[list[tuple[int, int, int, int]]]:
    """(source, stream, draw, sample id) of each place of each step, one after the other."""
    streams, each, base = order.streams, order.batch // order.streams, base_of(order.streams)
    places = max(power for power in range(30) if base**power <= 2**24)
    shift = Fraction(int(Draws(order.seed, SOURCES, 0).bits(1)[0]) % base**places, base**places)
    stride = lambda count: min(
        (near for near in range(1, count + 1) if math.gcd(near, count) == 1),
        key=lambda near: (abs(near - round(count * 0.6180339887498949)), -near),
    )
    ends = [sum(order.weights[: number + 1]) for number in range(len(order.weights))]
    first, own, firsts = 0, [], []
    for number, shards in enumerate(order.shards):
        samples = order.samples_per_shard[first : first + shards]
        own.append(Order(samples, streams, streams, seed_of(order.seed, SOURCES, 1 + number), order.block))
        firsts.append(sum(order.samples_per_shard[:first]))
        first += shards
    had: Counter = Counter()
    found = []
    for step in range(steps):
        turn = sum((Fraction(digit, base ** (place + 1)) for place, digit in enumerate(digits(step, base))), shift)
        taken = {}
        for stream in range(streams):
            least = (turn + Fraction(stream * stride(streams) % streams, streams)) % 1
            for point in range(each):
                at = (point + least) / each
                source = next(number for number, end in enumerate(ends) if at < end)
                draw = had[stream, source]
                had[stream, source] += 1
                sample = firsts[source] + int(own[source].sample_ids(np.array([draw * streams + stream]))[1][0])
                taken[stream, point] = (source, stream, draw, sample)
        found.append([taken[stream, nth * stride(each) % each] for stream in range(streams) for nth in range(each)])
    return found


@pytest.mark.parametrize("steps", [4, pytest.param(12, marks=pytest.mark.long)])
@settings(max_examples=12)
@given(order=mixes())
def test_each_place_has_the_sample_that_counting_one_after_the_other_finds(order, steps):
    for step, expected in enumerate(by_hand(order, steps)):
        places = order.places(step, 0, 1)
        source, stream, draw = order.draws(places)
        epoch, ids = order.sample_ids(places)
        assert list(zip(source.tolist(), stream.tolist(), draw.tolist(), ids.tolist(), strict=True)) == expected
        each = [order.sources[number].samples_per_epoch // order.streams for number in source]
        assert epoch.tolist() == [d // per for d, per in zip(draw.tolist(), each, strict=True)]


@settings(max_examples=60)
@given(mixes(), st.integers(0, 10**9))
def test_every_step_has_the_floor_or_the_ceiling_of_its_share_of_each_source(order, first):
    for step in range(first, first + 8):
        count = np.bincount(order.draws(order.places(step, 0, 1))[0], minlength=len(order.weights))
        for found, weight in zip(count.tolist(), order.weights, strict=True):
            assert math.floor(order.batch * weight) <= found <= math.ceil(order.batch * weight)


@settings(max_examples=40)
@given(mixes())
def test_after_any_step_a_source_is_within_twice_the_digit_sum_of_its_share_in_each_stream_and_in_all(order):
    steps, each = 100, order.batch // order.streams
    count = np.zeros((len(order.weights), order.streams), np.int64)
    for step in range(steps):
        source, stream, _ = order.draws(order.places(step, 0, 1))
        np.add.at(count, (source, stream), 1)
        bound = 2 * sum(digits(step + 1, base_of(order.streams)))
        for number, weight in enumerate(order.weights):
            assert np.abs(count[number] - float((step + 1) * each * weight)).max() < bound
            assert abs(count[number].sum() - float((step + 1) * order.batch * weight)) < bound


@pytest.mark.parametrize("turns", [10, 2**24])  # however coarse the circle's turns are
def test_weights_that_a_step_can_have_are_had_by_every_step_to_the_sample(turns, monkeypatch):
    monkeypatch.setattr("mpp.data.mixed_order.TURNS", turns)
    order = mixed([[40], [40], [40]], [3, 0.5, 0.5], 48, 12)
    for step in range(300):
        assert np.bincount(order.draws(order.places(step, 0, 1))[0]).tolist() == [36, 6, 6]


@settings(max_examples=40)
@given(mixes())
def test_a_source_gives_each_of_its_samples_at_most_once_in_each_of_its_own_epochs(order):
    seen = defaultdict(list)
    for step in range(60):
        places = order.places(step, 0, 1)
        epochs, ids = order.sample_ids(places)
        for source, epoch, sample in zip(order.draws(places)[0].tolist(), epochs.tolist(), ids.tolist(), strict=True):
            seen[source, epoch].append(sample)
    edges = np.cumsum([0, *(each.samples for each in order.sources)]).tolist()
    for (source, _), samples in seen.items():
        assert len(set(samples)) == len(samples) <= order.sources[source].samples_per_epoch
        assert edges[source] <= min(samples) and max(samples) < edges[source + 1]


def test_a_source_of_as_many_samples_as_streams_divide_gives_all_of_them_in_each_epoch():
    order = mixed([[30, 18], [7, 5]], [1, 1], 12, 12, seed=3)
    seen = defaultdict(list)
    for step in range(32):
        places = order.places(step, 0, 1)
        for epoch, sample in zip(*(each.tolist() for each in order.sample_ids(places)), strict=True):
            seen[epoch, sample < 48].append(sample)
    assert sorted(seen[0, True]) == list(range(48))
    assert all(sorted(seen[epoch, False]) == list(range(48, 60)) for epoch in range(12))
    assert seen[0, False] != seen[1, False]


@settings(max_examples=40)
@given(mixes(), st.integers(0, 1000))
def test_every_admissible_world_sees_the_same_global_batches(order, step):
    alone = [each.tolist() for each in order.sample_ids(order.places(step, 0, 1))]
    for world in divisors(order.streams):
        parts = [order.sample_ids(order.places(step, rank, world)) for rank in range(world)]
        assert [np.concatenate(part).tolist() for part in zip(*parts, strict=True)] == alone


def test_a_place_far_away_follows_on_the_one_before_it():
    order = mixed([[400], [90, 10], [64]], [0.6, 0.3, 0.1], 32, 16)
    for far in (3**15 - 2, 3**15 + 5, 10**9, 10**12):
        steps = [order.draws(order.places(step, 0, 1)) for step in range(far, far + 6)]
        had = lambda step, of, at: min((int(d) for s, v, d in zip(*step, strict=True) if (s, v) == (of, at)), default=None)
        for source in range(3):
            for stream in range(16):
                known = [(int(((step[0] == source) & (step[1] == stream)).sum()), had(step, source, stream)) for step in steps]
                taken = [(count, first) for count, first in known if first is not None]
                assert all(first + count == after for (count, first), (_, after) in pairwise(taken))


def test_neighbouring_places_have_about_the_shares_of_the_step():
    order = mixed([[4000], [4000], [4000]], [0.5, 0.3, 0.2], 256, 64)
    for step in range(50):
        source = order.draws(order.places(step, 0, 1))[0]
        for parts in (2, 4, 8, 16, 32):
            share = np.array([np.bincount(part, minlength=3) for part in np.split(source, parts)])
            assert np.abs(share - 256 / parts * np.array([0.5, 0.3, 0.2])).max() < 4


@settings(max_examples=30)
@given(mixes())
def test_a_process_reads_from_no_more_shards_than_are_said_to_be_in_its_reach(order):
    edges, steps = np.cumsum(order.samples_per_shard), order.steps_per_epoch
    for world in divisors(order.streams):
        for step in range(steps):
            ids = order.sample_ids(order.places(step, 0, world))[1]
            assert len(set(np.searchsorted(edges, ids, side="right").tolist())) <= order.shards_in_reach(world) <= len(edges)


def test_two_sources_of_one_make_do_not_go_in_step():
    order = mixed([[64, 64], [64, 64]], [1, 1], 16, 16)
    first, second = ([] for _ in range(2))
    for step in range(16):
        places = order.places(step, 0, 1)
        source, stream, draw = order.draws(places)
        ids = order.sample_ids(places)[1]
        first += [(v, d, i) for s, v, d, i in zip(source, stream, draw, ids, strict=True) if s == 0]
        second += [(v, d, i - 128) for s, v, d, i in zip(source, stream, draw, ids, strict=True) if s == 1]
    assert len(first) == len(second) == 128 and len(set(first) & set(second)) < 8


def test_another_seed_is_another_mix_and_the_same_seed_is_the_same_for_ever():
    order = mixed([[9, 8], [5, 6], [7]], [5, 3, 2], 10, 5, seed=11)
    rows = [order.sample_ids(order.places(step, 0, 1)) for step in (0, 1, 7)]
    assert [(epoch.tolist(), ids.tolist()) for epoch, ids in rows] == GOLDEN
    other = mixed([[9, 8], [5, 6], [7]], [5, 3, 2], 10, 5, seed=12)
    assert not np.array_equal(order.draws(order.places(0, 0, 1))[0], other.draws(other.places(0, 0, 1))[0])


def test_an_epoch_of_the_mix_is_as_many_samples_as_there_are_and_passes_say_how_often_each_source_is_seen():
    order = mixed([[30], [10]], [3, 1], 12, 4)
    assert (order.samples, order.steps_per_epoch, order.samples_per_epoch) == (40, 3, 36)
    assert order.passes(1200) == [30.0, 30.0] and mixed([[30], [10]], [1, 1], 12, 4).passes(600) == [10.0, 30.0]


@pytest.mark.parametrize(
    ("weights", "exact"),
    [([0.7, 0.3], "7/10 3/10"), ([3, 1], "3/4 1/4"), ([1, 1, 1], "1/3 1/3 1/3"), ([1e-7, 1.0], "1/10000001 10000000/10000001")],
)
def test_weights_are_taken_as_they_are_written_and_scaled(weights, exact):
    assert " ".join(map(str, exact_weights(weights))) == exact


def test_a_source_that_is_smaller_than_the_streams_is_refused_with_what_fits():
    with pytest.raises(ConfigError, match=r"^b has 9 training samples, fewer than the 12 streams .* set data.streams=8, give more images"):
        mixed([[100], [4, 5]], [1, 1], 24, 12)
    mixed([[100], [4, 5]], [1, 1], 24, 8)


def test_a_sampler_gives_the_keys_of_each_source_s_own_epochs():
    order = mixed([[20], [6]], [1, 1], 12, 6)
    keys = [key for micro_batch in OrderSampler(order, plan_batch(12, 6, 1, 4), 0, 1, 0, 9) for key in micro_batch]
    assert [position for _, _, position in keys] == list(range(108))
    assert max(epoch for epoch, sample, _ in keys if sample >= 20) == 8 and max(epoch for epoch, sample, _ in keys if sample < 20) == 2
    assert len({(epoch, sample) for epoch, sample, _ in keys}) == 108


GOLDEN = [
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [9, 22, 10, 34, 13, 26, 1, 29, 2, 20]),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [7, 23, 11, 24, 14, 28, 0, 18, 3, 30]),
    ([2, 2, 2, 2, 2, 2, 2, 2, 2, 1], [15, 34, 2, 26, 5, 29, 7, 20, 11, 22]),
]
