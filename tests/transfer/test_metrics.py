"""Figures against scikit-learn, plain counting and plain resampling."""

import json
import math

import numpy as np
import pytest
import torch

from mpp.transfer.metrics import balanced_accuracy, calibration, confusion_matrix, figures, paired_bootstrap


def answers(count=900, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, count, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    predicted = np.where(rng.random(count) < 0.6, truth, rng.integers(0, classes, count))
    return torch.from_numpy(predicted), torch.from_numpy(truth)


def test_confusion_and_balanced_accuracy_are_those_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.metrics import confusion_matrix as theirs

    predicted, truth = answers()
    found = figures(predicted, truth, 5)
    assert np.array_equal(confusion_matrix(predicted, truth, 5), theirs(truth, predicted))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-12)
    assert found["accuracy"] == pytest.approx(float((predicted == truth).double().mean()))
    assert sum(found["per_class"]["images"]) == found["images"] == 900
    assert "calibration" not in found
    json.dumps(found)


def test_a_class_without_images_has_no_figure_and_does_not_count():
    predicted, truth = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 0, 2, 2])
    found = figures(predicted, truth, 4)
    assert found["per_class"]["accuracy"] == [1.0, None, 0.5, None]
    assert found["per_class"]["ci95"][1] is None
    assert found["balanced_accuracy"] == 0.75


def test_the_interval_of_balanced_accuracy_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    images, shares = [200, 20, 12], [0.9, 0.5, 0.97]
    held = 0
    for _ in range(2000):
        low, high = balanced_accuracy([int(rng.binomial(n, p)) for n, p in zip(images, shares, strict=True)], images)[1]
        held += low <= np.mean(shares) <= high
    assert 0.94 <= held / 2000 <= 0.985
    assert balanced_accuracy([10, 10], [10, 10])[1][0] < 0.95  # without a mistake it is not certain either


def test_calibration_error_is_that_of_a_plain_loop_over_bins():
    rng = np.random.default_rng(1)
    sure = np.concatenate([rng.random(500), [0.2, 1.0, 0.0, 1 / 15]])
    right = rng.random(504) < sure**2
    expected, images = 0.0, []
    for b in range(15):
        inside = (sure > b / 15) & (sure <= (b + 1) / 15) if b else sure <= 1 / 15
        images.append(inside.sum())
        if inside.any():
            expected += inside.sum() / 504 * abs(right[inside].mean() - sure[inside].mean())
    found = calibration(torch.from_numpy(right), torch.from_numpy(sure))
    assert found["ece"] == pytest.approx(expected)
    assert found["bins"]["images"] == images and sum(images) == 504
    order = np.argsort(sure, kind="stable")
    parts = np.array_split(order, 15)
    assert found["adaptive_ece"] == pytest.approx(sum(len(p) / 504 * abs(right[p].mean() - sure[p].mean()) for p in parts))


def test_a_probe_that_is_as_often_right_as_it_is_sure_has_no_calibration_error():
    sure = torch.full((1000,), 0.75)
    right = torch.arange(1000) % 4 > 0
    assert calibration(right, sure)["ece"] == pytest.approx(0, abs=1e-12)
    assert calibration(right, torch.ones(1000))["ece"] == pytest.approx(0.25)
    assert calibration(torch.ones(3, dtype=torch.bool), torch.rand(3) / 100)["bins"]["accuracy"][1:] == [None] * 14


@pytest.mark.parametrize("b_knows_more", [True, False])
def test_the_paired_bootstrap_is_that_of_resampling_images_one_by_one(b_knows_more):
    rng = np.random.default_rng(2)
    a = rng.random(400) < 0.7
    b = np.where(rng.random(400) < 0.8, a, rng.random(400) < 0.6) if b_knows_more else a & (rng.random(400) < 0.9)
    found = paired_bootstrap(a, b, 0)
    drawn = rng.integers(0, 400, (10_000, 400))
    differences = a[drawn].mean(1) - b[drawn].mean(1)
    assert found["difference"] == pytest.approx(a.mean() - b.mean())
    assert found["ci95"] == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=0.003)
    ahead = (differences > 1e-12).mean() + (np.abs(differences) < 1e-12).mean() / 2
    assert found["share_a_ahead"] == pytest.approx(ahead, abs=0.015)
    assert paired_bootstrap(a, b, 0) == found != paired_bootstrap(a, b, 1)
    turned = paired_bootstrap(b, a, 0)
    assert turned["difference"] == -found["difference"] and turned["mcnemar_p"] == pytest.approx(found["mcnemar_p"])


@pytest.mark.parametrize(("a_only", "b_only"), [(7, 2), (30, 31), (0, 5), (0, 0), (300, 200)])
def test_mcnemars_test_counts_the_tails_of_coin_tosses(a_only, b_only):
    a = np.array([True] * a_only + [False] * b_only + [True] * 40)
    b = np.array([False] * a_only + [True] * b_only + [True] * 40)
    tosses = a_only + b_only
    expected = min(1, 2 * sum(math.comb(tosses, k) for k in range(min(a_only, b_only) + 1)) / 2**tosses)
    assert paired_bootstrap(a, b, 0)["mcnemar_p"] == pytest.approx(expected, rel=1e-9)


def test_two_probes_that_answer_alike_do_not_differ():
    right = np.array([True, False, True])
    found = paired_bootstrap(right, right, 0)
    assert found["difference"] == 0 and found["ci95"] == [0, 0] and found["share_a_ahead"] == 0.5 and found["mcnemar_p"] == 1


def test_ten_thousand_resamples_of_imagenets_test_images_are_cheap():
    rng = np.random.default_rng(3)
    a, b = rng.random(50_000) < 0.7, rng.random(50_000) < 0.6
    assert paired_bootstrap(a, b, 0)["ci95"][0] > 0.09
