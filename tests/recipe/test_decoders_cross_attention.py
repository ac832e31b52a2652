"""The cross-attention predictor against its restatement query by query, and rotary positions against complex numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.model.rotary import edge_coordinates, grid_coordinates, rotate, turns, within
from mpp.model.tokens import sincos_positions
from mpp.recipe.decoders.base import Given
from mpp.recipe.decoders.cross_attention import CrossAttention, CrossAttentionDecoder
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.recipe.places import Masks
from tests.recipe.plain import linear, mlp, normed, read, unsettle, weights_of

GRID, WIDTH, OUTPUTS, B, K, DEPTH, HEADS = (3, 4), 6, 5, 2, 4, 2, 2
N = GRID[0] * GRID[1]
CONFIGS = Path(__file__).parents[2] / "configs"
MEMORIES, POSITIONS = ["last", "blocks"], ["sincos2d", "learned", "rotary"]


def made(prefix: int = 2, fused: bool = False, **knobs) -> CrossAttention:
    section = CrossAttentionDecoder(**{"depth": 2, "width": 16, "heads": HEADS} | knobs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = section.build(Given(WIDTH, OUTPUTS, prefix, GRID, DEPTH, 1, fused))
    unsettle(decoder)
    return decoder


def inputs(decoder: CrossAttention, prefix: int = 2, seen: int = K):
    """Tokens, or the list of them where it reads blocks; places; predicted ones, some of them seen and one asked for twice."""
    drawn = torch.Generator().manual_seed(1)
    maps = [torch.randn(B, prefix + seen, WIDTH, generator=drawn) for _ in range(DEPTH + 1)]
    places = torch.stack([torch.randperm(N, generator=drawn)[:seen].sort().values for _ in range(B)])
    predicted = torch.stack([torch.randperm(N, generator=drawn)[:5] for _ in range(B)])
    predicted[:, 4] = predicted[:, 0]
    return (maps if decoder.mixture else maps[0]), places, predicted


def turned(vector: np.ndarray, coordinates: tuple[float, float]) -> np.ndarray:
    """A query or key of all heads, each turned as complex numbers are: by 2 pi f x, f from 7 to 7e-4 in equal ratios, rows first."""
    out = []
    for head in np.split(vector, HEADS):
        pairs = head[: len(head) // 2] + 1j * head[len(head) // 2 :]
        axis = len(pairs) // 2
        frequencies = [7 * 10 ** (-4 * i / (axis - 1)) if axis > 1 else 7 for i in range(axis)]
        angles = [2 * math.pi * f * x for x in coordinates for f in frequencies]
        pairs = pairs * np.exp(1j * np.array(angles))
        out += [pairs.real, pairs.imag]
    return np.concatenate(out)


def by_hand(decoder: CrossAttention, tokens, places: torch.Tensor, queries: torch.Tensor, prefix: int, blocks: int):
    """What leaves so many blocks, for each query alone."""
    weights, rotary = weights_of(decoder), decoder.turned is not None
    maps = [each.double().numpy() for each in (tokens if decoder.mixture else [tokens])]
    at = [(n // GRID[1] / (GRID[0] - 1), n % GRID[1] / (GRID[1] - 1)) for n in range(N)]
    out = np.zeros((B, queries.shape[1], 16))
    for sample in range(B):
        seen = [at[n] for n in places[sample].tolist()]
        low, high = np.min(seen, axis=0), np.max(seen, axis=0)
        corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
        around = []
        for i in range(prefix):
            side, along = divmod(4 * i / prefix, 1)
            start, end = np.array(corners[int(side)]), np.array(corners[int(side) + 1])
            around.append(tuple(low + (start + along * (end - start)) * (high - low)))
        keys_at = [*around, *seen]
        for m, place in enumerate(queries[sample].tolist()):
            x = weights["mask_token"][0, 0] + (0 if rotary else weights["pos_embed"][0, place])
            for b in range(blocks):
                if decoder.mixture:
                    shares = weights["mixture.weights.weight"][b]
                    sums = sum(share * each[sample] for share, each in zip(shares, maps, strict=True))
                    memory = [normed(weights, f"mixture.norms.{b}", token) for token in sums]
                else:
                    memory = list(maps[0][sample])
                name = f"blocks.{b}"
                query = linear(weights, f"{name}.attention.q", normed(weights, f"{name}.norm1", x))
                keys, values = zip(*(np.split(linear(weights, f"{name}.attention.kv", token), 2) for token in memory), strict=True)
                if rotary:
                    query, keys = turned(query, at[place]), [turned(key, where) for key, where in zip(keys, keys_at, strict=True)]
                x = x + linear(weights, f"{name}.attention.proj", read(query, list(keys), list(values), HEADS))
                x = x + mlp(weights, f"{name}.mlp", normed(weights, f"{name}.norm2", x))
            out[sample, m] = x
    return out


def answers(decoder: CrossAttention, left: np.ndarray, head: bool = True) -> torch.Tensor:
    weights = weights_of(decoder)
    under = [[normed(weights, "norm", token) for token in row] for row in left]
    return torch.from_numpy(np.array([[linear(weights, "head", token) for token in row] for row in under] if head else under)).float()


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("prefix", "fused"), [(0, False), (1, True), (5, False)])
def test_predictions_are_those_of_each_query_alone_by_hand(memory, position, prefix, fused):
    decoder = made(prefix, fused, memory=memory, position=position, mlp_ratio=2.0)
    assert all(block.attention.fused_attn == fused for block in decoder.blocks) and decoder.blocks[0].mlp.fc1.out_features == 32
    tokens, places, predicted = inputs(decoder, prefix)
    expected = answers(decoder, by_hand(decoder, tokens, places, predicted, prefix, 2))
    torch.testing.assert_close(decoder(tokens, places, predicted), expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_the_first_block_answers_at_any_place_seen_or_not(memory, position):
    decoder = made(memory=memory, position=position)
    (tokens, places, _), everywhere = inputs(decoder), torch.arange(N).flip(0).expand(B, -1)
    found = decoder.first_block(tokens, places, everywhere)
    expected = answers(decoder, by_hand(decoder, tokens, places, everywhere, 2, 1), head=False)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("memory", MEMORIES)
def test_tokens_of_all_patches_are_memory_where_none_was_dropped(memory):
    decoder = made(memory=memory, position="rotary")
    (tokens, _, predicted), everywhere = inputs(decoder, seen=N), torch.arange(N).expand(B, -1)
    expected = answers(decoder, by_hand(decoder, tokens, everywhere, predicted, 2, 2))
    torch.testing.assert_close(decoder(tokens, None, predicted), expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
def test_a_prediction_is_its_own_places_and_no_matter_of_who_else_is_asked_or_of_the_order_of_what_is_seen(position):
    decoder = made(position=position)
    tokens, places, predicted = inputs(decoder)
    whole = decoder(tokens, places, predicted)
    assert torch.equal(whole[:, 4], whole[:, 0])  # the same place twice
    assert all((whole[0, i] - whole[0, j]).abs().max() > 1e-4 for i in range(4) for j in range(i))
    order = torch.tensor([3, 1, 0, 4, 2])
    torch.testing.assert_close(decoder(tokens, places, predicted[:, order]), whole[:, order])
    for m in range(5):
        torch.testing.assert_close(decoder(tokens, places, predicted[:, m : m + 1]), whole[:, m : m + 1])
    others = decoder(tokens, places, torch.cat([predicted[:, :1], (predicted[:, 1:] + 1) % N], dim=1))
    assert torch.equal(others[:, 0], whole[:, 0]) and not torch.equal(others[:, 1:], whole[:, 1:])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = torch.cat([tokens[:, :2], tokens[:, 2:][:, order]], dim=1)
    torch.testing.assert_close(decoder(shuffled, places[:, order], predicted), whole)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_gradients_reach_every_parameter_of_the_predictor_and_all_that_it_reads(memory, position):
    decoder = made(memory=memory, position=position)
    tokens, places, predicted = inputs(decoder)
    read_from = [each.requires_grad_() for each in (tokens if decoder.mixture else [tokens])]
    decoder(tokens, places, predicted).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(each.grad.abs().sum(-1).gt(0).all() for each in read_from)


def test_weights_of_the_mixture_begin_as_the_papers_and_stochastic_depth_is_the_same_in_every_block():
    section = CrossAttentionDecoder(depth=96, width=8, heads=2, memory="blocks", drop_path=0.2)
    decoder = section.build(Given(WIDTH, OUTPUTS, 0, GRID, 12))
    assert decoder.mixture.weights.weight.shape == (96, 13)
    assert decoder.mixture.weights.weight.std().item() == pytest.approx(13**-0.5, rel=0.1)
    assert {block.drop_path1.drop_prob for block in decoder.blocks} == {block.drop_path2.drop_prob for block in decoder.blocks} == {0.2}
    shallow = made(drop_path=0.5)
    given = inputs(shallow)
    assert torch.equal(shallow(*given), shallow(*given))
    with torch.random.fork_rng():
        assert len({tuple(shallow.train()(*given).flatten().tolist()) for _ in range(20)}) > 1


def test_positions_of_queries_are_of_patches_alone():
    build = lambda position: CrossAttentionDecoder(depth=1, width=64, heads=2, position=position).build(Given(WIDTH, OUTPUTS, 3, (8, 8), 1))
    assert torch.equal(build("sincos2d").pos_embed[0], sincos_positions(64, (8, 8))) and "pos_embed" not in build("sincos2d").state_dict()
    learned = dict(build("learned").named_parameters())["pos_embed"]
    assert learned.shape == (1, 64, 64) and learned.std().item() == pytest.approx(0.02, rel=0.1)
    assert build("rotary").pos_embed is None


# ------------------------------------------------------------------------------------------------------------ rotary positions


def test_coordinates_run_from_0_to_1_and_registers_lie_along_the_edge_of_the_box_that_is_seen():
    assert grid_coordinates((2, 3)).tolist() == [[0, 0], [0, 0.5], [0, 1], [1, 0], [1, 0.5], [1, 1]]
    assert grid_coordinates((1, 2)).tolist() == [[0, 0], [0, 1]]
    down, across = [[i / 4, 0] for i in range(4)], [[1, i / 4] for i in range(4)]
    assert edge_coordinates(16).tolist() == [*down, *across, *([1 - x, 1] for x, _ in down), *([0, 1 - y] for _, y in across)]
    assert edge_coordinates(1).tolist() == [[0, 0]] and edge_coordinates(0).shape == (0, 2)
    box = torch.tensor([[[0.5, 0.25], [0.75, 0.75], [0.5, 0.5]]])
    assert within(box, edge_coordinates(4)).tolist() == [[[0.5, 0.25], [0.75, 0.25], [0.75, 0.75], [0.5, 0.75]]]


def test_products_of_turned_queries_and_keys_depend_on_how_far_apart_they_are_alone():
    drawn = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3, 5, 16, generator=drawn)
    here, there = torch.rand(2, 1, 5, 2, generator=drawn)
    product = lambda shift: (rotate(query, turns(here + shift, 16)) * rotate(key, turns(there + shift, 16))).sum(-1)
    torch.testing.assert_close(product(torch.tensor([0.3, -0.2])), product(torch.zeros(2)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(product(torch.zeros(2)), (query * key).sum(-1), atol=0.1)
    torch.testing.assert_close(rotate(query, turns(here, 16)).norm(dim=-1), query.norm(dim=-1))


@torch.no_grad()
def test_turning_is_float32_under_autocast_and_rounded_once():
    drawn = torch.Generator().manual_seed(0)
    heads, where = torch.randn(1, 2, 50, 32, generator=drawn).bfloat16(), torch.rand(1, 50, 2, generator=drawn)
    with torch.autocast("cpu", torch.bfloat16):
        turn = turns(where, 32)
        found = rotate(heads, turn)
    assert turn[0].dtype == torch.float32 and found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(heads.float(), turns(where, 32)).bfloat16())


# ----------------------------------------------------------------------------------------------------------- in the whole model


def row(**sections) -> PretrainConfig:
    model = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "heads": 2}
    decoder = {"name": "cross_attention", "depth": 2, "width": 16, "heads": 2}
    return PretrainConfig.model_validate(
        {
            "model": model,
            "mask": {"name": "random", "ratio": 0.75, "predicted": 0.25},
            "target": {"name": "pixels"},
            "corruption": {"name": "drop"},
            **sections,
            "decoder": decoder | sections.get("decoder", {}),
        }
    )


def masks_of(config: PretrainConfig) -> Masks[torch.Tensor]:
    masking = Masking(config.model.grid, config.mask, config.corruption)
    return Masks(*map(torch.from_numpy, masking.draw_all([Draws(0, MASK, 0, sample) for sample in range(B)])))


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (B, 3, 32, 32), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("corruption", ["drop", "replace"])
def test_a_decoder_that_reads_blocks_is_given_what_enters_the_first_and_what_leaves_each(corruption):
    config = row(corruption={"name": corruption}, decoder={"memory": "blocks"})
    model, masks, given = build_model(config).eval(), masks_of(config), []
    model.decoder.register_forward_pre_hook(lambda _, words: given.append(words))
    prediction, loss, *_ = model(pictures(), *masks)
    tokens, places, predicted = given[0]
    assert len(tokens) == 4 and prediction.shape == (B, 4, 192) and loss.shape == (B, 4)
    assert tokens[0].shape[1] == 1 + (4 if corruption == "drop" else 16) and (places is None) == (corruption == "replace")
    for block, before, after in zip(model.encoder.vit.blocks, tokens[:-1], tokens[1:], strict=True):
        torch.testing.assert_close(block(before), after)
    assert torch.equal(predicted, masks.predicted)
    loss.mean().backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == ["encoder.vit.norm.weight", "encoder.vit.norm.bias"]  # each of the decoder's blocks has a norm of its own


@torch.no_grad()
@pytest.mark.parametrize("memory", MEMORIES)
def test_predictions_do_not_see_hidden_pixels(memory):
    config = row(decoder={"memory": memory, "position": "rotary"})
    model, masks, images = build_model(config).eval(), masks_of(config), pictures()
    before, *_ = model(images, *masks)
    hidden = (masks.kind > 0).view(B, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(model(torch.where(hidden, 255 - images, images), *masks)[0], before)
    assert not torch.equal(model(torch.where(hidden, images, 255 - images), *masks)[0], before)


@pytest.mark.parametrize(
    ("name", "visible", "hidden", "predicted"),
    [
        ("crossmae_b16", 49, 147, 49), ("ijepa_b16", 59, 137, 4 * 34), ("pixio_b16", 64, 192, 192), ("capi_l14", 90, 166, 8),
        ("cifar_crossmae", 16, 48, 16), ("cifar_ijepa", 19, 45, 4 * 11), ("cifar_pixio", 16, 48, 48), ("cifar_capi", 22, 42, 8),
    ],
)  # fmt: skip
def test_the_shipped_rows_see_hide_and_predict_as_many_patches_as_their_papers(name, visible, hidden, predicted):
    config = load(PretrainConfig, CONFIGS / f"{name}.yaml")
    counts = Masking(config.model.grid, config.mask, config.corruption).counts
    assert (counts.visible, counts.hidden, counts.predicted) == (visible, hidden, predicted)
