"""A grid that widens itself, against functions whose best value is known."""

import numpy as np
import pytest

from mpp.transfer.grid import Axis, search


def peak_at(best: float, tried: list | None = None):
    """Falls off on both sides of `best`, on a logarithmic axis."""

    def evaluate(values):
        if tried is not None:
            tried.extend(values[0])
        return -np.abs(np.log10(np.array(values[0], dtype=float)) - np.log10(best))

    return evaluate


@pytest.mark.parametrize(("best", "widened"), [(1e-7, 1e-8), (1e5, 1e6), (0.1, None)])
def test_a_grid_grows_at_the_end_where_its_best_value_lies_until_it_is_inside(best, widened):
    tried: list[float] = []
    found = search([Axis("C", [1e-3, 1e-2, 1e-1, 1.0], 10, 1e-12, 1e9)], peak_at(best, tried))
    assert found.chosen(0) == pytest.approx(best) and found.edges == []
    assert found.values[0] == sorted(found.values[0]) and len(tried) == len(set(tried)) == len(found.values[0])
    assert (min(found.values[0]), max(found.values[0])) == pytest.approx((min(widened or 1, 1e-3), max(widened or 1, 1.0)))


def test_what_lies_at_the_limit_is_marked():
    found = search([Axis("C", [1e-3, 1e-2], 10, 1e-5, 1e9)], peak_at(1e-9))
    assert found.chosen(0) == 1e-5 and found.edges == ["C"]
    assert search([Axis("C", [1e-3, 1e-2], 10, 1e-5, 1e9)], peak_at(1e-9), widen=False).edges == ["C"]
    assert search([Axis("C", [1e-3], 10, 1e-5, 1e9)], peak_at(1e-9)).values == [[1e-3]]  # fixed on purpose


def test_a_level_stretch_is_no_reason_to_grow_and_ties_go_inside():
    found = search([Axis("C", [1, 10, 100, 1000], 10, 1e-5, 1e9)], lambda values: np.ones(len(values[0])))
    assert found.values == [[1, 10, 100, 1000]] and found.chosen(0) == 10 and found.edges == []
    level = lambda values: np.array([1.0 if value <= 10 else 0.0 for value in values[0]])
    assert search([Axis("C", [1, 10, 100, 1000], 10, 1e-5, 1e9)], level).chosen(0) == 10


def test_whole_numbers_stay_whole_and_two_axes_grow_each_on_its_own():
    def evaluate(values):
        features, counts = values
        return np.array([[-(abs(np.log2(count)) + (feature != "b")) for count in counts] for feature in features])

    found = search([Axis("features", ["a", "b", "c"]), Axis("k", [5, 10, 20], 2, 1, 40)], evaluate)
    assert found.values == [["a", "b", "c"], [1, 2, 5, 10, 20]] and found.chosen(0) == "b" and found.chosen(1) == 1
    assert all(isinstance(count, int) for count in found.values[1]) and found.scores.shape == (3, 5)
    upwards = search([Axis("k", [5, 10, 20], 2, 1, 70)], lambda values: np.array(values[0], dtype=float))
    assert upwards.values == [[5, 10, 20, 40, 70]] and upwards.edges == ["k"]


def test_several_values_are_tried_at_once_where_that_costs_no_more():
    calls: list[int] = []

    def evaluate(values):
        calls.append(len(values[0]))
        return peak_at(64)(values)

    found = search([Axis("rate", [1, 2, 4], 2, 0.1, 100.0, stride=2)], evaluate)
    assert found.values == [[1, 2, 4, 8, 16, 32, 64, 100]] and found.chosen(0) == 64 and calls == [3, 2, 2, 1]
    assert search([Axis("rate", [4, 8], 2, 1, 100.0, stride=3)], peak_at(0.1)).values == [[1, 2, 4, 8]]
