"""Heads, neighbours and few-shot against oracles that share no code with them, and the splits they are given."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mpp.base.errors import ConfigError, DataError
from mpp.transfer.probes import few_shot, knn
from mpp.transfer.probes.linear import Block, Needed, standardisation, train_heads
from mpp.transfer.split import CHOOSE, REPORT, hold_out, subset

CPU = torch.device("cpu")


def problem(count=240, width=10, classes=3, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, width))
    values = 3.0 + 5.0 * (centres[labels] + noise * rng.normal(size=(count, width)))
    return torch.from_numpy(values.astype(np.float32)), labels


# ------------------------------------------------------------------------------------------------------------------ linear heads


def torch_head(values, rows, labels, rate, epochs, batch, weight_decay, seed):
    """The same head by autograd and torch.optim, one alone."""
    from mpp.base.rng import PROBE, Draws
    from mpp.transfer.split import BATCHES

    x = values[rows].double()
    x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
    y = torch.from_numpy(labels[rows].astype(np.int64))
    head = torch.nn.Linear(x.shape[1], int(y.max()) + 1, dtype=torch.float64)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": weight_decay}, {"params": [head.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    per_epoch = -(-len(rows) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * per_epoch)
    for epoch in range(epochs):
        for part in torch.from_numpy(Draws(seed, PROBE, BATCHES, epoch).permutation(len(rows))).tensor_split(per_epoch):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(head(x[part]), y[part]).backward()
            optimiser.step()
            schedule.step()
    return head


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_every_head_of_the_grid_is_the_head_torch_trains_alone(weight_decay):
    values, labels = problem()
    rows = np.flatnonzero(np.arange(240) % 7 != 0)
    columns, rates = [torch.arange(10), torch.arange(4), torch.tensor([8, 2, 5])], [0.01, 0.3]
    settings = {"epochs": 3, "batch": 50, "weight_decay": weight_decay, "seed": 4}
    grid = train_heads(values, rows, labels, 3, [Block(c, rates) for c in columns], device=CPU, **settings)
    for c, heads in zip(columns, grid.heads, strict=True):
        for r, rate in enumerate(rates):
            oracle = torch_head(values[:, c], rows, labels, rate, **settings)
            assert_close(heads.weight[r].double(), oracle.weight.detach(), rtol=1e-4, atol=1e-5)
            assert_close(heads.bias[r].double(), oracle.bias.detach(), rtol=1e-4, atol=1e-5)


def test_a_head_in_the_grid_equals_itself_alone_and_the_same_seed_gives_the_same_bits():
    values, labels = problem()
    rows, settings = np.arange(240), {"epochs": 2, "batch": 64, "weight_decay": 0.0, "device": CPU}
    blocks = [Block(torch.arange(10), [0.1, 0.5, 0.02]), Block(torch.arange(3, 7), [0.1, 0.5, 0.02])]
    grid = train_heads(values, rows, labels, 3, blocks, seed=1, **settings)
    alone = train_heads(values, rows, labels, 3, [Block(torch.arange(3, 7), [0.5])], seed=1, **settings)
    assert_close(alone.heads[0].weight[0], grid.heads[1].weight[1], rtol=1e-5, atol=1e-6)
    again = train_heads(values, rows, labels, 3, blocks, seed=1, **settings)
    assert torch.equal(again.heads[0].weight, grid.heads[0].weight)
    other = train_heads(values, rows, labels, 3, blocks, seed=2, **settings)
    assert not torch.equal(other.heads[0].weight, grid.heads[0].weight)


def test_heads_learn_and_leave_the_features_as_they_were():
    values, labels = problem(noise=0.3)
    before = values.clone()
    settings = {"epochs": 5, "batch": 64, "weight_decay": 0.0, "seed": 0, "device": CPU}
    grid = train_heads(values, np.arange(200), labels, 3, [Block(torch.arange(10), [0.1])], **settings)
    assert (grid.predict(values, np.arange(200, 240), batch=7)[0][0][0].numpy() == labels[200:]).mean() > 0.95
    assert torch.equal(values, before)


def test_standardisation_is_that_of_the_rows_alone():
    values, _ = problem()
    mean, scale = standardisation(values, np.arange(50), Needed([torch.arange(10)]))
    part = values[:50].double()
    assert_close(mean, part.mean(0).float())
    assert_close(scale, (part.var(0, correction=0) + 1e-6).rsqrt().float())


# ------------------------------------------------------------------------------------------------------------------ k-NN


def test_only_k_that_the_bank_can_serve_are_tried():
    assert knn.usable_k([10, 20, 100], 20) == [10, 20]
    with pytest.raises(ConfigError, match=r"only 5 labelled"):
        knn.usable_k([10, 20], 5)


# ------------------------------------------------------------------------------------------------------------------ few-shot


@pytest.mark.parametrize(("count", "width"), [(60, 10), (12, 40)])  # both sides of the kernel trick
def test_least_squares_is_ridge_regression_with_a_free_intercept(count, width):
    values, labels = problem(count, width)
    grid = [0.1, 7.0, 300.0]
    fitted = few_shot.fit(values, torch.from_numpy(labels), 3, grid, CPU)
    x = values.double().numpy()
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    y = 2.0 * np.eye(3)[labels] - 1
    for i, l2 in enumerate(grid):  # the normal equations with a constant column that is not penalised
        design = np.hstack([x, np.ones((count, 1))])
        penalty = l2 * np.diag([1.0] * width + [0.0])
        solution = np.linalg.solve(design.T @ design + penalty, design.T @ y)
        got = values.double() @ fitted.weight[i] + fitted.bias[i]
        assert_close(got, torch.from_numpy(design @ solution), rtol=1e-8, atol=1e-8)
        assert np.array_equal(fitted.predict(values, chunk=7)[0][i].numpy(), (design @ solution).argmax(1))


@pytest.mark.parametrize(("count", "width"), [(60, 10), (12, 40)])
def test_least_squares_agrees_with_scikit_learn(count, width):
    from sklearn.linear_model import Ridge

    values, labels = problem(count, width)
    fitted = few_shot.fit(values, torch.from_numpy(labels), 3, [7.0], CPU)
    x = values.double().numpy()
    scaled = (x - x.mean(0)) / (x.std(0) + 1e-5)
    expected = Ridge(alpha=7.0).fit(scaled, 2.0 * np.eye(3)[labels] - 1).predict(scaled)
    assert_close(values.double() @ fitted.weight[0] + fitted.bias[0], torch.from_numpy(expected), rtol=1e-7, atol=1e-7)


def test_shots_are_so_many_of_every_class_and_differ_by_trial():
    _, labels = problem()
    rows = np.arange(100, 240)
    drawn = [few_shot.draw_shots(labels, rows, ["a", "b", "c"], 4, 0, trial) for trial in range(3)]
    for d in drawn:
        assert np.array_equal(np.bincount(labels[d]), [4, 4, 4]) and len(set(d)) == 12 and d.min() >= 100
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[1], few_shot.draw_shots(labels, rows, ["a", "b", "c"], 4, 0, 1))
    with pytest.raises(DataError, match="class 'a' has 46"):
        few_shot.draw_shots(labels, rows, ["a", "b", "c"], 47, 0, 0)


# ------------------------------------------------------------------------------------------------------------------ splits


def test_splits_hold_a_share_of_every_class_and_do_not_overlap():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 3)
    kept, held = hold_out(labels, 0.1, 3, CHOOSE)
    assert np.array_equal(np.bincount(labels[held]), [5, 1, 1])
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(63))
    assert not np.array_equal(held, hold_out(labels, 0.1, 3, REPORT)[1])
    assert not np.array_equal(held, hold_out(labels, 0.1, 4, CHOOSE)[1])
    with pytest.raises(DataError, match=r"1 of 2 classes have too few .*: number 1 \(1\); give more images of them, or leave"):
        hold_out(np.array([0, 0, 1]), 0.1, 0, CHOOSE)


def test_a_subset_is_ascending_without_repeats_and_all_when_it_can_be():
    some = subset(100, 30, 0)
    assert len(set(some)) == 30 and np.array_equal(some, np.sort(some)) and some.max() < 100
    assert np.array_equal(subset(10, 20, 0), np.arange(10)) and np.array_equal(subset(10, None, 0), np.arange(10))
    assert not np.array_equal(some, subset(100, 30, 0, 1))
