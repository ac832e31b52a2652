"""Activation checkpointing: what the backward pass needs of a transformer block is kept, or computed a second time to save memory.

Source: Chen et al., arXiv 1604.06174; "selective" after Korthikanti et al., arXiv 2205.05198, here by kind of operation: matrix products and attention
are dear to compute and kept, what lies between them (norms, activations, casts, additions) is cheap and computed again.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mpp.config.sections import Recompute

aten = torch.ops.aten
DEAR = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_blocks(model: nn.Module, kind: Recompute) -> None:
    """In every stack of blocks below `model`, encoder's and decoder's; none: nothing is changed.  Losses and gradients stay the same, noise too."""
    if kind == "none":
        return
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if kind == "selective" else {}
    for module in model.modules():
        stack = getattr(module, "blocks", None)
        for block in stack if isinstance(stack, nn.Sequential | nn.ModuleList) else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, **contexts)
