"""Few labels: class-balanced, a function of the seed, and fewer among more."""

import numpy as np
import pytest

from mpp.base.errors import DataError
from mpp.transfer.split import few_labels

LABELS = np.repeat([0, 1, 2], [100, 50, 10])


def test_every_class_gives_its_share_and_at_least_one():
    assert np.bincount(LABELS[few_labels(LABELS, 0, fraction=0.1)]).tolist() == [10, 5, 1]
    assert np.bincount(LABELS[few_labels(LABELS, 0, fraction=0.01)]).tolist() == [1, 1, 1]
    assert np.bincount(LABELS[few_labels(LABELS, 0, per_class=7)]).tolist() == [7, 7, 7]
    assert np.array_equal(few_labels(LABELS, 0), np.arange(160))


def test_they_are_a_function_of_the_seed_and_fewer_are_among_more():
    few, more = few_labels(LABELS, 3, fraction=0.1), few_labels(LABELS, 3, fraction=0.3)
    assert np.array_equal(few, few_labels(LABELS, 3, fraction=0.1))
    assert set(few) < set(more)
    assert not np.array_equal(few, few_labels(LABELS, 4, fraction=0.1))
    assert np.array_equal(few, np.sort(few))


def test_a_class_with_too_few_is_named():
    with pytest.raises(DataError, match="class 'c' has 10 images"):
        few_labels(LABELS, 0, per_class=11, classes="abc")
