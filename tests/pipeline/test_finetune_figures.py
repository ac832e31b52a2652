"""What is said of one draw's answers, and of several draws' to the same images."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from mpp.finetuning import accuracies_in_words, best_repeat, figures_of, spread_in_words
from mpp.transfer.metrics import figures

CLASSES = ["good", "bad", "odd"]


def answers(draws: int, images: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, images, p=[0.66, 0.3, 0.04])
    predicted = np.where(rng.random((draws, images)) < 0.7, truth, rng.choice(3, (draws, images)))
    return torch.from_numpy(predicted), torch.from_numpy(rng.random((draws, images), np.float32)), torch.from_numpy(truth)


def test_one_draws_figures_are_those_of_its_answers_and_the_largest_class():
    predicted, confidence, truth = answers(1)
    found = figures_of(predicted, confidence, truth, CLASSES)
    assert {key: found[key] for key in figures(predicted[0], truth, 3)} == figures(predicted[0], truth, 3)
    assert found["calibration"] == figures(predicted[0], truth, 3, confidence[0])["calibration"]
    assert (found["majority_class"], found["majority_share"]) == ("good", (truth == 0).sum().item() / 200)


def test_several_draws_are_averaged_and_say_what_their_interval_covers():
    predicted, confidence, truth = answers(4)
    found = figures_of(predicted, confidence, truth, CLASSES)
    each = [accuracy_score(truth, one) for one in predicted]
    balanced = [balanced_accuracy_score(truth, one) for one in predicted]
    for name, interval, values in (("accuracy", "ci95", each), ("balanced_accuracy", "balanced_ci95", balanced)):
        assert found[name] == pytest.approx(np.mean(values))
        wanted = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
        assert found[interval] == pytest.approx([max(0, wanted[0]), min(1, wanted[1])])
        assert "4 draws, not over images" in found[f"{interval}_kind"]
    assert (found["draws"], found["images"], found["accuracies"]) == (4, 200, pytest.approx(each))
    assert found["spread"] == pytest.approx(np.std(each, ddof=1))
    recalls = np.mean([recall_score(truth, one, average=None) for one in predicted], axis=0)
    assert found["per_class"] == {"accuracy": pytest.approx(recalls), "images": torch.bincount(truth).tolist()}
    assert f"standard deviation {100 * np.std(each, ddof=1):.2f} points" in spread_in_words(found)


def test_a_top_1_below_the_largest_class_cannot_pass_unnoticed():
    truth = torch.tensor([0] * 66 + [1] * 34)
    below = torch.cat([torch.tensor([0] * 36 + [1] * 30), torch.ones(34, dtype=torch.int64)])[None]
    said = accuracies_in_words(figures_of(below, torch.ones(1, 100), truth, ["good", "bad"]))
    assert said.startswith("top-1 70.00 %") and "balanced 77.27 %" in said and said.endswith("always naming 'good' gives 66.0 %")
    below[0, :10] = 1
    said = accuracies_in_words(figures_of(below, torch.ones(1, 100), truth, ["good", "bad"]))
    assert said.startswith("top-1 60.00 %") and said.endswith("always naming 'good' gives 66.0 %, which is more")


def test_the_best_repeat_is_the_first_of_the_best_on_the_holdout_by_the_metric():
    of = lambda accuracy, balanced: {"accuracy": accuracy, "balanced_accuracy": balanced}
    found = [
        {"holdout": {"weights": of(0.5, 0.9), "average": of(0.7, 0.2)}},
        {"holdout": {"weights": of(0.8, 0.3), "average": of(0.1, 0.1)}},
        {"holdout": {"weights": of(0.8, 0.9), "average": of(0.2, 0.1)}},
    ]
    assert (best_repeat(found, "accuracy"), best_repeat(found, "balanced_accuracy")) == (1, 0)
    assert best_repeat([{"holdout": {}}, {"holdout": {}}], "accuracy") == 0
