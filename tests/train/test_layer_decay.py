"""How fast each layer of a classifier learns."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from mpp.config.finetune import FinetuneOptimConfig
from mpp.train.optim import build_finetune_optimiser, layer_decay_groups, layer_numbers

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def vit(**other):
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **SMALL | other)


def rates(net, groups) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(member)]: group["lr_scale"] for group in groups for member in group["params"]}


def test_layers_are_numbered_as_maes_code_numbers_them():
    net = vit(reg_tokens=2, pre_norm=True)
    wanted = {
        "cls_token": 0,
        "reg_token": 0,
        "pos_embed": 0,
        "patch_embed.proj.weight": 0,
        "norm_pre.bias": 0,
        "norm.weight": 4,
        "head.bias": 4,
    }
    wanted |= {"blocks.0.norm1.weight": 1, "blocks.2.mlp.fc2.bias": 3}
    found = layer_numbers(net)
    assert {name: found[name] for name in wanted} == wanted
    assert found.keys() == dict(net.named_parameters()).keys()


def test_rates_and_decay_are_timms_but_for_the_final_norm_which_learns_with_the_head():
    net = vit(fc_norm=True, global_pool="avg")  # behind the pooling, timm too counts it to the head
    theirs = param_groups_layer_decay(net, 0.05, no_weight_decay_list=("pos_embed", "cls_token"), layer_decay=0.65)
    ours = layer_decay_groups(net, 0.05, 0.65)
    assert rates(net, ours) == pytest.approx(rates(net, theirs))
    decays = [{name: group["weight_decay"] for group in groups for name in map(id, group["params"])} for groups in (ours, theirs)]
    assert decays[0] == decays[1]
    assert rates(net, ours)["head.weight"] == 1
    assert rates(net, ours)["blocks.2.attn.qkv.weight"] == 0.65
    assert rates(net, ours)["pos_embed"] == pytest.approx(0.65**4)
    before = vit()
    assert rates(before, layer_decay_groups(before, 0.05, 0.65))["norm.weight"] == 1


def test_shared_relative_biases_are_embeddings_and_do_not_decay():
    net = timm.create_model("vit_srelpos_small_patch16_224", pretrained=False, **SMALL | {"rel_pos_type": "bias"})
    name = "shared_rel_pos.relative_position_bias_table"
    group = next(g for g in layer_decay_groups(net, 0.05, 0.5) if any(member is net.get_parameter(name) for member in g["params"]))
    assert (group["lr_scale"], group["weight_decay"]) == (0.5**4, 0.0)


def test_a_convolutional_network_has_timms_layers():
    net = timm.create_model("convnext_atto", pretrained=False, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)
    theirs = param_groups_layer_decay(net, 0.05, layer_decay=0.65)
    assert rates(net, layer_decay_groups(net, 0.05, 0.65)) == pytest.approx(rates(net, theirs))


def test_fixed_parameters_are_in_no_group_and_all_others_in_one():
    net = vit()
    net.pos_embed.requires_grad_(False)
    members = [name for name, _ in net.named_parameters() if name in rates(net, layer_decay_groups(net, 0.05, 0.65))]
    assert set(members) == {name for name, _ in net.named_parameters()} - {"pos_embed"}
    assert sum(len(group["params"]) for group in layer_decay_groups(net, 0.05, 0.65)) == len(members)


def test_sgd_has_momentum_and_no_decay_where_none_is_asked_for():
    optimiser = build_finetune_optimiser(vit(), FinetuneOptimConfig(name="sgd", weight_decay=0, layer_decay=1))
    assert isinstance(optimiser, torch.optim.SGD)
    assert {(group["momentum"], group["weight_decay"], group["lr_scale"]) for group in optimiser.param_groups} == {(0.9, 0.0, 1.0)}


def test_each_optimiser_has_the_numbers_that_were_asked_for():
    adamw = build_finetune_optimiser(vit(), FinetuneOptimConfig(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2, layer_decay=0.5))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {(group["betas"], group["eps"]) for group in adamw.param_groups} == {((0.8, 0.95), 1e-3)}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.2}
    assert {group["lr_scale"] for group in adamw.param_groups} == {0.5**above for above in range(5)}
    sgd = build_finetune_optimiser(vit(), FinetuneOptimConfig(name="sgd", momentum=0.7, weight_decay=0.2))
    assert isinstance(sgd, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"], group["dampening"]) for group in sgd.param_groups} == {(0.7, False, 0)}
    assert {group["weight_decay"] for group in sgd.param_groups} == {0.0, 0.2}
