"""A search that processes share: each trial once, by shares of the same size, and to the digit what one process finds.

Processes are threads here, which meet after every round; tests/pipeline/test_probe_processes.py has real ones.
"""

import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.transfer.features import Features, FeatureSpec, Layout, Variant
from mpp.transfer.probes import linear
from mpp.transfer.probes.contract import LAST, Measured, Train
from mpp.transfer.probes.divided import Searched, Trials, deal, find
from mpp.transfer.probes.knn import KnnProbe
from mpp.transfer.probes.linear import Block, LinearProbe, Needed, groups, standardisation, train_heads
from mpp.transfer.split import CHOOSE, Split, hold_out
from tests.transfer.test_probes import CPU, problem

SPEC = FeatureSpec("tiny", (0, 1, 2), ("cls", "mean"), 16, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32")
gpu = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])
CLASSES = 24  # so that learning rates are cut into groups
VARIANTS = [
    Variant((1, 2), "both"), Variant((0,), "cls"), Variant((1,), "cls"), Variant((2,), "cls"),
    Variant((0,), "mean"), Variant((1,), "mean"), Variant((2,), "mean"),
]  # fmt: skip
RATES = tuple(1e-5 * 2**i for i in range(13))


def layout() -> Layout:
    """Layers of 5, 7 and 9 columns: class tokens, then means."""
    widths = {(part, layer): 5 + 2 * layer for part in ("cls", "mean") for layer in range(3)}
    starts = dict(zip(widths, np.cumsum([0, *widths.values()])[:-1].tolist(), strict=True))
    return Layout(starts, widths)


def images(count: int = 480, seed: int = 0) -> Train:
    values, labels = problem(count, 42, CLASSES, seed, noise=2.0)
    return Train(
        Features(SPEC, layout(), values), VARIANTS[0], labels, [str(c) for c in range(CLASSES)],
        Split(*hold_out(labels, 0.2, seed, CHOOSE)), seed, CPU, variants=VARIANTS, last=2,
    )  # fmt: skip


def by(processes: int, searches, began=lambda rank, number: None) -> list[list[Searched]]:
    """What each of so many processes has found.  searches: a process's own, made anew for each."""
    barrier, given, found, failed = threading.Barrier(processes), [None] * processes, [None] * processes, []

    def run(rank: int) -> None:
        def share(work):
            given[rank] = work()
            barrier.wait(60)
            everything = list(given)
            barrier.wait(60)
            return everything

        try:
            found[rank] = find(searches(), rank, processes, share, lambda number: began(rank, number))
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise next((error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0])
    return found


def told(searched: Searched, train: Train) -> dict:
    """Everything that a probe comes to: what is written down, and the bits of every answer to all images."""
    parts = searched.fit().parts(Measured(train.features, np.arange(len(train.labels))))
    return {
        part: (about, {name: each.numpy().tobytes() for name, each in answers.parts().items()}) for part, (about, answers) in parts.items()
    }


# ------------------------------------------------------------------------------------------------------------------ shares


COSTS = st.lists(st.lists(st.integers(1, 50).map(float), min_size=1, max_size=12), min_size=1, max_size=5)


@given(COSTS, st.integers(1, 40))
def test_every_trial_is_dealt_once_and_nobody_has_more_than_a_share_and_one_trial(costs, processes):
    shares = deal(costs, processes)
    assert len(shares) == processes
    assert sorted(trial for share in shares for trial in share) == [(i, k) for i, each in enumerate(costs) for k in range(len(each))]
    fair, largest = sum(map(sum, costs)) / processes, max(map(max, costs))
    assert all(sum(costs[i][k] for i, k in share) <= fair + largest for share in shares)


@given(COSTS, st.integers(1, 40))
def test_a_share_has_neighbours_of_each_search_which_need_the_same_columns(costs, processes):
    for share in deal(costs, processes):
        for number in range(len(costs)):
            own = sorted(trial for of, trial in share if of == number)
            assert own == list(range(own[0], own[0] + len(own))) if own else True


def test_each_of_two_processes_has_half_of_every_search_and_twelve_trials_keep_twelve_busy():
    assert [sorted(share) for share in deal([[1.0] * 4] * 2, 2)] == [[(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 2), (0, 3), (1, 2), (1, 3)]]
    assert [len(share) for share in deal([[1.0] * 4] * 3, 12)] == [1] * 12
    assert sorted(map(len, deal([[1.0] * 4], 512))) == [0] * 508 + [1] * 4


# ------------------------------------------------------------------------------------------------------------------ what is found


@pytest.fixture(scope="module")
def grid():
    """A linear probe whose best learning rate lies at the end of its grid, so that this is widened in further rounds; and what one process finds."""
    probe = LinearProbe(learning_rates=RATES, epochs=2, batch=100)
    train = images()
    (alone,) = find([probe.search(train)])
    return probe, train, told(alone, train)


@pytest.mark.parametrize("processes", [2, 3, 5, 40])
def test_any_number_of_processes_finds_to_the_digit_what_one_finds(grid, processes):
    probe, train, alone = grid
    assert len(groups(RATES, CLASSES)) == 2 and len(alone[""][0]["grid"]) > len(RATES) * len(VARIANTS)  # it was cut, and it was widened
    for (searched,) in by(processes, lambda: [probe.search(train)]):
        assert told(searched, train) == alone


def test_probes_of_several_rows_are_searched_side_by_side_and_are_those_of_each_alone(grid):
    probe, train, alone = grid
    other, narrow = images(seed=1), replace(train, variants=VARIANTS[1:2], last=None)  # one of a single variant, as raw pixels have
    expected = [alone, *(told(find([probe.search(each)])[0], each) for each in (other, narrow))]
    for found in by(3, lambda: [probe.search(each) for each in (train, other, narrow)]):
        assert [told(one, each) for one, each in zip(found, (train, other, narrow), strict=True)] == expected


def test_neighbours_at_every_place_are_those_that_one_process_finds():
    probe, train = KnnProbe(k=(3, 10), temperatures=(0.07, 0.2)), images()
    (alone,) = find([probe.search(train)])
    assert LAST in told(alone, train)
    for processes in (2, 20):
        for (searched,) in by(processes, lambda: [probe.search(train)]):
            assert told(searched, train) == told(alone, train)


def test_processes_divide_what_there_is_to_train(grid, monkeypatch):
    probe, train, alone = grid
    trained = {rank: [] for rank in range(3)}
    rank_of = {}

    def noting(values, rows, labels, classes, blocks, **more):
        trained[rank_of[threading.get_ident()]] += [(tuple(b.columns.tolist()), rate) for b in blocks for rate in b.learning_rates]
        return train_heads(values, rows, labels, classes, blocks, **more)

    monkeypatch.setattr(linear, "train_heads", noting)
    by(3, lambda: [probe.search(train)], lambda rank, number: rank_of.update({threading.get_ident(): rank}))
    everything = [head for heads in trained.values() for head in heads]
    assert len(everything) == len(set(everything)) == len(alone[""][0]["grid"])
    weigh = lambda heads: sum(linear.cost(len(columns), 1) for columns, _ in heads)
    assert all(weigh(heads) < 0.45 * weigh(everything) for heads in trained.values())


def test_what_stops_one_process_stops_all():
    probe, train = KnnProbe(k=(1000,)), images()
    with pytest.raises(ConfigError, match="labelled images to be neighbours"):
        by(3, lambda: [probe.search(train)])


def test_rounds_go_on_for_those_that_ask_and_seconds_are_those_of_all_processes(monkeypatch):
    """Searches of one, two and no rounds, whose trials take a second each by their clock."""
    clock = threading.local()
    monkeypatch.setattr("mpp.transfer.probes.divided.time.perf_counter", lambda: getattr(clock, "now", 0.0))

    def counting(rounds):
        sent = []

        def work(mine):
            clock.now = getattr(clock, "now", 0.0) + len(mine)
            return [(len(sent), i) for i in mine]

        for _ in range(rounds):
            sent.append((yield Trials([1.0] * 4, work)))
        return lambda: sent

    for found in by(3, lambda: [counting(1), counting(2), counting(0)]):
        assert [one.fit() for one in found] == [[[(r, i) for i in range(4)] for r in range(rounds)] for rounds in (1, 2, 0)]
        assert [one.seconds for one in found] == [4.0, 8.0, 0.0]


# ------------------------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_a_block_has_the_same_bits_whatever_is_trained_beside_it(device):
    train = images()
    blocks = [Block(train.features.layout.columns(variant), rates) for variant in VARIANTS for rates in groups(RATES, CLASSES)]
    settings = {"epochs": 2, "batch": 100, "weight_decay": 0.01, "seed": 3, "device": torch.device(device)}
    heads = lambda some: train_heads(train.features.values, train.split.fit, train.labels, CLASSES, some, **settings)
    whole = heads(blocks)
    answers = whole.predict(train.features.values, train.split.choose)
    for i, block in enumerate(blocks):
        alone = heads([block])
        (said,) = alone.predict(train.features.values, train.split.choose)
        ours, theirs = alone.heads[0], whole.heads[i]
        assert all(torch.equal(getattr(ours, part), getattr(theirs, part)) for part in ("columns", "mean", "scale", "weight", "bias"))
        assert torch.equal(said[0], answers[i][0]) and torch.equal(said[1], answers[i][1])


def test_rates_share_a_product_until_it_has_rows_enough():
    rates = LinearProbe().learning_rates
    assert groups(rates, 10) == [rates] and groups(rates, 1000) == [(rate,) for rate in rates]
    of_hundred = groups(rates, 100)
    assert sum(of_hundred, ()) == rates and sorted(map(len, of_hundred)) == [2, 2, 3, 3, 3]
    assert groups((0.1,), 2) == [(0.1,)]


def test_only_the_columns_that_are_needed_are_read():
    class Watched:
        """A table that notes which columns are asked for."""

        def __init__(self, values):
            self.values, self.asked = values, []

        def __getitem__(self, key):
            self.asked.append(key[1])
            return self.values[key]

    values = torch.arange(200.0).view(5, 40)
    variants = [torch.arange(3, 6), torch.tensor([5, 6, 20, 21]), torch.arange(20, 23)]
    needed, table = Needed(variants), Watched(values)
    read = needed.read(table, torch.tensor([4, 1]))
    assert table.asked == [slice(3, 7), slice(20, 23)] and read.shape == (2, 7)
    for columns, part in zip(variants, needed.each(read), strict=True):
        assert torch.equal(part, values[[4, 1]][:, columns])
    assert all(this.stop < following.start for this, following in pairwise(needed.stretches))


def test_standardisation_has_the_same_bits_whatever_columns_are_beside():
    values, _ = problem(5000, 42, CLASSES)
    rows = np.arange(0, 5000, 2)
    whole = standardisation(values, rows, Needed([torch.arange(42)]))
    for columns in (torch.arange(7), torch.tensor([3]), torch.tensor([40, 2, 17])):
        needed = Needed([columns])
        for part, of_all in zip(standardisation(values, rows, needed), whole, strict=True):
            (own,) = needed.each(part)
            assert torch.equal(own, of_all[columns])


# ------------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("processes", [1, 3, 200])
def test_the_memory_that_is_stated_is_what_the_largest_share_holds(processes, monkeypatch):
    probe, train = LinearProbe(learning_rates=RATES, epochs=1, batch=50), replace(images(), widen=False)
    held = []

    def noting(values, rows, labels, classes, blocks, **more):
        heads = sum(2 * (len(b.columns) + 1) * len(b.learning_rates) for b in blocks)
        held.append(4 * classes * (heads + 3 * 50 * max(len(b.learning_rates) for b in blocks)))
        return train_heads(values, rows, labels, classes, blocks, **more)

    monkeypatch.setattr(linear, "train_heads", noting)
    by(processes, lambda: [probe.search(train)])[0][0].fit()
    widths = [len(train.features.layout.columns(variant)) for variant in VARIANTS]
    stated, words = probe.memory(widths, CLASSES, processes)
    assert max(held) <= stated <= 1.25 * max(held)
    assert ("divided among 3 processes" in words) == (processes == 3)
