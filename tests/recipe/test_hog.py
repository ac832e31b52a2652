"""Histograms of oriented gradients: against plain loops, and by what they promise."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Given
from mpp.recipe.targets.hog import Hog, HogTarget, strokes

ROOT = Path(__file__).parents[2]
SMALL = Hog(patch_size=8, bins=9, cell=4)


def at(predicted: torch.Tensor) -> Masks:
    return Masks(*[torch.empty(0)] * 3, predicted)


def every_patch(images: torch.Tensor, side: int) -> Masks:
    count = (images.shape[2] // side) * (images.shape[3] // side)
    return at(torch.arange(count).expand(len(images), -1))


def random_images(side: int = 16, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, side, side), generator=torch.Generator().manual_seed(seed)).float()


def goals(target: Hog, images: torch.Tensor) -> torch.Tensor:
    """Of every patch, [B, N, g, g, 3, bins]."""
    return target(images, every_patch(images, target.patch_size)).unflatten(-1, (3, target.bins))


def ramp(right: float, down: float, side: int = 16) -> torch.Tensor:
    """Grey, rising by so much a pixel."""
    place = torch.arange(side).float()
    return (100 + right * place + down * place[:, None]).expand(1, 3, -1, -1).clone()


def inner(target: Hog, images: torch.Tensor) -> torch.Tensor:
    """[bins] of a cell that does not touch the border, red."""
    return goals(target, images)[0, 0, -1, -1, 0]


def by_hand(image: np.ndarray, patch: int, bins: int, cell: int, number: int) -> np.ndarray:
    """image [3, S, S] -> [g, g, 3 x bins] of one patch, pixel by pixel."""
    side = image.shape[1]
    mirror = lambda i: -i if i < 0 else 2 * (side - 1) - i if i >= side else i
    at = lambda channel, y, x: float(image[channel, mirror(y), mirror(x)])
    top, left = number // (side // patch) * patch, number % (side // patch) * patch
    found = np.zeros((patch // cell, patch // cell, 3 * bins))
    for row in range(patch // cell):
        for column in range(patch // cell):
            for channel in range(3):
                votes = [0.0] * bins
                for y in range(top + row * cell, top + (row + 1) * cell):
                    for x in range(left + column * cell, left + (column + 1) * cell):
                        right = sum(w * (at(channel, y + i, x + 1) - at(channel, y + i, x - 1)) for i, w in ((-1, 1), (0, 2), (1, 1)))
                        down = sum(w * (at(channel, y + 1, x + i) - at(channel, y - 1, x + i)) for i, w in ((-1, 1), (0, 2), (1, 1)))
                        degrees = math.degrees(math.atan2(right, down)) % 180
                        votes[int(degrees // (180 / bins)) % bins] += math.sqrt(right**2 + down**2)
                length = math.sqrt(sum(vote**2 for vote in votes))
                found[row, column, channel * bins : (channel + 1) * bins] = [vote / length if length else 0 for vote in votes]
    return found


@pytest.mark.parametrize(("side", "patch", "bins", "cell"), [(32, 16, 9, 8), (16, 8, 9, 4), (16, 4, 6, 2), (12, 4, 9, 4), (6, 2, 4, 1)])
def test_goals_are_those_of_plain_loops(side, patch, bins, cell):
    images = random_images(side, batch=2)
    images[1] = (images[1] / 40).floor()  # plateaus, and gradients that are exactly vertical or horizontal
    predicted = torch.tensor([[3, 0], [1, 2]])
    found = Hog(patch, bins, cell)(images, at(predicted))
    assert found.dtype == torch.float32 and found.shape == (2, 2, patch // cell, patch // cell, 3 * bins)
    for b in range(2):
        for m in range(2):
            expected = by_hand(images[b].numpy(), patch, bins, cell, int(predicted[b, m]))
            np.testing.assert_allclose(found[b, m].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("right", "down", "number"),
    [(1, 0, 4), (-1, 0, 4), (0, 1, 0), (0, -1, 0), (1, 1, 2), (-1, -1, 2), (1, -1, 6), (-1, 1, 6), (1, 4, 0), (-1, 4, 8), (3, 2, 2), (2, 3, 1)],
)  # fmt: skip
def test_a_ramp_votes_for_the_bin_of_its_direction_and_for_no_other(right, down, number):
    assert inner(SMALL, ramp(right, down)).tolist() == [float(k == number) for k in range(9)]


@given(st.integers(0, 2**32), st.sampled_from([(8, 9, 4), (8, 5, 8), (4, 9, 1)]))
def test_every_histogram_is_of_unit_length_and_not_negative(seed, shape):
    found = goals(Hog(*shape), random_images(seed=seed))
    assert (found >= 0).all()
    length = found.norm(dim=-1)
    assert (((length - 1).abs() < 1e-5) | (length == 0)).all()


@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(0, 1))
def test_brightness_contrast_and_inversion_of_a_channel_change_nothing(seed, contrast, brightness):
    images = (random_images(seed=seed) / 2).floor()
    altered = images.clone()
    altered[:, 0] = altered[:, 0] * contrast + brightness
    altered[:, 1] = 255 - altered[:, 1]
    torch.testing.assert_close(goals(SMALL, altered), goals(SMALL, images), atol=1e-6, rtol=0)


@given(st.integers(0, 2**32))
def test_a_mirrored_image_has_mirrored_cells_and_bins(seed):
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed)) * 255
    # Of the patch in the middle: at the border gradients are exactly upright, on the edge between the first bin and the last.
    there, mirrored = (goals(SMALL, seen)[:, 4] for seen in (images, images.flip(-1)))
    torch.testing.assert_close(mirrored, there.flip(2).flip(-1), atol=1e-5, rtol=0)


def test_a_gradient_reaches_one_pixel_into_the_next_patch_and_no_farther():
    images = random_images()
    first = torch.tensor([[0]])
    clean = SMALL(images, at(first))
    for column, changes in ((8, True), (9, False)):
        altered = images.clone()
        altered[:, :, 3, column] = 255 - altered[:, :, 3, column]
        assert torch.equal(SMALL(altered, at(first)), clean) is not changes


def test_a_flat_image_has_no_histogram_and_costs_nothing_to_predict():
    goal = SMALL(torch.full((1, 3, 16, 16), 77.0), at(torch.tensor([[0, 3]])))
    assert not goal.any()
    assert SMALL.loss(torch.zeros(1, 2, SMALL.outputs), goal).tolist() == [[0.0, 0.0]]


def test_a_patch_of_16_pixels_has_the_papers_108_numbers():
    target = HogTarget().build(Given(16, 48, 2, (0.5,) * 3, (0.5,) * 3))
    assert (target.outputs, target.grid, target.bins) == (108, 2, 9)
    assert Hog(16, 6, 4).outputs == 4 * 4 * 3 * 6


def test_the_loss_is_the_mean_square_over_a_patchs_values():
    goal = SMALL(random_images(), at(torch.tensor([[0, 1]])))
    prediction = goal.flatten(2).clone()
    assert torch.equal(SMALL.answer(prediction), goal)
    prediction[0, 0, 0] += 0.5
    prediction[0, 0, 107] -= 2
    torch.testing.assert_close(SMALL.loss(prediction, goal), torch.tensor([[4.25 / 108, 0.0]]))
    assert SMALL.loss(prediction.bfloat16(), goal).dtype == torch.float32


def test_the_baseline_has_the_loss_of_the_model():
    cells = SMALL(random_images(), at(torch.tensor([[0, 1, 2]])))
    mean = SMALL.baselines.constant([cells[0]])
    predicted = mean.repeat(SMALL.grid**2).expand(1, 3, -1)
    assert SMALL.baselines.loss(mean, None, 0.0, cells[0]) == pytest.approx(SMALL.loss(predicted, cells).sum().item(), rel=1e-5)


@pytest.mark.parametrize("bins", [4, 9])
def test_a_stroke_is_itself_an_edge_of_its_bin(bins):
    side = 33
    lines = strokes(bins, side)[:, None].expand(-1, 3, -1, -1) * 255
    found = Hog(side, bins, side)(lines, at(torch.zeros(bins, 1, dtype=torch.long)))
    assert found.view(bins, 3, bins).argmax(-1).tolist() == [[k] * 3 for k in range(bins)]


def test_a_picture_shows_each_channels_strokes_in_their_cell_as_bright_as_the_bin():
    goal = torch.zeros(1, 2, 2, 2, 3, 9)
    goal[0, 0, 0, 1, 0, 4] = 0.5  # red, upper right, a gradient to the right: an upright stroke
    goal[0, 1, 1, 0, 2, 0] = -3  # predictions may be below nothing
    goal[0, 1, 1, 1, 1, 0] = 7  # or above one
    shown = Hog(16, 9, 8).picture(goal.flatten(-2), torch.zeros(1, 2, 3, 16, 16))
    assert shown.shape == (1, 2, 3, 16, 16)
    expected = torch.zeros(2, 3, 16, 16)
    expected[0, 0, :8, 8:] = strokes(9, 8)[4] * 127.5
    expected[1, 1, 8:, 8:] = strokes(9, 8)[0] * 255
    torch.testing.assert_close(shown[0], expected)
    assert shown[0, 0, 0, :8, 11:13].min() > 90 and not shown[0, 0, 0, :8, 8:10].any()


@pytest.mark.parametrize(("patch", "cell", "sides"), [(16, 3, "1, 2, 4, 8, 16"), (4, 8, "1, 2, 4")])
def test_cells_that_do_not_fill_a_patch_are_refused_with_those_that_do(patch, cell, sides):
    with pytest.raises(ValueError, match=f"target.cell={cell} must divide model.patch_size={patch}; cells that fit have sides of {sides}$"):
        HogTarget(cell=cell).fits(patch, "random")


def test_maskfeats_numbers_are_the_papers():
    config = load(PretrainConfig, ROOT / "configs" / "maskfeat_b16.yaml")
    assert (config.target.name, config.target.bins, config.target.cell, config.decoder.name) == ("hog", 9, 8, "linear")
    assert (config.mask.ratio, config.corruption.name, config.corruption.mask) == (0.4, "replace", 1.0)
    assert (config.optim.base_lr, config.optim.lr_batch, config.optim.weight_decay, config.optim.clip_norm) == (2e-4, 256, 0.05, 0.02)
    assert (config.data.crop_scale, config.optim.warmup_samples * 10) == ((0.5, 1.0), config.optim.total_samples)  # 30 of 300 epochs
