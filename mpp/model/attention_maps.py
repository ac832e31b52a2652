"""Attention probabilities of any timm model, as they are formed: by its own plain code, with what weighs the values caught on its way.

No architecture is computed a second time here: fused kernels are switched off, and what passes the drop-out of the probabilities (`attn_drop`, which
every plain attention of timm has right before the product with the values; timm.utils.AttentionExtract looks there, too) is handed over.

Letters: B batch, H heads, T tokens (prefix tokens, then patches), W windows of an image.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IN_WINDOWS = ("WindowAttention", "WindowMultiHeadAttention")  # Swin, Swin v2 and v2-CR: tokens of a window row by row
BETWEEN_CHANNELS = ("XCA",)  # XCiT's cross-covariance: what it calls attention is not between tokens
TOLERANCE = 0.02  # of the sum of a row of probabilities: bfloat16 has three digits


@dataclass(frozen=True)
class Layer:
    """A layer of attention."""

    name: str  # of the module, such as blocks.3.attn
    place: str  # for people: "block 4", "stage 2, block 1"
    window: tuple[int, int] | None = None  # rows and columns of tokens, where it attends inside of windows
    reduction: int | None = None  # pixels a side of a token, of a layer with windows


def attention_layers(net: nn.Module) -> list[tuple[Layer, nn.Module]]:
    """In the order of the modules, which is that of the forward pass in all of timm's transformers."""
    found: list[tuple[Layer, nn.Module]] = []
    stages = {info["module"]: int(info["reduction"]) for info in getattr(net, "feature_info", []) if "module" in info}
    for name, module in net.named_modules():
        if not isinstance(getattr(module, "attn_drop", None), nn.Module) or type(module).__name__ in BETWEEN_CHANNELS:
            continue
        window: Any = getattr(module, "window_size", None) if type(module).__name__ in IN_WINDOWS else None
        stage = next((reduction for stage, reduction in stages.items() if name.startswith(f"{stage}.")), None)
        found.append((Layer(name, _place(name), (int(window[0]), int(window[1])) if window else None, stage if window else None), module))
    return found


def _place(name: str) -> str:
    """blocks.3.attn -> "block 4"; layers.1.blocks.0.attn -> "stage 2, block 1"; any other name as it is."""
    if found := re.fullmatch(r"blocks\.(\d+)(?:\.attn)?", name):
        return f"block {int(found[1]) + 1}"
    if found := re.fullmatch(r"(?:layers|stages)\.(\d+)\.blocks\.(\d+)\.attn", name):
        return f"stage {int(found[1]) + 1}, block {int(found[2]) + 1}"
    return name


@contextmanager
def watched_attention(net: nn.Module, see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """While it lasts, every forward pass of `net` calls `see` with the probabilities of each layer of attention as they come: [B, H, T, T], or
    [B * W, H, T, T] of windows.  They are not kept; nothing of `net` is changed when it ends."""
    before: list[tuple[Any, bool]] = []
    hooks = []
    try:
        for layer, module in attention_layers(net):
            each: Any = module
            if isinstance(getattr(each, "fused_attn", None), bool):
                before.append((each, each.fused_attn))
                each.fused_attn = False
            hooks.append(each.attn_drop.register_forward_hook(lambda _module, _inputs, output, layer=layer: see(layer, output.detach())))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for each, fused in before:
            each.fused_attn = fused


def are_probabilities(attention: Tensor) -> bool:
    """Whether every row says how one whole is shared out; what differential attention weighs values by does not."""
    rows = attention.detach().float()
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() <= TOLERANCE).all()) and bool(torch.isfinite(rows).all())
