from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpp.monitor.pictures import COLUMNS, MARGIN, reconstruction
from mpp.recipe.corruptions.base import GREY
from mpp.recipe.corruptions.drop import DropCorruption
from mpp.recipe.corruptions.replace import ReplaceCorruption
from mpp.recipe.distances import Distance
from mpp.recipe.patches import patchify
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE, Masks
from mpp.recipe.targets.colors import ColorClasses, class_color
from mpp.recipe.targets.hog import Hog
from mpp.recipe.targets.pixels import Pixels

P, SIDE = 4, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KIND = torch.tensor([[MASKED, VISIBLE, SWAPPED, KEPT] + [VISIBLE, MASKED] * 6, [VISIBLE] * 8 + [MASKED] * 5 + [KEPT, SWAPPED, MASKED]])
KIND[0, 4:8] = VISIBLE
SOURCE = torch.arange(16).repeat(2, 1)
SOURCE[0, 2], SOURCE[1, 14] = 9, 3
PREDICTED = torch.stack([row.nonzero().flatten()[:7] for row in KIND])
MASKS = Masks(KIND, SOURCE, torch.empty(2, 0), PREDICTED)


def images(size: int = P * SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).float()


def truth_of(target) -> torch.Tensor:
    """A prediction [B, M, O] whose answer is the target."""
    goal = target(images(), MASKS)
    return F.one_hot(goal, target.classes).float().flatten(2) if isinstance(target, ColorClasses) else goal.flatten(2)


def sheet(target, prediction, drops: bool = False):
    corruption = DropCorruption() if drops else ReplaceCorruption()
    model = SimpleNamespace(target=target, encoder=SimpleNamespace(grid=(SIDE, SIDE)), corruption=corruption, teacher=None, mask_token=None)
    return reconstruction(model, images(), MASKS, prediction, target(images(), MASKS), "title")


def panel(picture, row: int, column: int, size: int = P * SIDE, rows: int = 2) -> np.ndarray:
    """uint8 [3, S, S], one pixel for each enlarged one."""
    factor = max(1, 96 // size)
    side = size * factor
    left, top = MARGIN + column * (side + MARGIN), picture.height - (rows - row) * (side + MARGIN)
    pixels = np.asarray(picture)[top : top + side, left : left + side].transpose(2, 0, 1)
    small = pixels[:, ::factor, ::factor]
    assert (small.repeat(factor, axis=1).repeat(factor, axis=2) == pixels).all()
    return small


def patch_of(picture: np.ndarray, number: int) -> np.ndarray:
    row, column = divmod(number, SIDE)
    return picture[:, row * P : row * P + P, column * P : column * P + P]


TARGETS = [
    ColorClasses(4, 1, 3),
    ColorClasses(4, 4, 3),
    ColorClasses(4, 2, 2),
    Pixels(P, Distance(), False, MEAN, STD),
    Pixels(P, Distance(), True, MEAN, STD),
    Hog(P, 9, 2),
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_prediction_looks_like_its_target(target):
    picture = sheet(target, truth_of(target))
    for row in range(2):
        assert (panel(picture, row, 2) == panel(picture, row, 3)).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_prediction_does_not(target):
    wrong = torch.zeros_like(truth_of(target))
    if isinstance(target, Pixels):
        wrong += 1.5
    picture = sheet(target, wrong)
    for row in range(2):
        for number in PREDICTED[row].tolist():
            assert (patch_of(panel(picture, row, 2), number) != patch_of(panel(picture, row, 3), number)).any()


def test_the_first_panel_is_the_image():
    picture = sheet(TARGETS[0], truth_of(TARGETS[0]))
    for row in range(2):
        assert (panel(picture, row, 0) == images()[row].byte().numpy()).all()


def test_the_second_panel_is_what_the_encoder_sees():
    picture = sheet(TARGETS[0], truth_of(TARGETS[0]))
    for row in range(2):
        seen, clean = panel(picture, row, 1), panel(picture, row, 0)
        for number in range(16):
            kind = KIND[row, number]
            if kind == MASKED:
                assert (patch_of(seen, number) == GREY).all()
            else:
                assert (patch_of(seen, number) == patch_of(clean, int(SOURCE[row, number]))).all()


@pytest.mark.parametrize("target", TARGETS)
def test_only_predicted_places_show_anything_but_the_image(target):
    picture = sheet(target, truth_of(target))
    for row in range(2):
        for number in set(range(16)) - set(PREDICTED[row].tolist()):
            for column in (2, 3):
                assert (patch_of(panel(picture, row, column), number) == patch_of(panel(picture, row, 0), number)).all()


@pytest.mark.parametrize("normalise", [False, True])
def test_true_pixels_give_the_image_back(normalise):
    target = Pixels(P, Distance(), normalise, MEAN, STD)
    picture = sheet(target, truth_of(target))
    for row in range(2):
        assert np.abs(panel(picture, row, 2).astype(int) - panel(picture, row, 0)).max() == 0


def test_a_mean_colour_is_drawn_as_the_middle_of_its_bin():
    target = TARGETS[0]
    picture = sheet(target, truth_of(target))
    cells = target.cells(patchify(images(), P))
    for number in PREDICTED[0].tolist():
        shown = patch_of(panel(picture, 0, 3), number)
        assert (shown == class_color(cells[0, number, 0, 0], 3).byte().numpy()[:, None, None]).all()


@pytest.mark.parametrize(("size", "factor"), [(16, 6), (32, 3), (96, 1), (224, 1)])
def test_small_images_are_enlarged_by_whole_pixels_to_fit_the_sheet(size, factor):
    target = ColorClasses(size // 4, 1, 3)
    pictures, places = images(size), torch.tensor([[0], [1]])
    kind = torch.zeros(2, 16, dtype=torch.long).scatter(1, places, MASKED)
    model = SimpleNamespace(
        target=target, encoder=SimpleNamespace(grid=(4, 4)), corruption=ReplaceCorruption(), teacher=None, mask_token=None
    )
    masks = Masks(kind, torch.arange(16).repeat(2, 1), places[:, :0], places)
    found = reconstruction(model, pictures, masks, torch.zeros(2, 1, 512), target(pictures, masks), "t")
    assert found.width == MARGIN + len(COLUMNS) * (size * factor + MARGIN)
    assert found.height > 2 * (size * factor + MARGIN)
    for row in range(2):
        assert (panel(found, row, 0, size) == pictures[row].byte().numpy()).all()


def test_the_caption_says_what_became_of_hidden_patches():
    dropped, replaced = (np.asarray(sheet(TARGETS[0], truth_of(TARGETS[0]), drops)) for drops in (True, False))
    top = min(len(dropped), len(replaced)) - 2 * (96 + MARGIN) - 16
    assert (dropped[:top] != replaced[:top]).any()
