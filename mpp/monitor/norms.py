"""How large weights and gradients are by depth: a part that stands still, or runs away, shows here before it shows in the loss."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

_EMBEDDING = re.compile(r"(^|\.)(patch_embed|pos_embed|cls_token|reg_token|mask_token|pos_drop|norm_pre)\b")
_BLOCK, _STAGE, _HEAD = (
    re.compile(r"(^|\.)blocks\.(\d+)\."),
    re.compile(r"(^|\.)(?:layers|stages)[._](\d+)\."),
    re.compile(r"(^|\.)(head|fc_norm)\b"),
)


def part_of(name: str) -> str:
    """Of a parameter of a pretraining model or a classifier: embedding, block_00 (stage_0 of a model in stages) ..., norm, head, decoder, target."""
    if name.startswith(("decoder.", "target.")):
        return name.partition(".")[0]
    if found := _STAGE.search(name):
        return f"stage_{found[2]}"
    if found := _BLOCK.search(name):
        return f"block_{int(found[2]):02d}"
    return "embedding" if _EMBEDDING.search(name) else "head" if _HEAD.search(name) else "norm"


def parts_of(named: Iterable[tuple[str, torch.nn.Parameter]]) -> dict[str, list[torch.nn.Parameter]]:
    """In the order in which they come."""
    parts: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in named:
        parts.setdefault(part_of(name), []).append(parameter)
    return parts


@torch.no_grad()
def norms(parts: Mapping[str, Iterable[Tensor]]) -> dict[str, Tensor]:
    """part -> the L2 norm of all its numbers, on the device: nothing waits for it."""
    return {name: get_total_norm([tensor.detach() for tensor in tensors]) for name, tensors in parts.items()}


def as_figures(kind: str, found: Mapping[str, Tensor]) -> dict[str, float]:
    """kind: "gradient" or "weight"."""
    values = torch.stack([norm.float() for norm in found.values()]).tolist() if found else []
    return {f"norm/{kind}/{name}": value for name, value in zip(found, values, strict=True)}
