"""Masks: what holds for all of them, and each against its source written down again in plain loops."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mpp.base.errors import ConfigError
from mpp.base.rng import MASK, Draws, below_of
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.corruptions import DropCorruption, GreyCorruption, ReplaceCorruption, RotateCorruption
from mpp.recipe.masking import Masking
from mpp.recipe.masks import AllMask, BlockMask, InverseBlockMask, MultiBlockMask, RandomMask, TurnMask
from mpp.recipe.places import MASKED, VISIBLE, Masks
from tests.masks import draw

seeds = st.integers(0, 2**63 - 1)
shares = st.integers(5, 95).map(lambda percent: percent / 100)
DROP = DropCorruption()
ROOT = Path(__file__).parents[2]
GOLDEN = {
    "inverse_block": ["########.#", "##########", "...#####..", "...#####..", "...#####..", "...#####.."],
    "multi_block": [".o...o222.", "o11ooo222.", ".11ooo222.", "o11ooo000o", "o11.......", ".1..o.oo.."],
}


@st.composite
def maskings(draw):
    """Any mask that exists on a grid of any shape, with a corruption that it goes with."""
    grid = draw(st.integers(1, 12)), draw(st.integers(2, 12))
    ratio, predicted = draw(shares), draw(st.none() | shares)
    low = draw(st.floats(0.2, 2))
    sides = low, low * draw(st.floats(1, 5))
    mask = draw(
        st.sampled_from(
            [
                RandomMask(ratio=ratio, unit=draw(st.integers(1, 4)), predicted=predicted),
                BlockMask(ratio=ratio, min_patches=1, aspect=sides, predicted=predicted),
                InverseBlockMask(ratio=ratio, aspect=sides, roll=draw(st.booleans()), predicted=predicted),
                MultiBlockMask(blocks=draw(st.integers(1, 4)), block=draw(st.floats(0.05, 0.3)), visible=draw(st.floats(0.05, 0.5)), aspect=sides),
                AllMask(predicted=predicted),
                TurnMask(),
            ]
        )
    )  # fmt: skip
    fitting = {"all": [GreyCorruption()], "turn": [RotateCorruption()]}
    corruption = draw(st.sampled_from(fitting.get(mask.name, [ReplaceCorruption(), DROP, GreyCorruption()])))
    try:
        mask.fits(grid, corruption)
    except ValueError:
        assume(False)
    return Masking(grid, mask, corruption)


def drawn(masking: Masking, samples: int, seed: int = 0) -> Masks[np.ndarray]:
    return masking.draw_all([Draws(seed, MASK, 0, sample) for sample in range(samples)])


def hidden_of(masking: Masking, samples: int, seed: int = 0) -> np.ndarray:
    """bool [B, rows, columns]."""
    return (drawn(masking, samples, seed).kind != VISIBLE).reshape(-1, *masking.grid)


def seen_in(hidden: np.ndarray) -> list[str]:
    return ["".join(".#"[int(patch)] for patch in row) for row in hidden]


def is_uniform(counts: np.ndarray, trials: int, share: float) -> bool:
    """Whether each of these counts is a binomial's: beyond 4.5 deviations lies one of 150,000."""
    return bool(np.abs(counts - trials * share).max() < 4.5 * (trials * share * (1 - share)) ** 0.5)


def grown(first: tuple[int, int], size: tuple[int, int], count: int, grid: tuple[int, int]) -> set[int]:
    """The first so many patches of a rectangle, row by row; what leaves the grid comes in again on the other side."""
    found: set[int] = set()
    for row in range(size[0]):
        for column in range(size[1]):
            if len(found) < count:
                found.add((first[0] + row) % grid[0] * grid[1] + (first[1] + column) % grid[1])
    assert len(found) == count
    return found


# --------------------------------------------------------------------------------------------------------------------------- of all masks


@given(maskings(), seeds)
def test_counts_of_every_mask_follow_from_the_config_and_its_parts_fit_together(masking, seed):
    patches, counts = masking.patches, masking.counts
    for mask in (draw(masking, Draws(seed, MASK, epoch, 1)) for epoch in range(2)):
        hidden = np.flatnonzero(mask.kind != VISIBLE)
        assert (len(hidden), int((mask.kind == MASKED).sum()), len(mask.visible), len(mask.predicted)) == tuple(counts)
        assert sorted([*hidden, *mask.visible]) == list(range(patches))
        assert mask.visible.tolist() == sorted(mask.visible)
        assert set(mask.predicted) <= set(hidden)
        groups = mask.predicted.reshape(masking.mask.groups, -1)
        assert all(len(set(group)) == len(group) for group in groups.tolist())
        assert all(group == sorted(group) for group in groups.tolist())
    assert counts.predicted and (counts.visible or masking.corruption.shows_all)
    predicted = getattr(masking.mask, "predicted", None)
    if predicted is not None:
        assert counts.predicted == math.floor(patches * predicted + 0.5)
    if isinstance(masking.mask, (BlockMask, InverseBlockMask)):
        assert counts.hidden == masking.corruption.hidden(patches, masking.mask.ratio)


@given(maskings(), seeds)
def test_a_batch_has_the_masks_of_its_samples_one_by_one_in_any_company(masking, seed):
    keys = [(seed, MASK, 1, sample) for sample in range(4)]
    together = masking.draw_all([Draws(*key) for key in keys])
    backwards = masking.draw_all([Draws(*key) for key in keys[::-1]])
    for sample, key in enumerate(keys):
        alone = draw(masking, Draws(*key))
        for name in Masks._fields:
            assert getattr(together, name).dtype == np.int64
            assert (getattr(together, name)[sample] == getattr(alone, name)).all()
            assert (getattr(backwards, name)[3 - sample] == getattr(alone, name)).all()


MANY = [
    RandomMask(unit=2), RandomMask(predicted=0.25), BlockMask(), InverseBlockMask(), InverseBlockMask(roll=False, predicted=0.1), MultiBlockMask(),
]  # fmt: skip


@pytest.mark.parametrize("mask", MANY, ids=lambda mask: mask.name)
def test_every_sample_and_epoch_and_seed_has_a_mask_of_its_own(mask):
    masking = Masking((8, 10), mask, DROP)
    for keys in ([(0, MASK, 0, i) for i in range(20)], [(0, MASK, i, 0) for i in range(20)], [(i, MASK, 0, 0) for i in range(20)]):
        masks = masking.draw_all([Draws(*key) for key in keys])
        assert (
            len({(kind.tobytes(), places.tobytes()) for kind, places in zip(masks.kind, masks.predicted, strict=True)}) > 16
        )  # an inverse block has some 400 forms


# -------------------------------------------------------------------------------------------------------------------------------- in units


@given(seeds, st.sampled_from([(2, (4, 6)), (3, (6, 3)), (4, (8, 12)), (1, (3, 5)), (2, (14, 14))]), shares)
def test_units_are_hidden_whole_and_as_simmims_generator_draws_them(seed, shape, ratio):
    unit, grid = shape
    masking = Masking(grid, RandomMask(ratio=ratio, unit=unit), ReplaceCorruption())
    high, wide = grid[0] // unit, grid[1] // unit
    count = min(high * wide - 1, max(1, math.floor(high * wide * ratio + 0.5)))
    chosen = set(Draws(seed, MASK).permutation(high * wide)[:count].tolist())
    kind = draw(masking, Draws(seed, MASK)).kind.reshape(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert (kind[row, column] != VISIBLE) == (row // unit * wide + column // unit in chosen)


def test_units_are_equally_often_hidden_and_their_patches_equally_often_masked_swapped_and_kept():
    masking, samples = Masking((4, 6), RandomMask(ratio=0.5, unit=2), ReplaceCorruption(mask=0.5, swap=0.25, keep=0.25)), 4000
    kind = drawn(masking, samples).kind
    assert masking.counts.hidden == 3 * 4
    for number, share in enumerate([0.5, 0.25, 0.125, 0.125]):
        assert is_uniform((kind == number).sum(0), samples, share)


@pytest.mark.parametrize(
    ("grid", "unit", "ratio", "corruption", "hidden"),
    [
        ((14, 14), 2, 0.6122, ReplaceCorruption(), 30 * 4),  # SimMIM's code: ceil(0.6 x 49) units
        ((16, 16), 4, 0.75, DROP, 12 * 16),  # Pixio: 16 units, 4 kept
        ((16, 16), 2, 0.75, DROP, 48 * 4),
        ((14, 14), 1, 0.75, DROP, 147),
    ],
)
def test_units_of_known_recipes(grid, unit, ratio, corruption, hidden):
    masking = Masking(grid, RandomMask(ratio=ratio, unit=unit), corruption)
    assert masking.counts.hidden == masking.counts.predicted == hidden


# -------------------------------------------------------------------------------------------------------------------- a part is predicted


@pytest.mark.parametrize("mask", [RandomMask(ratio=0.75, predicted=0.25), InverseBlockMask(ratio=0.75, predicted=0.25), BlockMask(ratio=0.75, min_patches=2, predicted=0.25)], ids=lambda mask: mask.name)  # fmt: skip
def test_the_predicted_patches_are_any_of_the_hidden_ones(mask):
    """Each of the hidden ones as likely as another, wherever it lies among them, and each pair of neighbours too."""
    masking, samples = Masking((4, 6), mask, DROP), 4000
    masks = drawn(masking, samples)
    hidden, predicted = masking.counts.hidden, masking.counts.predicted
    assert (hidden, predicted) == (18, 6)
    ranks = np.cumsum(masks.kind != VISIBLE, axis=1) - 1  # of a hidden patch among them, in reading order
    chosen = np.zeros((samples, hidden), bool)
    np.put_along_axis(chosen, np.take_along_axis(ranks, masks.predicted, axis=1), True, axis=1)
    assert is_uniform(chosen.sum(0), samples, predicted / hidden)
    assert is_uniform((chosen[:, 1:] & chosen[:, :-1]).sum(0), samples, predicted * (predicted - 1) / (hidden * (hidden - 1)))


def test_which_are_predicted_says_nothing_of_which_are_swapped():
    masking, samples = Masking((4, 6), RandomMask(ratio=0.5, predicted=0.25), ReplaceCorruption(mask=0.5, swap=0.25, keep=0.25)), 3000
    masks = drawn(masking, samples)
    kinds = np.take_along_axis(masks.kind, masks.predicted, axis=1)
    for kind, share in ((1, 0.5), (2, 0.25), (3, 0.25)):
        assert abs((kinds == kind).mean() - share) < 4.5 * (share * (1 - share) / kinds.size) ** 0.5


def test_capis_numbers():
    masking = Masking((16, 16), InverseBlockMask(predicted=0.03125), DROP)
    assert tuple(masking.counts) == (166, 166, 90, 8)  # int(256 x .65), int(166 x .05)
    assert Masking((16, 16), InverseBlockMask(), ReplaceCorruption()).counts.hidden == 166


# ---------------------------------------------------------------------------------------------------------------------------- inverse block


def capis_own(mask: InverseBlockMask, grid: tuple[int, int], count: int, numbers: list[float]) -> set[int]:
    """The authors' BlockMasking: what stays visible.  Its place before the roll makes no difference behind it."""
    rows, columns = grid
    logs = [math.log(aspect) for aspect in mask.aspect]
    least, most = math.log(count / columns**2), math.log(rows**2 / count)
    low, high = max(logs[0], least), min(logs[1], most)
    if low > high:  # ours: no such shape fits, so the nearest that does
        low = high = least if logs[1] < least else most
    aspect = math.exp(low + (high - low) * numbers[0])
    size = math.ceil(math.sqrt(count * aspect) - 1e-9), math.ceil(math.sqrt(count / aspect) - 1e-9)
    assert size[0] <= rows and size[1] <= columns and size[0] * size[1] >= count
    if mask.roll:
        return grown((int(numbers[1] * rows), int(numbers[2] * columns)), size, count, grid)
    free = rows - math.ceil(count / size[1]), columns - size[1]
    return grown((int(numbers[1] * (free[0] + 1)), int(numbers[2] * (free[1] + 1))), size, count, grid)


@given(st.tuples(st.integers(1, 12), st.integers(2, 12)), shares, st.floats(0.1, 3), st.floats(1, 8), st.booleans(), seeds)
def test_the_visible_block_is_capis_on_any_grid(grid, ratio, low, span, roll, seed):
    masking = Masking(grid, InverseBlockMask(ratio=ratio, aspect=(low, low * span), roll=roll), DROP)
    numbers = Draws(seed, MASK)
    numbers.bits(masking.patches)  # the order of the hidden ones
    expected = capis_own(masking.mask, grid, masking.counts.visible, numbers.uniform(3).tolist())
    assert set(draw(masking, Draws(seed, MASK)).visible.tolist()) == expected


def test_with_the_roll_all_places_are_hidden_equally_often_and_without_it_the_border_more():
    samples = 4000
    rolled = hidden_of(Masking((5, 7), InverseBlockMask(ratio=0.65), DROP), samples)
    assert is_uniform(rolled.sum(0), samples, 23 / 35)
    still = hidden_of(Masking((5, 7), InverseBlockMask(ratio=0.65, roll=False), DROP), samples).mean(0)
    assert still[0, 0] > 0.8 > 0.5 > still[2, 3]


def test_without_the_roll_the_visible_patches_are_one_rectangle_whose_last_row_is_cut():
    for hidden in hidden_of(Masking((9, 11), InverseBlockMask(ratio=0.7, roll=False), DROP), 100):
        rows, columns = np.nonzero(~hidden)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert not hidden[top:bottom, left : right + 1].any()
        last = ~hidden[bottom, left : right + 1]
        assert last.tolist() == sorted(last.tolist(), reverse=True)
        assert 0.4 < (bottom - top + 1) / (right - left + 1) < 2.3  # CAPI's .5 to 2, as nearly as whole patches allow


def test_an_inverse_block_is_golden():
    assert seen_in(hidden_of(Masking((6, 10), InverseBlockMask(), DROP), 1, seed=7)[0]) == GOLDEN["inverse_block"]


# ------------------------------------------------------------------------------------------------------------------------------ multi-block


def ijepas_own(mask: MultiBlockMask, grid: tuple[int, int], order: list[int], numbers: list[float]) -> tuple[list[set[int]], set[int]]:
    """Target blocks, and what the encoder sees, as multi_block.py's head says it."""
    rows, columns = grid
    patches = rows * columns
    count, seen = math.floor(patches * mask.block + 0.5), math.floor(patches * mask.visible + 0.5)
    targets = []
    for block in range(mask.blocks):
        shape, down, across = numbers[3 * block : 3 * block + 3]
        aspect = mask.aspect[0] + (mask.aspect[1] - mask.aspect[0]) * shape
        width = round(math.sqrt(count / aspect))
        while math.ceil(count / max(width, 1)) > rows or width < 1:
            width += 1
        width = min(width, columns)
        height = math.ceil(count / width)
        targets.append(grown((int(down * (rows - height + 1)), int(across * (columns - width + 1))), (height, width), count, grid))
    size, down, across = numbers[3 * mask.blocks :]
    share = mask.context[0] + (mask.context[1] - mask.context[0]) * size
    height, width = max(1, round(rows * math.sqrt(share))), max(1, round(columns * math.sqrt(share)))
    rectangle = grown((int(down * (rows - height + 1)), int(across * (columns - width + 1))), (height, width), height * width, grid)
    free = [patch for patch in order if not any(patch in target for target in targets)]
    inside, outside = [patch for patch in free if patch in rectangle], [patch for patch in free if patch not in rectangle]
    return targets, set((inside + outside)[:seen])


@given(
    st.tuples(st.integers(1, 14), st.integers(2, 14)), st.integers(1, 4), st.floats(0.05, 0.3), st.floats(0.05, 0.6), st.floats(0.3, 1),
    st.floats(0.3, 2), st.floats(1, 4), seeds,
)  # fmt: skip
def test_targets_and_context_are_ijepas_on_any_grid(grid, blocks, block, visible, context, low, span, seed):
    mask = MultiBlockMask(blocks=blocks, block=block, visible=visible, context=(context, 1.0), aspect=(low, low * span))
    try:
        mask.fits(grid, DROP)
    except ValueError:
        assume(False)
    bits = Draws(seed, MASK)
    order, numbers = bits.permutation(grid[0] * grid[1]).tolist(), bits.uniform(3 * blocks + 3).tolist()
    targets, seen = ijepas_own(mask, grid, order, numbers)
    found = draw(Masking(grid, mask, DROP), Draws(seed, MASK))
    assert [set(each) for each in found.predicted.reshape(blocks, -1).tolist()] == targets
    assert set(found.visible.tolist()) == seen
    assert not seen & set.union(*targets)


def test_each_target_is_a_rectangle_whose_last_row_is_cut_and_blocks_may_overlap():
    masking = Masking((12, 14), MultiBlockMask(), DROP)
    masks, overlaps, shapes = drawn(masking, 200), 0, set()
    for predicted in masks.predicted.reshape(200, 4, -1):
        overlaps += len(np.unique(predicted)) < predicted.size
        for block in predicted:
            rows, columns = np.divmod(block, 14)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert block.tolist() == [
                (rows.min() + i // width) * 14 + columns.min() + i % width for i in range(round(12 * 14 * 0.175))
            ]  # fmt: skip
            shapes.add((height, width))
            assert 0.6 < len(block) / width**2 < 1.9  # I-JEPA's .75 to 1.5, as nearly as whole patches allow
    assert overlaps > 150 and len(shapes) > 2
    assert tuple(masking.counts) == (168 - 50, 168 - 50, 50, 4 * 29)


def test_a_target_block_lies_anywhere_on_the_grid_equally_often():
    masking, samples = Masking((6, 7), MultiBlockMask(blocks=2, block=9 / 42, aspect=(1.0, 1.0), visible=0.3), DROP), 3000
    first = drawn(masking, samples).predicted.reshape(-1, 9)[:, 0]
    rows, columns = np.divmod(first, 7)
    assert rows.max() == 3 and columns.max() == 4
    assert is_uniform(np.bincount(rows * 5 + columns, minlength=20), 2 * samples, 1 / 20)


def test_the_context_is_kept_to_its_rectangle_where_enough_of_it_is_left():
    mask = MultiBlockMask(blocks=1, block=0.1, context=(0.25, 0.25), visible=0.1)
    for kind in drawn(Masking((12, 12), mask, DROP), 50).kind.reshape(-1, 12, 12):
        rows, columns = np.nonzero(kind == VISIBLE)
        assert np.ptp(rows) < 6 and np.ptp(columns) < 6


def test_a_multi_block_mask_is_golden():
    mask = draw(Masking((6, 10), MultiBlockMask(blocks=3, block=0.15), DROP), Draws(7, MASK, 0, 0))
    shown = np.full(60, ".")
    shown[mask.visible] = "o"
    for number, block in enumerate(mask.predicted.reshape(3, -1)):
        shown[block] = str(number)
    assert ["".join(row) for row in shown.reshape(6, 10)] == GOLDEN["multi_block"]


# ------------------------------------------------------------------------------------------------------------------------------ all, turned


def test_all_hides_every_patch_and_predicts_those_it_is_told():
    assert tuple(Masking((3, 5), AllMask(), GreyCorruption()).counts) == (15, 15, 0, 15)
    masking, samples = Masking((3, 4), AllMask(predicted=0.25), GreyCorruption()), 3000
    assert tuple(masking.counts) == (12, 12, 0, 3)
    assert is_uniform(np.bincount(drawn(masking, samples).predicted.flatten(), minlength=12), samples, 0.25)


def test_a_turn_moves_every_patch_as_the_image_turns_and_all_four_are_equally_likely():
    masking, samples = Masking((3, 3), TurnMask(), RotateCorruption()), 2000
    masks = drawn(masking, samples)
    image = np.arange(9).reshape(3, 3)
    by_turn = [np.rot90(image, turn).flatten().tolist() for turn in range(4)]
    assert by_turn[1] == [2, 5, 8, 1, 4, 7, 0, 3, 6]  # the right column becomes the upper row: counter-clockwise
    turned = [by_turn.index(source) for source in masks.source.tolist()]
    assert is_uniform(np.bincount(turned, minlength=4), samples, 0.25)
    assert not masks.predicted.any() and tuple(masking.counts) == (9, 9, 0, 1)
    assert turned == [below_of(Draws(0, MASK, 0, sample).bits(1), 4)[0] for sample in range(samples)]


def test_a_turn_agrees_with_an_image_library():
    """Pillow turns counter-clockwise too."""
    masking = Masking((4, 4), TurnMask(), RotateCorruption())
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    for source in drawn(masking, 20).source:
        assert source.tolist() in [np.asarray(image.rotate(90 * turn)).flatten().tolist() for turn in range(4)]


# --------------------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("mask.unit=3", ["mask.unit=3", "must divide the 14 x 14 grid", "sides of 1, 2, 7, 14"]),
        ("mask.unit=14", ["there is only one", "units of 14 x 14 patches", "smaller mask.unit"]),
        ("model.image_size=16", ["there is only one", "larger model.image_size"]),
        ("mask.unit=7 mask.ratio=0.9", ["mask.ratio=0.9 of 4 units of 7 x 7 patches", "some visible", "between 0.25 and 0.75"]),
        ("mask.predicted=0.6", ["mask.predicted=0.6 of 196 patches", "the 98 hidden ones", "between 0.0052 and 0.5, or null"]),
        ("mask.predicted=0.001", ["mask.predicted=0.001", "at least one of the 98 hidden ones"]),
        ("mask.name=inverse_block mask.ratio=0.999", ["mask.ratio=0.999 of 196 patches", "some visible", "between 0.0052 and 0.9948"]),
        ("mask.name=inverse_block mask.predicted=0.7", ["mask.predicted=0.7", "the 127 hidden ones", "between 0.0052 and 0.6479"]),
        ("mask.name=block mask.predicted=0.5", ["mask.predicted=0.5", "the 78 hidden ones"]),
        ("mask.name=inverse_block mask.aspect=[2,1]", ["mask.aspect: [2.0, 1.0]", "0 < low <= high"]),
        ("mask.name=multi_block mask.context=[0.5,1.5]", ["mask.context: [0.5, 1.5]", "two shares 0 < low <= high <= 1"]),
        ("mask.name=multi_block mask.visible=0.4", ["mask.visible=0.4", "mask.blocks=4", "mask.block=0.175", "78 + 4 x 34 are 18 too many", "lower one"]),
        ("mask.name=multi_block mask.block=0.001", ["mask.block=0.001", "at least one each", "take 0.0052 or more"]),
        ("mask.name=all", ["mask.name=all", "corruption.name=replace", "take corruption.name=grey"]),
        ("mask.name=all corruption.name=drop decoder.name=transformer", ["mask.name=all", "corruption.name=drop", "take corruption.name=grey"]),
        ("mask.name=all corruption.name=grey mask.predicted=0.001", ["mask.predicted=0.001 of 196 patches is none", "between 0.0052 and 1"]),
        ("mask.name=all corruption.name=rotate", ["corruption.name=rotate", "not mask.name=all", "take mask.name=turn"]),
        ("mask.name=turn", ["mask.name=turn", "corruption.name=replace does not", "take corruption.name=rotate"]),
        ("mask.name=turn corruption.name=rotate model.image_size=16", ["mask.name=turn", "2 x 2 patches or more, not 1 x 1"]),
        ("corruption.name=rotate", ["corruption.name=rotate", "not mask.name=random", "take mask.name=turn"]),
        ("target.name=rotation", ["target.name=rotation", "mask.name=random turns none", "take mask.name=turn"]),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_are_refused_with_value_rule_and_remedy(words, parts):
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, None, words.split())
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value


def test_a_grid_that_is_not_square_cannot_be_turned():
    with pytest.raises(ValueError, match=r"needs a square grid of 2 x 2 patches or more, not 3 x 4"):
        TurnMask().fits((3, 4), RotateCorruption())


@pytest.mark.parametrize("mask", [RandomMask(ratio=0.001), RandomMask(predicted=0.9), RandomMask(unit=2, ratio=0.99), InverseBlockMask(predicted=0.9)], ids=str)  # fmt: skip
def test_the_shares_that_a_refusal_names_are_taken(mask):
    """On grids of many sizes: what the remedy says, at both ends, is a mask."""
    for grid in ((4, 6), (6, 10), (14, 14), (16, 18), (30, 22)):
        try:
            mask.fits(grid, ReplaceCorruption())
        except ValueError as refusal:
            key = "predicted" if "mask.predicted" in str(refusal) else "ratio"
            low, high = (float(word) for word in str(refusal).split("between ")[1].split(",")[0].split(" and "))
            for share in (low, high):
                mask.model_copy(update={key: share}).fits(grid, ReplaceCorruption())


# -------------------------------------------------------------------------------------------------------------------------- their picture


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_masks", ROOT / "benchmarks" / "draw_masks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_page_is_that_of_the_program_and_has_every_mask_that_hides(drawing, tmp_path):
    assert drawing.main([str(tmp_path / "masks.png")]) == 0
    found, shown = (np.asarray(Image.open(path).convert("RGB")) for path in (tmp_path / "masks.png", ROOT / "docs" / "masks.png"))
    assert np.array_equal(found, shown), "run: python benchmarks/draw_masks.py docs/masks.png"
    drawn = {type(masking.mask) for _, _, masking in drawing.ROWS}
    assert drawn == {RandomMask, BlockMask, MultiBlockMask, InverseBlockMask}


def test_a_tile_colours_each_patch_by_what_becomes_of_it(drawing):
    colours = list(drawing.STATES.values())
    for _, _, masking in drawing.ROWS:
        masks = drawn(masking, 2)
        for sample in range(2):
            picture = drawing.tile(drawing.states_of(masks)[sample], masking.grid)
            step = (picture.width - 1) // masking.grid[1]
            for place in range(masking.patches):
                kind, times = masks.kind[sample, place], (masks.predicted[sample] == place).sum()
                name = {0: "seen", 1: "hidden, predicted", 2: "swapped, predicted", 3: "kept, predicted"}[int(kind)]
                name = name if kind == VISIBLE or times == 1 else "in several target blocks" if times else "hidden, not predicted"
                centre = (place % masking.grid[1] * step + step // 2, place // masking.grid[1] * step + step // 2)
                assert picture.getpixel(centre) == drawing.STATES[name]
    assert len({*colours}) == len(colours)
