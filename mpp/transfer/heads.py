"""The linear probe: a grid of linear heads, learning rates x feature variants, trained in one pass over the features.

Letters: n images, B batch, D columns of a variant, R learning rates, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpp.rng import PROBE, Draws
from mpp.transfer.split import BATCHES

MOMENTUM = 0.9  # ViT B.1.1; DINOv2's grid probe
EPSILON = 1e-6  # added to the variance (MAE's BatchNorm before the head)


@dataclass(frozen=True)
class Heads:
    """The heads of one variant, one a learning rate."""

    columns: Tensor  # int64 [D] of the feature table
    weight: Tensor  # float32 [R, C, D], of standardised features
    bias: Tensor  # float32 [R, C]


@dataclass(frozen=True)
class Grid:
    """What one pass trains; the standardisation is that of the rows trained on (a BatchNorm without affine, at its end)."""

    mean: Tensor  # float32 [W]
    scale: Tensor  # float32 [W]: 1 / standard deviation
    heads: list[Heads]

    def predict(self, values: Tensor, rows: np.ndarray, batch: int = 4096) -> list[tuple[Tensor, Tensor]]:
        """For each variant the class each head gives those rows of float32 [n, W], int64 [R, len(rows)], and its probability, float32."""
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.heads]
        places = [place(heads.columns) for heads in self.heads]
        for chosen in torch.from_numpy(rows).split(batch):
            x = (values[chosen].to(self.mean.device) - self.mean) * self.scale
            for part, where, heads in zip(parts, places, self.heads, strict=True):
                logits = (heads.weight.flatten(0, 1) @ x[:, where].T).unflatten(0, heads.bias.shape) + heads.bias.unsqueeze(-1)
                probability, best = logits.softmax(dim=1).max(dim=1)
                part.append((best.cpu(), probability.cpu()))
        return [(torch.cat([best for best, _ in part], dim=1), torch.cat([sure for _, sure in part], dim=1)) for part in parts]


def train_heads(
    values: Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    columns: Sequence[Tensor],
    learning_rates: Sequence[float],
    *,
    epochs: int,
    batch: int,
    weight_decay: float,
    seed: int,
    device: torch.device,
) -> Grid:
    """Zero-initialised softmax heads on rows of float32 [n, W], all on the same minibatches; SGD with momentum, cosine to zero.

    rows: int64 [m].  labels: integers [n].  columns: int64 [D] a variant.  No augmentation: features are computed once.
    A head trained in the grid is the head trained alone; only the rounding of the matrix products may differ.
    Source: ViT B.1.1 (zero head, momentum .9, cosine); DINOv2 (arXiv 2304.07193, B.3) for the grid in one pass.
    """
    mean, scale = (part.to(device) for part in standardisation(values, rows))
    places = [place(c) for c in columns]
    heads = len(learning_rates)
    rate = torch.tensor(learning_rates, dtype=torch.float32, device=device).repeat_interleave(classes)  # [R C]
    # Heads lie along the rows, images along the columns: then the softmax and both products run over memory in order.
    weights = [torch.zeros(heads * classes, len(c), device=device) for c in columns]
    biases = [torch.zeros(heads * classes, device=device) for _ in columns]
    velocity = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in zip(weights, biases, strict=True)]
    per_epoch = -(-len(rows) // batch)
    step, steps = 0, epochs * per_epoch
    targets = torch.from_numpy(labels.astype(np.int64))
    for epoch in range(epochs):
        order = torch.from_numpy(rows[Draws(seed, PROBE, BATCHES, epoch).permutation(len(rows))])
        for chosen in order.tensor_split(per_epoch):
            x = values[chosen].to(device).sub_(mean).mul_(scale)
            y = targets[chosen].to(device)
            here = torch.arange(len(y), device=device)
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            for where, w, b, (v_w, v_b) in zip(places, weights, biases, velocity, strict=True):
                x_i = x[:, where]
                logits = (w @ x_i.T).add_(b.unsqueeze(1)).view(heads, classes, len(y))
                gradient = logits.softmax(dim=1)
                gradient[:, y, here] -= 1
                flat = gradient.view(heads * classes, len(y))
                v_w.addmm_(flat, x_i, beta=MOMENTUM, alpha=1 / len(y))  # of the mean cross-entropy
                v_b.mul_(MOMENTUM).add_(flat.mean(dim=1))
                if weight_decay:
                    v_w.add_(w, alpha=weight_decay)
                w.addcmul_(v_w, rate.unsqueeze(1), value=-decay)
                b.addcmul_(v_b, rate, value=-decay)
            step += 1
    shape = (heads, classes)
    trained = [Heads(c.to(device), w.unflatten(0, shape), b.view(shape)) for c, w, b in zip(columns, weights, biases, strict=True)]
    return Grid(mean, scale, trained)


def place(columns: Tensor) -> slice | Tensor:
    """Neighbouring columns as a slice, which takes a view where an index takes a copy."""
    first, count = int(columns[0]), len(columns)
    if torch.equal(columns.cpu(), torch.arange(first, first + count)):
        return slice(first, first + count)
    return columns


def standardisation(values: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + EPSILON), float32 [W] each, of rows of float32 [n, W]; summed in float64, in pieces."""
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    for chosen in torch.from_numpy(rows).split(4096):
        total += values[chosen].double().sum(0)
    mean = total / len(rows)
    square = torch.zeros_like(total)
    for chosen in torch.from_numpy(rows).split(4096):
        square += (values[chosen].double() - mean).square_().sum(0)
    return mean.float(), (square / len(rows) + EPSILON).rsqrt().float()
