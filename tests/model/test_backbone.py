"""Layers of tokens of any timm model, against timm's own intermediate outputs."""

import pytest
import timm
import torch
from torch import nn

from mpp.model.backbone import Backbone

TRANSFORMERS = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "vit_base_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "global_pool": "avg", "fc_norm": True},
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
    "eva02_tiny_patch14_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
}  # fmt: skip
PYRAMIDS = {
    "resnet10t": {},
    "efficientnet_b0": {},  # it has `blocks` too
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2},  # its class token comes after the blocks
}


def built(name: str, arguments: dict) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0, **arguments).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_layer_of_a_transformer_is_timms_under_the_final_norm(name):
    net = built(name, TRANSFORMERS[name])
    backbone = Backbone(net)
    assert (backbone.depth, backbone.first, backbone.prefix, backbone.class_token) == (2, 0, 1, True)
    found = backbone.layers(images(), [2, 0, 1])
    norm = net.norm if not isinstance(net.norm, nn.Identity) else net.fc_norm
    assert isinstance(norm, nn.LayerNorm)
    theirs = net.forward_intermediates(images(), norm=False, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True)
    for layer, tokens in zip([2, 1], [found[0], found[2]], strict=True):
        patches, prefix = theirs[layer - 1]
        torch.testing.assert_close(tokens, norm(torch.cat([prefix, patches], dim=1)), atol=1e-5, rtol=1e-5)
    assert found[1].shape == found[0].shape == (2, 17, backbone.width)


@torch.no_grad()
@pytest.mark.parametrize("name", PYRAMIDS)
def test_stages_of_others_are_feature_maps_as_tokens(name):
    net = built(name, PYRAMIDS[name])
    backbone = Backbone(net)
    assert (backbone.first, backbone.prefix, backbone.class_token) == (1, 0, False)
    theirs = net.forward_intermediates(images(), norm=False, intermediates_only=True)
    assert backbone.depth == len(theirs)
    for layer, (tokens, stage) in enumerate(zip(backbone.layers(images(), range(1, backbone.depth + 1)), theirs, strict=True), start=1):
        torch.testing.assert_close(tokens, stage.flatten(2).transpose(1, 2))
        assert tokens.shape[-1] == backbone.width_of(layer)


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_another_size_leaves_the_encoder_given_as_it_was(name):
    net = built(name, TRANSFORMERS[name])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    larger = Backbone(net).at_size(48, 64)
    (tokens,) = larger.layers(torch.zeros(1, 3, 48, 64), [2])
    assert tokens.shape == (1, 1 + 6 * 8, larger.width)
    assert not any(parameter.requires_grad for parameter in larger.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
