"""Whether a moving target tells images apart: against plain sums, and at the two ends."""

import numpy as np
import pytest
import torch

from mpp.monitor.collapse import Goals, figures
from mpp.monitor.rank import spread
from mpp.monitor.skill import NONE, verdict

GRID = (2, 3)


def found(goals: torch.Tensor, features: torch.Tensor, parts: int = 1) -> dict[str, float]:
    """Of images dealt out to so many processes."""
    shares = []
    for some, theirs in zip(goals.tensor_split(parts), features.tensor_split(parts), strict=True):
        share = Goals(*goals.shape[1:], torch.device("cpu"))
        for one, its in zip(some.split(2), theirs.split(2), strict=True):
            share.add(one, its)
        shares.append(share)
    return figures(
        torch.stack([share.sums for share in shares]).sum(0), torch.cat([part for share in shares for part in share.features]), GRID
    )


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("parts", [1, 3])
def test_the_share_that_the_place_explains_is_that_of_an_analysis_of_variance(parts):
    content, place, features = random(30, 6, 4) + 5, random(6, 4, seed=1), random(30, 8, seed=2) + 1
    goals = content + 2 * place
    values = goals.double().numpy()
    within = ((values - values.mean(0)) ** 2).sum()
    total = ((values - values.mean((0, 1))) ** 2).sum()
    figure = found(goals, features, parts)
    assert figure["target/position"] == pytest.approx(1 - within / total, rel=1e-6) and 0.5 < figure["target/position"] < 0.95
    wanted = spread(features)
    assert [figure[f"teacher/{name}"] for name in ("rank", "mean_cosine", "deviation")] == pytest.approx(
        [wanted[name] for name in ("rank", "mean_cosine", "deviation")]
    )


def test_goals_of_the_place_alone_are_explained_by_it_and_goals_of_the_image_alone_are_not():
    features = random(40, 8)
    assert found(random(6, 4).expand(40, -1, -1), features)["target/position"] == pytest.approx(1, abs=1e-6)
    assert found(random(40, 1, 4).expand(-1, 6, -1), features)["target/position"] == pytest.approx(0, abs=1e-6)
    by_chance = np.mean([found(random(40, 6, 4, seed=seed), features)["target/position"] for seed in range(20)])
    assert by_chance == pytest.approx(1 / 40, abs=0.01)


def test_goals_that_are_all_alike_count_as_collapsed_onto_the_place():
    figure = found(torch.full((8, 6, 4), 0.1), torch.ones(8, 5))
    assert figure["target/position"] == 1.0 and figure["teacher/deviation"] == 0.0 and figure["teacher/mean_cosine"] == pytest.approx(1)


def look(**changed) -> dict:
    row = {
        "samples": 96,
        "holdout/loss": 0.1,
        "target/position": 0.4,
        "teacher/rank": 9.3,
        "teacher/mean_cosine": 0.2,
        "teacher/deviation": 0.5,
    }
    return row | {name.replace("_", "/", 1): value for name, value in changed.items()}


@pytest.mark.parametrize(
    ("last", "learned", "said"),
    [
        (look(), None, "the place alone explains 40% of the target (20% at 48 samples)"),
        (look(target_position=0.95), "no", "a positional collapse; lower optim.base_lr"),
        (look(teacher_deviation=1e-6), "no", "it has collapsed"),
        ({"samples": 96, "holdout/loss": 0.1}, None, "for its rank and spread)"),
    ],
)
def test_a_run_whose_target_collapsed_ends_with_that_verdict(last, learned, said):
    found = verdict(NONE, [look(target_position=0.2) | {"samples": 48}, last], 512)
    assert found.learned == learned and said in found.words
    assert found.words.endswith("spread)") == ("target/position" not in last)
