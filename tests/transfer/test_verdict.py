"""What is said of a table, on answers whose truth is known."""

import numpy as np
import pytest
import torch

from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers
from mpp.transfer.verdict import Judged, judge, verdict

M = 400
TRUTH = torch.from_numpy((np.arange(M) % 10 < 3).astype(int))  # 70 % and 30 %


def line(name: str, **columns) -> Judged:
    """columns: predicted int64 [m] or [S, T, m]; holdout scores fall from the first to the last."""
    given = {column.replace("_5", "/5"): Answers(predicted) for column, predicted in columns.items()}
    known = {
        column: figures(answers.predicted, TRUTH, 2) | {"labels": 10 if "/" in column else 1000, "holdout_score": 0.9 - 0.1 * place}
        for place, (column, answers) in enumerate(given.items())
    }
    return Judged(name, known, given)


def right(share: float, seed: int = 0, runs: tuple[int, ...] = ()) -> torch.Tensor:
    """Answers of which so many are right, alike in both classes."""
    hit = torch.from_numpy(np.random.default_rng(seed).random((*runs, M)) < share)
    return torch.where(hit, TRUTH, 1 - TRUTH)


def outcome(ours: Judged, theirs: Judged, **more) -> str:
    return judge(ours, theirs, TRUTH, **more)["outcome"]


def test_an_encoder_is_better_worse_or_not_shown_to_be():
    random = line("random init", linear=right(0.6, 1, (3, 1)))
    assert outcome(line("pretrained", linear=right(0.9)), random) == "better"
    assert outcome(line("pretrained", linear=right(0.3)), random) == "worse"
    assert outcome(line("pretrained", linear=right(0.62)), random) == "not shown"


def test_each_row_is_taken_at_the_best_of_its_own_probes_by_the_hold_out():
    """Raw pixels lose by the linear probe and win by neighbours: what the hold-out has chosen counts, not the few-shot column with fewer labels."""
    ours, pixels = (
        line("pretrained", linear=right(0.85), knn=right(0.7)),
        line("raw pixels", knn=right(0.97, 2), linear=right(0.6), few_shot_5=right(1.0)),
    )
    found = judge(ours, pixels, TRUTH)
    assert found["outcome"] == "worse" and found["columns"] == ["linear", "knn"] and "raw pixels are better" in found["words"]
    assert found["ahead_in"] == [1, 2] and "ahead in 1 of 2 columns" in found["words"]


def test_one_random_initialisation_is_no_evidence():
    found = judge(line("pretrained", linear=right(0.9)), line("random init", linear=right(0.5, 1)), TRUTH)
    assert found["outcome"] == "not shown" and "random_inits=3" in found["why"]


def test_a_further_initialisation_that_does_best_of_all_is_no_pretraining():
    """Initialisations that lie far apart: another one above their mean is what chance gives, though the images alone would tell them apart."""
    nets = torch.cat([right(share, seed, (1, 1)) for seed, share in enumerate((0.55, 0.58, 0.62, 0.66, 0.69))])
    ours, random = line("pretrained", linear=right(0.75, 9)), line("random init", linear=nets)
    assert outcome(ours, random) == "not shown"
    assert outcome(ours, line("raw pixels", linear=nets[0, 0])) == "better"  # of these images and features it is true


def test_one_draw_of_few_labels_shows_nothing_and_several_do():
    ours, scratch = right(0.8, 0), right(0.6, 1)
    words = "one draw of 100 labels"
    found = judge(line("fine-tuned", finetune=ours), line("from scratch", finetune=scratch), TRUTH, one_draw=words)
    assert found["outcome"] == "not shown" and found["why"] == words and found["p"] < 1e-4 and words in found["words"]
    several = [line(name, finetune=right(share, seed, (1, 5))) for name, share, seed in (("fine-tuned", 0.8, 0), ("from scratch", 0.6, 1))]
    assert outcome(*several, one_draw=words) == "better"


def test_where_the_other_metric_shows_the_contrary_nothing_is_shown():
    """Always naming the larger class beats a balanced probe in top-1: 70 against 60 %."""
    larger, balanced = torch.zeros_like(TRUTH), right(0.6, 3)
    found = judge(line("pretrained", linear=larger), line("raw pixels", linear=balanced), TRUTH)
    assert found["outcome"] == "not shown" and "balanced accuracy shows the contrary" in found["why"]
    turned = judge(line("pretrained", linear=balanced), line("raw pixels", linear=larger), TRUTH, "balanced_accuracy")
    assert turned["outcome"] == "not shown" and "top-1 shows the contrary" in turned["why"]


def test_the_largest_class_is_beaten_in_balanced_accuracy_and_what_top_1_lacks_is_said():
    constant = Judged(
        "majority class", {"always": figures(torch.zeros_like(TRUTH), TRUTH, 2)}, {"always": Answers(torch.zeros_like(TRUTH))}
    )
    found = judge(line("pretrained", linear=right(0.62, 1), knn=right(0.9)), constant, TRUTH)
    assert found["outcome"] == "better" and found["metric"] == "balanced_accuracy" and found["ahead_in"] == [2, 2]
    assert "it tells the classes apart" in found["words"] and "points below it" in found["words"]
    nothing = judge(line("pretrained", linear=torch.zeros_like(TRUTH)), constant, TRUTH)
    assert nothing["outcome"] == "not shown" and nothing["difference"] == 0
    assert judge(line("pretrained", linear=1 - TRUTH), constant, TRUTH)["outcome"] == "worse"


def test_the_level_is_stricter_where_the_images_alone_vary():
    ours = line("pretrained", linear=right(0.68, 3))
    ps = {seed: judge(ours, line("raw pixels", linear=right(0.6, seed)), TRUTH) for seed in range(20)}
    between = [found for found in ps.values() if 0.01 <= found["p"] < 0.05]
    assert between and all(found["outcome"] == "not shown" and "0.01 is asked for" in found["why"] for found in between)


def test_equal_encoders_are_never_told_apart():
    assert judge(line("pretrained", linear=right(0.7)), line("raw pixels", linear=right(0.7)), TRUTH)["p"] == 1


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_random_encoders_are_seldom_called_helpful(share):
    """Of a hundred further initialisations of one kind, against three others each: at most five."""
    called = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hard, levels = rng.normal(size=M), rng.normal(share, 0.05, 4)
        nets = [torch.where(torch.from_numpy(rng.random(M) < level + 0.1 * hard), TRUTH, 1 - TRUTH) for level in levels]
        found = verdict(
            {"pretrained": line("pretrained", linear=nets[0]), "random init": line("random init", linear=torch.stack(nets[1:])[:, None])},
            TRUTH,
        )
        called += found[0]["outcome"] != "not shown"
    assert called <= 5
