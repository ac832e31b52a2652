import pytest
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.sections import OptimConfig
from mpp.recipe.model import build_model
from mpp.train.optim import build_optimiser, layer_decay_groups, parameter_groups, spares

MODEL = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 48, "depth": 1, "heads": 3}
TRANSFORMER = {"name": "transformer", "depth": 1, "width": 32, "heads": 2}
RECIPES = {
    "linear": {"model": MODEL},
    "mae": {"model": MODEL | {"position": "sincos2d"}, "corruption": {"name": "drop"}, "decoder": TRANSFORMER},
    "replace, deep decoder": {"model": MODEL, "decoder": TRANSFORMER},
    "no class token": {"model": MODEL | {"class_tokens": 0}},
    "capi": {"model": MODEL, "decoder": TRANSFORMER, "optim": {"patch_embed_lr_scale": 0.2, "norm_decay_scale": 0.1}},
    "registers": {"model": MODEL | {"arch": "vit_betwixt_patch16_reg4_gap_256"}, "decoder": TRANSFORMER},
}


def model_of(recipe: str):
    return build_model(PretrainConfig.model_validate(RECIPES[recipe]))


def names(model, group: dict) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is member for member in group["params"])}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_trainable_parameter_is_in_exactly_one_group(recipe):
    model = model_of(recipe)
    members = [id(parameter) for group in parameter_groups(model, 0.05) for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_only_matrices_and_kernels_decay():
    model = model_of("replace, deep decoder")
    decayed, spared = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    block = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert names(model, decayed) == {
        "encoder.vit.patch_embed.proj.weight",
        *(f"{part}.blocks.0.{layer}.weight" for part in ("encoder.vit", "decoder") for layer in block),
        "decoder.embed.weight",
        "decoder.head.weight",
    }
    assert names(model, spared) == {
        "mask_token", "encoder.vit.cls_token", "encoder.vit.pos_embed", "encoder.vit.patch_embed.proj.bias", "encoder.vit.norm.weight",
        "encoder.vit.norm.bias", "decoder.mask_token", "decoder.embed.bias", "decoder.norm.weight", "decoder.norm.bias", "decoder.head.bias",
        *(f"{part}.blocks.0.{layer}.bias" for part in ("encoder.vit", "decoder") for layer in block),
        *(f"{part}.blocks.0.norm{i}.{kind}" for part in ("encoder.vit", "decoder") for i in (1, 2) for kind in ("weight", "bias")),
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_token_and_no_position_decays_here_or_in_fine_tuning(recipe):
    model = model_of(recipe)
    spared = names(model, parameter_groups(model, 0.05)[1])
    tokens = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith(("token", "pos_embed"))}
    assert tokens <= spared and len(tokens) >= (1 if recipe == "mae" else 2)
    assert ("encoder.vit.reg_token" in tokens) == (recipe == "registers")
    groups = layer_decay_groups(model.encoder.vit, 0.05, 0.75)
    decayed = {
        name for name, p in model.encoder.vit.named_parameters() if any(p is q for g in groups if g["weight_decay"] for q in g["params"])
    }
    assert {f"encoder.vit.{name}" for name in decayed} == {n for n in names(model, parameter_groups(model, 0.05)[0]) if ".vit." in n}


def test_tables_of_relative_positions_do_not_decay():
    assert spares("blocks.0.attn.relative_position_bias_table", torch.nn.Parameter(torch.zeros(9, 2)))
    assert not spares("blocks.0.attn.qkv.weight", torch.nn.Parameter(torch.zeros(9, 2)))


def test_fixed_positions_are_not_trained():
    model = model_of("mae")
    trained = set.union(*(names(model, group) for group in parameter_groups(model, 0.05)))
    assert "encoder.vit.pos_embed" not in trained
    assert "decoder.mask_token" in trained


def test_decay_is_decoupled_from_the_gradient_and_spares_vectors():
    model = model_of("linear")
    optimiser = build_optimiser(model, OptimConfig(weight_decay=0.1, betas=(0.9, 0.95), eps=1e-6))
    assert {group["lr"] for group in optimiser.param_groups} == {0.0}
    assert {(group["betas"], group["eps"]) for group in optimiser.param_groups} == {((0.9, 0.95), 1e-6)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimiser.param_groups:
        group["lr"] = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        shrunk = 0.95 if parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed")) else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * shrunk, rtol=1e-6, atol=0)


def test_a_first_adam_step_moves_each_weight_by_the_rate():
    model = torch.nn.Linear(3, 2)
    optimiser = build_optimiser(model, OptimConfig(weight_decay=0.0))
    before = model.weight.detach().clone()
    for group in optimiser.param_groups:
        group["lr"] = 0.01
    model.weight.grad = torch.tensor([[1.0, -2.0, 3.0], [-0.1, 0.2, 5.0]])
    model.bias.grad = torch.zeros(2)
    optimiser.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.01 * model.weight.grad.sign(), atol=1e-6, rtol=1e-5)


def test_norms_may_decay_a_little_and_the_patch_embedding_may_learn_more_slowly():
    """CAPI: weight decay x 0.1 on the scales of norms, none on biases; learning rate x 0.2 of the patch embedding."""
    config = PretrainConfig.model_validate(RECIPES["capi"])
    model = model_of("capi")
    optimiser = build_optimiser(model, config.optim)
    scales = {name: (g["lr_scale"], g["decay_scale"]) for g in optimiser.param_groups for name in names(model, g)}
    assert scales.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 6
    for name, found in scales.items():
        if name.rpartition(".")[0] in norms:
            assert found == ((1.0, 0.1) if name.endswith("weight") else (1.0, 0.0)), name
        elif "patch_embed" in name:
            assert found == ((0.2, 1.0) if name.endswith("weight") else (0.2, 0.0)), name
        else:
            assert found[0] == 1.0 and found[1] in (0.0, 1.0), name
    for group in optimiser.param_groups:
        assert group["weight_decay"] == pytest.approx(0.05 * group["decay_scale"])
