"""What encoder, decoders and classifiers share about tokens: where they lie, which are taken, how their matrices begin."""

import math

import torch
from torch import Tensor, nn

from mpp.errors import ConfigError


def initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens [B, N, D], index [B, K] -> tokens at those places [B, K, D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine positions [rows * columns, width]: half for the column, half for the row (MAE; width a multiple of 4)."""
    if width % 4:
        raise ConfigError(f"model.position=sincos2d needs a width that is a multiple of 4, not {width}")
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def set_norm_eps(net: nn.Module, eps: float | None) -> nn.Module:
    """Give every LayerNorm this constant (transformers' ViTs have another than timm's); None leaves them."""
    for module in net.modules():
        if eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = eps
    return net


def choose_attention(blocks: nn.Module, fused: bool | None) -> None:
    """Torch's fused attention kernel, plain matrix products, or (None) timm's choice, in every attention layer below `blocks`."""
    if fused is not None:
        for module in blocks.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]
