"""Codes as goals: the nearest centre, the cross-entropy, the picture, against plain NumPy."""

import math

import numpy as np
import pytest
import torch

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.recipe import codes
from mpp.recipe.codes import Codebook, nearest
from mpp.recipe.distances import Distance
from mpp.recipe.model import build_model
from mpp.recipe.patches import gather_patches, patchify
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Given, Lent, everywhere
from mpp.recipe.targets.codebook import CodebookTarget, Codes
from mpp.recipe.targets.hog import Hog
from mpp.recipe.targets.pixels import Pixels

HALF = (0.5, 0.5, 0.5)
SIDE, P, N, C = 16, 4, 16, 7
INNER = {"pixels": Pixels(P, Distance(), True, HALF, HALF), "raw": Pixels(P, Distance(), False, HALF, HALF), "hog": Hog(P, 3, 2)}


def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3)).float()


def masks(count: int = 5) -> Masks:
    dice = np.random.default_rng(0)
    predicted = torch.from_numpy(np.stack([np.sort(dice.permutation(N)[:count]) for _ in range(3)]))
    return Masks(torch.zeros(3, N).long(), torch.arange(N).expand(3, -1), predicted, predicted)


def codebook(name: str, clusters: int = C) -> Codebook:
    return Codebook(torch.randn(clusters, INNER[name].outputs, generator=torch.Generator().manual_seed(1)), INNER[name])


@pytest.mark.parametrize("name", INNER)
def test_goals_are_the_nearest_centres_by_hand_and_the_loss_is_the_cross_entropy(name):
    target, mask = Codes(codebook(name)), masks()
    found = target(images(), mask)
    assert found.shape == (3, 5, 1, 1) and found.dtype == torch.int64 and target.outputs == C
    points = INNER[name](images(), mask, None).double().numpy().reshape(15, -1)
    centres = target.codebook.centres.double().numpy()
    wanted = np.array([np.argmin([((point - centre) ** 2).sum() for centre in centres]) for point in points])
    assert found.flatten().tolist() == wanted.tolist() and len(set(wanted.tolist())) > 1
    logits = torch.randn(3, 5, C, generator=torch.Generator().manual_seed(2))
    rows = logits.double().numpy().reshape(15, C)
    by_hand = np.log(np.exp(rows).sum(1)) - rows[np.arange(15), wanted]
    loss = target.loss(logits, found)
    assert loss.shape == (3, 5) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss.flatten().numpy(), by_hand, rtol=1e-5)
    assert target.loss(logits.bfloat16(), found).dtype == torch.float32
    assert torch.equal(target.answer(torch.nn.functional.one_hot(found[:, :, 0, 0], C).float()), found)


def test_who_knows_nothing_loses_the_logarithm_of_the_number_of_codes():
    target, mask = Codes(codebook("raw")), masks()
    loss = target.loss(torch.zeros(3, 5, C), target(images(), mask))
    torch.testing.assert_close(loss, torch.full((3, 5), math.log(C)))
    assert target.baselines.classes == C


def test_the_nearest_centre_does_not_depend_on_how_many_are_looked_at_at_once(monkeypatch):
    dice = torch.Generator().manual_seed(0)
    points, centres = torch.randn(101, 5, generator=dice), torch.randn(9, 5, generator=dice) * 3
    whole = nearest(points, centres)
    assert torch.equal(whole, torch.cdist(points.double(), centres.double()).argmin(1)) and len(whole.unique()) > 4
    for scores in (1, 9, 90):
        monkeypatch.setattr(codes, "SCORES", scores)
        assert torch.equal(nearest(points, centres), whole)


@pytest.mark.parametrize("name", INNER)
def test_a_code_is_drawn_as_its_centre_is_by_the_target_that_it_is_of(name):
    target, mask, inner = Codes(codebook(name)), masks(), INNER[name]
    patches = gather_patches(patchify(images(), P), mask.predicted)
    goal, truth = torch.randint(0, C, (3, 5, 1, 1)), target(images(), mask)
    shown = target.picture(goal, patches, truth)
    assert shown.shape == patches.shape
    values = [inner.answer(target.codebook.centres[number[:, :, 0, 0]]) for number in (goal, truth)]
    assert torch.equal(shown, inner.picture(values[0], patches, values[1]))
    if name == "raw":
        wanted = (target.codebook.centres[goal[0, 0, 0, 0]].view(P, P, 3) * 0.5 + 0.5).clamp(0, 1) * 255
        torch.testing.assert_close(shown[0, 0], wanted.permute(2, 0, 1))


def test_a_centre_that_is_a_patch_is_drawn_as_that_patch():
    mask = masks()
    points = INNER["raw"](images(), mask, None).flatten(2).flatten(0, 1)
    target = Codes(Codebook(points, INNER["raw"]))
    codes, patches = target(images(), mask), gather_patches(patchify(images(), P), mask.predicted)
    torch.testing.assert_close(target.picture(codes, patches, codes), patches, atol=1e-3, rtol=0)


def test_a_model_learns_the_codes_that_it_has_lent_and_keeps_none_of_them():
    model = {"arch": "vit_tiny_patch16_224", "image_size": SIDE, "patch_size": P, "width": 32, "depth": 1, "heads": 2}
    target = {"name": "codebook", "path": "nowhere"}
    config = PretrainConfig.model_validate({"model": model, "target": target})
    book = codebook("pixels")
    made = build_model(config, False, Lent(codebook=book))
    mask = masks()
    prediction, loss, *_ = made(images(), *mask)
    assert prediction.shape == (3, 5, C) and not any("centres" in name for name in made.state_dict())
    assert torch.equal(loss, made.target.loss(prediction, Codes(book)(images(), mask)))
    with pytest.raises(ConfigError, match=r"target\.path=nowhere, which was not read"):
        build_model(config)
    with pytest.raises(ConfigError, match="which was not read"):
        CodebookTarget(path="nowhere").build(Given(P, 32, 1, HALF, HALF))


@pytest.mark.parametrize("made", [*INNER.values(), *(Codes(codebook(name)) for name in INNER)], ids=lambda made: type(made).__name__)
def test_a_target_says_whether_its_goals_tell_of_other_patches(made):
    """Trivial predictors read goals of visible patches: where other patches change these, they know more than the model does."""
    mask = everywhere(Masks(*(part.repeat(40, 1) for part in masks())))
    shown = torch.randint(0, 256, (120, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3)).float()
    before = made(shown, mask)
    shown[:, :, :P, P:] = 255 - shown[:, :, :P, P:]  # all of the first row of patches but the first one
    assert torch.equal(made(shown, mask)[:, 0], before[:, 0]) != made.looks_beyond
