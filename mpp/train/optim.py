"""Which parameters decay, and the optimiser."""

import torch
from torch import nn

from mpp.config import OptimConfig

TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and convolution kernels decay; biases, norms, layer scales, tokens and position embeddings do not (ours; MAE's code lets tokens decay)."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in TOKENS
            (spared if spare else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def build_optimiser(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW at learning rate 0: each step sets its own."""
    groups = parameter_groups(model, optim.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)
