import pytest

from mpp.transfer.metrics import student, wilson
from mpp.transfer.table import format_table


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (60, 60, 0.93983, 1.0),
        (81, 263, 0.25529, 0.36621),
    ],  # last: Newcombe 1998, table I
)
def test_wilson_gives_published_intervals(right, total, low, high):
    got = wilson(right, total)
    assert got == pytest.approx((low, high), abs=1e-4)
    assert got[0] <= right / total <= got[1]


def test_student_gives_the_textbook_interval():
    mean, half = student([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and half == pytest.approx(2.776445 * 1.5811388 / 5**0.5)
    assert student([0.4]) == (0.4, None)


def test_the_table_is_aligned_and_shows_what_is_there():
    figure = {"accuracy": 0.4, "ci95": [0.39, 0.41]}
    rows = {
        "raw pixels": {
            "linear": figure,
            "knn": figure,
            "few_shot": {"5": figure, "10": {"accuracy": 0.5, "ci95": None}},
            "feature_rank": 9.87,
        },
        "pretrained": {"linear": figure, "knn": figure, "few_shot": {"5": figure, "10": figure}},
    }
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["features", "linear", "k-NN", "5-shot", "10-shot", "rank"]
    assert lines[1].split() == ["raw", "pixels", *["40.00", "±1.00"] * 3, "50.00", "9.9"]
    assert lines[2].endswith("-")
    assert format_table({"pretrained": {"feature_rank": 3.0}}).split() == ["features", "rank", "pretrained", "3.0"]
