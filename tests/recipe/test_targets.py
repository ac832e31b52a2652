import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mpp.recipe.distances import Distance
from mpp.recipe.patches import gather_patches, patchify, unpatchify
from mpp.recipe.targets.base import Given
from mpp.recipe.targets.colors import ColorClasses, ColorGridTarget, MeanColorTarget, class_color, color_class
from mpp.recipe.targets.pixels import Pixels, PixelsTarget

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def of_side(patch_size: int) -> Given:
    return Given(patch_size, width=48, depth=2, mean=MEAN, std=STD)


def random_patches(batch: int = 2, count: int = 3, side: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, count, 3, side, side), generator=torch.Generator().manual_seed(seed)).float()


def flat_patch(color: tuple[float, float, float], side: int = 4) -> torch.Tensor:
    return torch.tensor(color)[None, None, :, None, None].expand(1, 1, 3, side, side).clone()


def pixels(side: int = 4, power: int = 2, normalise: bool = False) -> Pixels:
    return Pixels(side, Distance({1: "l1", 2: "l2"}[power]), normalise, MEAN, STD)


# ------------------------------------------------------------------------------------------------------------------------ colour classes


@pytest.mark.parametrize(
    ("color", "number"),
    [
        ((0, 0, 0), 0), ((31, 31, 31), 0), ((31.99, 31.99, 31.99), 0), ((32, 0, 0), 64), ((0, 32, 0), 8), ((0, 0, 32), 1),
        ((255, 0, 0), 448), ((0, 255, 0), 56), ((0, 0, 255), 7), ((255, 255, 255), 511), ((256, 256, 256), 511), ((-3, -3, -3), 0),
        ((63, 64, 96), 64 * 1 + 8 * 2 + 3), ((128, 127, 224), 64 * 4 + 8 * 3 + 7), ((191, 192, 223), 64 * 5 + 8 * 6 + 6),
    ],
)  # fmt: skip
def test_the_3_bit_class_of_a_colour_is_64_red_8_green_1_blue(color, number):
    assert color_class(torch.tensor(color, dtype=torch.float32), 3).item() == number
    assert MeanColorTarget().build(of_side(4)).cells(flat_patch(color)).item() == number


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_level_of_a_channel_falls_into_its_equal_bin(bits):
    grey = torch.arange(256).float()[:, None].expand(-1, 3)
    level = torch.arange(256) * 2**bits // 256
    assert torch.equal(color_class(grey, bits), level * (4**bits + 2**bits + 1))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_colour_of_a_class_lies_in_the_middle_of_its_bin(bits):
    classes = torch.arange(2 ** (3 * bits))
    assert torch.equal(color_class(class_color(classes, bits), bits), classes)
    width = 256 / 2**bits
    assert class_color(torch.tensor(1), bits).tolist() == [width / 2, width / 2, width * 1.5]
    assert class_color(torch.tensor(2**bits), bits).tolist() == [width / 2, width * 1.5, width / 2]


def test_the_class_of_a_patch_is_that_of_its_mean_colour_before_normalisation():
    patch = flat_patch((0.0, 100.0, 200.0))
    patch[..., 0, :2, :] = 64  # half of the red values: mean 32, while most bins hold 0 or 2
    assert MeanColorTarget().build(of_side(4)).cells(patch).item() == 64 * 1 + 8 * 3 + 6


def test_a_mean_just_below_an_edge_stays_below():
    patch = flat_patch((32.0, 32.0, 32.0))
    patch[..., 0, 0, 0] = 31
    assert MeanColorTarget().build(of_side(4)).cells(patch).item() == 8 + 1


@pytest.mark.parametrize(("side", "grid"), [(6, 4), (14, 4), (16, 4), (4, 4), (8, 2)])
def test_grid_cells_are_means_of_windows_that_cover_the_patch(side, grid):
    patches = random_patches(1, 2, side)
    found = ColorClasses(4, grid, 3).cells(patches)
    assert found.shape == (1, 2, grid, grid)
    for m in range(2):
        for row in range(grid):
            for column in range(grid):
                # Adaptive pooling: from floor(i P / g) to ceil((i + 1) P / g).
                r, c = (slice(i * side // grid, -(-(i + 1) * side // grid)) for i in (row, column))
                mean = patches[0, m, :, r, c].double().mean(dim=(1, 2))
                red, green, blue = (mean // 32).long().tolist()
                assert found[0, m, row, column] == 64 * red + 8 * green + blue


def test_a_grid_on_patches_of_its_own_size_predicts_pixels():
    patches = random_patches(2, 3, 4)
    assert torch.equal(ColorClasses(4, 4, 3).cells(patches), color_class(patches.permute(0, 1, 3, 4, 2), 3))


def test_outputs_are_one_logit_a_class_and_cell():
    assert MeanColorTarget().build(of_side(16)).outputs == 512
    assert MeanColorTarget(bits=2).build(of_side(16)).outputs == 64
    assert ColorGridTarget().build(of_side(16)).outputs == 16 * 512
    assert PixelsTarget().build(of_side(16)).outputs == 768


@pytest.mark.parametrize("target", [ColorClasses(4, 1, 3), ColorClasses(4, 4, 3), ColorClasses(4, 2, 1)])
def test_uniform_logits_lose_the_logarithm_of_the_number_of_classes(target):
    loss = target.loss(torch.zeros(2, 3, target.outputs, dtype=torch.bfloat16), target.cells(random_patches()))
    assert loss.shape == (2, 3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((2, 3), 3 * target.bits * math.log(2)))
    if target.bits == 3:
        assert abs(loss[0, 0].item() - 6.238) < 1e-3


def test_the_classes_loss_is_the_mean_over_cells_of_minus_log_softmax():
    target = ColorClasses(4, 2, 1)
    prediction = torch.randn(2, 3, target.outputs, generator=torch.Generator().manual_seed(1))
    cells = target.cells(random_patches())
    found = target.loss(prediction, cells)
    logits = prediction.view(2, 3, 2, 2, 8).double().numpy()
    for b in range(2):
        for m in range(3):
            terms = []
            for row in range(2):
                for column in range(2):
                    z = logits[b, m, row, column]
                    terms.append(math.log(sum(math.exp(v) for v in z)) - z[cells[b, m, row, column]])
            assert abs(found[b, m].item() - sum(terms) / 4) < 1e-5


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_the_answer_is_the_likeliest_class_of_each_cell(grid):
    target = ColorClasses(4, grid, 3)
    cells = target.cells(random_patches())
    sure = F.one_hot(cells, 512).float().flatten(2) * 20
    assert torch.equal(target.answer(sure), cells)
    assert target.loss(sure, cells).max() < 1e-5


@pytest.mark.parametrize(("grid", "side"), [(1, 4), (2, 4), (4, 4), (2, 8)])
def test_a_picture_of_classes_shows_each_cells_colour_over_its_own_area(grid, side):
    target, patches = ColorClasses(4, grid, 3), random_patches(side=side)
    cells = target.cells(patches)
    shown = target.picture(cells, patches)
    assert shown.shape == patches.shape
    for row in range(side):
        for column in range(side):
            assert torch.equal(shown[..., row, column], class_color(cells[:, :, row * grid // side, column * grid // side], 3))
    assert torch.equal(target.cells(shown), cells)


# -------------------------------------------------------------------------------------------------------------------------------- pixels


def test_pixels_are_in_the_units_the_encoder_sees():
    patches = random_patches()
    cells = pixels().cells(patches)
    assert cells.shape == (2, 3, 4, 4, 3)
    for channel in range(3):
        expected = (patches[:, :, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(cells[..., channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_each_patch_is_normalised_by_its_own_mean_and_unbiased_variance():
    patches = random_patches(3, 4, 4)
    patches[1, 2] = 77.0  # without variance in colour, but with three different channel means
    cells = pixels(normalise=True).cells(patches).double().numpy()
    for b in range(3):
        for m in range(4):
            values = [(float(patches[b, m, c, i, j]) / 255 - MEAN[c]) / STD[c] for i in range(4) for j in range(4) for c in range(3)]
            middle = sum(values) / len(values)
            variance = sum((v - middle) ** 2 for v in values) / (len(values) - 1)
            expected = [(v - middle) / math.sqrt(variance + 1e-6) for v in values]
            np.testing.assert_allclose(cells[b, m].ravel(), expected, atol=2e-5)


def test_the_epsilon_of_the_normalisation_is_1e_6():
    patches = flat_patch((100.0, 100.0, 100.0))
    patches[..., 0, 0, 0] += 0.05  # a variance of the order of epsilon
    target = Pixels(4, Distance(), True, (0.0,) * 3, (1.0,) * 3)
    values = patches.double().flatten() / 255
    expected = (values.max() - values.mean()) / math.sqrt(values.var(unbiased=True) + 1e-6)
    assert abs(target.cells(patches).max().item() - expected.item()) < 0.01 * expected.item()


@pytest.mark.parametrize("side", [2, 4, 16])
def test_a_zero_predictor_on_normalised_pixels_loses_one_less_one_value(side):
    target = pixels(side, normalise=True)
    n = 3 * side * side
    loss = target.loss(torch.zeros(2, 3, n), target.cells(random_patches(side=side)))
    torch.testing.assert_close(loss, torch.full((2, 3), (n - 1) / n), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("power", "expected"), [(1, (1 + 2 + 0.5) / 48), (2, (1 + 4 + 0.25) / 48)])
def test_the_pixel_loss_is_the_mean_over_a_patches_values(power, expected):
    target = pixels(power=power)
    cells = target.cells(random_patches(1, 2))
    prediction = cells.flatten(2).clone()
    prediction[0, 0, 0] += 1
    prediction[0, 0, 20] -= 2
    prediction[0, 0, 47] += 0.5
    loss = target.loss(prediction, cells)
    torch.testing.assert_close(loss, torch.tensor([[expected, 0.0]]), atol=1e-6, rtol=1e-5)
    assert target.loss(prediction.bfloat16(), cells).dtype == torch.float32


def test_l1_and_l2_are_named_by_their_power():
    assert PixelsTarget(loss="l1").build(of_side(4)) == pixels(power=1)
    assert PixelsTarget(loss="l2", normalise=True).build(of_side(4)) == pixels(power=2, normalise=True)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_picture_of_the_true_pixels_is_the_patch_itself(normalise):
    target, patches = pixels(normalise=normalise), random_patches()
    cells = target.cells(patches)
    torch.testing.assert_close(target.picture(cells, patches), patches, atol=2e-3, rtol=0)
    torch.testing.assert_close(target.picture(target.answer(cells.flatten(2)), patches), patches, atol=2e-3, rtol=0)


def test_a_picture_never_leaves_the_range_of_colours():
    shown = pixels().picture(torch.full((1, 1, 4, 4, 3), 100.0), random_patches(1, 1))
    assert shown.max() == 255


@pytest.mark.parametrize("target", [ColorClasses(4, 1, 3), ColorClasses(4, 4, 3), pixels(), pixels(normalise=True), pixels(power=1)])
def test_a_patchs_target_does_not_depend_on_other_patches(target):
    patches = random_patches(2, 4)
    cells = target.cells(patches)
    alone = target.cells(patches[1:, 2:3])
    torch.testing.assert_close(cells[1:, 2:3], alone, rtol=1e-5, atol=1e-5)
    prediction = torch.randn(2, 4, target.outputs, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.loss(prediction, cells)[1:, 2:3], target.loss(prediction[1:, 2:3], alone), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------------------- patches


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7))
def test_patchify_cuts_row_by_row_and_unpatchify_puts_it_together(batch, side, patch):
    images = torch.arange(batch * 3 * (side * patch) ** 2).float().view(batch, 3, side * patch, side * patch)
    patches = patchify(images, patch)
    assert patches.shape == (batch, side * side, 3, patch, patch)
    assert torch.equal(unpatchify(patches, (side, side)), images)
    n = side * side - 1
    row, column = divmod(n, side)
    assert torch.equal(patches[:, n], images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch])
    if side > 1:
        assert torch.equal(patches[:, 1], images[:, :, :patch, patch : 2 * patch])


def test_patches_lie_where_the_patch_embedding_puts_them():
    images = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    tokens = F.conv2d(images, kernel, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(images, 4).flatten(2) @ kernel.flatten(1).T, tokens, atol=1e-4, rtol=1e-4)


def test_gather_patches_takes_each_images_own_places():
    patches = random_patches(2, 5)
    found = gather_patches(patches, torch.tensor([[4, 0], [1, 1]]))
    assert torch.equal(found[0], patches[0, [4, 0]])
    assert torch.equal(found[1], patches[1, [1, 1]])
