"""The transformer decoder against its restatement token by token, and what every decoder refuses."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.model.tokens import sincos_positions
from mpp.recipe.decoders.base import Given
from mpp.recipe.decoders.cross_attention import CrossAttentionDecoder
from mpp.recipe.decoders.transformer import Transformer, TransformerDecoder
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.recipe.places import Masks
from mpp.train.optim import spares
from tests.recipe.plain import linear, normed, self_attention_block, unsettle, weights_of

GRID, WIDTH, OUTPUTS, B, K = (3, 4), 6, 5, 2, 4
N = GRID[0] * GRID[1]


def made(prefix: int = 2, groups: int = 1, **knobs) -> Transformer:
    section = TransformerDecoder(**{"depth": 2, "width": 8, "heads": 2} | knobs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = section.build(Given(WIDTH, OUTPUTS, prefix, GRID, 1, groups, fused_attention=False))
    unsettle(decoder)
    return decoder


def inputs(prefix: int, seen: int = K, predicted: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, places and predicted ones, of which several may be the same, or places that are seen."""
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randn(B, prefix + seen, WIDTH, generator=drawn)
    places = torch.stack([torch.randperm(N, generator=drawn)[:seen].sort().values for _ in range(B)])
    return tokens, places, torch.randint(0, N, (B, predicted), generator=drawn)


def by_hand(decoder: Transformer, tokens: torch.Tensor, places: torch.Tensor, predicted: torch.Tensor, groups: int | None, heads: int):
    """groups: sets of mask tokens at the predicted places, kept apart; None: a token at every place."""
    weights, prefix = weights_of(decoder), decoder.prefix
    where = weights["pos_embed"][0]
    out = []
    for sample in range(len(tokens)):
        seen = [linear(weights, "embed", token) for token in tokens[sample].double().numpy()]
        at = dict(zip(places[sample].tolist(), seen[prefix:], strict=True))
        before = [token + where[i] for i, token in enumerate(seen[:prefix])]
        mask_token, asked = weights["mask_token"][0, 0], predicted[sample].tolist()
        if groups is None:
            sequence = before + [at.get(n, mask_token) + where[prefix + n] for n in range(N)]
            sees = [list(range(len(sequence)))] * len(sequence)
            answers = [prefix + n for n in asked]
        else:
            # One long sequence: for each group the context and its own mask tokens, and a block mask over all of them.
            context = before + [at[n] + where[prefix + n] for n in places[sample].tolist()]
            sequence, sees, answers = [], [], []
            for group in np.split(np.array(asked), groups):
                start = len(sequence)
                sequence += context + [mask_token + where[prefix + n] for n in group]
                sees += [list(range(start, len(sequence)))] * (len(sequence) - start)
                answers += range(start + len(context), len(sequence))
        for block in range(len(decoder.blocks)):
            sequence = self_attention_block(weights, f"blocks.{block}", sequence, heads, sees)
        out.append([linear(weights, "head", normed(weights, "norm", sequence[i])) for i in answers])
    return torch.from_numpy(np.array(out)).float()


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("position", ["sincos2d", "learned"])
def test_mask_tokens_at_predicted_places_are_one_attention_with_a_block_mask_over_context_and_own_group(position, prefix):
    for groups in (1, 2, 3):
        decoder, (tokens, places, predicted) = made(prefix, groups, position=position, tokens="predicted"), inputs(prefix)
        torch.testing.assert_close(
            decoder(tokens, places, predicted), by_hand(decoder, tokens, places, predicted, groups, 2), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 3])
def test_a_token_at_every_place_is_one_attention_over_all_whatever_the_groups(prefix):
    decoder, (tokens, places, predicted) = made(prefix, 3, position="learned"), inputs(prefix)
    torch.testing.assert_close(
        decoder(tokens, places, predicted), by_hand(decoder, tokens, places, predicted, None, 2), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("tokens_at", ["hidden", "predicted"])
def test_tokens_of_all_patches_are_read_where_none_was_dropped(tokens_at):
    decoder, (tokens, _, predicted) = made(tokens=tokens_at), inputs(2, seen=N)
    everywhere = torch.arange(N).expand(B, -1)
    expected = by_hand(decoder, tokens, everywhere, predicted, 1 if tokens_at == "predicted" else None, 2)
    torch.testing.assert_close(decoder(tokens, None, predicted), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_group_sees_nothing_of_another_and_its_own_order_does_not_matter():
    decoder, (tokens, places, predicted) = made(groups=2, tokens="predicted"), inputs(2)
    before = decoder(tokens, places, predicted)
    other = predicted.clone()
    other[:, 3:] = (other[:, 3:] + 5) % N
    after = decoder(tokens, places, other)
    assert torch.equal(after[:, :3], before[:, :3]) and not torch.isclose(after[:, 3:], before[:, 3:]).all()
    turned = torch.tensor([2, 0, 1, 4, 5, 3])
    torch.testing.assert_close(decoder(tokens, places, predicted[:, turned]), before[:, turned])
    shared = decoder(tokens, places, torch.cat([other[:, 3:], predicted[:, 3:]], dim=1))
    torch.testing.assert_close(shared[:, 3:], before[:, 3:])
    with pytest.raises(ValueError, match="5 predicted patches do not consist of 2 groups"):
        decoder(tokens, places, predicted[:, :5])


@torch.no_grad()
def test_target_blocks_of_a_mask_are_kept_apart_in_the_whole_model():
    model = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    sections = {"mask": {"name": "multi_block", "blocks": 2}, "corruption": {"name": "drop"}, "target": {"name": "pixels"}}
    config = PretrainConfig.model_validate(
        {"model": model, **sections, "decoder": {"name": "transformer", "depth": 1, "width": 16, "heads": 2, "tokens": "predicted"}}
    )
    whole, masking = build_model(config).eval(), Masking(config.model.grid, config.mask, config.corruption)
    masks = Masks(*map(torch.from_numpy, masking.draw_all([Draws(0, MASK, 0, sample) for sample in range(B)])))
    images = torch.randint(0, 256, (B, 3, 32, 32), generator=torch.Generator().manual_seed(1)).float()
    before, size = whole(images, *masks)[0], masks.predicted.shape[1] // 2
    other = torch.cat([masks.predicted[:, :size], (masks.predicted[:, size:] + 1) % 16], dim=1)
    after = whole(images, *masks._replace(predicted=other))[0]
    assert torch.equal(after[:, :size], before[:, :size]) and not torch.isclose(after[:, size:], before[:, size:]).all()


def test_learned_positions_are_of_class_tokens_too_and_learn_without_decay():
    given = Given(WIDTH, OUTPUTS, 8, (16, 16), 1)
    learned = TransformerDecoder(depth=1, width=32, heads=2, position="learned").build(given)
    assert learned.pos_embed.shape == (1, 8 + 256, 32)
    assert 0.019 < learned.pos_embed.std() < 0.021 and abs(learned.pos_embed.mean()) < 1e-3
    assert len(learned.pos_embed[0].unique(dim=0)) == 264
    assert spares("decoder.pos_embed", learned.pos_embed)
    learned(torch.randn(2, 8 + 64, WIDTH), torch.arange(64).expand(2, -1), torch.arange(64, 256).expand(2, -1)).square().sum().backward()
    assert learned.pos_embed.grad.abs().sum(-1).gt(0).all()
    fixed = TransformerDecoder(depth=1, width=32, heads=2).build(given)
    assert "pos_embed" not in fixed.state_dict() and not fixed.pos_embed[:, :8].any()
    assert torch.equal(fixed.pos_embed[0, 8:], sincos_positions(32, (16, 16)))


@pytest.mark.parametrize("tokens_at", ["hidden", "predicted"])
def test_gradients_reach_every_parameter_of_a_transformer(tokens_at):
    decoder = made(groups=2, position="learned", tokens=tokens_at)
    decoder(*inputs(2)).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "transformer", "width": 90, "heads": 6}, "width=90 must be a multiple of 4 (sine-cosine positions) and of heads=6; the nearest that fits is 96"),
        ({"name": "transformer", "width": 92, "heads": 3, "position": "learned"}, "width=92 must be a multiple of heads=3; the nearest that fits is 93"),
        ({"name": "cross_attention", "width": 90, "heads": 6}, "multiple of 4 (sine-cosine positions) and of heads=6; the nearest that fits is 96"),
        ({"name": "cross_attention", "width": 96, "heads": 16, "position": "rotary"}, "width=96 must be a multiple of 4 x heads=16, as rotary positions"),
    ],
)  # fmt: skip
def test_a_width_that_heads_or_positions_cannot_share_is_refused_with_one_that_fits(section, words):
    corruption = {"corruption": {"name": "drop"}}
    with pytest.raises(ValidationError) as caught:
        PretrainConfig.model_validate(corruption | {"decoder": section})
    assert words in str(caught.value)
    nearest = {"transformer": TransformerDecoder, "cross_attention": CrossAttentionDecoder}[section["name"]]
    fits = int(str(caught.value).split("nearest that fits is ")[1].split()[0])
    assert nearest.model_validate(section | {"width": fits}).width == fits


def test_a_linear_decoder_names_those_that_follow_a_dropping_corruption():
    with pytest.raises(ValidationError, match=r"needs decoder.name=transformer or cross_attention"):
        PretrainConfig.model_validate({"corruption": {"name": "drop"}, "decoder": {"name": "linear"}})
    for name in ("transformer", "cross_attention"):
        assert PretrainConfig.model_validate({"corruption": {"name": "drop"}, "decoder": {"name": name}}).decoder.name == name
