"""Targets of the classic pretexts and their distances against other implementations: scikit-image for L*a*b* and HOG, torch for losses and turns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.corruptions import GreyCorruption, RotateCorruption
from mpp.recipe.decoders.base import Given as DecoderGiven
from mpp.recipe.decoders.pooled import PooledDecoder
from mpp.recipe.distances import Distance
from mpp.recipe.masking import Masking
from mpp.recipe.masks import RandomMask, TurnMask
from mpp.recipe.model import build_model
from mpp.recipe.patches import patchify, unpatchify
from mpp.recipe.places import Masks, turns
from mpp.recipe.targets.base import Given, everywhere
from mpp.recipe.targets.chroma import SCALE, Chroma, ChromaTarget, from_lab, to_lab
from mpp.recipe.targets.hog import Hog, gradients
from mpp.recipe.targets.pixels import PixelsTarget
from mpp.recipe.targets.rotation import Rotation, RotationTarget

skimage = pytest.importorskip("skimage")
from skimage.color import lab2rgb, rgb2lab  # noqa: E402
from skimage.feature import _hoghistogram, hog  # noqa: E402

ROOT = Path(__file__).parents[2]
GIVEN = Given(4, width=16, depth=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def random_images(batch: int = 2, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, side, side), generator=torch.Generator().manual_seed(seed)).float()


def masks_of(masking: Masking, batch: int = 2, seed: int = 0) -> Masks[torch.Tensor]:
    return Masks(*map(torch.from_numpy, masking.draw_all([Draws(seed, MASK, 0, sample) for sample in range(batch)])))


# ------------------------------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_distances_are_torchs_with_their_gradients(beta):
    values = [torch.linspace(-4, 4, 161, dtype=torch.float64), torch.tensor([0.0, -beta, beta, 1e-9], dtype=torch.float64)]
    for kind, loss in {
        "l1": F.l1_loss,
        "l2": F.mse_loss,
        "smooth_l1": lambda *words, **more: F.smooth_l1_loss(*words, beta=beta, **more),
    }.items():
        for difference in values:
            ours, theirs = difference.clone().requires_grad_(), difference.clone().requires_grad_()
            found, expected = Distance(kind, beta)(ours), loss(theirs, torch.zeros_like(theirs), reduction="none")
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
            torch.testing.assert_close(
                torch.autograd.grad(found.sum(), ours), torch.autograd.grad(expected.sum(), theirs), rtol=1e-12, atol=0
            )


def test_the_smooth_l1_is_this_by_hand():
    found = Distance("smooth_l1", 2.0)(torch.tensor([0.0, 1.0, -2.0, 3.0, -5.0]))
    assert found.tolist() == [0.0, 0.25, 1.0, 2.0, 4.0]  # d^2 / 4 up to 2, then |d| - 1


@pytest.mark.parametrize(
    ("kind", "loss"), [("l1", F.l1_loss), ("l2", F.mse_loss), ("smooth_l1", lambda *pair: F.smooth_l1_loss(*pair, beta=0.5))]
)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_of_pixels_is_torchs_over_the_values_of_each_patch(kind, loss, normalise):
    target = PixelsTarget(loss=kind, beta=0.5, normalise=normalise).build(GIVEN)
    goal = target.cells(patchify(random_images(), 4)[:, :5])
    prediction = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    found = target.loss(prediction, goal)
    assert found.dtype == torch.float32
    for image in range(2):
        for patch in range(5):
            torch.testing.assert_close(found[image, patch], loss(prediction[image, patch], goal[image, patch].flatten()))


# ----------------------------------------------------------------------------------------------------------------------------- a* and b*


def colours() -> torch.Tensor:
    """[..., 3]: a lattice of the cube, and all greys."""
    levels = torch.tensor([0, 1, 5, 10, 11, 20, 50, 90, 127, 128, 170, 200, 230, 254, 255]).float()
    return torch.cat([torch.cartesian_prod(levels, levels, levels), torch.arange(256).float()[:, None].expand(-1, 3)])


def test_lab_is_skimages_there_and_back():
    seen = colours()
    found = to_lab(seen)
    expected = rgb2lab(seen.numpy().astype(np.float64) / 255)  # D65, 2 degrees
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-4)  # float32; and ours has CIE's fractions, theirs their decimals
    np.testing.assert_allclose(from_lab(found).numpy(), lab2rgb(expected) * 255, atol=0.05)
    torch.testing.assert_close(from_lab(found), seen, atol=0.05, rtol=0)
    assert found[-256:, 1:].abs().max() < 0.01  # greys have no colour


@given(st.floats(0, 100), st.floats(-150, 150), st.floats(-150, 150))
def test_colours_that_no_screen_shows_are_cut_channel_by_channel_as_skimage_does(bright, a, b):
    found = from_lab(torch.tensor([bright, a, b]))
    assert ((found >= 0) & (found <= 255)).all()
    if (bright + 16) / 116 > b / 200:  # beyond it skimage cuts Z first
        np.testing.assert_allclose(found.numpy(), lab2rgb([bright, a, b]) * 255, atol=0.1)


def test_a_and_b_of_colours_of_a_screen_lie_within_what_the_file_says():
    low, high = (to_lab(colours())[:, 1:] / SCALE).aminmax(dim=0)
    torch.testing.assert_close(low, torch.tensor([-8.619, -10.786]), atol=2e-2, rtol=0)
    torch.testing.assert_close(high, torch.tensor([9.825, 9.448]), atol=2e-2, rtol=0)


def test_goals_are_a_and_b_of_each_pixel_in_tens_in_reading_order():
    target, images = ChromaTarget().build(GIVEN), random_images()
    masks = masks_of(Masking((4, 4), RandomMask(), GreyCorruption()))
    found = target(images, masks, None)
    assert found.shape == (2, 8, 4, 4, 2) and found.dtype == torch.float32
    for image in range(2):
        lab = rgb2lab(images[image].permute(1, 2, 0).numpy().astype(np.float64) / 255)[..., 1:] / 10
        for m, place in enumerate(masks.predicted[image].tolist()):
            top, left = place // 4 * 4, place % 4 * 4
            np.testing.assert_allclose(found[image, m].numpy(), lab[top : top + 4, left : left + 4], atol=1e-4)


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_the_loss_of_colour_is_nothing_for_a_perfect_prediction_and_torchs_for_others(kind):
    target: Chroma = ChromaTarget(loss=kind, beta=0.2).build(GIVEN)
    assert target.outputs == 4 * 4 * 2
    goal = target.cells(patchify(random_images(), 4))
    assert not target.loss(goal.flatten(2), goal).any()
    prediction = torch.randn(goal.flatten(2).shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    loss = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": lambda *pair, **more: F.smooth_l1_loss(*pair, beta=0.2, **more)}[kind]
    expected = loss(prediction.float(), goal.flatten(2), reduction="none").mean(-1)
    torch.testing.assert_close(target.loss(prediction, goal), expected)


def test_a_perfect_picture_of_colour_is_the_image_and_one_without_colour_is_as_bright():
    target, patches = ChromaTarget().build(GIVEN), patchify(random_images(), 4)
    goal = target.cells(patches)
    torch.testing.assert_close(target.picture(goal, patches, goal), patches, atol=0.05, rtol=0)
    grey = target.picture(torch.zeros_like(goal), patches, goal)
    assert (grey.amax(2) - grey.amin(2)).max() < 0.05
    lightness = [to_lab(shown.permute(0, 1, 3, 4, 2))[..., 0] for shown in (grey, patches)]
    torch.testing.assert_close(*lightness, atol=0.02, rtol=0)


# -------------------------------------------------------------------------------------------------------------------------- turned images


def test_the_goal_is_how_far_torch_would_turn_the_image():
    masks = masks_of(Masking((3, 3), TurnMask(), RotateCorruption()), batch=16)
    images, target = random_images(16, 12), RotationTarget().build(GIVEN)
    turned = RotateCorruption().pixels(images, masks, None)
    goal = target(images, masks, None)
    assert goal.shape == (16, 1, 1, 1) and goal.dtype == torch.int64
    for image in range(16):
        assert torch.equal(torch.rot90(images[image], int(goal[image]), (1, 2)), turned[image])
        undone = torch.rot90(turned[image], -int(goal[image]), (1, 2))
        assert torch.equal(undone, images[image])
    assert {*goal.flatten().tolist()} == {0, 1, 2, 3}
    assert torch.equal(target(images, everywhere(masks), None), goal.expand(-1, 9, 1, 1))
    by_hand = torch.stack([torch.rot90(torch.arange(25).view(5, 5), turn).flatten() for turn in range(4)])
    assert turns(by_hand).tolist() == [0, 1, 2, 3]


def test_the_loss_of_rotation_is_the_cross_entropy_and_four_are_as_likely_before_training():
    target, goal = Rotation(), torch.tensor([[0], [1], [3]])[:, :, None, None]
    prediction = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([-prediction[i, 0].log_softmax(-1)[goal[i, 0, 0, 0]] for i in range(3)])[:, None]
    torch.testing.assert_close(target.loss(prediction, goal), expected)
    torch.testing.assert_close(target.loss(torch.zeros(3, 1, 4), goal), torch.full((3, 1), math.log(4)))
    sure = F.one_hot(goal[:, :, 0, 0], 4) * 9.0
    assert torch.equal(target.answer(sure), goal)
    constant = target.baselines.constant([torch.arange(4).repeat(25).view(-1, 1, 1)])
    assert target.baselines.loss(constant, None, 0.0, goal[0]) == pytest.approx(math.log(4))


def test_the_picture_of_rotation_lights_the_side_where_the_top_went():
    goal = torch.arange(4).view(1, 4, 1, 1)
    shown = Rotation().picture(goal, torch.zeros(1, 4, 3, 8, 8), goal)[0]
    assert shown.shape == (4, 3, 8, 8) and {*map(tuple, shown.permute(0, 2, 3, 1).flatten(0, 2).tolist())} == {
        (0.0, 0.0, 0.0),
        (255.0, 110.0, 0.0),
    }
    parts = [shown[:, 0, :4], shown[:, 0, :, :4], shown[:, 0, 4:], shown[:, 0, :, 4:]]  # the upper, left, lower, right half of each
    for turn in range(4):  # counter-clockwise: the top goes left, down, right
        assert [bool((part[turn] == 255).all()) for part in parts] == [number == turn for number in range(4)]


def test_a_pooled_decoder_says_the_same_of_every_place_from_the_mean_of_the_patches_alone():
    decoder = PooledDecoder().build(DecoderGiven(width=8, outputs=4, prefix=2, grid=(3, 3), depth=1))
    tokens = torch.randn(2, 2 + 9, 8, generator=torch.Generator().manual_seed(0))
    found = decoder(tokens, None, torch.zeros(2, 5, dtype=torch.long))
    expected = tokens[:, 2:].double().mean(1) @ decoder.head.weight.double().T + decoder.head.bias.double()
    torch.testing.assert_close(found, expected.float()[:, None].expand(-1, 5, -1), atol=1e-6, rtol=1e-5)
    few = decoder(
        tokens[:, : 2 + 4], torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)
    )  # dropped ones are not there
    torch.testing.assert_close(few[:, 0], decoder.head(tokens[:, 2:6].mean(1)))


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["mask.name=turn", "corruption.name=rotate", "target.name=rotation", "decoder.name=pooled"], 60),
        (["mask.name=all", "corruption.name=grey", "target.name=chroma"], 60),
        (["mask.name=all", "corruption.name=grey", "target.name=mean_color", "target.bits=1"], 60),
    ],
)
def test_pretexts_are_learned_by_heart(words, steps):
    """Of a few images, in seconds: the loss falls to a part of what it was."""
    size = [
        "model.arch=vit_tiny_patch16_224",
        "model.image_size=16",
        "model.patch_size=4",
        "model.width=48",
        "model.depth=2",
        "model.heads=3",
    ]
    config = load(PretrainConfig, None, [*size, *words])
    model = build_model(config, fused_attention=False)
    images = F.interpolate(random_images(8, 4), size=16, mode="bilinear")
    masks = masks_of(Masking(config.model.grid, config.mask, config.corruption), 8)
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(images, *masks)[1].mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4, (losses[0], losses[-1])


# ------------------------------------------------------------------------------------------------------------------------------------ HOG


@pytest.mark.parametrize(("side", "patch", "bins", "cell"), [(32, 16, 9, 8), (16, 8, 6, 4), (24, 8, 9, 8)])
def test_histograms_of_our_gradients_are_skimages_and_normalised_as_it_does_blocks_of_one_cell(side, patch, bins, cell):
    """What differs by design (mpp/recipe/targets/hog.py): the gradients are Sobel's, with mirrored borders, and each channel has its own histogram;
    bins are counted from the vertical, skimage's from the horizontal, so the image is laid on its side for it."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side)) * 255  # no gradient lies on the edge of a bin
    found = Hog(patch, bins, cell)(image, everywhere(Masks(torch.zeros(1, (side // patch) ** 2), *[torch.empty(0)] * 3)))
    grid, cells = side // patch, patch // cell
    found = (
        found.unflatten(-1, (3, bins))
        .view(grid, grid, cells, cells, 3, bins)
        .permute(4, 0, 2, 1, 3, 5)
        .reshape(3, side // cell, side // cell, bins)
    )
    right, down = gradients(image)
    for channel in range(3):
        histogram = np.zeros((side // cell, side // cell, bins))
        # Transposed: what rises to the right there rises downwards here, and an angle from the horizontal there is one from the vertical here.
        columns, rows = (slope[0, channel].T.double().numpy().copy() for slope in (down, right))
        _hoghistogram.hog_histograms(columns, rows, cell, cell, side, side, side // cell, side // cell, bins, histogram)
        expected = histogram / np.sqrt((histogram**2).sum(-1, keepdims=True) + 1e-5**2)  # its block_norm="L2"
        np.testing.assert_allclose(found[channel].numpy(), expected.transpose(1, 0, 2), atol=2e-5)


@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (6, 4)])
def test_where_sobel_and_central_differences_agree_the_target_is_skimages_hog(bins, cell):
    """On images whose rows (columns) are all alike both see the same gradients but for a factor, which the norm takes away; and where all three
    channels are alike its strongest channel is each of ours.  Cells at the border are left out: skimage has no gradient there."""
    side = 4 * cell
    wave = (torch.rand(side, generator=torch.Generator().manual_seed(bins)) * 255).expand(side, side)
    diagonal = torch.arange(side).float()
    slope = 3 * diagonal[:, None] + 2 * diagonal + 0.3  # its gradient lies inside of a bin
    for plane in (wave, wave.T, slope, slope.flip(1)):
        image = plane.contiguous().expand(1, 3, side, side)
        found = Hog(2 * cell, bins, cell)(image, everywhere(Masks(torch.zeros(1, 4), *[torch.empty(0)] * 3)))
        found = unpatchify(found.view(1, 4, 2, 2, 3, bins).permute(0, 1, 5, 4, 2, 3)[:, :, :, 0], (2, 2))[0].permute(
            1, 2, 0
        )  # [4, 4, bins]
        expected = hog(plane.T.double().numpy(), bins, (cell, cell), (1, 1), block_norm="L2", feature_vector=False)[:, :, 0, 0].transpose(
            1, 0, 2
        )
        np.testing.assert_allclose(found[1:3, 1:3].numpy(), expected[1:3, 1:3], atol=1e-5)
        assert (found[1:3, 1:3].norm(dim=-1) > 0.99).all()


# ---------------------------------------------------------------------------------------------------------------------------- rows of configs

ROWS = (
    "cifar_simmim",
    "cifar_maskfeat",
    "cifar_data2vec",
    "cifar_colour",
    "cifar_ab",
    "cifar_rotation",
    "cifar_mae",
    "cifar_grid",
    "cifar_l2",
)


@pytest.mark.parametrize("name", ROWS)
def test_small_rows_differ_from_cifar_mpp_in_their_choices_alone(name):
    configs = [load(PretrainConfig, ROOT / "configs" / f"{file}.yaml") for file in ("cifar_mpp", name)]
    trees = [config.that_changes_results() for config in configs]
    for tree in trees:
        for section in ("mask", "corruption", "target", "decoder"):
            tree.pop(section)
    assert trees[0] == trees[1]
    assert configs[0] != configs[1]


@pytest.mark.parametrize(
    ("base", "name", "arch", "patches"),
    [
        ("mae_b16", "mae_l16", "vit_large_patch16_224", 196),
        ("mae_b16", "mae_h14", "vit_huge_patch14_224", 256),
        ("maskfeat_b16", "maskfeat_l16", "vit_large_patch16_224", 196),
    ],
)
def test_larger_ones_differ_from_their_base_in_the_encoder_alone(base, name, arch, patches):
    configs = [load(PretrainConfig, ROOT / "configs" / f"{file}.yaml") for file in (base, name)]
    assert configs[1].model.arch == arch and configs[1].model.grid[0] ** 2 == patches
    trees = [config.that_changes_results() for config in configs]
    models = [tree.pop("model") for tree in trees]
    assert trees[0] == trees[1]
    assert {key for key in models[0] if models[0][key] != models[1][key]} <= {"arch", "patch_size"}
