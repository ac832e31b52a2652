"""Logistic regression against scikit-learn's, solved tightly, and against its own promises."""

import numpy as np
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
        predicted, confidence = (part[i].numpy() for part in path.predict(values, np.arange(300), batch=7))
        assert np.array_equal(predicted, ours[i].argmax(1))
        assert np.abs(confidence - ours[i].max(1)).max() < 1e-3


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
