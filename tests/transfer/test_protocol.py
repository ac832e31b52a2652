"""The protocol that binds the probes: nothing about the images that are reported on reaches a choice."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpp.base.errors import ConfigError, DataError
from mpp.transfer.features import Features, FeatureSpec, Layout, Variant
from mpp.transfer.probes.contract import Answers, Fitted, Measured, Probe, Train, score_of
from mpp.transfer.probes.few_shot import FewShotProbe
from mpp.transfer.probes.knn import KnnProbe
from mpp.transfer.probes.linear import Block, LinearProbe, layer_curve, train_heads
from mpp.transfer.probes.logistic import LogisticProbe
from mpp.transfer.protocol import Chosen, answers_to, choose, chosen_words, report
from mpp.transfer.split import CHOOSE, Split, hold_out
from tests.transfer.test_probes import CPU, problem

SPEC = FeatureSpec("tiny", (0, 1), ("mean",), 16, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32")
PROBES = ("linear", "logistic", "knn")
OFFERED = SimpleNamespace(first=0, depth=1, class_tokens=0, predictor=None)  # of a backbone
TWO = [Variant((0,), "mean"), Variant((0, 1), "mean")]


class Linear(LinearProbe):
    """That chooses between two variants."""

    def variants(self, own, backbone):
        return TWO


def table(values: torch.Tensor, first: int = 4, spec: FeatureSpec = SPEC) -> Features:
    """Of two layers: the first `first` columns, and the rest."""
    starts, widths = {("mean", 0): 0, ("mean", 1): first}, {("mean", 0): first, ("mean", 1): values.shape[1] - first}
    return Features(spec, Layout(starts, widths), values)


def train_on(values, labels, share=0.2, classes=("a", "b", "c"), own=TWO[1]) -> Train:
    return Train(table(values), own, labels, classes, Split(*hold_out(labels, share, 0, CHOOSE)), 0, CPU)


def read(chosen: Chosen, images: Measured, labels: np.ndarray) -> tuple[dict, dict]:
    """Of one seed and one repeat."""
    return report([[answers_to(chosen, images)]], torch.from_numpy(labels), len(chosen.train.classes))


def chosen_and_reported(test_labels=None, test_values=None, spec=SPEC):
    values, labels = problem(300, noise=2.5)
    probes = [
        Linear(learning_rates=(0.001, 0.1), epochs=4, batch=64),
        LogisticProbe(strengths=(1e-5, 1e-2, 1.0)),
        KnnProbe(k=(3, 10), temperatures=(0.07, 0.5)),
        FewShotProbe(shots=(3,), trials=3, l2=(0.1, 10.0)),
    ]
    chosen = choose(probes, train_on(values[:240], labels[:240], own=TWO[0]), OFFERED)
    shown = values[240:] if test_values is None else test_values
    return read(chosen, Measured(table(shown, spec=spec), np.arange(60)), labels[240:] if test_labels is None else test_labels)


def test_labels_and_images_of_test_do_not_touch_any_choice():
    honest, _ = chosen_and_reported()
    permuted, _ = chosen_and_reported(test_labels=np.random.default_rng(0).permutation(problem(300)[1][240:]))
    other, _ = chosen_and_reported(test_values=torch.zeros(60, 10))
    for probe in PROBES:
        for changed in (permuted, other):
            assert changed[probe]["chosen"] == honest[probe]["chosen"]
            assert changed[probe]["holdout_score"] == honest[probe]["holdout_score"]
        assert permuted[probe]["accuracy"] < honest[probe]["accuracy"]  # the figures do move
    assert permuted["few_shot"]["3"]["chosen"] == honest["few_shot"]["3"]["chosen"]
    assert permuted["few_shot"]["3"]["holdout_score"] == honest["few_shot"]["3"]["holdout_score"]


def test_a_probe_cannot_be_tested_on_other_features_than_it_was_trained_on():
    with pytest.raises(ConfigError, match="masking=off cannot be tested on features with masking=on"):
        chosen_and_reported(spec=dataclasses.replace(SPEC, masking="on"))


def test_the_winner_is_the_best_of_the_hold_out():
    found, _ = chosen_and_reported()
    for probe, grid, keys in (
        ("linear", "grid", ("features", "learning_rate")), ("logistic", "path", ("strength",)), ("knn", "grid", ("k", "temperature")),
    ):  # fmt: skip
        best = max(tried["holdout_score"] for tried in found[probe][grid])
        (chosen,) = [tried for tried in found[probe][grid] if all(found[probe]["chosen"][key] == tried[key] for key in keys)]
        assert chosen["holdout_score"] == found[probe]["holdout_score"] == best
    assert len(found["linear"]["grid"]) >= 4 and len(found["knn"]["grid"]) >= 4 and len(found["logistic"]["path"]) >= 3


def fitted(probe: Probe, values, labels, share=0.2, **more):
    """With one way to pool and `share` of the images held out."""
    return choose([probe], train_on(values, labels, share, **more)).fitted[probe.key]


def test_the_winner_and_the_bank_get_the_hold_out_too():
    values, labels = problem(120)
    settings = {"epochs": 2, "batch": 64, "weight_decay": 0, "seed": 0, "device": CPU}
    alone = train_heads(values, np.arange(120), labels, 3, [Block(torch.arange(10), [0.1])], **settings)
    linear = fitted(LinearProbe(learning_rates=(0.1,), epochs=2, batch=64), values, labels)
    assert torch.equal(linear.head.heads[0].weight, alone.heads[0].weight)
    assert np.array_equal(fitted(KnnProbe(k=(3,)), values, labels).bank, np.arange(120))
    regression = lambda: fitted(LogisticProbe(strengths=(1e-3, 1.0)), values, labels).path.weight
    before = regression()
    values[hold_out(labels, 0.2, 0, CHOOSE)[1]] += 100  # the held out images alone
    assert not torch.allclose(regression(), before)


def test_what_is_set_to_do_nothing_leaves_no_figure():
    values, labels = problem(120)
    chosen = choose([LogisticProbe(strengths=()), FewShotProbe(shots=())], train_on(values, labels))
    assert read(chosen, Measured(table(values), np.arange(60)), labels[:60]) == ({}, {})
    assert chosen.seconds.keys() == {"logistic", "few_shot"} and not any(each.summary() for each in chosen.fitted.values())
    assert chosen_words(["", "linear: 3"], {"knn": 1.0, "linear": 2.06}) == "linear: 3 (seconds: knn 1.0, linear 2.1)"


def test_a_class_without_images_is_never_drawn_nor_answered():
    values, labels = problem(120)
    probe = FewShotProbe(shots=(2,), trials=3)
    with_empty = fitted(probe, values, labels + 1, classes=("none", "a", "b", "c")).by_shots[2]
    without = fitted(probe, values, labels).by_shots[2]
    assert with_empty.about == without.about
    for ours, theirs in zip(with_empty.trials, without.trials, strict=True):
        assert torch.equal(ours.predict(values)[0], theirs.predict(values)[0] + 1)


def test_every_accuracy_counts_all_test_images_once():
    found, answers = chosen_and_reported()
    truth = torch.from_numpy(problem(300)[1][240:])
    for probe in PROBES:
        assert found[probe]["images"] == 60 == answers[probe].predicted.shape[-1]
        assert found[probe]["accuracy"] == pytest.approx(float((answers[probe].predicted == truth).double().mean()))
        assert ((answers[probe].confidence > 1 / 3 - 1e-6) & (answers[probe].confidence <= 1 + 1e-6)).all()
    for draw in found["few_shot"]["3"]["by_run"][0]:
        assert draw * 60 == pytest.approx(round(draw * 60), abs=1e-9)
    assert found["few_shot"]["3"]["accuracy"] == pytest.approx(np.mean(found["few_shot"]["3"]["by_run"]))


def test_k_and_ridge_are_chosen_on_images_that_are_neither_neighbours_nor_shots():
    """With labels that are pure chance only an image that meets itself could be told right."""
    values = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    labels = np.random.default_rng(1).permutation(np.arange(300) % 3)
    assert fitted(KnnProbe(k=(1,)), values, labels, 0.3).about["holdout_score"] < 0.5
    assert fitted(FewShotProbe(shots=(60,), trials=2, l2=(1e-6,)), values, labels, 0.3).by_shots[60].about["holdout_score"] < 0.5


def test_shots_that_were_asked_for_are_refused_and_those_of_the_default_left_out():
    labels = np.arange(24) % 3
    assert FewShotProbe().usable_shots(labels, "abc") == ([1, 5], "10, 25 shots are left out: class 'a' has 8 images to draw from")
    assert FewShotProbe(shots=(1, 8)).usable_shots(labels, "abc") == ([1, 8], "")
    with pytest.raises(DataError, match=r"few_shot\.shots=9: class 'b' has 7 labelled images to draw from, once"):
        FewShotProbe(shots=(1, 9)).remark(labels[labels != 1].tolist() + [1] * 7, "abc")
    values, labels = problem(60)
    with pytest.raises(DataError, match=r"few_shot\.shots=50: class 'a' has"):
        fitted(FewShotProbe(shots=(50,)), values, labels)


class Mean(Probe):
    """A probe of a stranger: the nearest class mean, written against the contract alone."""

    key, title = "mean", "class mean"

    def fit(self, train):
        own = train.features.of(train.own)
        truth, rows = train.truth(train.split.both), train.split.both
        return FittedMean(train.own, torch.stack([own[rows][truth == label].mean(dim=0) for label in range(len(train.classes))]))


class FittedMean(Fitted):
    def __init__(self, own, means):
        self.own, self.means, self.about = own, means, {"chosen": {}}

    def summary(self):
        return "class means"

    def answer(self, images):
        near = torch.cdist(images.features.of(self.own)[images.rows], self.means).neg().softmax(dim=1).max(dim=1)
        return Answers(near.indices, near.values)


def test_a_probe_of_a_stranger_is_read_on_features_in_memory_like_any_other():
    values, labels = problem(300, noise=0.5)
    figures, answers = read(choose([Mean()], train_on(values, labels)), Measured(table(values), np.arange(240, 300)), labels[240:])
    assert figures["mean"]["accuracy"] > 0.9 and figures["mean"]["images"] == 60 == answers["mean"].predicted.shape[-1]
    assert Mean.columns({"row": figures["mean"]}) == {"class mean": {"row": figures["mean"]}}


def test_choices_are_made_by_the_metric_that_was_asked_for():
    """Three images of ten are of the rare class: k 1 tells it from the others now and then, all neighbours never do."""
    rng = np.random.default_rng(5)
    labels = (np.arange(400) % 10 < 2).astype(int)
    values = torch.from_numpy((0.3 * labels[:, None] + rng.normal(size=(400, 10))).astype(np.float32))
    pick = lambda **more: choose(
        [KnnProbe(k=(1, 250), temperatures=(1.0,))], dataclasses.replace(train_on(values, labels, 0.3, classes=("a", "b")), widen=False, **more)
    ).fitted["knn"].about  # fmt: skip
    by_accuracy, balanced = pick(), pick(metric="balanced_accuracy")
    assert by_accuracy["chosen"]["k"] == 250 and by_accuracy["holdout_score"] == pytest.approx(0.8)
    assert balanced["chosen"]["k"] == 1 and 0.5 < balanced["holdout_score"] < 0.7


@pytest.mark.parametrize("probe", [LogisticProbe(strengths=(1.0,)), Linear(learning_rates=(0.05,), epochs=10, batch=64)])
def test_balanced_weights_answer_the_rare_class_more_often(probe):
    rng = np.random.default_rng(6)
    labels = (np.arange(400) % 10 < 1).astype(int)
    values = torch.from_numpy((0.8 * labels[:, None] + rng.normal(size=(400, 10))).astype(np.float32))
    figure = lambda **more: read(
        choose([probe], dataclasses.replace(train_on(values, labels, 0.2, classes=("a", "b"), own=TWO[1]), **more)),
        Measured(table(values), np.arange(400)), labels,
    )[0][probe.key]  # fmt: skip
    alike, weighted = figure(), figure(balanced=True)
    assert weighted["per_class"]["accuracy"][1] > alike["per_class"]["accuracy"][1] + 0.2
    assert weighted["balanced_accuracy"] > alike["balanced_accuracy"] and weighted["accuracy"] < alike["accuracy"]


def test_runs_of_several_seeds_and_repeats_are_one_figure():
    values, labels = problem(300, noise=2.5)
    images, truth = Measured(table(values[240:]), np.arange(60)), torch.from_numpy(labels[240:])
    probes = [KnnProbe(k=(3,), temperatures=(0.07,)), FewShotProbe(shots=(3,), trials=4, l2=(1.0,))]
    said = lambda seed: answers_to(
        choose(probes, dataclasses.replace(train_on(values[:240], labels[:240]), split=Split(*hold_out(labels[:240], 0.3, seed, CHOOSE)), seed=seed)), images
    )  # fmt: skip
    runs = [[said(0), said(1)], [said(2), said(3)], [said(4), said(5)]]
    figures, answers = report(runs, truth, 3)
    assert answers["knn"].predicted.shape == (3, 2, 60) and answers["few_shot/3"].predicted.shape == (3, 8, 60)
    assert (figures["knn"]["seeds"], figures["knn"]["draws"]) == (3, 2) and figures["few_shot"]["3"]["draws"] == 8
    assert torch.equal(answers["few_shot/3"].predicted[1, 4:], runs[1][1]["few_shot/3"][1].predicted)
    assert figures["knn"]["holdout_score"] == pytest.approx(np.mean([one["knn"][0]["holdout_score"] for seed in runs for one in seed]))
    assert len(figures["knn"]["chosen_in_each"]) == 3 and "chosen_in_each" not in report([[said(0)]], truth, 3)[0]["knn"]


def test_pictures_of_choices_say_which_metric_they_show():
    assert score_of({"a": {"metric": "balanced_accuracy"}, "b": {"metric": "balanced_accuracy"}}) == "balanced accuracy"
    assert score_of({"a": {"metric": "accuracy"}, "older": {}}) == "top-1 accuracy"
    grid = [{"layers": [layer], "holdout_score": 0.5} for layer in (1, 2)]
    assert [interval for _, _, interval in layer_curve(grid, 0)] == [(0.5, 0.5)] * 2  # of what is no share of images
