"""What figures mean in plain words: each sign at its threshold, once, and none on a healthy course."""

import pytest

from mpp.monitor.signs import Course, Signs

MORE = Course(warmup_samples=1000, total_samples=10_000, baseline="nearest", knows_more=True)
COURSE = Course(warmup_samples=1000, total_samples=10_000, baseline="visible")


def said(*rows, course=COURSE):
    signs = Signs(course)
    return [line for row in rows for line in signs.see(row)]


def holdout(samples, skill, error=0.001):
    return {"samples": samples, "holdout/skill": skill, "holdout/skill_error": error}


def test_a_healthy_course_is_not_commented_on():
    rows = [{"samples": 0, "features/rank": 29.0, "features/deviation": 0.18}]
    for part in range(1, 21):
        samples = 500 * part
        rows.append(
            {
                "samples": samples,
                "train/loss": 2.0 / part**0.5 * (1.1 if part % 2 else 1),
                "speed/wait_share": 0.04 if part > 1 else 0.4,
                "speed/samples_per_second": 1.0,
            }
        )
        rows.append(holdout(samples, -0.5 + 0.06 * part))
        rows.append({"samples": samples, "features/rank": 29.0 - part / 2, "features/deviation": 0.4})
    assert said(*rows) == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            holdout(2000, -0.02),
            "hold-out skill is -0.020 at 2,000 samples, after the warm-up: the model predicts worse than the trivial rule 'visible'",
        ),
        (holdout(2000, 0.91), "hold-out skill is +0.910 at 2,000 samples: what is hidden is told almost without error"),
        (holdout(5000, 0.004), "half of the run has taught the model nothing beyond the trivial rule 'visible'"),
    ],
)
def test_skill_that_says_that_something_is_wrong_is_said_once(row, words):
    first, *others = said({**row, "samples": 1000}, row, row, row)
    assert words in first and first.startswith("note: ") and not others and "RUN/pictures" in first


def test_early_or_uncertain_skill_says_nothing():
    assert said(holdout(1500, -0.5), holdout(1999, -0.5), holdout(4999, 0.0), holdout(6000, 0.1)) == []
    assert said(holdout(2000, -0.05, error=0.03), holdout(3000, -0.05, error=0.03)) == []
    assert said(holdout(2000, -0.5), holdout(3000, -0.4), holdout(4000, -0.3)) == []  # it rises
    assert said(holdout(2000, -0.3), holdout(5000, 0.004), holdout(6000, 0.004)) == []  # it has risen
    assert said(holdout(1999, 0.99), holdout(2000, 0.89), holdout(3000, 0.92, error=0.011)) == []
    assert said({"samples": 9000, "holdout/loss": 1.0}) == []  # no skill is defined


def test_to_be_below_a_rule_that_knows_more_than_the_model_is_no_sign():
    assert said(holdout(2000, -0.5), holdout(3000, -0.5), holdout(5000, 0.0), holdout(6000, 0.0), course=MORE) == []
    assert len(said(holdout(2000, 0.91), course=MORE)) == 1  # too good is too good


def test_a_loss_that_rises_for_three_rows_is_said_unless_the_target_moves():
    losses = lambda *values, every=500, **more: [
        {"samples": 3000 + every * at, "train/loss": value} | more for at, value in enumerate(values)
    ]
    (line,) = said(*losses(1.0, 0.5, 0.64, 0.65, 0.66, 0.9))
    assert "the training loss is 0.66 at 5,000 samples, and was 0.5: it rises" in line and "optim.base_lr" in line
    assert said(*losses(1.0, 0.5, 0.62, 0.6, 0.62)) == [] == said(*losses(1.0, 0.5, 0.7, 0.7, 0.5, 0.7))
    assert said(*losses(1.0, 0.5, 0.7, 0.7, 0.7, 0.7, **{"teacher/decay": 0.99})) == []


def test_rows_of_single_steps_are_no_rise_by_their_noise():
    noise = [1.0, 0.5, 1.3, 1.1, 1.4, 0.9, 1.2, 0.7, 1.0, 0.8]  # one step that was easy, then three as usual
    rows = [{"samples": 3000 + 50 * at, "train/loss": noise[at % 10]} for at in range(100)]
    assert said(*rows) == []
    assert (
        len(said(*rows, *({"samples": 8000 + 50 * at, "train/loss": 1.4 * noise[at % 10]} for at in range(20)))) == 1
    )  # and a rise is seen


@pytest.mark.parametrize(("name", "unit"), [("rank", 1.0), ("deviation", 0.01)])
def test_features_that_shrink_to_a_quarter_have_collapsed(name, unit):
    looks = lambda *pairs: [{"samples": at, f"features/{name}": unit * value} for at, value in pairs]
    (line,) = said(*looks((0, 40.0), (3000, 10.1), (5000, 9.9), (6000, 9.8), (7000, 9.7)))
    assert f"the {name} of the features is {unit * 9.8:.3g} at 6,000 samples and was {unit * 40:.3g} before training" in line
    assert "a collapse" in line
    assert said(*looks((0, 40.0), (1000, 1.0), (1500, 1.0), (1999, 9.9), (2000, 9.9), (3000, 10.1), (4000, 9.9))) == []  # warm-up, and once


def test_a_deviation_that_is_not_small_is_no_collapse_however_large_it_was():
    assert said(*({"samples": at, "features/deviation": value} for at, value in [(0, 0.86), (3000, 0.2), (5000, 0.2), (7000, 0.101)])) == []


def test_waiting_is_said_when_it_lasts_for_three_rows_and_a_minute():
    def rows(*shares, rate=4.0):  # 25 seconds each
        return [{"samples": 100 * at, "speed/wait_share": share, "speed/samples_per_second": rate} for at, share in enumerate(shares, 1)]

    (line,) = said(*rows(0.5, 0.5, 0.1, 0.3, 0.3, 0.35, 0.4))
    assert line.startswith("note: 35% of the time is spent waiting for images") and "system.workers" in line
    assert said(*rows(0.5, 0.5, 0.1, 0.3, 0.3)) == [] == said(*rows(*[0.5] * 20, rate=40.0))  # 50 seconds in all
    assert len(said(*rows(*[0.5] * 24, rate=40.0))) == 1


def test_what_an_earlier_start_has_said_is_not_said_again():
    signs = Signs(COURSE)
    signs.see_again([holdout(1500, -0.02), holdout(2000, -0.02)])
    assert signs.see(holdout(3000, -0.02)) == [] and signs.said == {"below the trivial predictor"}
