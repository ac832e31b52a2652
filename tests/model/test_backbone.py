"""Any timm model as layers of tokens, against timm's own forward pass."""

import warnings

import pytest
import timm
import torch
from torch.testing import assert_close

from mpp.config.sections import ModelConfig
from mpp.model.backbone import Backbone
from mpp.model.encoder import Encoder, build_encoder

TINY = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=12, depth=4, heads=3)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
PYRAMIDS = {
    "resnet10t": {},
    "efficientnet_b0": {},  # it has `blocks` too
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2},  # its class token comes after the blocks
}
FOREIGN = {
    "vit_small_patch16_rope_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "vit_relpos_small_patch16_224": SMALL,
    "vit_base_patch14_reg4_dinov2": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "resnet10t": {"num_classes": 0},
    "convnext_atto": {"num_classes": 0},
}


def tiny(**changes) -> Backbone:
    return Backbone(build_encoder(TINY.model_copy(update=changes), 3).vit).eval()


def foreign(name: str) -> Backbone:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return Backbone(timm.create_model(name, pretrained=False, **FOREIGN[name])).eval()


def images(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
def test_layers_are_timms_own_intermediates_under_the_final_norm(class_token):
    backbone, pictures = tiny(class_tokens=int(class_token)), images()
    _, theirs = backbone.net.forward_intermediates(
        pictures, indices=[0, 1, 2, 3], norm=True, output_fmt="NLC", return_prefix_tokens=class_token
    )
    if class_token:
        theirs = [torch.cat([prefix, patches], dim=1) for patches, prefix in theirs]
    ours = backbone.layers(pictures, [1, 4, 3, 2])
    for found, layer in zip(ours, (0, 3, 2, 1), strict=True):
        assert torch.equal(found, theirs[layer])
    encoder = Encoder(backbone.net)
    assert torch.equal(ours[1], encoder(encoder.embed(pictures)))


@torch.no_grad()
def test_layer_0_is_what_enters_the_first_block():
    backbone, pictures = tiny(), images()
    net = backbone.net
    expected = net.norm(net.norm_pre(net._pos_embed(net.patch_embed(pictures))))
    assert torch.equal(backbone.layers(pictures, [0])[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
def test_every_token_leaves_under_the_final_norm(class_token):
    for tokens in tiny(class_tokens=int(class_token)).layers(images(), [1, 2, 4]):
        assert tokens.mean(-1).abs().max() < 1e-5
        assert (tokens.var(-1, unbiased=False) - 1).abs().max() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", FOREIGN)
def test_any_timm_model_gives_every_layer(name):
    backbone, pictures = foreign(name), images(side=32)
    layers = list(range(backbone.first, backbone.depth + 1))
    found = backbone.layers(pictures, layers)
    assert [tokens.shape[-1] for tokens in found] == [backbone.width_of(layer) for layer in layers]
    assert all(torch.isfinite(tokens).all() for tokens in found)
    if backbone.is_transformer:
        assert {tokens.shape[1] for tokens in found} == {backbone.prefix + 16}
    last = backbone.net.forward_features(pictures)
    if isinstance(backbone.net.norm if backbone.is_transformer else None, torch.nn.Identity):
        last = backbone.net.fc_norm(last)  # kept behind the pooling by timm
    assert_close(found[-1], last if last.ndim == 3 else last.flatten(2).transpose(1, 2))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.net.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", PYRAMIDS)
def test_stages_of_others_are_feature_maps_as_tokens(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=0, **PYRAMIDS[name]).eval()
    backbone, pictures = Backbone(net), images(side=32)
    assert (backbone.first, backbone.prefix, backbone.class_tokens) == (1, 0, 0)
    theirs = net.forward_intermediates(pictures, norm=False, intermediates_only=True)
    assert backbone.depth == len(theirs)
    for layer, (tokens, stage) in enumerate(zip(backbone.layers(pictures, range(1, backbone.depth + 1)), theirs, strict=True), start=1):
        assert_close(tokens, stage.flatten(2).transpose(1, 2))
        assert tokens.shape[-1] == backbone.width_of(layer)


@torch.no_grad()
@pytest.mark.parametrize("name", FOREIGN)
def test_another_size_takes_a_copy_and_leaves_the_model_alone(name):
    backbone = foreign(name)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    larger = backbone.at_size(48, 64)
    tokens = larger.layers(torch.randn(1, 3, 48, 64), [larger.depth])[0]
    if backbone.is_transformer:
        assert tokens.shape[1] == backbone.prefix + 6 * 8
    assert all(torch.equal(value, before[key]) for key, value in backbone.net.state_dict().items())
    assert_close(backbone.at_size(32, 32).layers(images(side=32), [backbone.depth]), backbone.layers(images(side=32), [backbone.depth]))


def test_the_same_size_keeps_positions_and_another_resamples_all_but_the_class_tokens():
    backbone = tiny()
    assert torch.equal(backbone.at_size(16, 16).net.pos_embed, backbone.net.pos_embed)
    larger = backbone.at_size(24, 24).net.pos_embed
    assert larger.shape == (1, 37, 12)
    assert torch.equal(larger[:, 0], backbone.net.pos_embed[:, 0])  # the class token's is no place in the image


@torch.no_grad()
def test_a_copy_for_another_size_measures_without_noise():
    backbone = tiny(drop_path=0.5).train()
    frozen = backbone.at_size(16, 16)
    assert torch.equal(frozen.layers(images(), [4])[0], frozen.layers(images(), [4])[0])
    assert backbone.training and not any(p.requires_grad for p in frozen.parameters())
