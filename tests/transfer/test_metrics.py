"""Figures against scikit-learn, scipy, plain counting and plain resampling."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.transfer.metrics import (
    average_precision,
    calibration,
    confusion_matrix,
    difference,
    estimate,
    figures,
    placements,
    share_right,
)


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
    strata = np.repeat([0, 1, 2], images)
    held = 0
    for _ in range(2000):
        right = np.concatenate([rng.random(n) < p for n, p in zip(images, shares, strict=True)])
        low, high = estimate(right[None, None], strata).interval
        held += low <= np.mean(shares) <= high
    assert 0.94 <= held / 2000 <= 0.99
    assert estimate(np.ones((1, 1, 20), bool), np.repeat([0, 1], 10)).interval[0] < 0.95  # without a mistake it is not certain either


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


# ------------------------------------------------------------------------------------------------------------------ two classes


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 10_000), st.booleans())
def test_areas_and_average_precisions_are_those_of_scikit_learn(count, ones, seed, coarse):
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(count) < min(ones, count - 1)).astype(int)
    score = rng.normal(size=count) + truth
    score = score.round(0 if coarse else 6)  # coarse: many ties
    found = figures(torch.from_numpy((score > 0.5).astype(int)), torch.from_numpy(truth), 2, score=torch.from_numpy(score))
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    assert found["average_precision"][1] == pytest.approx(average_precision_score(truth, score), abs=1e-12)
    assert found["average_precision"][0] == pytest.approx(average_precision_score(1 - truth, -score), abs=1e-12)
    low, high = found["auroc_ci95"]
    assert 0 <= low <= found["auroc"] <= high <= 1
    json.dumps(found)


def test_the_area_has_delongs_variance():
    """By his formula, spelled out over all pairs."""
    from scipy.stats import t

    rng = np.random.default_rng(3)
    truth = (np.arange(90) % 3 == 0).astype(int)
    score = rng.normal(size=90).round(1) + truth
    higher = lambda a, b: float(a > b) + 0.5 * float(a == b)
    ones, zeros = score[truth == 1], score[truth == 0]
    first = np.array([np.mean([higher(a, b) for b in zeros]) for a in ones])
    second = np.array([np.mean([higher(a, b) for a in ones]) for b in zeros])
    parts = first.var(ddof=1) / len(ones), second.var(ddof=1) / len(zeros)
    margins = [t.ppf(0.975, len(some) - 1) * math.sqrt(part) for part, some in zip(parts, (ones, zeros), strict=True)]
    half = math.hypot(*margins)
    found = figures(torch.from_numpy(truth), torch.from_numpy(truth), 2, score=torch.from_numpy(score))
    assert found["auroc_ci95"] == pytest.approx([first.mean() - half, min(1.0, first.mean() + half)])
    held = placements(score, truth)
    assert held[truth == 1] == pytest.approx(first) and held[truth == 0] == pytest.approx(second)


def test_a_perfect_and_a_constant_score_are_no_certainties():
    truth = torch.arange(40) % 2
    perfect, constant = (figures(truth, truth, 2, score=score) for score in (truth.double(), torch.zeros(40)))
    assert perfect["auroc"] == 1 and 0.7 < perfect["auroc_ci95"][0] < 1
    assert constant["auroc"] == 0.5 and constant["average_precision"] == [0.5, 0.5]
    assert average_precision(np.zeros(10), np.arange(10) < 3) == pytest.approx(0.3)  # by chance: the share


def test_the_confidence_tells_the_score_where_there_is_none():
    truth, predicted = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1])
    by_confidence = figures(predicted, truth, 2, confidence=torch.tensor([0.9, 0.6, 0.8, 0.7]))
    by_score = figures(predicted, truth, 2, score=torch.tensor([0.1, 0.4, 0.8, 0.7]))
    assert by_confidence["auroc"] == by_score["auroc"] == 0.75


# ------------------------------------------------------------------------------------------------------------------ intervals


def test_one_draw_has_wilsons_interval_and_says_that_it_covers_images_alone():
    predicted, truth = answers()
    found = figures(predicted, truth, 5)
    assert found["ci95_kind"] == "Wilson" and found["ci95_covers"] == ["test images"] and (found["seeds"], found["draws"]) == (1, 1)
    several = figures(torch.stack([predicted, truth]), truth, 5)
    assert several["ci95_covers"] == ["test images", "draws of the labels"] and several["draws"] == 2
    nets = figures(torch.stack([predicted, truth])[:, None], truth, 5)
    assert nets["ci95_covers"] == ["test images", "seeds of the network"] and nets["seeds"] == 2


def test_mean_and_spread_are_over_draws():
    truth = torch.zeros(10, dtype=torch.int64)
    predicted = torch.stack([(torch.arange(10) >= right).long() for right in (5, 6, 7)])
    found = figures(predicted, truth, 2)
    assert found["accuracy"] == pytest.approx(0.6) and found["spread"] == pytest.approx(0.1) and found["by_run"] == [[0.5, 0.6, 0.7]]
    assert figures(predicted[0], truth, 2)["spread"] is None


@pytest.mark.parametrize(("seeds", "draws"), [(1, 5), (3, 1), (3, 5)])
def test_intervals_over_draws_and_images_hold_the_truth_as_often_as_they_say(seeds, draws):
    """What is right depends on the image, the draw, the seed and chance.  An interval over the images alone holds it far less often."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    varies = [0.35 if count > 1 else 0.0 for count in (draws, seeds)]
    truth = float(norm.cdf(0.4 / math.sqrt(1 + 0.8**2 + varies[0] ** 2 + varies[1] ** 2)))
    whole, alone = 0, 0
    for _ in range(400):
        level = (
            0.4
            + 0.8 * rng.normal(size=(1, 1, 200))
            + varies[0] * rng.normal(size=(1, draws, 1))
            + varies[1] * rng.normal(size=(seeds, 1, 1))
        )
        right = level + rng.normal(size=(seeds, draws, 200)) > 0
        for some in (right, right[:1, :1]):
            low, high = estimate(some).interval
            whole, alone = whole + (some is right and low <= truth <= high), alone + (some is not right and low <= truth <= high)
    assert whole / 400 >= 0.94 and alone / 400 < 0.8


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_two_probes_without_a_difference_are_seldom_told_apart(metric):
    """On the same images, each of five draws of labels, of three seeds: at p < .05 in fewer than one of twenty cases, and one draw is no evidence."""
    rng = np.random.default_rng(1)
    truth = torch.from_numpy((rng.random(200) < 0.3).astype(int))
    told, by_one = 0, 0
    for _ in range(300):
        images = 0.8 * rng.normal(size=200)
        a, b = (
            np.where(0.4 + images + 0.5 * rng.normal(size=(5, 1)) + rng.normal(size=(5, 200)) > 0, truth.numpy(), 1 - truth.numpy())
            for _ in range(2)
        )
        a, b = torch.from_numpy(a), torch.from_numpy(b)
        told += difference(a, b, truth, metric, same_draws=False)["p"] < 0.05
        by_one += difference(a[0], b[0], truth, metric)["p"] < 0.05
    assert told / 300 <= 0.06 < 0.3 < by_one / 300


def test_one_more_seed_is_expected_farther_off_than_their_mean():
    """Twenty networks of one kind: each held against three others is seldom more than one of them."""
    rng = np.random.default_rng(2)
    truth = torch.zeros(300, dtype=torch.int64)
    as_one_more, as_mean = 0, 0
    for _ in range(300):
        right = 0.4 + 0.8 * rng.normal(size=(1, 300)) + 0.3 * rng.normal(size=(4, 1)) + rng.normal(size=(4, 300)) > 0
        nets = torch.from_numpy((~right).astype(int))
        compared = lambda nets=nets, **how: difference(nets[0], nets[1:, None], truth, **how)["p"] < 0.05
        as_one_more += compared(new_seed=True)
        as_mean += compared()
    assert as_one_more / 300 <= 0.06 < as_mean / 300


def test_paired_draws_are_compared_draw_by_draw():
    """A hard draw is hard for both: paired, a small steady difference is seen; unpaired, the draws drown it."""
    truth = torch.zeros(100, dtype=torch.int64)
    runs = lambda rights: torch.stack([(torch.arange(100) >= right).long() for right in rights])
    a, b = runs([50, 60, 70, 80, 90]), runs([46, 56, 66, 76, 86])
    paired, apart = (difference(a, b, truth, same_draws=same) for same in (True, False))
    assert paired["difference"] == apart["difference"] == pytest.approx(0.04)
    assert paired["ci95"][0] > 0 > apart["ci95"][0] and paired["ci95_covers"] == ["test images", "draws of the labels"]


def test_the_interval_of_a_difference_is_about_that_of_resampling_images():
    rng = np.random.default_rng(2)
    truth = torch.zeros(400, dtype=torch.int64)
    a = rng.random(400) < 0.7
    b = np.where(rng.random(400) < 0.8, a, rng.random(400) < 0.6)
    answers_of = lambda right: torch.from_numpy((~right).astype(int))
    found = difference(answers_of(a), answers_of(b), truth)
    drawn = rng.integers(0, 400, (10_000, 400))
    differences = a[drawn].mean(1) - b[drawn].mean(1)
    assert found["difference"] == pytest.approx(a.mean() - b.mean())
    assert found["ci95"] == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=0.004)
    turned = difference(answers_of(b), answers_of(a), truth)
    assert turned["difference"] == -found["difference"] and turned["p"] == pytest.approx(found["p"])
    assert turned["mcnemar_p"] == pytest.approx(found["mcnemar_p"])


@pytest.mark.parametrize(("a_only", "b_only"), [(7, 2), (30, 31), (0, 5), (0, 0), (300, 200)])
def test_mcnemars_test_counts_the_tails_of_coin_tosses(a_only, b_only):
    a = torch.tensor([0] * a_only + [1] * b_only + [0] * 40)
    b = torch.tensor([1] * a_only + [0] * b_only + [0] * 40)
    tosses = a_only + b_only
    expected = min(1, 2 * sum(math.comb(tosses, k) for k in range(min(a_only, b_only) + 1)) / 2**tosses)
    found = difference(a, b, torch.zeros_like(a))
    assert found["mcnemar_p"] == pytest.approx(expected, rel=1e-9) and (found["a_only"], found["b_only"]) == (a_only, b_only)


def test_two_probes_that_answer_alike_do_not_differ():
    predicted = torch.tensor([0, 1, 0])
    found = difference(predicted, predicted, torch.zeros(3, dtype=torch.int64))
    assert found["difference"] == 0 and found["p"] == 1 and found["mcnemar_p"] == 1 and found["ci95"][0] < 0 < found["ci95"][1]


def test_the_metric_of_choices_is_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score

    predicted, truth = answers()
    several = torch.stack([predicted, truth, torch.zeros_like(truth)])
    assert share_right(several, truth, "accuracy").tolist() == pytest.approx([float((row == truth).double().mean()) for row in several])
    theirs = [balanced_accuracy_score(truth, row) for row in several]
    assert share_right(several, truth, "balanced_accuracy").tolist() == pytest.approx(theirs)


def test_p_is_the_level_at_which_the_interval_ends_at_zero():
    from mpp.transfer.metrics import Part, margin, p_value

    parts = [Part("images", 0.01, 120.0), Part("draws", 0.02, 4.0)]
    for level in (0.9, 0.05, 1e-3, 1e-12):
        assert p_value(margin(parts, level), parts) == pytest.approx(level, rel=1e-6)
    assert p_value(0.0, parts) == 1 and p_value(1.0, [Part("images", 1e-9, 1e6)]) <= 1e-90
