"""Logistic regression against scikit-learn's, solved tightly, and against its own promises."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mpp.transfer.probes.logistic import fit_path, minimise

CPU = torch.device("cpu")
STRENGTHS = [1e-4, 1e-2, 1.0]


def problem(count=300, width=12, classes=4, seed=0):
    """Features as encoders have them: of very different scales, strongly correlated, far from zero."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(7).normal(size=(classes, width))
    mixing = np.random.default_rng(8).normal(size=(width, width)) * np.logspace(0, -2, width)[:, None]
    values = 40 + (centres[labels] + 2 * rng.normal(size=(count, width))) @ mixing * np.logspace(-1, 1, width)
    return torch.from_numpy(values.astype(np.float32)), labels


def probabilities(path, values):
    logits = torch.einsum("lkd,nd->lnk", path.weight.double(), values[:, path.columns].double()) + path.bias.double().unsqueeze(1)
    return logits.softmax(dim=2).numpy()


def test_probabilities_are_those_of_scikit_learn_at_every_strength():
    from sklearn.linear_model import LogisticRegression

    values, labels = problem()
    rows, columns = np.arange(20, 300), torch.tensor([9, 0, 3, 4, 5, 6, 11])
    path = fit_path(values, rows, labels, 4, columns, STRENGTHS[::-1], tolerance=1e-5, device=CPU)
    assert path.strengths == STRENGTHS and all(path.converged)
    x = values[rows][:, columns].double().numpy()
    middle, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-6)
    ours = probabilities(path, values)
    everything = (values[:, columns].double().numpy() - middle) / deviation
    for i, strength in enumerate(STRENGTHS):
        oracle = LogisticRegression(C=strength, tol=1e-8, max_iter=10000).fit((x - middle) / deviation, labels[rows])
        assert np.abs(ours[i] - oracle.predict_proba(everything)).max() < 1e-3
        predicted, confidence = (part[i].numpy() for part in path.predict(values, np.arange(300), batch=7)[:2])
        assert np.array_equal(predicted, ours[i].argmax(1))
        assert np.abs(confidence - ours[i].max(1)).max() < 1e-3


def oracle(values, rows, labels, strength, class_weight=None):
    """scikit-learn's own, on the standardised rows, solved tightly: probabilities float64 [n, K], K the classes that there are."""
    from sklearn.linear_model import LogisticRegression

    x = values[rows].double().numpy()
    middle, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-6)
    fitted = LogisticRegression(C=strength, tol=1e-10, max_iter=20000, class_weight=class_weight).fit(
        (x - middle) / deviation, labels[rows]
    )
    return fitted.predict_proba((values.double().numpy() - middle) / deviation)


def balanced(labels, classes):
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(np.where(counts, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0))


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize(
    ("shares", "empty"),
    [
        ([0.5, 0.5], None),  # two classes have one vector
        ([0.9, 0.1], None),  # imbalanced
        ([0.66, 0.34, 0.0], 2),  # two of three: still one vector
        ([0.8, 0.15, 0.05], None),
        ([0.6, 0.0, 0.3, 0.1], 1),
        ([0.5, 0.5, "one"], None),  # a class of one image
        (["one", 1.0], None),  # one image against the rest
    ],
)
def test_c_is_scikit_learns_whatever_the_classes(shares, empty, class_weight):
    values, _ = problem(count=200, classes=4)
    rng = np.random.default_rng(3)
    numbers = [0.0 if share == "one" else share for share in shares]
    labels = rng.choice(len(shares), 200, p=np.array(numbers) / sum(numbers))
    for lonely in (c for c, share in enumerate(shares) if share == "one"):
        labels[17] = lonely
    rows = np.arange(200)
    weights = balanced(labels, len(shares)) if class_weight else None
    path = fit_path(values, rows, labels, len(shares), torch.arange(12), STRENGTHS, weights=weights, tolerance=1e-6, device=CPU)
    there = [c for c in range(len(shares)) if c != empty]
    ours = probabilities(path, values)
    for i, strength in enumerate(STRENGTHS):
        assert np.abs(ours[i][:, there] - oracle(values, rows, labels, strength, class_weight)).max() < 2e-3
        if empty is not None:
            assert not ours[i][:, empty].any()


def test_one_class_alone_is_always_answered():
    values, _ = problem()
    path = fit_path(values, np.arange(300), np.full(300, 1), 3, torch.arange(12), STRENGTHS, device=CPU)
    predicted, confidence, _ = path.predict(values, np.arange(300))
    assert (predicted == 1).all() and (confidence == 1).all()


def test_more_columns_than_can_be_decomposed_have_the_same_minimum(monkeypatch):
    """Steps are scaled along the directions that vary most, whatever they are; a path on other images may use the same."""
    values, labels = problem(count=120, width=40)
    whole = fit_path(values, np.arange(120), labels, 4, torch.arange(40), STRENGTHS, tolerance=1e-5, device=CPU)
    monkeypatch.setattr("mpp.transfer.probes.logistic.WHOLE", 10)
    monkeypatch.setattr("mpp.transfer.probes.logistic.DIRECTIONS", 8)
    some = fit_path(values, np.arange(120), labels, 4, torch.arange(40), STRENGTHS, tolerance=1e-5, device=CPU)
    assert some.coordinates.directions.shape == (40, 8) and all(some.converged)
    assert_close(probabilities(some, values), probabilities(whole, values), rtol=0, atol=1e-3)
    spectrum = np.linalg.eigvalsh(np.cov(((values - values.mean(0)) / values.var(0, correction=0).add(1e-6).sqrt()).numpy().T, bias=True))
    assert_close(some.coordinates.spectrum.numpy()[-3:], spectrum[-3:], rtol=0.02, atol=0)
    again = fit_path(
        values, np.arange(100), labels, 4, torch.arange(40), STRENGTHS, coordinates=some.coordinates, tolerance=1e-5, device=CPU
    )
    afresh = fit_path(values, np.arange(100), labels, 4, torch.arange(40), STRENGTHS, tolerance=1e-5, device=CPU)
    assert_close(probabilities(again, values), probabilities(afresh, values), rtol=0, atol=1e-3)


def test_what_does_not_fit_into_memory_is_read_again_with_the_same_outcome(monkeypatch):
    monkeypatch.setattr("mpp.transfer.probes.logistic.CHUNK", 64)
    values, labels = problem()
    settings = {"strengths": STRENGTHS, "device": CPU}
    kept = fit_path(values, np.arange(300), labels, 4, torch.arange(2, 9), **settings)
    read = fit_path(values, np.arange(300), labels, 4, torch.arange(2, 9), resident_bytes=0, **settings)
    assert torch.equal(kept.weight, read.weight) and kept.passes == read.passes
    monkeypatch.undo()
    whole = fit_path(values, np.arange(300), labels, 4, torch.arange(2, 9), **settings)
    assert_close(probabilities(kept, values), probabilities(whole, values), rtol=0, atol=1e-3)


def test_what_has_not_converged_says_so():
    values, labels = problem()
    path = fit_path(values, np.arange(300), labels, 4, torch.arange(12), STRENGTHS, tolerance=1e-6, most_passes=3, device=CPU)
    assert path.passes == [3, 3, 3] and not any(path.converged)
    assert all(norm > 1e-6 for norm in path.gradient)


def test_few_passes_are_enough_for_correlated_features():
    """Without the change of coordinates the weakest penalty alone takes hundreds."""
    values, labels = problem(count=2000, width=40)
    path = fit_path(values, np.arange(2000), labels, 4, torch.arange(40), [1e-2, 1.0, 100.0], device=CPU)
    assert all(path.converged) and sum(path.passes) < 60


def test_features_and_the_global_generator_are_left_as_they_were():
    values, labels = problem()
    before, state = values.clone(), torch.random.get_rng_state()
    fit_path(values, np.arange(300), labels, 4, torch.arange(12), STRENGTHS, device=CPU)
    assert torch.equal(values, before) and torch.equal(torch.random.get_rng_state(), state)


def test_constant_columns_and_absent_classes_do_no_harm():
    values, labels = problem()
    values[:, 3] = 5.0
    labels = np.where(labels == 2, 1, labels)
    path = fit_path(values, np.arange(300), labels, 4, torch.arange(12), STRENGTHS, device=CPU)
    assert all(path.converged) and bool(torch.isfinite(path.weight).all())
    assert not (path.predict(values, np.arange(300))[0] == 2).any()


def test_the_minimum_of_a_steep_valley_is_found_without_a_good_first_step():
    stretch = torch.logspace(-1, 2, 10, dtype=torch.float64)

    def objective(x):
        return float(torch.cosh(stretch * (x - 1)).log().sum()), stretch * torch.tanh(stretch * (x - 1))

    point, norm, passes = minimise(objective, torch.zeros(10, dtype=torch.float64), lambda g: g, 1e-6, 500)
    assert norm <= 1e-6 and passes < 500
    assert_close(point, torch.ones(10, dtype=torch.float64), rtol=0, atol=1e-2)
