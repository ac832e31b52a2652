"""Any timm model as a stack of layers of tokens: what probes and fine-tuning see of an encoder.

Letters: B batch, N patches (or cells of a feature map), P prefix tokens (class tokens, then registers), D width of a layer.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpp.model.tokens import class_tokens_of


class Backbone(nn.Module):
    """Layers are counted in blocks passed: 0 is what enters the first block (patch embeddings with positions), `depth` the last block's output.

    Tokens are those of the model's own forward pass, caught on their way, each layer under the model's final norm.  A convolutional network has
    its stages as layers (from 1) and the cells of their feature maps as patches, without a norm.
    """

    def __init__(self, net: nn.Module, predictor: nn.Module | None = None):
        """predictor: that the encoder was trained with, where its first block is a feature, too (recipe/decoders/base.py)."""
        super().__init__()
        self.net: Any = net
        self.predictor: Any = predictor
        blocks = getattr(net, "blocks", None)
        widths = [stage["num_chs"] for stage in getattr(net, "feature_info", [])]
        self.is_transformer = (  # one width throughout, and every token in every block: no pyramid, no class token that comes in late
            isinstance(blocks, nn.Sequential | nn.ModuleList)
            and len(set(widths)) == 1
            and len(widths) == len(blocks)
            and not hasattr(net, "cls_attn_blocks")
            and not hasattr(net, "blocks_token_only")
            and not hasattr(net, "pixel_embed")  # TNT's blocks pass two kinds of tokens on
        )
        self.depth: int = len(blocks) if self.is_transformer else len(self.net.feature_info)  # type: ignore[arg-type]
        self.first = 0 if self.is_transformer else 1  # the lowest layer there is
        self.prefix: int = (getattr(net, "num_prefix_tokens", 0) or 0) if self.is_transformer else 0
        self.class_tokens = class_tokens_of(net) if self.is_transformer else 0  # the first of the prefix

    @property
    def width(self) -> int:
        """Of the last layer."""
        return self.width_of(self.depth)

    def width_of(self, layer: int) -> int:
        return self.net.num_features if self.is_transformer else self.net.feature_info[layer - 1]["num_chs"]

    @property
    def patch_size(self) -> tuple[int, int]:
        """Images must be whole multiples of it, (height, width) in pixels; (1, 1) where any size goes."""
        embed = getattr(self.net, "patch_embed", None)
        sides = getattr(embed, "patch_size", (1, 1))
        height, width = sides if isinstance(sides, tuple | list) else (sides, sides)
        return int(height), int(width)

    def layers(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> tokens [B, P + N, D] of each of `layers`, under the final norm."""
        norm = self.final_norm() if self.is_transformer else nn.Identity()
        return [norm(tokens) for tokens in self.unnormed(images, layers)]

    def with_predictor(self, images: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """As `layers`, and of the same pass the mean over all places of the predictor's first block [B, W] (CAPI's global feature)."""
        every = range(self.depth + 1) if self.predictor.reads_blocks else (*layers, self.depth)
        found, norm = dict(zip(every, self.unnormed(images, every), strict=True)), self.final_norm()
        memory = [found[layer] for layer in every] if self.predictor.reads_blocks else norm(found[self.depth])
        asked = torch.arange(found[self.depth].shape[1] - self.prefix, device=images.device).expand(len(images), -1)
        return [norm(found[layer]) for layer in layers], self.predictor.first_block(memory, None, asked).mean(dim=1)

    def unnormed(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The same as they pass, without the final norm."""
        if not self.is_transformer:
            maps = self.net.forward_intermediates(images, indices=[layer - 1 for layer in layers], intermediates_only=True, norm=False)
            found = dict(zip(sorted(set(layers)), maps, strict=True))
            return [found[layer].flatten(2).transpose(1, 2) for layer in layers]
        caught: dict[int, Tensor] = {}

        def before(_module: nn.Module, inputs: tuple) -> None:
            caught[0] = inputs[0]

        hooks = [self.net.blocks[0].register_forward_pre_hook(before)] if 0 in layers else []
        for i, block in enumerate(self.net.blocks):
            if i + 1 in layers:
                hooks.append(block.register_forward_hook(lambda _module, _inputs, output, layer=i + 1: caught.__setitem__(layer, output)))
        try:
            self.net.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [caught[layer] for layer in layers]

    def at_size(self, height: int, width: int) -> "Backbone":
        """A frozen copy in eval mode for images of this size: positions are resampled (timm) where it differs."""
        net = copy.deepcopy(self.net)
        embed = getattr(net, "patch_embed", None)
        if getattr(embed, "img_size", None) not in (None, (height, width)):
            net.set_input_size(img_size=(height, width))
        patch = self.patch_size
        predictor = None if self.predictor is None else self.predictor.at_grid((height // patch[0], width // patch[1]))
        return Backbone(net, predictor).eval().requires_grad_(False)

    def final_norm(self) -> nn.Module:
        """timm keeps it behind the pooling (`fc_norm`) in models that average their patches."""
        norm, behind = self.net.norm, getattr(self.net, "fc_norm", None)
        return behind if isinstance(norm, nn.Identity) and behind is not None else norm


def with_final_norm(net: Any) -> Any:
    """timm keeps the final norm behind the pooling in models that average their patches; here it is that of every token.  In place."""
    norm = Backbone(net).final_norm()
    if norm is not net.norm:
        net.norm, net.fc_norm = norm, nn.Identity()
    return net
