"""MAE's linear probe: LARS, BatchNorm without affine before the head, augmented images (MAE, arXiv 2111.06377, A.1, and main_linprobe.py).

Their recipe: batch 16384, 90 epochs, 10 of warm-up, cosine, random resized crops and flips, rate .1 x batch / 256, weights N(0, .01), no decay.
Ours differs in one thing: the statistics of BatchNorm are over the whole step and not over each process's share, so that the number of
processes and of images a forward pass does not matter.

Letters: B batch, P prefix tokens, N patches, D columns of a variant, W of all variants, R learning rates, C classes, H heads (variants x R).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpp.rng import PROBE, seed_of
from mpp.transfer.heads import EPSILON, MOMENTUM
from mpp.transfer.online import sum_over_processes
from mpp.transfer.split import HEAD

TRUST = 1e-3  # coefficient of LARS (MAE's util/lars.py)
NORM_MOMENTUM = 0.1  # of BatchNorm's running statistics (torch's default)
INITIAL_DEVIATION = 0.01  # of the head's weights
PARTS = {"cls": ("cls",), "mean": ("mean",), "both": ("cls", "mean")}


class MaeProbe:
    """Heads for every variant and learning rate; a head trained beside others is the head trained alone."""

    def __init__(
        self,
        variants: Sequence[tuple[int, str]],
        widths: dict[int, int],
        prefix: int,
        classes: int,
        *,
        learning_rates: Sequence[float],
        images_per_step: float,
        seed: int,
        device: torch.device,
    ):
        """variants: (layer, "cls", "mean" or "both").  widths: D of each layer.  prefix: P.  learning_rates: for 256 images a step, scaled by
        `images_per_step`."""
        self.prefix = prefix
        self.pooled = sorted({(layer, part) for layer, pooling in variants for part in PARTS[pooling]})
        self.heads = [f"{pooling} of layer {layer}, rate {rate:g}" for layer, pooling in variants for rate in learning_rates]
        start, first = {}, 0
        for layer, part in self.pooled:
            start[layer, part] = torch.arange(first, first + widths[layer], device=device)
            first += widths[layer]
        self.columns = [torch.cat([start[layer, part] for part in PARTS[pooling]]) for layer, pooling in variants]
        self.rate = torch.tensor(learning_rates, device=device) * images_per_step / 256
        self.mean = torch.zeros(first, device=device)  # running, as BatchNorm's
        self.variance = torch.ones(first, device=device)
        heads, self.weight, self.bias = len(learning_rates), [], []
        for columns in self.columns:
            drawn = torch.randn(classes, len(columns), generator=torch.Generator().manual_seed(seed_of(seed, PROBE, HEAD)))
            self.weight.append((INITIAL_DEVIATION * drawn).to(device).repeat(heads, 1, 1))  # [R, C, D]
            self.bias.append(torch.zeros(heads, classes, device=device))
        self.velocity = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in zip(self.weight, self.bias, strict=True)]
        self.seen: list[tuple[Tensor, Tensor]] = []  # of this step: pooled features [B, W], labels [B]

    def _pool(self, tokens: dict[int, Tensor]) -> Tensor:
        """float32 [B, W]."""
        parts = [
            tokens[layer][:, 0] if part == "cls" else tokens[layer][:, self.prefix :].float().mean(dim=1) for layer, part in self.pooled
        ]
        return torch.cat([part.float() for part in parts], dim=1)

    def see(self, tokens: dict[int, Tensor], labels: Tensor) -> None:
        self.seen.append((self._pool(tokens), labels))

    def step(self, factor: float) -> None:
        x = torch.cat([features for features, _ in self.seen])
        y = torch.cat([labels for _, labels in self.seen])
        self.seen = []
        total, count = sum_over_processes([x.sum(0, dtype=torch.float64), x.new_full((1,), len(x), dtype=torch.float64)])
        images = float(count)
        mean = (total / images).float()
        square = sum_over_processes([(x - mean).square_().sum(0, dtype=torch.float64)])[0]
        self.mean.lerp_(mean, NORM_MOMENTUM)
        self.variance.lerp_((square / max(images - 1, 1)).float(), NORM_MOMENTUM)  # unbiased, as BatchNorm keeps it
        x = (x - mean) * ((square / images).float() + EPSILON).rsqrt()
        here = torch.arange(len(y), device=y.device)
        gradients = []
        for columns, weight, bias in zip(self.columns, self.weight, self.bias, strict=True):
            part = x[:, columns]
            residual = (weight.flatten(0, 1) @ part.T).unflatten(0, bias.shape).add_(bias.unsqueeze(2)).softmax(dim=1)  # [R, C, B]
            residual[:, y, here] -= 1
            gradients += [(residual.flatten(0, 1) @ part).view_as(weight) / images, residual.sum(2) / images]
        gradients = sum_over_processes(gradients)
        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            w_gradient, b_gradient = gradients[2 * i], gradients[2 * i + 1]
            long, steep = weight.norm(dim=(1, 2), keepdim=True), w_gradient.norm(dim=(1, 2), keepdim=True)
            trust = torch.where((long > 0) & (steep > 0), TRUST * long / steep, 1.0)
            w_velocity, b_velocity = self.velocity[i]
            w_velocity.mul_(MOMENTUM).add_(trust * w_gradient)
            b_velocity.mul_(MOMENTUM).add_(b_gradient)
            weight.addcmul_(w_velocity, self.rate.view(-1, 1, 1), value=-factor)
            bias.addcmul_(b_velocity, self.rate.unsqueeze(1), value=-factor)

    def predict(self, tokens: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        x = (self._pool(tokens) - self.mean) * (self.variance + EPSILON).rsqrt()
        found = []
        for columns, weight, bias in zip(self.columns, self.weight, self.bias, strict=True):
            logits = (weight.flatten(0, 1) @ x[:, columns].T).unflatten(0, bias.shape) + bias.unsqueeze(2)
            found.append(logits.softmax(dim=1).max(dim=1))
        return torch.cat([best for _, best in found]), torch.cat([probability for probability, _ in found])
