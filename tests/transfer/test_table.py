import pytest

from mpp.transfer.metrics import wilson
from mpp.transfer.table import format_table, remarks_on_table


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


FIGURE = {"accuracy": 0.4, "ci95": [0.39, 0.41], "labels": 3000, "draws": 1}
BALANCED = FIGURE | {"balanced_accuracy": 0.35, "balanced_ci95": [0.33, 0.37], "per_class": {"images": [60, 40]}}


def block(table: str, number: int) -> list[list[str]]:
    return [line.split() for line in table.split("\n\n")[number].splitlines()]


def test_the_table_is_aligned_and_shows_what_is_there():
    rows = {
        "raw pixels": {
            "linear": FIGURE,
            "knn": FIGURE,
            "few_shot": {"5": FIGURE | {"labels": 50, "draws": 5}, "10": {"accuracy": 0.5, "ci95": None}},
            "feature_rank": {"rank": 9.87, "rank_uncentred": 1.23, "mean_cosine": 0.5, "deviation": 0.25},
        },
        "pretrained": {"linear": FIGURE, "knn": FIGURE, "few_shot": {"5": FIGURE, "10": FIGURE}},
    }
    table = format_table(rows)
    for part in table.split("\n\n"):
        assert len({len(line) for line in part.splitlines()}) == 1
    heading, labels, draws, first, second = block(table, 0)
    assert heading == ["top-1,", "%", "linear", "k-NN", "5-shot", "10-shot"]
    assert labels == ["labels", "3,000", "3,000", "3,000", "3,000"] and draws[:4] == ["draws", "1", "1", "5"]
    assert first == ["raw", "pixels", *["40.00", "±1.00"] * 3, "50.00"] and second == ["pretrained", *["40.00", "±1.00"] * 4]
    assert block(table, 1)[1][2:5] == ["9.9", "1.2", "0.500"]


def test_a_bare_feature_rank_of_older_results_is_shown_as_what_it_is_the_uncentred_one():
    heading, line = format_table({"pretrained": {"feature_rank": 3.0}}).splitlines()
    assert heading.split() == ["features", "rank", "uncentred", "cosine", "spread"]
    assert line.split() == ["pretrained", "-", "3.0", "-", "-"]


def test_balanced_accuracy_stands_beside_accuracy_and_the_majority_class_in_every_column():
    rows = {"majority class": {"always": BALANCED | {"balanced_ci95": None}}, "pretrained": {"linear": BALANCED, "knn": BALANCED}}
    table = format_table(rows)
    assert block(table, 0)[3] == ["majority", "class", *["40.00", "±1.00"] * 2]
    assert block(table, 1) == [
        ["balanced", "accuracy,", "%", "linear", "k-NN"], ["majority", "class", "35.00", "35.00"], ["pretrained", *["35.00", "±2.00"] * 2],
    ]  # fmt: skip
    alike = BALANCED | {"per_class": {"images": [50, 0, 50]}}
    assert "balanced accuracy is top-1: each class has 50 images" in format_table({"pretrained": {"linear": alike}})


def test_two_classes_have_areas_and_the_precision_of_the_rarer_one_by_name():
    two = BALANCED | {"auroc": 0.8, "auroc_ci95": [0.7, 0.9], "average_precision": [0.9, 0.55]}
    always = BALANCED | {"auroc": 0.5, "auroc_ci95": None, "average_precision": [0.6, 0.4]}
    table = format_table({"majority class": {"always": always}, "pretrained": {"linear": two}}, classes=["good", "bad"])
    assert block(table, 2) == [["area", "under", "ROC,", "%", "linear"], ["majority", "class", "50.00"], ["pretrained", "80.00", "±10.00"]]
    assert block(table, 3) == [
        ["average", "precision", "of", "'bad',", "%", "linear"], ["majority", "class", "40.00"], ["pretrained", "55.00"],
    ]  # fmt: skip


def test_a_choice_at_the_end_of_its_grid_is_marked_and_what_intervals_cover_is_said():
    edged = FIGURE | {"edge": ["C"], "chosen": {"strength": 1e-9, "converged": True}}
    rows = {
        "raw pixels": {"logistic": edged},
        "random init": {"logistic": FIGURE | {"seeds": 3}},
        "pretrained": {"few_shot": {"5": FIGURE | {"draws": 5}}},
    }
    assert "40.00 ±1.00*" in format_table(rows)
    edge, covered = remarks_on_table(rows)
    assert edge.startswith("* raw pixels, logistic: C at the end of the grid (strength 1e-09")
    assert "in 5-shot also the draws of the labels" in covered and "of random init also its 3 seeds" in covered
