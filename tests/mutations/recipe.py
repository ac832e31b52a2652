"""Bugs that the tests of a recipe's choices must find."""

from tests.mutations import Plant, Row

ROWS = [
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
]  # fmt: skip
