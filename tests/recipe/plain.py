"""Transformers restated without torch's layers: token by token, in float64."""

import math

import numpy as np
import torch
from torch import nn

Rows = list[np.ndarray]  # tokens of one sample


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def unsettle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Biases and norms too are no longer zeros and ones."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    return module.eval()


def linear(weights: dict[str, np.ndarray], name: str, token: np.ndarray) -> np.ndarray:
    return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]


def normed(weights: dict[str, np.ndarray], name: str, token: np.ndarray) -> np.ndarray:
    centred = token - token.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-6) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def mlp(weights: dict[str, np.ndarray], name: str, token: np.ndarray) -> np.ndarray:
    inner = linear(weights, f"{name}.fc1", token)
    return linear(weights, f"{name}.fc2", np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in inner]))


def read(query: np.ndarray, keys: Rows, values: Rows, heads: int) -> np.ndarray:
    """softmax(q k / sqrt d) v, head by head; all of one width."""
    parts = []
    for head in np.split(np.arange(len(query)), heads):
        scores = np.array([query[head] @ key[head] / math.sqrt(len(head)) for key in keys])
        shares = np.exp(scores - scores.max())
        parts.append(sum(share * value[head] for share, value in zip(shares / shares.sum(), values, strict=True)))
    return np.concatenate(parts)


def self_attention_block(weights: dict[str, np.ndarray], name: str, tokens: Rows, heads: int, sees: list[list[int]]) -> Rows:
    """sees: for each token, which ones it attends to."""
    made = [np.split(linear(weights, f"{name}.attn.qkv", normed(weights, f"{name}.norm1", token)), 3) for token in tokens]
    out = []
    for token, (query, _, _), seen in zip(tokens, made, sees, strict=True):
        token = token + linear(weights, f"{name}.attn.proj", read(query, [made[i][1] for i in seen], [made[i][2] for i in seen], heads))
        out.append(token + mlp(weights, f"{name}.mlp", normed(weights, f"{name}.norm2", token)))
    return out
