"""Bugs that the tests of a recipe's choices must find."""

from tests.mutations import Plant, Row

HOG = "tests/recipe/test_hog.py::"

ROWS = [
    # Block-wise masks.
    Plant(
        "hidden patches of a block mask come in reading order", "mpp.recipe.masks.block:BlockMask.draw",
        "lambda self, *words: Places(np.sort(real(self, *words).hidden))",
        "tests/recipe/test_block_mask.py::test_masked_swapped_and_kept_patches_lie_anywhere_in_the_blocks",
    ),
    Plant(
        "all block masks of a batch are the first one's", "mpp.recipe.masks.block:BlockMask.draw",
        "lambda self, grid, corruption, draws: Places(np.repeat(real(self, grid, corruption, draws).hidden[:1], len(draws), axis=0))",
        "tests/recipe/test_block_mask.py::test_a_batch_has_the_masks_of_its_samples_one_by_one",
    ),
    Plant(
        "what BEiT leaves short is filled in reading order", "mpp.recipe.masks.block:BlockMask.blocks",
        "lambda self, grid, count, draws: real(self, grid, count - 1, draws) | (np.arange(grid[0] * grid[1]) == "
        "np.flatnonzero(~real(self, grid, count - 1, draws))[0])",
        "tests/recipe/test_block_mask.py::test_blocks_are_beits_on_any_grid",
    ),
    Row(
        "shapes of blocks are uniform, so more are high than wide", "mpp/recipe/masks/block.py",
        "math.exp(low + (high - low) * next(numbers))",
        "self.aspect[0] + (self.aspect[1] - self.aspect[0]) * next(numbers)",
        "tests/recipe/test_block_mask.py::test_blocks_are_beits_on_any_grid",
    ),
    Row(
        "a block's row is a square grid's", "mpp/recipe/masks/block.py", "(top * columns + start)", "(top * rows + start)",
        "tests/recipe/test_block_mask.py::test_blocks_are_beits_on_any_grid",
    ),
    # Histograms of oriented gradients.
    Plant(
        "opposite gradients are two orientations", "mpp.recipe.targets.hog:orientation",
        "lambda right, down, bins: (torch.atan2(right, down) * (bins / math.pi)).long() % bins",
        HOG + "test_brightness_contrast_and_inversion_of_a_channel_change_nothing",
    ),
    Plant(
        "bins are counted from the horizontal", "mpp.recipe.targets.hog:orientation", "lambda right, down, bins: real(down, right, bins)",
        HOG + "test_a_ramp_votes_for_the_bin_of_its_direction_and_for_no_other",
    ),
    Plant(
        "gradients stop at the border of a patch", "mpp.recipe.targets.hog:Hog.__call__",
        "lambda self, images, predicted, teacher=None: real(self, gather_patches(patchify(images, self.patch_size), predicted).flatten(0, 1), "
        "predicted.new_zeros(predicted.numel(), 1)).unflatten(0, predicted.shape).squeeze(2)",
        HOG + "test_a_gradient_reaches_one_pixel_into_the_next_patch_and_no_farther",
    ),
    Plant(
        "borders are repeated and not mirrored", "mpp.recipe.targets.hog:gradients",
        "lambda images: tuple(slope[..., 1:-1, 1:-1] for slope in real(F.pad(images, (1, 1, 1, 1), mode='replicate')))",
        HOG + "test_goals_are_those_of_plain_loops",
    ),
    Plant(
        "a patch's histograms share one length", "mpp.recipe.targets.hog:F.normalize", "lambda votes, dim: real(votes.flatten(-2), dim=-1).view(votes.shape)",
        HOG + "test_every_histogram_is_of_unit_length_and_not_negative",
    ),
    Plant(
        "a stroke runs along the gradient", "mpp.recipe.targets.hog:strokes", "lambda bins, side: real(bins, side).transpose(-1, -2)",
        HOG + "test_a_stroke_is_itself_an_edge_of_its_bin",
    ),
]  # fmt: skip
