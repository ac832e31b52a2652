import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.data.batch_plan import default_streams, lost_nodes_words, nodes_that_fit, plan_batch, streams_for
from mpp.data.order import Order, OrderSampler, permute, steps_over


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def orders(draw):
    streams = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    batch = streams * draw(st.integers(1, 4))
    shards = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    shards.append(max(1, batch - sum(shards)) + draw(st.integers(0, 40)))
    return Order(tuple(shards), batch, streams, draw(st.integers(0, 2**63 - 1)), draw(st.one_of(st.none(), st.integers(1, 9))))


def global_batch(order: Order, step: int, world: int) -> list[int]:
    return [int(i) for rank in range(world) for i in order.sample_ids(order.places(step, rank, world))[1]]


def epoch_of(order: Order, epoch: int) -> list[int]:
    steps = order.steps_per_epoch
    return [sample for step in range(epoch * steps, (epoch + 1) * steps) for sample in global_batch(order, step, 1)]


@settings(max_examples=60)
@given(orders(), st.integers(0, 3))
def test_every_admissible_world_sees_the_same_global_batches(order, epoch):
    for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
        alone = global_batch(order, step, 1)
        assert len(alone) == order.batch
        for world in divisors(order.streams):
            assert global_batch(order, step, world) == alone


@settings(max_examples=60)
@given(orders(), st.integers(0, 3))
def test_a_process_reads_from_no_more_shards_than_are_said_to_be_in_its_reach(order, epoch):
    edges = np.cumsum(order.samples_per_shard)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    for world in divisors(order.streams):
        shards = [np.searchsorted(edges, order.sample_ids(order.places(step, 0, world))[1], side="right") for step in steps]
        together = np.concatenate(shards) if order.block is None else max(shards, key=lambda step: len(set(step)))
        assert len(set(together.tolist())) <= order.shards_in_reach(world) <= len(edges)


@pytest.mark.parametrize(
    ("world", "block", "reach"), [(1, None, 100), (4, None, 26), (12, None, 10), (1, 10, 24), (4, 10, 6), (12, 1000, 10)]
)
def test_the_reach_is_the_share_of_the_shards_and_with_blocks_that_of_the_streams(world, block, reach):
    # 12 streams of 833 places on 100 shards of 100: 2,499 places hold 24 whole shards and two parts; two blocks of 10 lie in at most two shards.
    assert Order((100,) * 100, 12, 12, 0, block).shards_in_reach(world) == reach


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_48_samples_in_12_streams_are_the_same_on_any_world(world):
    order = Order((100, 37, 63), 48, 12, seed=3)
    assert order.steps_per_epoch == 4
    for step in range(9):
        assert global_batch(order, step, world) == global_batch(order, step, 1)


@given(orders(), st.integers(0, 3))
def test_a_sample_is_seen_at_most_once_an_epoch(order, epoch):
    seen = epoch_of(order, epoch)
    assert len(seen) == len(set(seen)) == order.samples_per_epoch == order.samples // order.batch * order.batch
    assert set(seen) <= set(range(order.samples))


@given(orders(), st.integers(0, 50))
def test_all_ranks_take_equally_many_samples_of_one_epoch(order, step):
    for world in divisors(order.streams):
        parts = [order.places(step, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {order.batch // world}
        assert np.concatenate(parts).tolist() == list(range(step * order.batch, (step + 1) * order.batch))
        for part in parts:
            assert set(order.sample_ids(part)[0].tolist()) == {step // order.steps_per_epoch}


def test_positions_may_cross_an_epoch():
    order = Order((5, 3, 6, 4), 6, 3, seed=11)
    epoch, ids = order.sample_ids(np.arange(12, 24))
    assert epoch.tolist() == [0] * 6 + [1] * 6
    assert ids.tolist() == global_batch(order, 2, 1) + global_batch(order, 3, 1)


def test_epochs_seeds_and_batches_differ_in_their_order():
    shards = (50,) * 8
    first = epoch_of(Order(shards, 40, 4, seed=1), 0)
    for other in (epoch_of(Order(shards, 40, 4, seed=1), 1), epoch_of(Order(shards, 40, 4, seed=2), 0)):
        assert sorted(other) == sorted(first) == list(range(400))
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 15  # about one is expected by chance


def test_the_few_left_over_differ_from_epoch_to_epoch():
    order = Order((10, 10, 10), 8, 2, seed=0)
    left_over = [frozenset(range(30)) - set(epoch_of(order, epoch)) for epoch in range(20)]
    assert {len(rest) for rest in left_over} == {6}
    assert len(set(left_over)) > 10
    assert frozenset().union(*left_over) == set(range(30))


def test_samples_of_one_shard_are_spread_over_the_epoch():
    order = Order((100,) * 10, 20, 1, seed=4)
    places = np.argsort(epoch_of(order, 0))  # of sample 0, 1, 2, ...
    for shard in range(10):
        assert abs(places[shard * 100 : (shard + 1) * 100].mean() - 500) < 130  # 4.5 standard errors


def test_with_blocks_a_stretch_of_a_stream_stays_within_near_samples():
    order = Order((1000,), 10, 1, seed=5, block=50)
    seen = np.array(epoch_of(order, 0)).reshape(20, 50)
    for block in seen:
        away = (block - block[0] + 500) % 1000 - 500  # cyclic
        assert np.ptp(away) == 49
        assert (np.diff(away) != 1).any()


def test_the_order_is_golden():
    order = Order((5, 3, 6, 4), 6, 3, seed=11)
    assert [global_batch(order, step, 1) for step in range(6)] == [
        [12, 5, 2, 3, 16, 17], [7, 0, 4, 1, 8, 10], [6, 13, 15, 14, 11, 9],
        [10, 7, 4, 1, 15, 16], [8, 12, 0, 13, 6, 5], [11, 9, 3, 2, 17, 14],
    ]  # fmt: skip
    blocks = Order((5, 3, 6, 4), 6, 3, seed=11, block=2)
    assert [global_batch(blocks, step, 1) for step in range(3)] == [[12, 13, 2, 1, 17, 16], [5, 6, 3, 4, 9, 8], [0, 7, 14, 15, 10, 11]]


@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection_of_the_range(size, key):
    found = permute(np.arange(size), np.full(size, size), np.full(size, key, dtype=np.uint64))
    assert sorted(found.tolist()) == list(range(size))


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 2**64 - 1)), min_size=1, max_size=20))
def test_permute_treats_each_element_by_its_own_size_and_key(pairs):
    size = np.array([size for size, _ in pairs])
    key = np.array([key for _, key in pairs], dtype=np.uint64)
    index = size // 2
    alone = [permute(index[i : i + 1], size[i : i + 1], key[i : i + 1])[0] for i in range(len(pairs))]
    assert permute(index, size, key).tolist() == alone


def test_permute_is_golden():
    assert permute(np.arange(13), np.full(13, 13), np.full(13, 12345, np.uint64)).tolist() == [11, 5, 3, 10, 4, 12, 7, 2, 1, 6, 8, 9, 0]


def test_permute_sends_every_index_everywhere_equally_often():
    index, keys = np.tile(np.arange(5), 5000), np.repeat(np.arange(5000, dtype=np.uint64) * np.uint64(2654435761), 5)
    counts = np.zeros((5, 5))
    np.add.at(counts, (index, permute(index, np.full(25_000, 5), keys)), 1)
    assert np.abs(counts - 1000).max() < 130  # 4.6 standard deviations


def test_ten_million_samples_in_ten_thousand_shards_need_no_set_up():
    sizes = tuple(np.random.default_rng(0).integers(900, 1101, 10_000).tolist())
    tracemalloc.start()
    order = Order(sizes, 4096, 1024, seed=3)
    first = [global_batch(order, step, 2) for step in (0, order.steps_per_epoch - 1, 5 * order.steps_per_epoch)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({sample for batch in first[:2] for sample in batch}) == 8192
    assert peak < 4_000_000  # bytes; a permutation of the samples would be 80 MB


def test_any_place_of_a_billion_samples_is_found_without_a_table():
    order = Order((1_000_000,) * 1000, 4096, 1024, seed=9)
    tracemalloc.start()
    for step in (0, 10**9, 17):
        epoch, ids = order.sample_ids(order.places(step, 1, 2))
        assert set(epoch.tolist()) == {step // order.steps_per_epoch}
        assert len(set(ids.tolist())) == 2048
        assert ids.max() < 10**9
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # bytes; one int64 a sample would be 8 GB


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"a step of 64 samples .* 60 training samples.* 60 or fewer"):
        Order((20, 40), 64, 4, seed=0)
    assert Order((20, 44), 64, 4, seed=0).steps_per_epoch == 1


# --------------------------------------------------------------------------------------------------------------------------------- plans


@given(st.integers(1, 3000), st.integers(1, 64), st.integers(1, 300))
def test_accumulation_is_the_smallest_that_fits(batch, world, micro_batch_max):
    if default_streams(batch) % world:
        with pytest.raises(ConfigError):
            plan_batch(batch, None, world, micro_batch_max)
        return
    plan = plan_batch(batch, None, world, micro_batch_max)
    share = batch // world
    assert plan.micro_batch * plan.accumulation == share
    assert plan.micro_batch == max(m for m in divisors(share) if m <= micro_batch_max)


@given(st.integers(1, 5000))
def test_default_streams_are_the_largest_divisor_up_to_1024(batch):
    assert default_streams(batch) == max(d for d in range(1, 1025) if batch % d == 0)


def test_a_plan_names_the_admissible_worlds():
    plan = plan_batch(48, 12, 3, 8)
    assert (plan.streams, plan.micro_batch, plan.accumulation, plan.worlds) == (12, 8, 2, (1, 2, 3, 4, 6, 12))


def test_a_world_that_does_not_divide_is_refused_with_what_would_fit():
    with pytest.raises(ConfigError) as caught:
        plan_batch(100, None, 8, 64)
    message = str(caught.value)
    assert all(part in message for part in ("data.global_batch=100", "8 processes", "1, 2, 4, 5, 10, 20, 25, 50, 100", "96 and 104"))


@pytest.mark.timeout(5)
@pytest.mark.parametrize(("batch", "world", "fits"), [(4096, 1536, "3072 or 4608"), (4096, 10**6, "1000000"), (100, 1025, "1025")])
def test_more_processes_than_a_batch_has_streams_by_itself_are_told_what_to_ask_for(batch, world, fits):
    """The search for a batch that fits would not end."""
    with pytest.raises(ConfigError, match=rf"take data.streams={world} and the nearest batch that fits: {fits}$"):
        plan_batch(batch, None, world, 64)
    assert plan_batch(int(fits.split()[-1]), world, world, 64).accumulation == 1


def test_streams_that_do_not_divide_the_batch_are_refused_with_the_default():
    with pytest.raises(ConfigError, match=r"data.streams=7 must divide data.global_batch=48; leave it null for 48"):
        plan_batch(48, 7, 1, 64)


@given(st.integers(1, 5000), st.integers(2, 24), st.integers(1, 3), st.sampled_from([None, 1, 2, 4, 8]))
def test_what_a_refusal_proposes_does_fit(samples, world, views, streams):
    try:
        plan_batch(samples * views, streams, world, 64, views)
    except ConfigError as error:
        remedy = str(error).rpartition("processes, or ")[2]
        if remedy.startswith("set data.streams="):
            assert plan_batch(samples * views, int(remedy.rpartition("=")[2]), world, 64, views)
        elif remedy.startswith("take"):
            for named in remedy.rpartition(": ")[2].split(" and "):
                assert plan_batch(int(named), None, world, 64, views).samples % world == 0


@given(st.integers(1, 3000), st.integers(1, 12), st.integers(1, 8))
def test_the_nodes_that_fit_are_those_whose_processes_may_share_a_batch(streams, nodes, per_node):
    fit = nodes_that_fit(streams, nodes, per_node)
    for left in range(1, nodes + 1):
        try:
            plan_batch(streams * 3, streams, left * per_node, 10**6)
        except ConfigError:
            assert left not in fit
        else:
            assert left in fit


@given(st.integers(1, 20_000), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_streams_for_several_worlds_are_the_largest_that_all_of_them_divide(samples, worlds):
    fit = [v for v in divisors(samples) if all(v % world == 0 for world in worlds)]
    small = [v for v in fit if v <= 1024] or fit[:1]  # beyond the default's bound only where it must be
    found = streams_for(samples, worlds)
    assert found == (small[-1] if small and small[-1] <= max(1024, math.lcm(*worlds)) else None)


@given(st.integers(1, 512), st.integers(2, 12), st.integers(1, 8), st.integers(1, 2))
def test_what_is_proposed_lets_a_run_go_on_without_the_nodes_that_are_lost(factor, nodes, per_node, views):
    plan = plan_batch(factor * nodes * per_node * views, nodes * per_node, nodes * per_node, 10**6, views)
    words = lost_nodes_words(plan, nodes, per_node)
    for lost, left in enumerate((n for n in (nodes - 1, nodes - 2) if n), start=1):
        most = max(n for n in range(1, left + 1) if plan.streams % (n * per_node) == 0)
        whole = f"all {left} go on" if left > 1 else "the other goes on"
        assert f"with {lost} lost {whole if most == left else f'{most} of {left} go on'}" in words
    if proposed := re.search(r"(?:data.global_batch=(\d+) )?data.streams=(\d+), from the start of a run, lets ([\d and]+) go on", words):
        batch, streams, left = int(proposed[1] or factor * nodes * per_node * views), int(proposed[2]), proposed[3].split(" and ")
        for n in (nodes, *map(int, left)):
            assert plan_batch(batch, streams, n * per_node, 10**6, views)
        assert int(left[0]) == nodes - 1


def test_lost_nodes_in_words():
    assert lost_nodes_words(plan_batch(4096, None, 32, 128), 4, 8) == (
        "of 4 nodes x 8: with 1 lost 2 of 3 go on, with 2 lost all 2 go on; data.global_batch=4128 data.streams=96, from the start of a run, lets 3 and 2 go on"
    )
    assert lost_nodes_words(plan_batch(4032, 672, 32, 128), 4, 8) == "of 4 nodes x 8: with 1 lost all 3 go on, with 2 lost all 2 go on"
    assert lost_nodes_words(plan_batch(4096, None, 16, 128), 2, 8) == "of 2 nodes x 8: with 1 lost the other goes on"
    assert lost_nodes_words(plan_batch(4096, None, 512, 8), 64, 8).endswith(
        "; no data.streams of this batch, or of one near it, lets more go on"
    )


# ------------------------------------------------------------------------------------------------------------------------------- sampler


@given(orders(), st.integers(1, 7), st.integers(0, 4), st.data())
def test_a_sampler_resumed_at_a_step_yields_exactly_the_rest(order, micro_batch_max, resumed, data):
    world = data.draw(st.sampled_from(divisors(order.streams)))
    rank = data.draw(st.integers(0, world - 1))
    plan = plan_batch(order.batch, order.streams, world, micro_batch_max)
    last = resumed + 3
    whole = list(OrderSampler(order, plan, rank, world, 0, last))
    assert len(whole) == last * plan.accumulation == len(OrderSampler(order, plan, rank, world, 0, last))
    rest = OrderSampler(order, plan, rank, world, resumed, last)
    assert list(rest) == whole[resumed * plan.accumulation :]
    assert len(rest) == 3 * plan.accumulation
    assert {len(batch) for batch in whole} == {plan.micro_batch}


@given(orders(), st.integers(1, 5), st.integers(0, 3), st.data())
def test_with_views_a_batch_holds_fewer_samples_and_positions_count_views(order, views, step, data):
    world = data.draw(st.sampled_from(divisors(order.streams)))
    plan = plan_batch(order.batch * views, order.streams, world, views * data.draw(st.integers(1, 4)), views)
    assert (plan.samples, plan.micro_batch % views) == (order.batch, 0)
    rows = [row for rank in range(world) for batch in OrderSampler(order, plan, rank, world, step, step + 1) for row in batch]
    assert [sample for _, sample, _ in rows] == global_batch(order, step, 1)  # the same samples as without views
    assert [position for _, _, position in rows] == list(range(step * order.batch * views, (step + 1) * order.batch * views, views))
    micro = next(iter(OrderSampler(order, plan, 0, world, step, step + 1)))
    assert len(micro) * views == plan.micro_batch
    assert plan.micro_batch * plan.accumulation * world == order.batch * views


@pytest.mark.parametrize(
    ("batch", "streams", "micro_batch", "views", "message"),
    [
        (50, None, 64, 4, "data.global_batch=50 must be a multiple of data.views=4; the nearest that fit are 48 and 52"),
        (64, None, 3, 4, "data.views=4 do not fit into system.micro_batch_max=3; raise it to 4 or more"),
        (48, 24, 64, 4, "data.streams=24 must divide data.global_batch=48 / data.views=4; leave it null for 12"),
        (
            40,
            None,
            64,
            4,
            "data.global_batch=40 / data.views=4 in 10 streams cannot be shared equally by 3 processes; .* data.streams=null: 36 and 48",
        ),
    ],
)
def test_views_that_do_not_fit_are_refused_with_what_would(batch, streams, micro_batch, views, message):
    with pytest.raises(ConfigError, match=message):
        plan_batch(batch, streams, 3, micro_batch, views)


def test_a_samplers_rows_are_epoch_sample_and_position():
    order = Order((5, 3, 6, 4), 6, 3, seed=11)
    rows = [row for batch in OrderSampler(order, plan_batch(6, 3, 3, 1), 2, 3, 2, 4) for row in batch]
    assert rows == [(0, 11, 16), (0, 9, 17), (1, 15, 22), (1, 16, 23)]


def test_a_run_may_change_its_world_between_two_steps_and_loses_no_sample():
    order = Order((30, 31), 12, 12, seed=8)
    steps = 2 * order.steps_per_epoch
    seen = []
    for step in range(steps):
        world = divisors(12)[step % 6]
        for rank in range(world):
            for batch in OrderSampler(order, plan_batch(12, 12, world, 5), rank, world, step, step + 1):
                seen += [sample for _, sample, _ in batch]
    assert seen == epoch_of(order, 0) + epoch_of(order, 1)


def test_steps_that_see_any_position_of_a_range_are_passed_over_whole():
    seen = lambda ranges, steps: {
        step for step in range(steps) for first, end in ranges if set(range(step * 12, step * 12 + 12)) & set(range(first, end))
    }
    for ranges in ([(24, 36)], [(25, 37)], [(0, 1)], [(11, 13), (47, 48)], [(30, 10**15)], []):
        assert steps_over(ranges, 12, 9) == seen([(first, min(end, 200)) for first, end in ranges], 9), ranges
    assert steps_over([(24, 36)], 12, 9) == {2} and steps_over([(30, 10**15)], 12, 4) == {2, 3}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_sampler_without_some_steps_gives_the_others_as_they_are(world):
    order, plan = Order((7, 9, 8), 8, 4, seed=3), plan_batch(8, 4, world, 2)
    steps = lambda *words, **named: list(OrderSampler(order, plan, world - 1, world, *words, **named))
    whole, each = steps(1, 9), plan.accumulation
    left = steps(1, 9, passed={2, 3, 8, 20})
    assert left == [row for number, row in enumerate(whole) if number // each + 1 not in (2, 3, 8)]
    assert len(OrderSampler(order, plan, 0, world, 1, 9, passed={2, 3, 8, 20})) == len(left) == 5 * each
