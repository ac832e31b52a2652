"""MAE's linear probe: LARS (timm's), BatchNorm without affine before the head, augmented images (MAE, arXiv 2111.06377, A.1, and main_linprobe.py).

Their recipe: batch 16384, 90 epochs, 10 of warm-up, cosine, random resized crops and flips, rate .1 x batch / 256, weights N(0, .01), no decay.
Ours differs in one thing: the statistics of BatchNorm are over the whole step and not over each process's share, so that the number of
processes and of images a forward pass does not matter.

Letters: B batch, P prefix tokens, N patches, D columns of a variant, W of all variants, R learning rates, C classes, H heads (variants x R).
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mpp.base.rng import PROBE, seed_of
from mpp.config.schema import Count, Positive
from mpp.model.tokens import class_feature
from mpp.transfer.features import EPSILON, parts_of
from mpp.transfer.probes.contract import Train
from mpp.transfer.probes.online import OnlineProbe, Rates, sum_over_processes
from mpp.transfer.split import HEAD

MOMENTUM, TRUST = 0.9, 1e-3  # of LARS (MAE's util/lars.py)
NORM_MOMENTUM = 0.1  # of BatchNorm's running statistics (torch's default)
INITIAL_DEVIATION = 0.01  # of the head's weights


class MaeProbe(OnlineProbe):
    """MAE's linear probe (A.2): LARS, BatchNorm without affine, one learning rate; several are chosen between on the hold-out of train."""

    key, title = "mae", "MAE linear"

    epochs: Positive = 90  # passes over the images (MAE)
    warmup_epochs: Count = 10  # of them (MAE)
    batch: Positive = 16384  # images a step over all processes (MAE)
    learning_rates: Rates = (0.1,)  # x batch / 256 (MAE); of several the hold-out chooses
    crop: Annotated[float, Field(gt=0, le=1)] | None = 224 / 256  # Resize(256), CenterCrop(224) of main_linprobe.py; null: features.crop

    def heads(self, train: Train, widths: dict[int, int], prefix: int, images_per_step: float) -> "MaeHeads":
        assert train.views is not None
        return MaeHeads(
            [(layer, train.own.pooling) for layer in train.own.layers],
            widths,
            prefix,
            len(train.classes),
            learning_rates=self.learning_rates,
            images_per_step=images_per_step,
            seed=train.seed,
            device=train.device,
            class_tokens=train.views.class_tokens,
        )


class MaeHeads:
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
        class_tokens: int = 1,
    ):
        """variants: (layer, "cls", "mean" or "both").  widths: D of each layer.  prefix: P.  learning_rates: for 256 images a step, scaled by
        `images_per_step`."""
        self.prefix, self.class_tokens = prefix, class_tokens
        self.pooled = sorted({(layer, part) for layer, pooling in variants for part in parts_of(pooling)})
        self.heads = [f"{pooling} of layer {layer}, rate {rate:g}" for layer, pooling in variants for rate in learning_rates]
        start, first = {}, 0
        for layer, part in self.pooled:
            start[layer, part] = torch.arange(first, first + widths[layer], device=device)
            first += widths[layer]
        self.columns = [torch.cat([start[layer, part] for part in parts_of(pooling)]) for layer, pooling in variants]
        self.mean = torch.zeros(first, device=device)  # running, as BatchNorm's
        self.variance = torch.ones(first, device=device)
        self.weight, self.bias = [], []
        for columns in self.columns:
            drawn = torch.randn(classes, len(columns), generator=torch.Generator().manual_seed(seed_of(seed, PROBE, HEAD)))
            self.weight.append((INITIAL_DEVIATION * drawn).to(device).repeat(len(learning_rates), 1, 1))  # [R, C, D]
            self.bias.append(torch.zeros(len(learning_rates), classes, device=device))
        self.rates = [rate * images_per_step / 256 for rate in learning_rates for _ in range(2)] * len(self.columns)
        self.optimiser = self._lars()
        self.seen: list[tuple[Tensor, Tensor]] = []  # of this step: pooled features [B, W], labels [B]

    def _lars(self) -> torch.optim.Optimizer:
        """Each head's weight by its own norms, its bias by plain momentum: parameters are views of the stacked heads."""
        from timm.optim import Lars  # here, because --help must not wait for timm

        groups: list[dict] = []
        for weights, biases in zip(self.weight, self.bias, strict=True):
            for weight, bias in zip(weights, biases, strict=True):
                groups += [{"params": [weight], "always_adapt": True}, {"params": [bias]}]
        return Lars(groups, momentum=MOMENTUM, trust_coeff=TRUST, eps=0.0)

    def _pool(self, tokens: dict[int, Tensor]) -> Tensor:
        """float32 [B, W]."""
        parts = [
            class_feature(tokens[layer].float(), self.class_tokens)
            if part == "cls"
            else tokens[layer][:, self.prefix :].float().mean(dim=1)
            for layer, part in self.pooled
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
        summed = sum_over_processes(gradients)
        by_head = [part for variant in zip(summed[::2], summed[1::2], strict=True) for head in zip(*variant, strict=True) for part in head]
        for group, rate, gradient in zip(self.optimiser.param_groups, self.rates, by_head, strict=True):
            group["params"][0].grad, group["lr"] = gradient, rate * factor
        self.optimiser.step()

    def predict(self, tokens: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        x = (self._pool(tokens) - self.mean) * (self.variance + EPSILON).rsqrt()
        found = []
        for columns, weight, bias in zip(self.columns, self.weight, self.bias, strict=True):
            logits = (weight.flatten(0, 1) @ x[:, columns].T).unflatten(0, bias.shape) + bias.unsqueeze(2)
            found.append(logits.softmax(dim=1).max(dim=1))
        return torch.cat([best for _, best in found]), torch.cat([probability for probability, _ in found])
