import json

import pytest

from mpp.errors import DataError
from mpp.transfer.metrics import student, wilson
from mpp.transfer.table import format_table, log_test_read


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
            "feature_rank": {"rank": 9.87, "rank_uncentred": 2.5, "mean_cosine": 0.9934, "deviation": 0.12},
        },
        "pretrained": {"linear": figure, "knn": figure, "few_shot": {"5": figure, "10": figure}},
    }
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["features", "linear", "k-NN", "5-shot", "10-shot", "rank", "uncentred", "cosine", "spread"]
    assert lines[1].split() == ["raw", "pixels", *["40.00", "±1.00"] * 3, "50.00", "9.9", "2.5", "0.993", "0.120"]
    assert lines[2].split()[-4:] == ["-"] * 4


def test_a_bare_feature_rank_of_older_results_is_shown_as_what_it_is_the_uncentred_one():
    heading, line = format_table({"pretrained": {"feature_rank": 3.0}}).splitlines()
    assert heading.split() == ["features", "rank", "uncentred", "cosine", "spread"]
    assert line.split() == ["pretrained", "-", "3.0", "-", "-"]


def test_every_read_of_a_test_split_is_counted_by_its_identity(tmp_path):
    def read(h):
        return log_test_read(tmp_path, command=["probe"], encoder="e", test="t", test_identity=h)

    assert [read("a"), read("b"), read("a"), read("a")] == [1, 1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "test_reads.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and set(lines[0]) == {"time", "command", "encoder", "test", "test_identity"}
    (tmp_path / "test_reads.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match="damaged"):
        read("a")
