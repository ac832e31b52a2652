"""What encoder, decoders and classifiers share about tokens: where they lie, which are taken, how their matrices begin."""

import math

import torch
from torch import Tensor, nn

from mpp.base.errors import ConfigError
from mpp.config.sections import SystemConfig


def initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens [B, N, D], index [B, K] -> tokens at those places [B, K, D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def gather_rotations(rotations: Tensor, index: Tensor) -> Tensor:
    """Rotary sines and cosines of all N places, [N, R] or by block and head [L, H, N, R], and index [B, K] -> those at these places, [B, 1, K, R] or
    [L, B, H, K, R]."""
    taken = rotations[..., index, :]
    return taken.unsqueeze(1) if rotations.ndim == 2 else taken.transpose(1, 2)


def class_tokens_of(net: nn.Module) -> int:
    """How many of its first tokens stand for the whole image.  timm knows one at most and calls all others registers: of an encoder with more,
    mpp has noted it."""
    noted = getattr(net, "class_tokens", None)
    return int(noted) if isinstance(noted, int) else int(getattr(net, "cls_token", None) is not None)


def note_class_tokens(net: nn.Module, count: int | None) -> nn.Module:
    """For `class_tokens_of`; None: nothing is known beyond what timm knows."""
    if count is not None:
        net.class_tokens = count  # type: ignore[assignment]
    return net


def class_feature(tokens: Tensor, class_tokens: int) -> Tensor:
    """tokens [B, P + N, D] -> the mean of the class tokens [B, D] (Pixio); of a single one, itself."""
    return tokens[:, 0] if class_tokens == 1 else tokens[:, :class_tokens].mean(dim=1)


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine positions [rows * columns, width]: half for the column, half for the row (MAE; width a multiple of 4)."""
    if width % 4:
        raise ConfigError(f"model.position=sincos2d needs a width that is a multiple of 4, not {width}")
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def resized_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """positions [1, P + N, D] of a grid of `old` (rows, columns) -> of one of `new`: bicubic, antialiased; the first P stay as they are (timm's rule,
    which its models follow in `set_input_size`)."""
    from timm.layers import resample_abs_pos_embed  # here, because it takes seconds

    return resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=positions.shape[1] - old[0] * old[1])


def set_norm_eps(net: nn.Module, eps: float | None) -> nn.Module:
    """Give every LayerNorm this constant (transformers' ViTs have another than timm's); None leaves them."""
    for module in net.modules():
        if eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = eps
    return net


def fused_attention_pays(precision: str, device: str) -> bool:
    """Where torch's fused attention is the faster one: on GPUs, and on CPUs in fp32 at every length; in bf16 plain matrix products are (measured:
    docs/results.md, benchmarks/attention.py).  device: "cuda" or "cpu"."""
    return device == "cuda" or precision == "fp32"


def fuses_attention(system: SystemConfig, device: str = "") -> bool:
    """What was asked for, or what pays.  device: of another machine; else this one's."""
    if system.fused_attention is not None:
        return system.fused_attention
    return fused_attention_pays(system.precision, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_attention(blocks: nn.Module, fused: bool | None) -> None:
    """Torch's fused attention kernel, plain matrix products, or (None) timm's choice, in every attention layer below `blocks`."""
    if fused is not None:
        for module in blocks.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]
