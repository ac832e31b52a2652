"""The teacher's features as goals: what the teacher sees, what is made of its blocks, the loss, what it costs and its picture."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.model.normalise import normalise
from mpp.monitor.pictures import MARGIN, reconstruction
from mpp.monitor.skill import NONE
from mpp.recipe.distances import Distance
from mpp.recipe.model import build_model
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import FixedTarget, everywhere
from mpp.recipe.targets.features import Features, FeaturesTarget
from mpp.recipe.teacher import Teacher, TeacherKnobs
from mpp.train.average import WeightAverage
from tests.recipe.test_model import N, masks, pictures, recipe, with_other_pixels

FEATURES = {"target": {"name": "features", "blocks": 2}, "corruption": {"name": "replace", "mask": 1.0, "swap": 0.0, "keep": 0.0}}
HALF = (0.5, 0.5, 0.5)


def taught(config, other: int = 1):
    """A model that has another encoder lent."""
    model = build_model(config, fused_attention=False)
    net = WeightAverage(build_model(config.model_copy(update={"seed": other}), fused_attention=False).encoder, lambda step: 0.0).net
    model.lend(Teacher(net, config.data.mean, config.data.std))
    return model


def features(width: int, blocks: int, beta: float) -> Features:
    return Features(width, blocks, True, False, True, Distance("smooth_l1", beta), moves=True)


def with_model(**changes):
    config = recipe(**FEATURES)
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def layer_norm(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"class_tokens": 0}, {"arch": "vit_betwixt_patch16_reg4_gap_256", "class_tokens": 0}, {"position": "sincos2d"}],
)
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks(changes, blocks):
    config = with_model(depth=3, **changes)
    config = config.model_copy(update={"target": FeaturesTarget(blocks=blocks)})
    model, mask = taught(config), Masks(**masks(config))
    found = model.target(pictures().float(), mask, model.teacher)
    assert found.shape == (2, 10, 48) and found.dtype == torch.float32 and not found.requires_grad
    with torch.no_grad():
        outputs = model.teacher.net.vit.forward_intermediates(  # timm's own way, patches alone
            (pictures().float() / 255 - 0.5) / 0.5, indices=blocks, norm=False, output_fmt="NLC", intermediates_only=True
        )
    wanted = layer_norm(np.mean([layer_norm(part.double().numpy()) for part in outputs], axis=0))
    for b in range(2):
        np.testing.assert_allclose(found[b].numpy(), wanted[b, mask.predicted[b]], atol=2e-5)


@torch.no_grad()
def test_the_teacher_sees_the_whole_clean_image_whatever_is_hidden_from_the_student():
    config = recipe(**FEATURES)
    model, seen = taught(config), []
    target = features(48, 2, 2.0)

    class Spy(FixedTarget):
        def __call__(self, *given):
            seen.append(target(*given))
            return seen[-1]

        loss = staticmethod(target.loss)

    model.target, images = Spy(), pictures().float()
    for seed in (0, 1):
        mask = masks(config, seed=seed)
        model.train()(images, **mask)
        of_all = target(images, everywhere(Masks(**mask)), model.teacher)
        for b in range(2):
            assert torch.equal(seen[-1][b], of_all[b, mask["predicted"][b]])
    hidden = int(mask["predicted"][0, 0])
    model(with_other_pixels(pictures(), 0, hidden).float(), **mask)
    assert (seen[-1][0] != seen[-2][0]).any(-1).all() and torch.equal(seen[-1][1], seen[-2][1])


@torch.no_grad()
def test_goals_of_a_teacher_tell_of_every_patch_and_say_so():
    """So trivial predictors of a frozen encoder's features know more than the model, and skill is judged accordingly."""
    model, shown = taught(recipe(**FEATURES)), pictures().float()
    mask = everywhere(Masks(**masks(recipe(**FEATURES))))
    before = model.target(shown, mask, model.teacher)
    side = shown.shape[-1] // 2
    shown[:, :, side:] = 255 - shown[:, :, side:]
    assert not torch.equal(model.target(shown, mask, model.teacher)[:, 0], before[:, 0]) and model.target.looks_beyond


def test_the_teacher_drops_no_path_and_draws_no_random_number():
    config = with_model(drop_path=0.9, depth=4)
    model, images = taught(config).train(), pictures().float()
    assert any(module.training and module.drop_prob for module in model.encoder.modules() if hasattr(module, "drop_prob"))
    before = torch.get_rng_state()
    places = everywhere(Masks(**masks(config)))
    first = model.target(images, places, model.teacher)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.teacher.net.training
    plain = taught(with_model(depth=4))
    assert torch.equal(first, plain.target(images, places, plain.teacher))


@torch.no_grad()
def test_goals_and_loss_are_float32_under_autocast_to_bfloat16():
    config = recipe(**FEATURES)
    model, mask, images = taught(config).eval(), masks(config), pictures().float()
    goal = model.target(images, Masks(**mask), model.teacher)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, loss, *_ = model(images, **mask)
    assert prediction.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert torch.equal(loss, model.target.loss(prediction, goal))  # to the bit: the teacher rounded nothing


def test_the_teacher_gets_no_gradient_keeps_nothing_for_one_and_is_no_part_of_the_model():
    config = recipe(**FEATURES)
    model, mask, images = taught(config), masks(config), pictures().float()
    assert model.state_dict().keys() == build_model(config).state_dict().keys()

    def kept(target) -> tuple[int, int]:
        """Tensors and bytes that the graph holds."""
        sizes, model.target = [], target
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor):
            _, loss, *_ = model(images, **mask)
        loss.mean().backward()
        return len(sizes), sum(sizes)

    target = model.target
    with_teacher = kept(target)
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.net.parameters())
    assert all(p.grad is not None for p in model.parameters())
    goal = target(images, Masks(**mask), model.teacher)

    class Known(FixedTarget):
        loss = staticmethod(target.loss)

        def __call__(self, *_):
            return goal

    assert kept(Known()) == with_teacher


@given(
    st.floats(0.1, 5),
    st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4),
)
def test_the_loss_is_the_smooth_l1_by_its_formula(beta, prediction, goal):
    terms = [0.5 * d * d / beta if d < beta else d - 0.5 * beta for d in (abs(p - g) for p, g in zip(prediction, goal, strict=True))]
    found = features(4, 1, beta).loss(torch.tensor([[prediction]]), torch.tensor([[goal]]))
    assert found.shape == (1, 1) and found.item() == pytest.approx(sum(terms) / 4, rel=1e-5, abs=1e-6)


def test_a_zero_prediction_loses_a_quarter_where_no_value_is_beyond_beta():
    """At beta 2 the loss is d^2 / 4, and a goal's squares have mean 1."""
    goal = torch.from_numpy(layer_norm(np.random.default_rng(0).uniform(-1, 1, (2, 3, 96)))).float()
    loss = features(96, 6, 2.0).loss(torch.zeros(2, 3, 96, dtype=torch.bfloat16), goal)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((2, 3), 0.25), atol=1e-4, rtol=0)


def test_more_blocks_than_the_encoder_has_are_refused_with_the_remedy():
    with pytest.raises(
        ConfigError, match=r"target\.blocks=6 must not exceed the encoder's 2 blocks; set target\.blocks=2 or less, or a larger"
    ):
        build_model(recipe(target={"name": "features"}))


@given(st.floats(0, 0.99), st.floats(0, 0.99), st.integers(1, 1000), st.integers(0, 2000))
def test_the_decay_goes_from_start_to_end_in_a_straight_line_and_stays(start, end, samples, seen):
    knobs = TeacherKnobs(ema_start=start, ema_end=end, ema_samples=samples)
    decay_at = lambda seen: knobs.decay_at(seen, 0.1, 77)
    assert decay_at(0) == start and decay_at(samples + seen) == pytest.approx(end, abs=1e-12)
    if seen <= samples:
        assert decay_at(seen) == pytest.approx((start * (samples - seen) + end * seen) / samples, abs=1e-12)
    assert TeacherKnobs(ema_start=start, ema_end=end).decay_at(0, 0.1, 77) == pytest.approx(end, abs=1e-12)  # no ramp


def test_the_defaults_are_data2vecs():
    target = FeaturesTarget()
    assert (target.blocks, target.beta, target.ema_start, target.ema_end, target.ema_samples) == (6, 2.0, 0.999, 0.9998, 0)
    assert target.decay_at(0, 0.1, 77) == 0.9998


# ---------------------------------------------------------------------------------------------------------------------------- pictures


def colors_of(shown: torch.Tensor) -> np.ndarray:
    """[B, M, 3] of patches of one colour each."""
    assert (shown == shown[..., :1, :1]).all() and shown.min() >= 0 and shown.max() <= 255
    return shown[..., 0, 0].numpy()


def test_a_picture_shows_three_principal_components_of_the_truth_and_predictions_on_the_same():
    dice = np.random.default_rng(0)
    truth = layer_norm(dice.normal(size=(3, 10, 16)) * np.linspace(3, 0.1, 16) + dice.normal(size=16))
    guess = truth + dice.normal(size=truth.shape) * 0.3
    points = truth.reshape(30, 16)
    middle = points.mean(0)
    _, values, rows = np.linalg.svd(points - middle, full_matrices=False)
    rows = rows[:3] * np.sign(rows[np.arange(3), np.abs(rows[:3]).argmax(1)])[:, None]
    deviations = values[:3] / np.sqrt(30)
    target, patches = features(16, 1, 2.0), torch.zeros(3, 10, 3, 4, 4)
    for goal in (truth, guess):
        shown = target.picture(torch.from_numpy(goal).float(), patches, torch.from_numpy(truth).float())
        assert shown.shape == patches.shape
        wanted = np.clip(127.5 + 127.5 * (goal - middle) @ rows.T / (2 * deviations), 0, 255)
        np.testing.assert_allclose(colors_of(shown), wanted, atol=0.02)


def test_goals_that_are_all_alike_are_drawn_grey():
    truth = torch.ones(2, 5, 16)
    shown = features(16, 1, 2.0).picture(truth, torch.zeros(2, 5, 3, 4, 4), truth)
    np.testing.assert_allclose(colors_of(shown), 127.5, atol=1e-3)


@torch.no_grad()
def test_the_sheet_draws_prediction_and_target_on_the_components_of_the_target():
    config = recipe(**FEATURES)
    model, mask, images = taught(config).eval(), masks(config), pictures().float()
    goal = model.target(images, Masks(**mask), model.teacher)
    sheets = [
        np.asarray(reconstruction(model, images, Masks(**mask), prediction, goal, NONE, "title"))
        for prediction in (goal, goal * 0.5, goal.bfloat16())
    ]
    side = 160 + MARGIN  # of 32-pixel images, enlarged five times
    third, fourth = (slice(column * side + MARGIN, (column + 1) * side) for column in (2, 3))
    below = slice(-2 * side, None)
    assert (sheets[0][below, third] == sheets[0][below, fourth]).all()
    assert (sheets[1][below, fourth] == sheets[0][below, fourth]).all()  # whatever the prediction
    assert (sheets[1][below, third] != sheets[0][below, third]).any()
    assert np.abs(sheets[2][below, third].astype(int) - sheets[0][below, third]).max() <= 2


def test_a_seed_of_its_own_gives_another_teacher():
    config = recipe(**FEATURES)
    images = normalise(pictures().float(), HALF, HALF)
    first, second = taught(config, 1).teacher.net, taught(config, 2).teacher.net
    assert not torch.equal(first.embed(images), second.embed(images)) and first.embed(images).shape == (2, N, 48)
