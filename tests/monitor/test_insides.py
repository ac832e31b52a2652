"""Filters, positions and patch tokens: against numpy, scikit-learn, what timm's own attention adds, and closed forms."""

import math

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA

from mpp.model.attention_maps import Layer
from mpp.model.tokens import sincos_positions
from mpp.monitor.attention import SpreadSums, uniform_distance
from mpp.monitor.attention_by_layer import LayerSpread
from mpp.monitor.inside_sheet import chart, filter_tiles, sheet, thinned, ticks, tiled
from mpp.monitor.insides import (
    TokenSums,
    absolute_positions,
    as_colours,
    by_offset,
    cosines,
    filter_layer,
    is_grey,
    principal_filters,
    relative_biases,
    rotary_kernel,
)


def noise(*shape: int, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_principal_filters_are_scikit_learns_up_to_their_sign():
    weight = noise(40, 3, 2, 4) * torch.arange(1, 9).reshape(2, 4) + 5
    found = principal_filters(weight, 6)
    theirs = PCA(6).fit(weight.flatten(1).double().numpy())
    assert np.allclose(found.explained[:6], theirs.explained_variance_ratio_)
    assert np.allclose(np.abs((found.directions.numpy() * theirs.components_).sum(1)), 1)
    shares = PCA().fit(weight.flatten(1).double().numpy()).explained_variance_ratio_
    assert found.enough() == 1 + np.searchsorted(shares.cumsum(), 0.9) and found.enough(0.5) < found.enough()
    assert found.explained.sum() == pytest.approx(1) and found.first(6) == pytest.approx(theirs.explained_variance_ratio_.sum())
    largest = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_filters_of_one_direction_are_that_direction():
    pattern = noise(3, 4, 4)
    found = principal_filters(noise(30, 1, 1, 1, seed=1) * pattern, 3)
    assert found.explained[0] == pytest.approx(1)
    assert abs(float(found.directions[0] @ pattern.flatten().double())) == pytest.approx(float(pattern.norm()))


def test_on_grey_images_filters_are_what_they_do_to_grey():
    std = (0.2, 0.25, 0.5)
    weight = noise(30, 3, 4, 4)
    grey = principal_filters(weight, 5, std)
    summed = sum(weight[:, channel].double() / std[channel] for channel in range(3))
    assert np.allclose(grey.explained[:5], PCA(5).fit(summed.flatten(1).numpy()).explained_variance_ratio_)
    assert grey.directions.shape == (5, 16)
    images = torch.randint(0, 255, (2, 1, 4, 4)).byte().expand(-1, 3, -1, -1).clone()
    assert is_grey(images)
    images[1, 2, 0, 0] += 1
    assert not is_grey(images)


def test_filters_are_those_that_colours_pass_first():
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert filter_layer(vit) is vit.patch_embed.proj
    assert filter_layer(timm.create_model("resnet10t")).weight.shape[1] == 3
    assert filter_layer(torch.nn.Linear(3, 3)) is None


@pytest.mark.parametrize("words", [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}])
def test_absolute_positions_are_those_of_the_patches(words):
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=(32, 64), **words)
    found = absolute_positions(vit, (2, 4))
    assert found is not None and found.shape == (8, 192)
    own = noise(8, 192)
    with torch.no_grad():
        vit.pos_embed[:, -8:] = own
    assert torch.equal(absolute_positions(vit, (2, 4)), own)
    with torch.no_grad():
        vit.pos_embed.zero_()
    assert absolute_positions(vit, (2, 4)) is None


def test_similarity_of_fixed_positions_is_a_mean_of_cosines_of_offsets():
    width, grid = 32, (3, 5)
    found = cosines(sincos_positions(width, grid))
    frequencies = [10_000 ** (-i / (width // 4)) for i in range(width // 4)]
    for one, other in ((0, 0), (0, 14), (7, 3)):
        (a, b), (c, d) = divmod(one, 5), divmod(other, 5)
        expected = sum(math.cos(f * (a - c)) + math.cos(f * (b - d)) for f in frequencies) / (2 * len(frequencies))
        assert found[one, other].item() == pytest.approx(expected, abs=1e-5)


def test_a_rotary_kernel_is_what_turning_leaves_of_the_product_of_equal_vectors():
    net = timm.create_model("vit_small_patch16_rope_224", depth=1, img_size=(48, 80)).eval()
    kernel = rotary_kernel(net, (3, 5))
    from timm.layers import apply_rot_embed_cat

    vector = noise(4000, 1, 1, 64)  # the mean over many takes the place of the mean over dimensions
    turned = apply_rot_embed_cat(vector.expand(-1, 1, 15, -1), net.rope.get_embed(), half=False)[:, 0]  # [4000, 15, 64]
    products = torch.einsum("bnd,bmd->nm", turned, turned) / vector.square().sum()
    assert torch.allclose(kernel, products, atol=0.01) and torch.allclose(kernel.diagonal(), torch.ones(15), atol=1e-6)
    offsets = by_offset(kernel, (3, 5))
    for query, key in ((0, 14), (7, 8), (12, 1)):
        (a, b), (c, d) = divmod(query, 5), divmod(key, 5)
        assert offsets[c - a + 2, d - b + 4].item() == pytest.approx(kernel[query, key].item(), abs=1e-5)


def test_mixed_rotary_kernels_are_the_mean_over_blocks_and_heads_and_a_plain_encoder_has_none():
    net = timm.create_model("vit_small_patch16_rope_mixed_224", depth=2, img_size=32).eval()
    turns = net.rope.get_embed(shape=[2, 2])  # [blocks, heads, N, sines and cosines]
    each = [head @ head.T / (head.shape[-1] // 2) for block in turns for head in block]
    assert torch.allclose(rotary_kernel(net, (2, 2)), torch.stack(each).mean(0), atol=1e-6) and len(each) == 12
    assert rotary_kernel(timm.create_model("vit_tiny_patch16_224", depth=1), (14, 14)) is None


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_relative_bias_is_what_attention_adds_for_a_key_at_that_offset(name):
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3} if name.startswith("beit") else {"depths": (1, 1, 1, 1)}
    net = timm.create_model(name, **small)
    attention = net.blocks[0].attn if name.startswith("beit") else net.layers[0].blocks[0].attn
    with torch.no_grad():
        attention.relative_position_bias_table.copy_(noise(*attention.relative_position_bias_table.shape))
    bias = next(relative_biases(net)).bias
    prefix = 1 if name.startswith("beit") else 0
    rows, columns = attention.window_size
    added = attention._get_rel_pos_bias()[0][:, prefix:, prefix:]
    for (a, b), (c, d) in (((0, 0), (2, 5)), ((6, 1), (0, 3)), ((3, 3), (3, 3))):
        assert torch.equal(bias[:, c - a + rows - 1, d - b + columns - 1], added[:, a * columns + b, c * columns + d])


def test_components_of_patch_tokens_are_scikit_learns_however_they_come():
    tokens = noise(6, 10, 8) * torch.arange(1, 9) + 100
    sums = TokenSums()
    for part in tokens.split([1, 3, 2]):
        sums.add(part)
    mean, found = sums.found()
    theirs = PCA(3).fit(tokens.flatten(0, 1).double().numpy())
    assert np.allclose(mean, theirs.mean_) and np.allclose(found.explained[:3], theirs.explained_variance_ratio_)
    colours = as_colours(tokens, mean, found.directions)
    assert colours.shape == (6, 10, 3) and colours.min() == 0 and colours.max() == 1
    values = theirs.transform(tokens.flatten(0, 1).double().numpy())
    for channel in range(3):
        assert abs(np.corrcoef(values[:, channel], colours.flatten(0, 1)[:, channel])[0, 1]) > 0.99


def test_tiles_show_nothing_as_grey_and_the_largest_entry_at_an_end():
    tiles = filter_tiles(torch.tensor([[0.0, 0.5, -1.0, 0.0] * 3, [0.25, 0.0, 0.0, 0.0] * 3]), (2, 2))
    assert tiles[0][..., 0].tolist() == [[128, 191], [0, 128]] and tiles[1].max() == 255
    assert filter_tiles(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), (2, 2))[0][0, 1].tolist() == [255] * 3  # grey: all channels alike
    page = np.asarray(tiled(tiles, 2))
    assert (page[0, 0] == tiles[0][0, 0]).all() and (page[0, 20] == tiles[0][0, 1]).all() and (page[0, 39] == tiles[1][0, 0]).all()


def test_the_sheet_has_what_there_is_and_its_dots_stand_at_their_pixels():
    sums = SpreadSums((2, 2), (8, 8))
    sums.add(torch.eye(4).expand(1, 2, 4, 4))
    uniform = uniform_distance((2, 2), (8, 8))
    layers = [LayerSpread(Layer("blocks.0.attn", "block 1"), sums.found(), 4, uniform)]
    whole = sheet(principal_filters(noise(9, 3, 2, 2), 4), (2, 2), cosines(noise(4, 5)), (2, 2), layers, "encoder")
    less = sheet(None, (0, 0), None, (2, 2), layers, "encoder")
    assert whole.width > less.width > 300 and sheet(None, (0, 0), None, (2, 2), [], "encoder").width == 200
    blue = np.argwhere((np.asarray(chart(layers)) == (0, 0x72, 0xB2)).all(-1))
    assert abs(blue[:, 0].mean() - (300 - 22)) < 1.5  # distance 0: on the axis
    assert thinned(4) == [0, 1, 2, 3] and len(thinned(30)) == 8 and {0, 29} <= set(thinned(30))
    assert ticks(100) == [0, 20, 40, 60, 80, 100] and ticks(15.8) == [0, 2, 4, 6, 8, 10, 12, 14]
