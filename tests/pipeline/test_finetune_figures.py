"""What is said of one draw's answers, and of several draws' to the same images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from mpp.mains.finetune_report import accuracies_in_words, best_repeat, rows_of, spread_in_words, verdict_of
from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers

CLASSES = ["good", "bad", "odd"]


def answers(draws: int, images: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, images, p=[0.66, 0.3, 0.04])
    predicted = np.where(rng.random((draws, images)) < 0.7, truth, rng.choice(3, (draws, images)))
    return torch.from_numpy(predicted), torch.from_numpy(rng.random((draws, images), np.float32)), torch.from_numpy(truth)


def said_of(predicted: torch.Tensor, confidence: torch.Tensor, truth: torch.Tensor, classes: list[str]) -> tuple[dict, dict]:
    sets = SimpleNamespace(labels=truth.numpy(), classes=classes)
    return rows_of("fine-tuned", Answers(predicted, confidence), truth, sets, {"loss": 0.5})


def test_one_draws_figures_are_those_of_its_answers_beside_the_largest_class():
    predicted, confidence, truth = answers(1)
    rows, given = said_of(predicted[0], confidence[0], truth, CLASSES)
    found = rows["fine-tuned"]["finetune"]
    assert found == figures(predicted[0], truth, 3, confidence[0]) | {"labels": 200, "loss": 0.5}
    assert (
        rows["majority class"]["about"]["class"] == "good"
        and rows["majority class"]["always"]["accuracy"] == (truth == 0).sum().item() / 200
    )
    assert (given["majority class"]["always"].predicted == 0).all()


def test_several_draws_are_averaged_and_say_what_their_interval_covers():
    predicted, confidence, truth = answers(4)
    rows, _ = said_of(predicted, confidence, truth, CLASSES)
    found = rows["fine-tuned"]["finetune"]
    each = [accuracy_score(truth, one) for one in predicted]
    assert found["accuracy"] == pytest.approx(np.mean(each)) and found["ci95_covers"] == ["test images", "draws of the labels"]
    assert found["balanced_accuracy"] == pytest.approx(np.mean([balanced_accuracy_score(truth, one) for one in predicted]))
    assert (found["draws"], found["images"], found["by_run"][0]) == (4, 200, pytest.approx(each))
    recalls = np.mean([recall_score(truth, one, average=None) for one in predicted], axis=0)
    assert found["per_class"]["accuracy"] == pytest.approx(recalls)
    assert f"standard deviation {100 * np.std(each, ddof=1):.2f} points" in spread_in_words(found)


def test_a_top_1_below_the_largest_class_cannot_pass_unnoticed():
    truth = torch.tensor([0] * 66 + [1] * 34)
    below = torch.cat([torch.tensor([0] * 36 + [1] * 30), torch.ones(34, dtype=torch.int64)])
    rows, given = said_of(below, torch.ones(100), truth, ["good", "bad"])
    said = accuracies_in_words(rows, "fine-tuned")
    assert said.startswith("top-1 70.00 %") and "balanced 77.27 %" in said and said.endswith("always naming 'good' gives 66.0 %")
    assert verdict_of("fine-tuned", rows, given, truth)["outcome"] == "better"
    below[:10] = 1
    rows, given = said_of(below, torch.ones(100), truth, ["good", "bad"])
    said = accuracies_in_words(rows, "fine-tuned")
    assert (
        said.startswith("top-1 60.00 %") and "area under ROC" in said and said.endswith("always naming 'good' gives 66.0 %, which is more")
    )
    assert "top-1 is 6.00 points below it" in verdict_of("fine-tuned", rows, given, truth)["words"]


def test_the_best_repeat_is_the_first_of_the_best_on_the_holdout_by_the_metric():
    of = lambda accuracy, balanced: {"accuracy": accuracy, "balanced_accuracy": balanced}
    found = [
        {"holdout": {"weights": of(0.5, 0.9), "average": of(0.7, 0.2)}},
        {"holdout": {"weights": of(0.8, 0.3), "average": of(0.1, 0.1)}},
        {"holdout": {"weights": of(0.8, 0.9), "average": of(0.2, 0.1)}},
    ]
    assert (best_repeat(found, "accuracy"), best_repeat(found, "balanced_accuracy")) == (1, 0)
    assert best_repeat([{"holdout": {}}, {"holdout": {}}], "accuracy") == 0
