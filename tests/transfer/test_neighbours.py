"""Neighbours and their votes against plain loops and scikit-learn."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mpp.transfer.probes.knn import nearest, vote

CPU = torch.device("cpu")


def table(count=300, width=11, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    values = np.random.default_rng(5).normal(size=(4, width))[labels] + rng.normal(size=(count, width)) * 1.5
    return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(labels)


def test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank():
    values, _ = table()
    rows, columns = np.flatnonzero(np.arange(300) % 3 != 1), torch.tensor([8, 2, 3, 10])
    queries = values[1:100:3][:, columns]
    whole = nearest(queries, values, rows, columns, 20, CPU)
    for bank_chunk in (7, 20, 64, 199):
        similarity, index = nearest(queries, values, rows, columns, 20, CPU, chunk=9, bank_chunk=bank_chunk)
        assert_close(similarity, whole[0])
        assert torch.equal(index, whole[1])
    bank = values[rows][:, columns].double()
    cosine = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(bank).T
    assert torch.equal(whole[1], cosine.argsort(dim=1, descending=True)[:, :20])


def test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop():
    values, labels = table()
    similarity, index = nearest(values[250:], values, np.arange(250), torch.arange(11), 40, CPU)
    grid, temperatures = [40, 1, 7], [0.5, 0.002]
    predicted, won = vote(similarity, labels[index], 4, grid, temperatures, chunk=13)
    assert predicted.shape == won.shape == (2, 3, 50)
    for t, temperature in enumerate(temperatures):
        for i, k in enumerate(grid):
            for q in range(50):
                votes = np.zeros(4)
                for s, j in zip(similarity[q, :k].double().numpy(), index[q, :k], strict=True):
                    votes[labels[j]] += np.exp((s - 1) / temperature)
                assert predicted[t, i, q] == votes.argmax()
                assert won[t, i, q] == pytest.approx(votes.max() / votes.sum(), rel=1e-3)


def test_scikit_learn_classifies_alike():
    from sklearn.neighbors import KNeighborsClassifier

    values, labels = table(600)
    oracle = KNeighborsClassifier(15, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07), algorithm="brute")
    oracle.fit(values[:400].double().numpy(), labels[:400].numpy())
    similarity, index = nearest(values[400:], values, np.arange(400), torch.arange(11), 15, CPU)
    predicted, won = vote(similarity, labels[index], 4, [15], [0.07])
    assert np.array_equal(predicted[0, 0], oracle.predict(values[400:].double().numpy()))
    assert np.allclose(won[0, 0], oracle.predict_proba(values[400:].double().numpy()).max(1), atol=1e-4)
