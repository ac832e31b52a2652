import json
import math

import pytest
import torch

from mpp.monitor.skill import NONE, Baseline, ImageSums, fit_baseline, verdict
from mpp.recipe.distances import Distance
from mpp.recipe.patches import patchify
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE
from mpp.recipe.targets.colors import ColorClasses
from mpp.recipe.targets.pixels import Pixels

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
RAW = Pixels(2, Distance(), False, (0.0,) * 3, (1 / 255,) * 3)  # in colours 0..255, to be reckoned by hand


def fit(target, grid, cells, kind, held_out=None) -> Baseline:
    return fit_baseline(target.baselines, grid, lambda: [(cells, kind)], lambda: [held_out or (cells, kind)])


def values(*colors: float) -> torch.Tensor:
    """One image of grey 2 x 2 patches: cells [1, N, 2, 2, 3]."""
    return torch.tensor(colors)[None, :, None, None, None].expand(1, len(colors), 2, 2, 3).clone()


def random_case(target, batch=3, side=4, patch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 3, side * patch, side * patch), generator=generator).float()
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)  # neighbours have something to say
    kind = torch.full((batch, side * side), VISIBLE)
    for b in range(batch):
        hidden = torch.randperm(side * side, generator=generator)[:10]
        kind[b, hidden] = torch.tensor([MASKED] * 7 + [SWAPPED] * 2 + [KEPT])
    return target.cells(patchify(images, patch)), kind


def test_the_constant_pixel_predictor_is_the_mean_of_the_samples_masked_patches():
    kind = torch.tensor([[MASKED, MASKED, VISIBLE, KEPT]])
    found = fit(RAW, (2, 2), values(10.0, 30.0, 200.0, 77.0), kind)
    assert found.losses["constant"] == pytest.approx(100.0)  # mean 20: (10^2 + 10^2) / 2


def test_the_constant_is_fitted_on_the_sample_and_quoted_on_the_holdout():
    sample, holdout = values(10.0, 30.0, 90.0, 90.0), (values(26.0, 0.0, 0.0, 0.0), torch.tensor([[MASKED, VISIBLE, VISIBLE, VISIBLE]]))
    found = fit(RAW, (2, 2), sample, torch.tensor([[MASKED, MASKED, VISIBLE, VISIBLE]]), holdout)
    assert found.losses["constant"] == pytest.approx(36.0)  # 20 against 26


def test_the_visible_pixel_predictor_is_the_mean_of_the_images_visible_patches():
    kind = torch.tensor([[MASKED, VISIBLE, VISIBLE, KEPT], [MASKED, VISIBLE, VISIBLE, SWAPPED]])
    cells = torch.cat([values(40.0, 30.0, 50.0, 9.0), values(80.0, 90.0, 71.0, 8.0)])
    found = fit(RAW, (2, 2), cells, kind)
    # The first image is guessed right at 40 and the second half a level too high: all weight on the visible ones.
    assert found.losses["visible"] == pytest.approx(0.125, abs=1e-4)


def test_the_nearest_visible_patch_is_shown_without_shrinking_where_it_is_right():
    kind = torch.tensor([[MASKED, VISIBLE, MASKED, VISIBLE]])
    cells = values(10.0, 10.0, 200.0, 200.0)
    found = fit(RAW, (1, 4), cells, kind)
    # Patch 2 has two neighbours at the same distance: the first of equals is patch 1, which is wrong about it.
    assert found.losses["nearest"] >= found.losses["constant"] * 0.9
    found = fit(RAW, (2, 2), values(10.0, 10.0, 200.0, 200.0), kind)
    assert found.losses["nearest"] == pytest.approx(0.0, abs=1e-6)
    assert (found.name, found.weight) == ("nearest", 1.0)


def test_constant_images_are_predicted_by_their_visible_patches():
    colors = torch.tensor([[10.0, 200.0, 90.0], [250.0, 40.0, 130.0], [90.0, 90.0, 90.0]])
    images = colors[:, :, None, None].expand(3, 3, 8, 8)
    kind = torch.tensor([[MASKED, VISIBLE, VISIBLE, MASKED]] * 3)
    target = Pixels(4, Distance(), False, MEAN, STD)
    found = fit(target, (2, 2), target.cells(patchify(images.contiguous(), 4)), kind)
    assert found.name in ("visible", "nearest")
    assert found.loss == pytest.approx(0.0, abs=1e-9)
    assert found.losses["constant"] > 0.1


def test_the_constant_class_predictor_is_the_smoothed_histogram():
    target = ColorClasses(4, 1, 1)
    cells = torch.tensor([3, 3, 5, 0, 0])[None, :, None, None]
    found = fit(target, (1, 5), cells, torch.tensor([[MASKED, MASKED, MASKED, VISIBLE, KEPT]]))
    # Three masked cells and one more of each of 8 classes.
    assert found.losses["constant"] == pytest.approx(-(2 * math.log(3 / 11) + math.log(2 / 11)) / 3, rel=1e-5)


def test_the_class_predictors_are_shrunk_to_a_probability_of_the_truth():
    target = ColorClasses(4, 1, 1)
    cells = torch.tensor([3, 3, 5, 3])[None, :, None, None]
    kind = torch.tensor([[MASKED, VISIBLE, VISIBLE, SWAPPED]])
    found = fit(target, (1, 4), cells, kind)
    constant = 2 / 9  # one masked cell of class 3, and one more of each of 8
    weights = [i / 20 for i in range(21)]
    assert found.losses["visible"] == pytest.approx(min(-math.log((1 - w) * constant + w * 0.5) for w in weights), rel=1e-5)
    assert found.losses["nearest"] == pytest.approx(0.0, abs=1e-6)
    assert (found.name, found.weight, found.loss) == ("nearest", 1.0, found.losses["nearest"])


@pytest.mark.parametrize(
    "target",
    [ColorClasses(4, 1, 1), ColorClasses(4, 2, 1), Pixels(4, Distance(), False, MEAN, STD), Pixels(4, Distance("l1"), True, MEAN, STD)],
)
def test_all_predictors_agree_with_a_plain_loop(target):
    cells, kind = random_case(target)
    classes = isinstance(target, ColorClasses)
    g = cells.shape[2]
    masked = [(b, n) for b in range(3) for n in range(16) if kind[b, n] == MASKED]
    if classes:
        counts = torch.ones(target.classes)
        for b, n in masked:
            for c in cells[b, n].flatten():
                counts[c] += 1
        constant = counts / counts.sum()
    else:
        constant = torch.stack([cells[b, n].reshape(-1, 3).mean(0) for b, n in masked]).mean(0)

    def nearest_cell(b: int, n: int, i: int, j: int):
        row, column = divmod(n, 4)
        shown = [v for v in range(16) if kind[b, v] == VISIBLE]
        v = min(shown, key=lambda v: ((v // 4 - row) ** 2 + (v % 4 - column) ** 2, v))
        r, c = v // 4, v % 4
        y, x = row * g + i, column * g + j  # in cells of the whole image
        return cells[b, v, min(max(y, r * g), r * g + g - 1) - r * g, min(max(x, c * g), c * g + g - 1) - c * g]

    def loss(name: str, weight: float) -> float:
        total = 0.0
        for b, n in masked:
            shown = cells[b][kind[b] == VISIBLE]
            terms = []
            for i in range(g):
                for j in range(g):
                    truth = cells[b, n, i, j]
                    if classes:
                        guess = (shown == truth).float().mean() if name == "visible" else float(nearest_cell(b, n, i, j) == truth)
                        terms.append(-math.log(max(1e-12, (1 - weight) * constant[truth].item() + weight * float(guess))))
                    else:
                        guess = shown.reshape(-1, 3).mean(0) if name == "visible" else nearest_cell(b, n, i, j)
                        off = (1 - weight) * constant + weight * guess - truth
                        terms.append((off.abs() if target.distance.kind == "l1" else off**2).mean().item())
            total += sum(terms) / len(terms)
        return total / len(masked)

    found = fit(target, (4, 4), cells, kind)
    assert found.losses["constant"] == pytest.approx(loss("visible", 0.0), rel=1e-4)
    for name in ("visible", "nearest"):
        assert found.losses[name] == pytest.approx(min(loss(name, i / 20) for i in range(21)), rel=1e-4)
    assert found.name == min(found.losses, key=found.losses.get)
    assert found.loss == found.losses[found.name]


def test_the_mean_visible_pixel_is_one_number_or_one_a_channel():
    """The visible predictor's mean is over patches and cells; channels stay apart."""
    cells = torch.zeros(1, 4, 2, 2, 3)
    cells[..., 0], cells[..., 2] = 50.0, 100.0
    found = fit(RAW, (2, 2), cells, torch.tensor([[MASKED, VISIBLE, VISIBLE, MASKED]]))
    assert found.losses["visible"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("target", [ColorClasses(4, 2, 1), Pixels(4, Distance(), False, MEAN, STD)])
@pytest.mark.parametrize("other", [SWAPPED, KEPT])
def test_only_masked_patches_count(target, other):
    cells, kind = random_case(target)
    before = fit(target, (4, 4), cells, kind)
    altered = cells.clone()
    altered[kind == other] = altered[kind == other].flip(0) * 0  # neither fitted on, nor shown, nor counted
    assert fit(target, (4, 4), altered, kind) == before
    altered = cells.clone()
    altered[kind == MASKED] = 0
    assert fit(target, (4, 4), altered, kind) != before


def test_the_best_predictor_is_chosen_on_the_sample_not_on_the_holdout():
    kind = torch.tensor([[MASKED, VISIBLE, MASKED, VISIBLE]])
    found = fit(RAW, (2, 2), values(10.0, 10.0, 200.0, 200.0), kind, (values(0.0, 200.0, 200.0, 0.0), kind))
    assert found.name == "nearest"
    assert found.loss == found.losses["nearest"] > found.losses["constant"]


def test_batches_of_any_size_give_the_same_baseline():
    target = Pixels(4, Distance(), False, MEAN, STD)
    cells, kind = random_case(target, batch=6)
    parts = lambda: zip(cells.split(4), kind.split(4), strict=True)
    whole, split = fit(target, (4, 4), cells, kind), fit_baseline(target.baselines, (4, 4), parts, parts)
    assert split.name == whole.name
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)


def test_skill_is_zero_for_the_baseline_one_for_the_truth_and_negative_below():
    baseline = Baseline("constant", 0.0, 0.8, {"constant": 0.8})
    assert baseline.skill(0.8) == 0
    assert baseline.skill(0.0) == 1
    assert baseline.skill(0.2) == pytest.approx(0.75)
    assert baseline.skill(1.2) == pytest.approx(-0.5)


def test_a_baseline_survives_its_file():
    target = ColorClasses(4, 1, 1)
    found = fit(target, (4, 4), *random_case(target))
    assert Baseline(**found.as_dict()) == found


ONE_COLOUR = {
    "classes": ColorClasses(4, 3, 1),
    "grid": ColorClasses(4, 3, 4),
    "l2": Pixels(4, Distance(), False, MEAN, STD),
    "l1": Pixels(4, Distance("l1"), False, MEAN, STD),
    "normalised": Pixels(4, Distance(), True, MEAN, STD),
}


@pytest.mark.parametrize("name", ONE_COLOUR)
@pytest.mark.parametrize("colors", [(0.0, 0.0, 0.0), (255.0, 255.0, 255.0), (10.0, 200.0, 90.0)], ids=str)
def test_no_skill_is_defined_where_every_image_of_the_holdout_is_of_one_colour(name, colors):
    images = torch.tensor(colors)[:, None, None, None].expand(3, 3, 16, 16).contiguous()
    kind = torch.tensor([[MASKED, VISIBLE] * 8] * 3)
    found = fit(ONE_COLOUR[name], (4, 4), ONE_COLOUR[name].cells(patchify(images, 4)), kind)
    assert not found.defines_skill
    assert found.skill(0.9) is None
    assert "loss 0.0000 on 3 held-out images: it leaves nothing to predict" in found.said(3)
    assert "no skill is defined" in found.said(3)


@pytest.mark.parametrize("name", ONE_COLOUR)
def test_a_skill_is_defined_as_soon_as_there_is_something_to_predict(name):
    images = torch.zeros(3, 3, 16, 16)
    images[0, :, 1::5, ::3] = 200.0  # noise in one of three black images
    kind = torch.tensor([[MASKED, VISIBLE, VISIBLE, MASKED] * 4] * 3)
    found = fit(ONE_COLOUR[name], (4, 4), ONE_COLOUR[name].cells(patchify(images, 4)), kind)
    if found.loss >= 1e-4:
        assert found.defines_skill
        assert abs(found.skill(1.0)) < 1e4
        assert "no skill" not in found.said(3)
    else:
        assert name == "classes"  # a mean colour stays in its class


@pytest.mark.parametrize("loss", [0.0, 1e-12, 9e-5, math.nan, math.inf])
def test_a_baseline_of_rounding_errors_or_of_no_number_defines_no_skill(loss):
    assert Baseline("constant", 0.0, loss, {"constant": loss}).skill(1.0) is None


# ------------------------------------------------------------------------------------------------------------------------------ verdicts

BASELINE = Baseline("nearest", 0.5, 0.8, {"nearest": 0.8})


def course(*skills: float | None, error: float | None = 0.02) -> list[dict]:
    """Looks at the hold-out, at 100, 200, ... samples."""
    rows = []
    for i, skill in enumerate(skills):
        row = {"samples": 100 * (i + 1), "step": i, "holdout/loss": None if skill is None else 0.8 * (1 - skill), "holdout/skill": skill}
        rows.append(row if error is None else row | {"holdout/skill_error": error})
    return rows


@pytest.mark.parametrize(
    ("skills", "learned", "says"),
    [
        ((-0.2, 0.412), "yes", "hold-out skill +0.412 ± 0.039 (0: the trivial predictor 'nearest'; 1: no error): this run predicts better"),
        ((-0.2, -0.2), "no", "no better than at 100 samples (-0.200): this run has learned nothing that it does not know"),
        ((-0.2, -0.3, -0.21), "no", "no better than at 100 samples"),
        (
            (-0.2, -0.1),
            "not shown",
            "still worse than the trivial predictor 'nearest', but better than at 100 samples (-0.200): it is learning",
        ),
        ((-0.2, -0.15), "no", "and not shown to be better than at 100 samples (-0.200)"),  # .05 apart, of which either is known to .039
        ((-0.2, 0.03), "not shown", "no better than the trivial predictor 'nearest'"),
        ((-0.2, -0.03), "not shown", "no better than the trivial predictor 'nearest'"),
        ((0.1, 0.5, 0.3), "yes", "; it was +0.500 at 200 samples: the end has lost some of it"),
        ((0.1, 0.5, 0.48), "yes", "better than any trivial rule"),
        ((-0.2,), "no", "worse than the trivial predictor 'nearest'; train longer"),
        ((0.1, None), "no", "not finite: this run has diverged"),
        ((None, -0.2), "no", "worse than the trivial predictor 'nearest'; train longer"),
    ],
)
def test_the_verdict_is_on_the_last_skill_beyond_what_the_images_leave_open(skills, learned, says):
    found = verdict(BASELINE, course(*skills), 2000)
    assert found.learned == learned and says in found.words, found.words
    assert ("lost some" in found.words) == (skills == (0.1, 0.5, 0.3))
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["words"] == found.words


@pytest.mark.parametrize(
    ("skill", "learned", "says"),
    [
        (0.2, "yes", "better than any trivial rule"),
        (0.01, "not shown", "no better than the trivial predictor 'nearest', which knows more than the model"),
        (-0.9, "not shown", "better than a constant prediction. So skill cannot tell: judge by a probe"),
        (-1.1, "no", "worse than the trivial predictor 'nearest'"),
    ],
)
def test_below_a_rule_that_reads_what_the_model_may_not_a_run_is_judged_beside_a_constant(skill, learned, says):
    """Goals of visible patches in which each patch has read all others tell of hidden ones.  Here a constant has twice the loss of the nearest."""
    found = verdict(Baseline("nearest", 0.9, 0.8, {"constant": 1.6, "nearest": 0.8}, looks_beyond=True), course(skill, skill), 2000)
    assert found.learned == learned and says in found.words, found.words
    assert verdict(Baseline("nearest", 0.9, 0.8, {"constant": 1.6, "nearest": 0.8}), course(-0.9, -0.9), 2000).learned == "no"


def test_a_trivial_rule_that_knows_more_than_the_model_says_so_and_a_constant_never_does():
    rule = lambda name: Baseline(name, 0.9, 0.8, {}, looks_beyond=True)
    assert "it knows more than the model, and skill is rather too low" in rule("nearest").said(50) and rule("nearest").knows_more
    assert "knows more" not in rule("constant").said(50) and "knows more" not in BASELINE.said(50)


def test_few_images_leave_more_open_by_students_distribution():
    assert verdict(BASELINE, course(-0.2, 0.08), 100).learned == "yes"
    assert verdict(BASELINE, course(-0.2, 0.08), 3).learned == "not shown"  # 4.3 standard errors
    assert verdict(BASELINE, course(0.9, error=None), 1).learned is None


def test_where_no_skill_is_defined_the_verdict_says_why_and_by_what_else_to_judge():
    rows = [{"samples": 9, "holdout/loss": 0.1}]
    moving, empty = verdict(NONE, rows, 50), verdict(Baseline("constant", 0.0, 0.0, {}), rows, 50)
    assert moving.learned is None and "this target moves with its teacher" in moving.words and "linear_probe.py encoder=RUN" in moving.words
    assert empty.learned is None and "leaves nothing to predict" in empty.words
    assert verdict(NONE, [{"samples": 9, "holdout/loss": None}], 50).learned == "no"
    assert verdict(BASELINE, [], 50) is None


def test_a_run_whose_looks_have_no_standard_error_is_not_judged():
    found = verdict(BASELINE, course(-0.2, 0.4, error=None), 200)
    assert found.learned is None and "an earlier version" in found.words


def test_the_standard_error_is_the_spread_of_the_skill_over_drawn_holdouts():
    generator = torch.Generator().manual_seed(0)
    errors, skills = [], []
    for _ in range(2000):
        patches = torch.randint(3, 9, (60,), generator=generator).double()
        lost = patches * (0.5 + 0.3 * torch.rand(60, generator=generator).double())
        sums = ImageSums(60, *(float(x.sum()) for x in (lost, patches, lost * lost, lost * patches, patches * patches)))
        errors.append(BASELINE.skill_error(sums))
        skills.append(BASELINE.skill(float(lost.sum() / patches.sum())))
    assert torch.tensor(errors).mean() == pytest.approx(float(torch.tensor(skills).std()), rel=0.05)
    assert BASELINE.skill_error(ImageSums(1, 1, 2, 1, 2, 4)) is None and NONE.skill_error(sums) is None
