"""Attention as timm's own models form it: nothing of the output changes, and what is caught is what weighs the values."""

import pytest
import timm
import torch

from mpp.model.attention_maps import Layer, are_probabilities, attention_layers, watched_attention
from mpp.model.backbone import Backbone

MODELS = {
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 32, "reg_tokens": 2},
    "deit3_small_patch16_224": {"depth": 2, "img_size": (32, 64)},
    "beit_base_patch16_224": {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2, "img_size": 28},
    "vit_small_patch16_rope_mixed_224": {"depth": 2, "img_size": 32},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "img_size": 56, "embed_dim": 24, "num_heads": (3, 3)},
}


def built(name):
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=0, **MODELS[name]).eval()
    size = MODELS[name]["img_size"]
    height, width = size if isinstance(size, tuple) else (size, size)
    return net, torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_watching_changes_nothing_of_the_output_and_is_forgotten(name):
    net, images = built(name)
    fused = {key: module.fused_attn for key, module in net.named_modules() if hasattr(module, "fused_attn")}
    before = net.forward_features(images)
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    plain = net.forward_features(images)
    for key, value in fused.items():
        net.get_submodule(key).fused_attn = value
    seen = []
    with watched_attention(net, lambda layer, attention: seen.append((layer, attention))):
        during = net.forward_features(images)
    assert torch.equal(during, plain) and torch.allclose(during, before, atol=1e-5)
    assert {key: net.get_submodule(key).fused_attn for key in fused} == fused
    assert [layer for layer, _ in seen] == [layer for layer, _ in attention_layers(net)] and all(
        are_probabilities(each) for _, each in seen
    )
    net.forward_features(images)
    assert len(seen) == len(attention_layers(net))


@torch.no_grad()
def test_what_is_caught_are_the_softmaxed_products_of_queries_and_keys():
    net, images = built("vit_tiny_patch16_224")
    seen, inputs = [], []
    attention = net.blocks[1].attn
    hook = attention.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with watched_attention(net, lambda layer, found: seen.append((layer.place, found))):
        net.forward_features(images)
    hook.remove()
    query, key, _ = attention.qkv(inputs[0]).reshape(2, 7, 3, 3, 64).permute(2, 0, 3, 1, 4)
    assert seen[1][0] == "block 2" and torch.allclose(seen[1][1], (query @ key.transpose(-1, -2) / 8).softmax(-1), atol=1e-6)


def test_hooks_are_gone_after_an_error_too():
    net, images = built("vit_tiny_patch16_224")

    def stop(layer, attention):
        raise KeyError(layer.name)

    with pytest.raises(KeyError), watched_attention(net, stop):
        net.forward_features(images)
    assert all(module.fused_attn for module in net.modules() if hasattr(module, "fused_attn"))
    net.forward_features(images)


def test_windows_say_how_large_they_and_their_tokens_are():
    layers = [layer for layer, _ in attention_layers(built("swin_tiny_patch4_window7_224")[0])]
    assert layers[0] == Layer("layers.0.blocks.0.attn", "stage 1, block 1", (7, 7), 4)
    assert layers[3] == Layer("layers.1.blocks.1.attn", "stage 2, block 2", (7, 7), 8)


def test_attention_between_channels_counts_as_none_and_differences_are_no_probabilities():
    assert not attention_layers(timm.create_model("xcit_nano_12_p16_224", depth=1, cls_attn_layers=0))
    rows = torch.rand(1, 1, 4, 4).softmax(-1)
    assert (
        are_probabilities(rows)
        and are_probabilities(rows.bfloat16())
        and not are_probabilities(rows - 0.1)
        and not are_probabilities(2 * rows)
    )


def test_a_patch_size_that_is_one_number_is_that_of_both_sides():
    assert Backbone(timm.create_model("xcit_nano_12_p16_224", depth=1)).patch_size == (16, 16)
