"""Where a linear decoder begins: at zeros, and so at a loss that the paper's arithmetic gives, or at a normal deviation of the config's."""

import math

import pytest
import torch

from tests.recipe.test_model import masks, model_of, pictures, recipe, step


@torch.no_grad()
@pytest.mark.parametrize(("target", "classes"), [({}, 512), ({"name": "color_grid", "grid": 2, "bits": 2}, 64)])
def test_a_target_of_classes_begins_at_the_logarithm_of_their_number(target, classes):
    config = recipe(decoder={"name": "linear"}, **({"target": target} if target else {}))
    _, loss, *_ = step(model_of(config), pictures(), masks(config))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(classes)))


@torch.no_grad()
def test_regression_begins_at_the_mean_square():
    config = recipe(decoder={"name": "linear"}, target={"name": "pixels"})
    mask = masks(config)
    _, loss, *_ = step(model_of(config), pictures(), mask)
    values = ((pictures().double() / 255 - 0.5) / 0.5).unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # [B, 3, N, P, P]
    squares = values.square().mean((1, 3, 4)).gather(1, mask["predicted"])
    torch.testing.assert_close(loss.double(), squares, rtol=1e-5, atol=0)


@torch.no_grad()
def test_weights_begin_at_the_deviation_asked_for_and_biases_at_zero():
    head = model_of(recipe(decoder={"name": "linear", "head_std": 0.5})).decoder.head
    assert float(head.weight.std()) == pytest.approx(0.5, rel=0.02) and abs(float(head.weight.mean())) < 0.02
    assert not head.bias.any()
