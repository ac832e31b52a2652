"""Norms by depth: every parameter in its part, and the parts make up the whole."""

import pytest
import timm
import torch

from mpp.config.sections import ModelConfig
from mpp.model.encoder import build_encoder
from mpp.monitor.norms import as_figures, norms, part_of, parts_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.vit.blocks.3.attn.qkv.weight", "block_03"),
        ("encoder.vit.blocks.11.norm1.bias", "block_11"),
        ("encoder.vit.patch_embed.proj.weight", "embedding"),
        ("encoder.vit.cls_token", "embedding"),
        ("mask_token", "embedding"),
        ("encoder.vit.norm.weight", "norm"),
        ("decoder.blocks.0.attn.qkv.weight", "decoder"),
        ("target.clusters.weight", "target"),
        ("head.weight", "head"),
        ("fc_norm.weight", "head"),
        ("layers.2.blocks.1.attn.qkv.weight", "stage_2"),
        ("stages.1.blocks.0.conv_dw.weight", "stage_1"),
        ("layers_3.blocks.1.attn.qkv.weight", "stage_3"),
    ],
)
def test_each_parameter_is_in_the_part_that_its_name_says(name, part):
    assert part_of(name) == part


def test_parts_stand_in_order_of_depth_and_hold_every_parameter_once():
    encoder = build_encoder(ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=3, heads=2), 0)
    parts = parts_of(encoder.vit.named_parameters())
    assert list(parts) == ["embedding", "block_00", "block_01", "block_02", "norm"]
    assert sorted(id(each) for part in parts.values() for each in part) == sorted(map(id, encoder.vit.parameters()))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_other_architectures_have_parts_too(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    parts = set(parts_of(model.named_parameters()))
    assert {"embedding", "head"} <= parts | {"embedding"} and sum(part.startswith(("block_", "stage_")) for part in parts) >= 4


def test_a_norm_is_that_of_all_numbers_of_a_part():
    values = [torch.randn(3, 4), torch.randn(5), torch.zeros(())]
    found = as_figures("weight", norms({"block_00": values, "norm": [torch.tensor([3.0, 4.0])]}))
    assert found["norm/weight/norm"] == 5.0
    assert found["norm/weight/block_00"] == pytest.approx(float(torch.cat([each.flatten() for each in values]).norm()))
    assert as_figures("gradient", {}) == {}
