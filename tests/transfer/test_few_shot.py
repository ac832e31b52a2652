"""Few-shot least squares beside the formula of big_vision's fewshot_lsr, derived anew in numpy."""

import numpy as np
import pytest
import torch

from mpp.transfer.probes import few_shot

CPU = torch.device("cpu")


def constant_column(x, y, queries, classes, l2, constant=100.0):
    """(X^T X + l2)^-1 X^T Y with a large constant column as bias, penalised like the rest; Y in {-1, 1}."""
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    design, asked = (np.hstack([(part - mean) / deviation, np.full((len(part), 1), constant)]) for part in (x, queries))
    targets = 2.0 * np.eye(classes)[y] - 1
    return asked @ np.linalg.solve(design.T @ design + l2 * np.eye(design.shape[1]), design.T @ targets)


@pytest.mark.parametrize("shots", [1, 5, 25])
def test_the_class_predicted_is_that_of_a_penalised_constant_column(shots):
    rng = np.random.default_rng(shots)
    labels = np.repeat(np.arange(6), shots)
    values = (rng.normal(size=(6 * shots + 200, 20)) + 3).astype(np.float32)
    values[: 6 * shots] += np.eye(6, 20, dtype=np.float32)[labels]
    grid = [2.0**-6, 1.0, 2.0**10]
    fitted = few_shot.fit(torch.from_numpy(values[: 6 * shots]), torch.from_numpy(labels), 6, grid, CPU)
    for i, l2 in enumerate(grid):
        theirs = constant_column(values[: 6 * shots].astype(float), labels, values[6 * shots :].astype(float), 6, l2)
        assert np.array_equal(fitted.predict(torch.from_numpy(values[6 * shots :]))[0][i], theirs.argmax(1))
        shrunk = 1 / (1 + l2 / (1e4 * 6 * shots))  # their intercept beside ours
        ours = torch.from_numpy(values[6 * shots :]).double() @ fitted.weight[i] + fitted.bias[i]
        assert np.allclose(ours.numpy() - theirs, (2 / 6 - 1) * (1 - shrunk), atol=1e-8)


def test_of_two_classes_the_score_is_how_much_more_speaks_for_the_second():
    rng = np.random.default_rng(0)
    values, labels = torch.from_numpy(rng.normal(size=(30, 5)).astype(np.float32)), torch.arange(30) % 2
    fitted = few_shot.fit(values, labels, 2, [1.0, 10.0], CPU)
    predicted, score = fitted.predict(values, chunk=7)
    logits = torch.einsum("nd,ldk->lnk", values.double(), fitted.weight) + fitted.bias[:, None]
    torch.testing.assert_close(score, (logits[..., 1] - logits[..., 0]).float())
    assert torch.equal(predicted == 1, score > 0) and few_shot.fit(values, labels, 3, [1.0], CPU).predict(values)[1] is None
