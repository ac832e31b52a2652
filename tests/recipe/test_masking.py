from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.rng import MASK, Draws
from mpp.recipe.corruptions.drop import DropCorruption
from mpp.recipe.corruptions.replace import ReplaceCorruption, corrupt, largest_remainder
from mpp.recipe.masking import Masking
from mpp.recipe.masks import RandomMask
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE
from tests.masks import draw

seeds = st.integers(0, 2**63 - 1)
patches = st.integers(2, 260)
hundredths = st.integers(1, 99)


@st.composite
def mixes(draw):
    """(mask, swap, keep) in hundredths that sum to one hundred."""
    mask = draw(st.integers(0, 100))
    swap = draw(st.integers(0, 100 - mask))
    return mask, swap, 100 - mask - swap


def replacing(count: int, ratio: float = 0.5, mix: tuple[int, int, int] = (80, 10, 10)) -> Masking:
    mask, swap, keep = (share / 100 for share in mix)
    return Masking((1, count), RandomMask(ratio=ratio), ReplaceCorruption(mask=mask, swap=swap, keep=keep))


def dropping(count: int, ratio: float = 0.75) -> Masking:
    return Masking((1, count), RandomMask(ratio=ratio), DropCorruption())


def hamilton(total: int, shares: list[Fraction]) -> list[int]:
    """Largest remainder, in exact fractions."""
    counts = [int(total * share) for share in shares]
    while sum(counts) < total:
        counts[max(range(len(shares)), key=lambda i: (total * shares[i] - counts[i], -i))] += 1
    return counts


@given(st.integers(0, 10_000), mixes())
def test_largest_remainder_agrees_with_exact_fractions(total, mix):
    assert largest_remainder(total, [share / 100 for share in mix]) == hamilton(total, [Fraction(share, 100) for share in mix])


@pytest.mark.parametrize(
    ("total", "counts"), [(98, [78, 10, 10]), (100, [80, 10, 10]), (32, [26, 3, 3]), (5, [4, 1, 0]), (8, [6, 1, 1]), (1, [1, 0, 0])]
)
def test_the_papers_80_10_10_are_these_counts(total, counts):
    assert largest_remainder(total, [0.8, 0.1, 0.1]) == counts


@given(patches, hundredths, mixes(), seeds)
def test_counts_of_every_kind_are_exact(count, percent, mix, seed):
    masking = replacing(count, percent / 100, mix)
    hidden = min(count - 1, max(1, round(count * percent / 100)))
    kind = draw(masking, Draws(seed, MASK, 0, 1)).kind
    assert masking.counts[0] == hidden
    assert np.bincount(kind, minlength=4).tolist() == [count - hidden, *hamilton(hidden, [Fraction(share, 100) for share in mix])]


def test_half_of_the_papers_196_patches_are_corrupted():
    kind = draw(replacing(196), Draws(0, MASK)).kind
    assert np.bincount(kind, minlength=4).tolist() == [98, 78, 10, 10]
    assert (VISIBLE, MASKED, SWAPPED, KEPT) == (0, 1, 2, 3)


@given(patches, hundredths, mixes(), seeds)
def test_every_patch_that_is_not_visible_is_predicted(count, percent, mix, seed):
    mask = draw(replacing(count, percent / 100, mix), Draws(seed, MASK, 0, 1))
    assert mask.predicted.tolist() == [i for i in range(count) if mask.kind[i] != VISIBLE]
    assert mask.visible.tolist() == [i for i in range(count) if mask.kind[i] == VISIBLE]


@given(patches, hundredths, seeds)
def test_a_dropping_encoder_keeps_the_floor_of_what_is_left(count, percent, seed):
    masking = dropping(count, percent / 100)
    visible = max(1, count * (100 - percent) // 100)
    mask = draw(masking, Draws(seed, MASK))
    assert (len(mask.visible), len(mask.predicted), masking.counts[0]) == (visible, count - visible, count - visible)
    assert sorted([*mask.visible, *mask.predicted]) == list(range(count))
    assert (mask.kind[mask.visible] == VISIBLE).all()
    assert (mask.kind[mask.predicted] == MASKED).all()
    assert mask.source.tolist() == list(range(count))


@pytest.mark.parametrize(("count", "ratio", "visible"), [(196, 0.75, 49), (64, 0.75, 16), (10, 0.9, 1), (196, 0.6, 78), (256, 0.75, 64)])
def test_kept_patches_of_known_recipes(count, ratio, visible):
    assert len(draw(dropping(count, ratio), Draws(0, MASK)).visible) == visible


@given(patches, hundredths, mixes(), seeds)
def test_a_swapped_patch_shows_another_and_all_others_themselves(count, percent, mix, seed):
    mask = draw(replacing(count, percent / 100, mix), Draws(seed, MASK, 3, 1))
    own = mask.source == np.arange(count)
    assert not own[mask.kind == SWAPPED].any()
    assert own[mask.kind != SWAPPED].all()
    assert ((mask.source >= 0) & (mask.source < count)).all()


def test_the_source_of_a_swap_is_uniform_over_the_other_positions():
    count = 12
    masking = replacing(count, 0.5, (0, 100, 0))
    steps = np.zeros(count)
    for sample in range(3000):
        mask = draw(masking, Draws(5, MASK, 0, sample))
        swapped = np.flatnonzero(mask.kind == SWAPPED)
        steps += np.bincount((mask.source[swapped] - swapped) % count, minlength=count)
    assert steps[0] == 0
    expected = steps.sum() / (count - 1)
    assert ((steps[1:] - expected) ** 2 / expected).sum() < 35  # chi-square with 10 degrees of freedom: beyond it 1 in 10,000


def test_every_position_is_equally_often_of_each_kind():
    masking, found = replacing(10, 0.5, (60, 20, 20)), np.zeros((4, 10))
    for sample in range(4000):
        found[draw(masking, Draws(6, MASK, 0, sample)).kind, np.arange(10)] += 1
    for kind, share in enumerate([0.5, 0.3, 0.1, 0.1]):
        expected = 4000 * share
        assert np.abs(found[kind] - expected).max() < 4.5 * (expected * (1 - share)) ** 0.5


@given(seeds, st.integers(0, 100), st.integers(0, 10**6))
def test_a_mask_is_a_function_of_its_key(seed, epoch, sample):
    masking = replacing(64)
    first, again = draw(masking, Draws(seed, MASK, epoch, sample)), draw(masking, Draws(seed, MASK, epoch, sample))
    assert all((getattr(first, name) == getattr(again, name)).all() for name in ("kind", "source", "visible", "predicted"))
    for other in (Draws(seed ^ 1, MASK, epoch, sample), Draws(seed, MASK, epoch + 1, sample), Draws(seed, MASK, epoch, sample + 1)):
        assert (draw(masking, other).kind != first.kind).any()


def test_masks_are_golden():
    mask = draw(replacing(10, 0.6, (50, 30, 20)), Draws(7, MASK, 1, 2, 3))
    # The permutation begins 6 1 7 3 9 0 (tests/base/test_rng.py): three masked, two swapped, one kept.
    assert mask.kind.tolist() == [3, 1, 0, 2, 0, 0, 1, 1, 0, 2]
    assert mask.source.tolist() == [0, 1, 2, 5, 4, 5, 6, 7, 8, 4]


def test_corruption_happens_to_embeddings_by_kind():
    embeddings = torch.arange(2 * 4 * 3).float().view(2, 4, 3)
    kind = torch.tensor([[VISIBLE, MASKED, SWAPPED, KEPT], [MASKED, KEPT, VISIBLE, SWAPPED]])
    source = torch.tensor([[0, 1, 3, 3], [0, 1, 2, 1]])
    token = torch.tensor([-1.0, -2.0, -3.0])
    found = corrupt(embeddings, kind, source, token)
    expected = torch.stack(
        [
            torch.stack([embeddings[0, 0], token, embeddings[0, 3], embeddings[0, 3]]),
            torch.stack([token, embeddings[1, 1], embeddings[1, 2], embeddings[1, 1]]),
        ]
    )
    assert torch.equal(found, expected)


def test_a_swap_shows_the_clean_embedding_even_of_a_masked_or_swapped_source():
    embeddings = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    kind = torch.tensor([[MASKED, SWAPPED, SWAPPED]] * 2)
    found = corrupt(embeddings, kind, torch.tensor([[0, 0, 1]] * 2), torch.zeros(5))
    for image in range(2):
        assert torch.equal(found[image, 0], torch.zeros(5))
        assert torch.equal(found[image, 1], embeddings[image, 0])
        assert torch.equal(found[image, 2], embeddings[image, 1])


def test_the_mask_token_learns_from_masked_patches_and_embeddings_from_all_others():
    embeddings, token = torch.randn(1, 4, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    kind = torch.tensor([[VISIBLE, MASKED, MASKED, SWAPPED]])
    corrupt(embeddings, kind, torch.tensor([[0, 1, 2, 0]]), token).sum().backward()
    assert token.grad.tolist() == [2, 2, 2]
    assert embeddings.grad[0, :, 0].tolist() == [2, 0, 0, 0]  # the first is seen twice, the swapped one nowhere
