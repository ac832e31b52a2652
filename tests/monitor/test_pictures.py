"""Each panel of a picture, against what it must show in every patch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.mains import pretrain_looks
from mpp.monitor import pictures
from mpp.monitor.pictures import FRAMES, LEAST_SIDE, MARGIN, ErrorScale, nearest_seen, reconstruction
from mpp.monitor.skill import NONE, Baseline
from mpp.recipe.corruptions.base import GREY
from mpp.recipe.corruptions.drop import HATCH, DropCorruption
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
PREDICTED = torch.stack([row.nonzero().flatten()[:7] for row in KIND])  # all hidden ones of the first image, seven of eight of the second
SEEN = torch.stack([(row == VISIBLE).nonzero().flatten()[:8] for row in KIND])
MASKS = Masks(KIND, SOURCE, SEEN, PREDICTED)
TRIVIAL = Baseline("visible", 0.0, 0.5, {})


def images(size: int = P * SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).float()


def truth_of(target) -> torch.Tensor:
    """A prediction [B, M, O] whose answer is the target."""
    goal = target(images(), MASKS)
    return F.one_hot(goal, target.classes).float().flatten(2) if isinstance(target, ColorClasses) else goal.flatten(2)


class Sheet:
    """A drawn one, whose panels can be asked for by their titles."""

    def __init__(self, target, prediction, drops=False, baseline=TRIVIAL, given=None, masks=MASKS, grid=(SIDE, SIDE)):
        drawn, titles = [], []

        class Noted(pictures._Sheet):
            def __init__(self, columns, *words):
                titles.extend(column.title for column in columns)
                super().__init__(columns, *words)

            def draw(self, title, lines, legend, *words):
                drawn.append((lines, legend))
                return super().draw(title, lines, legend, *words)

        corruption = DropCorruption() if drops else ReplaceCorruption()
        model = SimpleNamespace(target=target, encoder=SimpleNamespace(grid=grid), corruption=corruption, teacher=None, mask_token=None)
        given = images() if given is None else given
        own, pictures._Sheet = pictures._Sheet, Noted
        try:
            self.image = reconstruction(model, given, masks, prediction, target(given, masks), baseline, "title")
        finally:
            pictures._Sheet = own
        self.titles, ((self.lines, self.legend),) = titles, drawn
        self.rows, self.size = len(given), given.shape[-2:]
        self.factor = max(1, -(-LEAST_SIDE // max(self.size)))

    def panel(self, row: int, title: str) -> np.ndarray:
        """uint8 [3, H, W] as it is drawn, enlarged."""
        high, wide = (side * self.factor for side in self.size)
        left = MARGIN + self.titles.index(title) * (wide + MARGIN)
        top = self.image.height - (self.rows - row) * (high + MARGIN)
        return np.asarray(self.image)[top : top + high, left : left + wide].transpose(2, 0, 1)

    def patch(self, row: int, title: str, number: int) -> np.ndarray:
        """uint8 [3, P, P]: what lies inside of a frame of two pixels, one for each enlarged one."""
        down, right = divmod(number, SIDE)
        side, middle = P * self.factor, self.factor // 2
        panel = self.panel(row, title)[:, down * side : (down + 1) * side, right * side : (right + 1) * side]
        return panel[:, middle :: self.factor, middle :: self.factor]

    def frame(self, row: int, number: int) -> tuple[int, ...]:
        down, right = divmod(number, SIDE)
        return tuple(self.panel(row, "encoder sees")[:, down * P * self.factor, right * P * self.factor].tolist())


TARGETS = [
    ColorClasses(4, 1, 3),
    ColorClasses(4, 4, 3),
    ColorClasses(4, 2, 2),
    Pixels(P, Distance(), False, MEAN, STD),
    Pixels(P, Distance(), True, MEAN, STD),
    Hog(P, 9, 2),
]
PLAIN, NORMALISED = TARGETS[3:5]


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_prediction_looks_like_its_target(target):
    sheet = Sheet(target, truth_of(target))
    for row in range(2):
        assert (sheet.panel(row, "prediction") == sheet.panel(row, "its target")).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_prediction_does_not(target):
    wrong = torch.zeros_like(truth_of(target))
    if isinstance(target, Pixels):
        wrong += 1.5
    sheet = Sheet(target, wrong)
    for row in range(2):
        for number in PREDICTED[row].tolist():
            assert (sheet.patch(row, "prediction", number) != sheet.patch(row, "its target", number)).any()


def test_the_first_panel_is_the_image_enlarged_by_whole_pixels():
    sheet = Sheet(TARGETS[0], truth_of(TARGETS[0]))
    for row in range(2):
        expected = images()[row].byte().numpy().repeat(10, axis=1).repeat(10, axis=2)
        assert (sheet.panel(row, "image") == expected).all()


@pytest.mark.parametrize("drops", [False, True])
def test_the_second_panel_is_what_the_encoder_sees_and_frames_tell_swapped_from_kept(drops):
    sheet = Sheet(TARGETS[0], truth_of(TARGETS[0]), drops)
    for row in range(2):
        for number in range(16):
            kind = int(KIND[row, number])
            seen, shown = sheet.patch(row, "encoder sees", number), sheet.patch(row, "image", int(SOURCE[row, number]))
            if drops:
                assert (seen == shown).all() if number in SEEN[row] else set(np.unique(seen)) == set(HATCH)
            elif kind == MASKED:
                assert (seen == GREY).all()
            else:
                assert (seen == shown).all()
                assert kind == VISIBLE or sheet.frame(row, number) == {SWAPPED: FRAMES[SWAPPED], KEPT: FRAMES[KEPT]}[kind]
    assert sheet.legend.keys() == ({MASKED} if drops else {MASKED, SWAPPED, KEPT})


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_only_predicted_places_show_anything_but_what_the_encoder_sees(target, drops):
    """Also a patch that is hidden and not predicted: its pixels must not pass for a prediction."""
    sheet = Sheet(target, truth_of(target), drops)
    for row in range(2):
        for number in set(range(16)) - set(PREDICTED[row].tolist()):
            for title in ("prediction", "its target"):
                assert (sheet.patch(row, title, number) == sheet.patch(row, "encoder sees", number)).all()


@pytest.mark.parametrize("target", [PLAIN, NORMALISED])
def test_true_pixels_give_the_image_back(target):
    sheet = Sheet(target, truth_of(target))
    for row in range(2):
        for number in PREDICTED[row].tolist():
            apart = sheet.patch(row, "prediction", number).astype(int) - sheet.patch(row, "image", number)
            assert np.abs(apart).max() == 0


def test_a_mean_colour_is_drawn_as_the_middle_of_its_bin():
    target = TARGETS[0]
    sheet, cells = Sheet(target, truth_of(target)), target.cells(patchify(images(), P))
    for number in PREDICTED[0].tolist():
        shown = sheet.patch(0, "its target", number)
        assert (shown == class_color(cells[0, number, 0, 0], 3).byte().numpy()[:, None, None]).all()


def test_only_a_prediction_that_borrows_from_the_truth_is_drawn_once_more_without():
    assert [("prediction, guessed" in Sheet(target, truth_of(target)).titles) for target in TARGETS] == [False] * 4 + [True, False]
    (line,) = (line for line in Sheet(NORMALISED, truth_of(NORMALISED)).lines if line.startswith("guessed"))
    assert "the mean and deviation of the 4 nearest patches seen" in line


def test_the_guess_knows_nothing_of_the_hidden_patches_and_has_the_statistics_of_the_nearest_seen_ones():
    """Whatever the hidden patches are, it is the same; a prediction of zeros is the mean of the neighbours, all of one colour here."""
    prediction = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(1))
    patches = patchify(images(), P)
    other = patches.clone()
    other.scatter_(1, PREDICTED[:, :, None, None, None].expand(-1, -1, 3, P, P), 7.0)
    shown = [Sheet(NORMALISED, prediction, given=unpatched(each)) for each in (patches, other)]
    for row in range(2):
        for number in PREDICTED[row].tolist():
            assert (shown[0].patch(row, "prediction, guessed", number) == shown[1].patch(row, "prediction, guessed", number)).all()
            assert (shown[0].patch(row, "prediction", number) != shown[1].patch(row, "prediction", number)).any()
    one_colour = other.scatter(1, SEEN[:, :, None, None, None].expand(-1, -1, 3, P, P), 90.0)
    sheet = Sheet(NORMALISED, torch.zeros_like(prediction), given=unpatched(one_colour))
    grey = sheet.patch(0, "prediction, guessed", int(PREDICTED[0, 0])).astype(float)
    inside = (90 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    expected = 255 * (inside.mean() * torch.tensor(STD) + torch.tensor(MEAN))  # the mean of a patch is over its three channels
    assert np.abs(grey - expected.numpy()[:, None, None]).max() <= 0.5


def unpatched(patches: torch.Tensor) -> torch.Tensor:
    from mpp.recipe.patches import unpatchify

    return unpatchify(patches, (SIDE, SIDE))


def test_the_nearest_patches_seen_are_those_of_least_distance_on_the_grid():
    grid = (3, 5)
    kind = torch.full((1, 15), MASKED)
    kind[0, [0, 4, 6, 11, 14]] = VISIBLE
    masks = Masks(kind, torch.arange(15)[None], torch.empty(1, 0, dtype=torch.long), torch.tensor([[1, 13]]))
    found = nearest_seen(masks, None, grid)
    for predicted, chosen in zip([1, 13], found[0].tolist(), strict=True):
        apart = {each: (each // 5 - predicted // 5) ** 2 + (each % 5 - predicted % 5) ** 2 for each in (0, 4, 6, 11, 14)}
        assert chosen == sorted(apart, key=lambda each: (apart[each], each))[:4]
    of_tokens = nearest_seen(masks, torch.tensor([[4, 14]]), grid)  # whatever is called visible: the encoder has these
    assert of_tokens.tolist() == [[[4, 14], [14, 4]]]
    assert nearest_seen(masks._replace(kind=torch.full_like(kind, MASKED)), None, grid) is None


def test_the_last_panel_is_the_loss_of_each_predicted_patch_beside_the_trivial_one():
    prediction = torch.zeros(2, 7, 48)
    loss = PLAIN.loss(prediction, PLAIN(images(), MASKS)).numpy()
    scale, sheet = ErrorScale(float(loss.mean()), 9.0), Sheet(PLAIN, prediction, baseline=Baseline("visible", 0.0, float(loss.mean()), {}))
    assert ErrorScale(0.5, 9.0).words == ("0", "0.5 (trivial)", "1")
    assert scale.colours(loss.mean()).min() > 240  # nearly white
    assert (
        scale.colours(np.array(0.2 * scale.top))[2] > scale.colours(np.array(0.2 * scale.top))[0]
        and scale.colours(np.array(0.8 * scale.top))[0] > scale.colours(np.array(0.8 * scale.top))[2]
    )
    for row in range(2):
        for place, number in enumerate(PREDICTED[row].tolist()):
            shown = sheet.patch(row, "loss", number)
            assert (shown == scale.colours(loss[row, place]).round().astype(np.uint8)[:, None, None]).all()
        for number in set(range(16)) - set(PREDICTED[row].tolist()):
            shown = sheet.patch(row, "loss", number)
            assert (shown[0] == shown[1]).all() and shown.min() >= 178


def test_without_a_trivial_rule_the_scale_of_losses_ends_at_the_largest():
    prediction = torch.zeros(2, 7, 48)
    loss = PLAIN.loss(prediction, PLAIN(images(), MASKS)).numpy()
    sheet, scale = Sheet(PLAIN, prediction, baseline=NONE), ErrorScale(None, float(loss.max()))
    row, place = np.unravel_index(loss.argmax(), loss.shape)
    shown = sheet.patch(row, "loss", int(PREDICTED[row, place]))
    assert (shown == scale.colours(loss.max()).round().astype(np.uint8)[:, None, None]).all() and shown[
        0, 0, 0
    ] > 240  # the end of viridis: yellow


@pytest.mark.parametrize(("high", "wide", "factor"), [(16, 16, 10), (32, 64, 3), (96, 96, 2), (224, 160, 1)])
def test_small_images_are_enlarged_by_whole_pixels_and_no_words_are_cut_off(high, wide, factor):
    target, given = ColorClasses(16, 1, 3), torch.randint(0, 256, (2, 3, high, wide)).float()
    patches = high * wide // 256
    kind = torch.full((2, patches), VISIBLE)
    kind[:, 0] = MASKED
    masks = Masks(kind, torch.arange(patches).repeat(2, 1), kind[:, :0], torch.zeros(2, 1, dtype=torch.long))
    sheet = Sheet(target, torch.zeros(2, 1, 512), given=given, masks=masks, grid=(high // 16, wide // 16))
    assert sheet.image.width == MARGIN + 5 * (wide * factor + MARGIN) and sheet.factor == factor
    expected = given[1].byte().numpy().repeat(factor, axis=1).repeat(factor, axis=2)
    assert (sheet.panel(1, "image") == expected).all()
    right = np.asarray(sheet.image.convert("L").crop((sheet.image.width - 2, 0, sheet.image.width, sheet.image.height)))
    assert (right == 255).all()  # the margin is white


def test_the_caption_says_what_became_of_hidden_patches():
    dropped, replaced = (Sheet(TARGETS[0], truth_of(TARGETS[0]), drops).image for drops in (True, False))
    head = lambda sheet: np.asarray(sheet.crop((0, 0, 300, 45)).convert("L"), dtype=int)
    assert isinstance(dropped, Image.Image) and (head(dropped) != head(replaced)).any()


@pytest.mark.parametrize(("real", "asked", "drawn"), [(4, 8, 4), (3, 8, 3), (3, 2, 2), (0, 2, 1)])
def test_a_batch_that_is_filled_up_is_drawn_without_what_fills_it_up(real, asked, drawn, monkeypatch):
    images, weight, seen = torch.rand(4, 3, 8, 8), (torch.arange(4) < real).float(), []
    batch = {"image": images, "sample": torch.arange(4)}
    monkeypatch.setattr(
        pretrain_looks, "masked_images", lambda few, device: (few["image"], few["sample"], few["sample"], few["sample"], few["sample"])
    )
    monkeypatch.setattr(pretrain_looks, "reconstruction", lambda model, shown, *_: seen.append(shown))
    engine = SimpleNamespace(train=lambda mode: None, forward=lambda *inputs: (inputs[0],))
    run = SimpleNamespace(engine=engine, world=SimpleNamespace(device=torch.device("cpu")), board=SimpleNamespace(picture=lambda *_: None))
    model = SimpleNamespace(target=lambda images, masks, teacher: None, teacher=None)
    config = load(PretrainConfig, None, [f"log.pictures={asked}"])
    pretrain_looks.picture(run, model, batch, weight, None, config, SimpleNamespace(samples_seen=0))
    assert torch.equal(seen[0], images[:drawn])
