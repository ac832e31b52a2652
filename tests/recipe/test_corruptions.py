"""Corruptions: replacement in pixel space, images without colour, turned ones; and what of them reaches a prediction."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.corruptions import DropCorruption, GreyCorruption, ReplaceCorruption, RotateCorruption
from mpp.recipe.masking import Masking
from mpp.recipe.masks import RandomMask, TurnMask
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.patches import patchify, unpatchify
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE, Masks
from mpp.train.optim import spares

TINY = ["model.arch=vit_tiny_patch16_224", "model.image_size=16", "model.patch_size=4", "model.width=16", "model.depth=1", "model.heads=2"]
PIXELS = ReplaceCorruption(mask=0.5, swap=0.25, keep=0.25, at="pixels")


def random_images(batch: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(seed)).float()


def masks_of(masking: Masking, batch: int = 2, seed: int = 0) -> Masks[torch.Tensor]:
    return Masks(*map(torch.from_numpy, masking.draw_all([Draws(seed, MASK, 0, sample) for sample in range(batch)])))


def model_of(*words: str) -> tuple[PretrainingModel, Masking]:
    config = load(PretrainConfig, None, [*TINY, "decoder={name: linear, head_std: 0.02}", *words])
    return build_model(config, fused_attention=False), Masking(config.model.grid, config.mask, config.corruption)


# ------------------------------------------------------------------------------------------------------------------------- in pixel space


@given(st.integers(0, 2**32), st.sampled_from([(4, 4), (2, 6), (5, 3)]))
def test_pixels_are_replaced_patch_by_patch_by_kind(seed, grid):
    masks, side = masks_of(Masking(grid, RandomMask(ratio=0.7), PIXELS), seed=seed), 3
    images = random_images(2, grid[0] * side, grid[1] * side, seed)
    token = torch.randn(PIXELS.token(99, side), generator=torch.Generator().manual_seed(seed)) / 3
    assert token.shape == (3, side, side)
    found = PIXELS.pixels(images, masks, token)
    assert {*masks.kind.flatten().tolist()} == {VISIBLE, MASKED, SWAPPED, KEPT}
    for image in range(2):
        for place in range(grid[0] * grid[1]):
            at = lambda number, side=side: (slice(None), slice(number // grid[1] * side, (number // grid[1] + 1) * side), slice(number % grid[1] * side, (number % grid[1] + 1) * side))  # fmt: skip
            kind, source = int(masks.kind[image, place]), int(masks.source[image, place])
            expected = 127.5 * (1 + token) if kind == MASKED else images[image][at(source if kind == SWAPPED else place)]
            assert torch.equal(found[image][at(place)], expected)


def test_embeddings_are_then_left_alone_and_pixels_are_where_embeddings_are_replaced():
    masks = masks_of(Masking((4, 4), RandomMask(), PIXELS))
    images, embeddings = random_images(), torch.randn(2, 16, 8)
    assert PIXELS.embeddings(embeddings, masks, torch.zeros(3, 4, 4)) is embeddings
    plain = ReplaceCorruption()
    assert plain.pixels(images, masks, torch.zeros(8)) is images
    assert (plain.token(8, 4), PIXELS.token(8, 4), DropCorruption().token(8, 4), GreyCorruption().token(8, 4)) == (
        (8,),
        (3, 4, 4),
        None,
        None,
    )


@pytest.mark.parametrize("words", [("corruption.at=pixels",), (), ("corruption.name=drop", "decoder={name: transformer, depth: 1, width: 16, heads: 2}")])  # fmt: skip
@torch.no_grad()
def test_pixels_that_are_masked_cannot_influence_a_prediction_and_all_others_can(words):
    mix = [] if len(words) > 1 else ["corruption.mask=0.5", "corruption.swap=0.25", "corruption.keep=0.25"]
    model, masking = model_of("target.name=pixels", "mask.ratio=0.75", *words, *mix)
    images, masks = random_images(), masks_of(masking)
    clean = model.eval()(images, *masks)[0]
    for image in range(2):
        for place in range(16):
            patches = patchify(images.clone(), 4)
            patches[image, place] = 255 - patches[image, place]
            same = torch.equal(model(unpatchify(patches, (4, 4)), *masks)[0], clean)
            seen = bool(((masks.source[image] == place) & (masks.kind[image] != MASKED)).any())
            assert same is not seen, (image, place)


def test_the_mask_patch_is_learned_from_the_masked_patches_and_spared_by_weight_decay():
    model, masking = model_of("target.name=pixels", "corruption.at=pixels")
    masks = masks_of(masking)
    model(random_images(), *masks)[1].mean().backward()
    assert model.mask_token.shape == (3, 4, 4) and model.mask_token.grad is not None and (model.mask_token.grad != 0).all()
    assert spares("mask_token", model.mask_token)
    model.zero_grad()
    nothing = masks._replace(kind=torch.full_like(masks.kind, KEPT))
    model(random_images(), *nothing)[1].mean().backward()
    assert not model.mask_token.grad.any()


def test_the_mask_patch_in_pixels_counts_from_mid_grey_in_halves_of_the_range():
    masks = masks_of(Masking((4, 4), RandomMask(), ReplaceCorruption(mask=1, swap=0, keep=0, at="pixels")))
    hidden = (masks.kind == MASKED)[:, :, None, None, None].expand(-1, -1, 3, 4, 4)
    for value, level in ((-1.0, 0.0), (0.0, 127.5), (1.0, 255.0)):
        found = patchify(PIXELS.pixels(random_images(), masks, torch.full((3, 4, 4), value)), 4)
        assert (found[hidden] == level).all()


def test_one_step_of_training_in_pixel_space_is_that_of_hand_made_images():
    """Replacing before the model, and giving it the corrupted images with nothing hidden, is the same computation."""
    model, masking = model_of("target.name=pixels", "corruption.at=pixels")
    images, masks = random_images(), masks_of(masking)
    found, _, masked, _ = model(images, *masks)
    by_hand = PIXELS.pixels(images, masks, model.mask_token.detach())
    nothing = masks._replace(kind=torch.zeros_like(masks.kind), source=torch.arange(16).expand(2, -1))
    torch.testing.assert_close(model(by_hand, *nothing)[0], found, rtol=0, atol=0)
    assert torch.equal(masked, (masks.kind.gather(1, masks.predicted) == MASKED).float())


def test_its_picture_is_what_the_encoder_is_given_and_that_of_embeddings_is_grey_where_masked():
    masks, images, token = masks_of(Masking((4, 4), RandomMask(), PIXELS)), random_images(), torch.randn(3, 4, 4) * 2
    assert torch.equal(PIXELS.picture(images, masks, 4, token), PIXELS.pixels(images, masks, token).clamp(0, 255))
    assert (PIXELS.caption, ReplaceCorruption(mask=1, swap=0, keep=0).caption) == (
        "hidden patches show 50% [mask], 25% another patch of the image, 25% themselves; [mask] is drawn as it is learned",
        "hidden patches show 100% [mask]",
    )
    shown = patchify(ReplaceCorruption().picture(images, masks, 4, torch.zeros(8)), 4)
    patches = patchify(images, 4)
    for image in range(2):
        for place in range(16):
            masked = masks.kind[image, place] == MASKED
            expected = torch.full((3, 4, 4), 128.0) if masked else patches[image, masks.source[image, place]]
            assert torch.equal(shown[image, place], expected)


# ------------------------------------------------------------------------------------------------------------------------- without colour


def test_hidden_patches_are_as_grey_as_pillow_makes_them_and_visible_ones_untouched():
    corruption = GreyCorruption()
    images, masks = random_images(2, 12, 20), masks_of(Masking((3, 5), RandomMask(), corruption))
    found = corruption.pixels(images, masks, None)
    assert found.shape == images.shape and torch.equal(corruption.picture(images, masks, 4, None), found)
    for image in range(2):
        pillow = np.asarray(Image.fromarray(images[image].byte().permute(1, 2, 0).numpy()).convert("L"), dtype=np.float32)
        grey = patchify(torch.from_numpy(pillow).expand(1, 3, -1, -1).contiguous(), 4)[0]
        patches, clean = patchify(found, 4)[image], patchify(images, 4)[image]
        for place in range(15):
            if masks.kind[image, place] == MASKED:
                torch.testing.assert_close(patches[place], grey[place], atol=0.51, rtol=0)  # whole levels there
                assert torch.equal(patches[place, 0], patches[place, 1]) and torch.equal(patches[place, 0], patches[place, 2])
            else:
                assert torch.equal(patches[place], clean[place])


@torch.no_grad()
def test_what_is_hidden_by_grey_cannot_influence_a_prediction_but_brightness_can():
    model, masking = model_of("target.name=chroma", "corruption.name=grey", "mask.name=all")
    images, masks = random_images(), masks_of(masking)
    grey = GreyCorruption().pixels(images, masks, None)
    assert not torch.equal(grey, images)
    torch.testing.assert_close(model(grey, *masks)[0], model(images, *masks)[0], atol=2e-5, rtol=0)  # the weights sum to one up to rounding
    assert not torch.allclose(model(images * 0.9, *masks)[0], model(images, *masks)[0], atol=1e-3)


# --------------------------------------------------------------------------------------------------------------------------------- turned


def test_images_are_turned_whole_as_their_mask_says():
    corruption = RotateCorruption()
    masks, images = masks_of(Masking((4, 4), TurnMask(), corruption), batch=12), random_images(12)
    found = corruption.pixels(images, masks, None)
    assert torch.equal(corruption.picture(images, masks, 4, None), found)
    seen = set()
    for image in range(12):
        turned = [torch.rot90(images[image], turn, (1, 2)) for turn in range(4)]
        (turn,) = (turn for turn in range(4) if torch.equal(found[image], turned[turn]))
        seen.add(turn)
        # Each patch lies where the mask says that it came from, and is itself turned.
        patches, clean = patchify(found, 4)[image], patchify(images, 4)[image]
        for place in range(16):
            assert torch.equal(patches[place], torch.rot90(clean[masks.source[image, place]], turn, (1, 2)))
    assert seen == {0, 1, 2, 3}
