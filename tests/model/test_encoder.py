import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.config.sections import ModelConfig
from mpp.model.encoder import build_encoder, encoder_in_words, timm_arguments
from mpp.model.tokens import gather_tokens, sincos_positions

TINY = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
N = 16


def encoder(seed: int = 0, **changes):
    return build_encoder(ModelConfig(**(TINY | changes)), seed, fused_attention=False).eval()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "vit_tiny_patch16_224 (depth 2, width 48, heads 3) 32px/8"),
        ({"width": None, "heads": None}, "vit_tiny_patch16_224 (depth 2) 32px/8"),
        ({"width": None, "heads": None, "depth": None, "registers": 2}, "vit_tiny_patch16_224 32px/8"),
    ],
)
def test_words_for_an_encoder_name_what_of_its_shape_is_not_that_of_its_name(changes, words):
    assert encoder_in_words(ModelConfig(**(TINY | changes))) == words


def images(batch: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def overwritten(pictures: torch.Tensor, patches: list[int], value: float) -> torch.Tensor:
    altered = pictures.clone()
    for patch in patches:
        row, column = divmod(patch, 4)
        altered[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = value
    return altered


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
def test_the_encoder_cannot_see_dropped_patches(class_token):
    model, pictures = encoder(class_tokens=int(class_token)), images()
    visible = torch.tensor([[1, 4, 6, 15]] * 2)
    dropped = [patch for patch in range(N) if patch not in (1, 4, 6, 15)]
    tokens = model(model.embed(pictures), visible)
    assert tokens.shape == (2, 4 + class_token, 48)
    assert torch.equal(tokens, model(model.embed(overwritten(pictures, dropped, 9.0)), visible))
    for seen in (1, 4, 6, 15):
        assert not torch.equal(tokens, model(model.embed(overwritten(pictures, [seen], 9.0)), visible))


@torch.no_grad()
def test_visible_patches_keep_their_own_positions():
    model = encoder()
    embeddings = torch.zeros(1, N, 48)
    tokens = [model(embeddings, torch.tensor([[place]]))[0, 1] for place in range(N)]
    assert all((tokens[i] - tokens[j]).abs().max() > 1e-4 for i in range(N) for j in range(i))


@torch.no_grad()
def test_dropping_nothing_is_the_whole_encoder():
    model, pictures = encoder(), images()
    torch.testing.assert_close(model(model.embed(pictures), torch.arange(N).expand(2, N)), model(model.embed(pictures)), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"class_tokens": 0}, {"position": "sincos2d"}, {"drop_path": 0.1}, {"width": None, "heads": None, "depth": 1}]
)
def test_the_state_dict_loads_into_timm_and_gives_equal_features(changes):
    config = ModelConfig(**(TINY | changes))
    ours = build_encoder(config, 3, fused_attention=False).eval()
    theirs = timm.create_model(config.arch, pretrained=False, **timm_arguments(config)).eval()
    theirs.load_state_dict(ours.vit.state_dict())
    for block in theirs.blocks:
        block.attn.fused_attn = False
    assert torch.equal(theirs.forward_features(images()), ours(ours.embed(images())))


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
def test_every_token_leaves_under_the_final_norm(class_token):
    model = encoder(class_tokens=int(class_token))
    tokens = model(model.embed(images()))
    assert tokens.mean(-1).abs().max() < 1e-5
    assert (tokens.var(-1, unbiased=False) - 1).abs().max() < 1e-3


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = encoder(seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again, other = encoder(seed=7).state_dict(), encoder(seed=8).state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again[name])
    differing = [name for name, value in first.state_dict().items() if not torch.equal(value, other[name])]
    assert {"vit.patch_embed.proj.weight", "vit.blocks.1.mlp.fc2.weight", "vit.pos_embed", "vit.cls_token"} <= set(differing)


def test_weights_begin_as_the_papers_codes_have_them():
    model = encoder(width=192).vit
    for matrix in (model.patch_embed.proj.weight.flatten(1), model.blocks[0].attn.qkv.weight, model.blocks[1].mlp.fc1.weight):
        bound = math.sqrt(6 / sum(matrix.shape))  # Xavier, uniform
        assert matrix.abs().max() <= bound
        assert matrix.abs().max() > 0.99 * bound
        assert abs(matrix.std().item() - bound / math.sqrt(3)) < 0.02 * bound
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))
    for token in (model.pos_embed, model.cls_token):
        assert abs(token.std().item() - 0.02) < 0.003


def angle(place: int, i: int, quarter: int) -> float:
    return place / 10_000 ** (i / quarter)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
def test_fixed_positions_are_sines_and_cosines_of_the_column_then_of_the_row(quarter, rows, columns):
    found = sincos_positions(4 * quarter, (rows, columns))
    assert found.shape == (rows * columns, 4 * quarter)
    for row in range(rows):
        for column in range(columns):
            expected = [f(angle(place, i, quarter)) for place in (column, row) for f in (math.sin, math.cos) for i in range(quarter)]
            torch.testing.assert_close(found[row * columns + column], torch.tensor(expected), atol=1e-6, rtol=0)


def test_fixed_positions_stand_behind_the_class_token_and_do_not_train():
    vit = encoder(position="sincos2d").vit
    assert not vit.pos_embed.requires_grad
    assert not vit.pos_embed[0, 0].any()
    assert torch.equal(vit.pos_embed[0, 1:], sincos_positions(48, (4, 4)))
    assert torch.equal(encoder(position="sincos2d", class_tokens=0).vit.pos_embed[0], sincos_positions(48, (4, 4)))
    assert encoder().vit.pos_embed.requires_grad


def test_gather_tokens_takes_each_images_own_places():
    tokens = torch.arange(24).view(2, 4, 3)
    found = gather_tokens(tokens, torch.tensor([[3, 0], [1, 2]]))
    assert torch.equal(found, torch.stack([tokens[0, [3, 0]], tokens[1, [1, 2]]]))


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"arch": "vit_imaginary"}, "vit_imaginary"), ({"arch": "resnet18"}, "resnet18"), ({"width": 50, "heads": None}, "cannot be built"),
     ({"width": 50, "heads": 1, "position": "sincos2d"}, "multiple of 4"), ({"arch": "vit_small_patch16_18x2_224"}, "ParallelThingsBlocks without one attention")],
)  # fmt: skip
def test_an_architecture_that_cannot_be_is_refused(changes, part):
    with pytest.raises(ConfigError, match=part):
        encoder(**changes)
