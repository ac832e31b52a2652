"""Hold-outs and few labels: what a plain loop over the classes gives, in one sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpp.base.errors import DataError
from mpp.base.rng import PROBE, Draws
from mpp.transfer.split import CHOOSE, LABELS, REPORT, few_labels, hold_out

SOME_LABELS = arrays(
    st.sampled_from([np.int32, np.int64]), st.integers(1, 200), elements=st.one_of(st.integers(0, 4), st.integers(0, 30_000))
)
FRACTIONS = st.one_of(st.floats(0.01, 0.99), st.sampled_from([0.1, 0.25, 0.5]))  # of which many fall on a half


def loop_over_classes(labels, order, wanted):
    """bool [n]: of every class the first wanted(images) rows of `order`: n x classes steps."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen[members[: wanted(len(members))]] = True
    return chosen


@settings(max_examples=300, deadline=None)
@given(SOME_LABELS, FRACTIONS, st.integers(0, 2**63 - 1), st.sampled_from([REPORT, CHOOSE]))
def test_the_same_rows_are_held_out_as_by_a_loop_over_the_classes(labels, fraction, seed, use):
    share = lambda images: max(1, round(fraction * images))
    if any(share(images) >= images for images in np.unique(labels, return_counts=True)[1].tolist()):
        with pytest.raises(DataError, match="have too few labelled images"):
            hold_out(labels, fraction, seed, use)
        return
    held = loop_over_classes(labels, Draws(seed, PROBE, use).permutation(len(labels)), share)
    kept_rows, held_rows = hold_out(labels, fraction, seed, use)
    assert kept_rows.dtype == held_rows.dtype == np.int64
    assert np.array_equal(held_rows, np.flatnonzero(held))
    assert np.array_equal(kept_rows, np.flatnonzero(~held))


@settings(max_examples=300, deadline=None)
@given(SOME_LABELS, FRACTIONS, st.integers(1, 5), st.booleans(), st.integers(0, 2**63 - 1))
def test_the_same_few_labels_are_drawn_as_by_a_loop_over_the_classes(labels, fraction, per_class, by_fraction, seed):
    numbers, counts = np.unique(labels, return_counts=True)
    asked = {"fraction": fraction} if by_fraction else {"per_class": per_class}
    if not by_fraction and counts.min() < per_class:
        first = int(numbers[np.flatnonzero(counts < per_class)[0]])
        with pytest.raises(DataError, match=f"class number {first} has {counts[numbers == first][0]} images"):
            few_labels(labels, seed, **asked)
        return
    wanted = (lambda images: max(1, round(fraction * images))) if by_fraction else (lambda images: per_class)
    expected = loop_over_classes(labels, Draws(seed, PROBE, LABELS).permutation(len(labels)), wanted)
    found = few_labels(labels, seed, **asked)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.flatnonzero(expected))


def test_no_class_is_looked_for_in_all_the_labels():
    class Counted(np.ndarray):
        compared = 0

        def __array_ufunc__(self, ufunc, method, *inputs, **arguments):
            if ufunc in (np.equal, np.not_equal):
                Counted.compared += max(np.size(part) for part in inputs)
            plain = [np.asarray(part) if isinstance(part, Counted) else part for part in inputs]
            return getattr(ufunc, method)(*plain, **arguments)

    labels = np.repeat(np.arange(500), 4).view(Counted)
    hold_out(labels, 0.25, 0, CHOOSE)
    few_labels(labels, 0, per_class=2)
    assert Counted.compared <= 10 * len(labels)
