"""Which parameters decay, how fast each layer learns, and the optimiser."""

import re

import torch
from timm.models import group_parameters
from torch import nn

from mpp.config.finetune import FinetuneOptimConfig
from mpp.config.sections import OptimConfig
from mpp.model.backbone import Backbone

PATCH_EMBEDDING = "patch_embed"  # timm's name
TARGET = "target."  # in a pretraining model: the parameters of a target that learns itself
TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed", "freqs", "relative_position_bias_table")
BEHIND = re.compile(r"(norm|fc_norm|head|head_dist)\b")  # timm's names of what follows the last block


def parameter_groups(
    model: nn.Module, weight_decay: float, norms: float = 0.0, patch_embedding: float = 1.0, target: tuple[float, float] | None = None
) -> list[dict]:
    """Matrices and convolution kernels decay; biases, norms, layer scales, tokens and position embeddings do not (ours; MAE's code lets tokens decay).

    norms: the scales of norms decay by this share of weight_decay.  patch_embedding: its learning rate by that of the rest.  target: rate and decay
    of a target's own parameters, by those of the rest.  In each group stand lr_scale and decay_scale, by which the engine multiplies the rate and
    the decay of a step.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, 1.0): [], (1.0, 0.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr_scale = patch_embedding if PATCH_EMBEDDING in name.split(".") else 1.0
            decay_scale = norms if is_scale_of_norm(name) else 0.0 if spares(name, parameter) else 1.0
            if target and name.startswith(TARGET):
                lr_scale, decay_scale = target
            groups.setdefault((lr_scale, decay_scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay * decay_scale, "lr_scale": lr_scale, "decay_scale": decay_scale}
        for (lr_scale, decay_scale), params in groups.items()
        if params
    ]


def is_scale_of_norm(name: str) -> bool:
    """CAPI's rule: a weight, and "norm" in its name (norm1, q_norm, fc_norm ...)."""
    *modules, last = name.split(".")
    return last == "weight" and bool(modules) and "norm" in modules[-1]


def spares(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay leaves it alone."""
    return parameter.ndim < 2 or name.rsplit(".", 1)[-1] in TOKENS


def build_optimiser(model: nn.Module, optim: OptimConfig, target: tuple[float, float] | None = None) -> torch.optim.AdamW:
    """AdamW at learning rate 0: each step sets its own.  target: of one that learns itself, its `own_scales`."""
    groups = parameter_groups(model, optim.weight_decay, optim.norm_decay_scale, optim.patch_embed_lr_scale, target)
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)


def layer_numbers(net: nn.Module) -> dict[str, int]:
    """Parameter of a timm classifier -> its layer: 0 what comes before the blocks, i + 1 block i, and one more for the final norm and the head.

    MAE's and BEiT's numbering (timm counts a final norm before the pooling to the last block).  Models without one row of blocks: timm's own.
    """
    if not Backbone(net).is_transformer:
        return group_parameters(net, net.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = len(net.blocks) + 1  # type: ignore[arg-type]
    numbers = {}
    for name, _ in net.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", name)
        numbers[name] = int(block[1]) + 1 if block else last if BEHIND.match(name) else 0
    return numbers


def layer_decay_groups(net: nn.Module, weight_decay: float, layer_decay: float) -> list[dict]:
    """One group for each layer and kind of decay; lr_scale is layer_decay to the power of the layers above it."""
    numbers = layer_numbers(net)
    last = max(numbers.values())
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            key = numbers[name], spares(name, parameter)
            fresh = {"params": [], "weight_decay": 0.0 if key[1] else weight_decay, "lr_scale": layer_decay ** (last - key[0])}
            fresh["decay_scale"] = 0.0 if key[1] else 1.0
            groups.setdefault(key, fresh)["params"].append(parameter)
    return list(groups.values())


def build_finetune_optimiser(net: nn.Module, optim: FinetuneOptimConfig) -> torch.optim.Optimizer:
    """At learning rate 0: each step sets its own."""
    groups = layer_decay_groups(net, optim.weight_decay, optim.layer_decay)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)
