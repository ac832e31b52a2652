"""Attention distance, entropy and rollout: closed forms, and a second computation by plain loops."""

import math

import pytest
import torch
from torch import Tensor

from mpp.model.attention_maps import Layer
from mpp.monitor.attention import Rollout, SpreadSums, asked, over_patches, places, rollout, uniform_distance
from mpp.monitor.attention_by_layer import LayerSpread, Patches, board_rows, fault


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def spread(attention: Tensor, grid, cell, prefix=0):
    sums = SpreadSums(grid, cell, prefix)
    sums.add(attention)
    return sums.found()


def test_attention_to_itself_goes_nowhere_and_knows_one_place():
    found = spread(torch.eye(12).expand(2, 3, 12, 12), (3, 4), (16, 16))
    assert found.distance.tolist() == [0, 0, 0] and found.entropy.tolist() == [0, 0, 0]


def test_attention_to_a_neighbour_goes_one_patch_in_its_direction():
    right = torch.zeros(6, 6)
    right[torch.arange(6), [1, 0, 3, 2, 5, 4]] = 1  # of a grid of 3 x 2: the other one in the row
    assert spread(right.expand(1, 1, 6, 6), (3, 2), (8, 32)).distance.item() == 32
    below = torch.zeros(6, 6)
    below[torch.arange(6), [2, 3, 0, 1, 2, 3]] = 1  # the row below, in the last row that above
    assert spread(below.expand(1, 1, 6, 6), (3, 2), (8, 32)).distance.item() == 8


@pytest.mark.parametrize(("grid", "cell"), [((1, 5), (16, 16)), ((3, 4), (16, 16)), ((4, 2), (14, 7))])
def test_looking_everywhere_alike_has_the_mean_distance_of_two_patches_and_all_of_the_entropy(grid, cell):
    count = grid[0] * grid[1]
    points = [(row * cell[0], column * cell[1]) for row in range(grid[0]) for column in range(grid[1])]
    mean = sum(math.dist(one, other) for one in points for other in points) / count**2
    found = spread(torch.full((2, 1, count, count), 1 / count), grid, cell)
    assert found.distance.item() == pytest.approx(mean) == pytest.approx(uniform_distance(grid, cell))
    assert found.entropy.item() == pytest.approx(math.log(count))


def test_on_a_line_it_is_the_closed_form():
    assert uniform_distance((1, 9), (4, 4)) == pytest.approx(4 * (9**2 - 1) / (3 * 9))  # the mean of |i - j|


def by_loops(attention: Tensor, grid, cell, prefix):
    """Distance and entropy of one head, and what it gives to prefix tokens, as the definitions say them."""
    rows, distances, entropies, given = attention.double(), [], [], []
    for image in rows:
        for query in range(grid[0] * grid[1]):
            row = image[prefix + query]
            given.append(float(row[:prefix].sum()))
            kept = [float(value) / float(row[prefix:].sum()) for value in row[prefix:]]
            here = divmod(query, grid[1])
            distances.append(
                sum(
                    weight * math.hypot(cell[0] * (key // grid[1] - here[0]), cell[1] * (key % grid[1] - here[1]))
                    for key, weight in enumerate(kept)
                )
            )
            entropies.append(-sum(weight * math.log(weight) for weight in kept))
    mean = lambda values: sum(values) / len(values)
    return mean(distances), mean(entropies), mean(given)


@pytest.mark.parametrize(("grid", "cell", "prefix"), [((3, 3), (16, 16), 0), ((2, 4), (8, 8), 1), ((3, 2), (14, 10), 5)])
def test_distance_entropy_and_share_of_prefix_tokens_are_those_of_plain_loops(grid, cell, prefix):
    count = prefix + grid[0] * grid[1]
    attention = probabilities(4, 2, count, count)
    sums = SpreadSums(grid, cell, prefix)
    for part in attention.split([1, 3]):
        sums.add(part)
    found = sums.found()
    for head in range(2):
        distance, entropy, given = by_loops(attention[:, head], grid, cell, prefix)
        assert found.distance[head].item() == pytest.approx(distance, rel=1e-5)
        assert found.entropy[head].item() == pytest.approx(entropy, rel=1e-5)
        assert found.to_prefix[head].item() == pytest.approx(given, abs=1e-6)


def test_a_head_that_gives_all_to_the_class_token_has_no_distance_and_one_row_of_it_does_not_count():
    attention = probabilities(1, 2, 5, 5)
    attention[:, 0] = torch.tensor([1.0, 0, 0, 0, 0])
    attention[:, 1, 2] = torch.tensor([1.0, 0, 0, 0, 0])  # one patch of the other head
    found = spread(attention, (2, 2), (4, 4), 1)
    assert math.isnan(found.distance[0]) and found.to_prefix[0] == 1
    kept, _ = over_patches(attention, 1)
    where = places((2, 2), (4, 4))
    rows = [(kept[0, 1, query] * torch.cdist(where[query : query + 1], where)[0]).sum() for query in (0, 2, 3)]
    assert found.distance[1].item() == pytest.approx(float(sum(rows)) / 3, rel=1e-5)


def test_bfloat16_rows_that_do_not_quite_sum_to_one_are_made_whole():
    attention = probabilities(2, 2, 10, 10)
    exact, rounded = (spread(each, (3, 3), (16, 16), 1) for each in (attention, attention.bfloat16()))
    assert torch.allclose(exact.distance, rounded.distance, rtol=5e-3) and torch.allclose(exact.to_prefix, rounded.to_prefix, atol=2e-3)


def test_rollout_of_two_blocks_is_the_product_worked_by_hand():
    first, second = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    # halves of the identity: [[.75, .25], [0, 1]] and [[.5, .5], [.5, .5]]
    expected = torch.tensor([[0.375, 0.625], [0.375, 0.625]])
    assert torch.allclose(rollout([first.expand(1, 3, 2, 2), second.expand(1, 3, 2, 2)])[0], expected)


def test_rollout_averages_heads_goes_from_the_first_block_to_the_last_and_keeps_rows_whole():
    blocks = [probabilities(2, 3, 6, 6, seed=seed) for seed in range(4)]
    expected = torch.eye(6).double().expand(2, 6, 6)
    for block in blocks:
        expected = (0.5 * torch.eye(6).double() + 0.5 * block.double().mean(1)) @ expected
    mixed = Rollout()
    for block in blocks:
        mixed.add(block)
    assert torch.allclose(mixed.found().double(), expected, atol=1e-6) and torch.allclose(mixed.found().sum(-1), torch.ones(2, 6))


def test_maps_ask_the_class_tokens_or_all_patches_and_show_patches_alone():
    attention = probabilities(1, 1, 7, 7)  # 2 class tokens, 1 register, 4 patches
    one, several, none = (asked(attention, 3, class_tokens)[0, 0] for class_tokens in (1, 2, 0))
    rows = attention[0, 0]
    assert torch.allclose(one, rows[0, 3:] / rows[0, 3:].sum())
    assert torch.allclose(several, rows[:2, 3:].sum(0) / rows[:2, 3:].sum())
    assert torch.allclose(none, rows[3:, 3:].sum(0) / rows[3:, 3:].sum())


def test_only_probabilities_between_known_places_are_told():
    patches, layer = Patches((2, 2), (4.0, 4.0), 1, 1), Layer("blocks.0.attn", "block 1")
    assert fault(layer, probabilities(3, 2, 5, 5), 3, patches) == ""
    assert "not between all patches" in fault(layer, probabilities(3, 2, 6, 6), 3, patches)
    assert "not between all patches" in fault(layer, probabilities(6, 2, 5, 5), 3, patches)  # windows of three images
    assert "no probabilities" in fault(layer, probabilities(3, 2, 5, 5) - probabilities(3, 2, 5, 5, seed=1), 3, patches)
    assert "no probabilities" in fault(layer, 0.5 * probabilities(3, 2, 5, 5), 3, patches)


def test_the_board_has_a_row_a_block_in_pixels_and_shares_and_their_means():
    found = [spread(torch.eye(4).expand(1, 2, 4, 4), (2, 2), (8, 8)), spread(torch.full((1, 2, 4, 4), 0.25), (2, 2), (8, 8))]
    uniform = uniform_distance((2, 2), (8, 8))
    rows = board_rows([LayerSpread(Layer(f"blocks.{i}.attn", ""), each, 4, uniform) for i, each in enumerate(found)])
    assert rows == pytest.approx(
        {
            "attention/distance/block_01": 0.0, "attention/distance/block_02": uniform, "attention/distance/mean": uniform / 2,
            "attention/entropy/block_01": 0.0, "attention/entropy/block_02": 1.0, "attention/entropy/mean": 0.5,
        }
    )  # fmt: skip
    assert board_rows([]) == {}
