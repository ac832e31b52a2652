"""The attentive probe: one learned query looks at the patch tokens of a layer, several heads at a time, and a linear head reads what it finds.

Source: CAPI's eval_classification.py (arXiv 2502.08769): heads of 64 columns, keys and values with one matrix each, no matrix behind them, weights
N(0, .02), AdamW (.9, .95), rates x batch / 256, batch 1024, 10 epochs of ImageNet, the first of them warm-up, cosine.  The LayerNorm before it is that
of V-JEPA's pooler; its scale and shift are left out, as the matrices behind it can do the same, and so is the bias of the keys, which the softmax cancels.

One query makes it cheap: the query is multiplied into the keys' matrix and the values' matrix is applied behind the weighted mean of the tokens, so
a token meets one vector per attention head instead of two D x D matrices.  The function is the same.

Letters: B batch, P prefix tokens, N patches, D width, A attention heads of E = D / A columns, R learning rates, C classes, H heads (layers x R).
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, StrictBool
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from mpp.base.rng import PROBE, seed_of
from mpp.config.schema import Count, Positive
from mpp.model.backbone import Backbone
from mpp.transfer.features import Variant
from mpp.transfer.probes.contract import Train
from mpp.transfer.probes.online import OnlineProbe, Rates, sum_over_processes
from mpp.transfer.split import HEAD

HEAD_WIDTH = 64
INITIAL_DEVIATION = 0.02
BETAS = (0.9, 0.95)
EPSILON = 1e-6  # of the LayerNorm (ViT)


class AttentiveProbe(OnlineProbe):
    """One learned query attends to the patch tokens (CAPI, arXiv 2502.08769; the grid is ours)."""

    key, title, chooses_layers = "attentive", "attentive", True

    epochs: Positive = 10  # passes over the images (CAPI)
    warmup_epochs: Count = 1  # of them (CAPI)
    batch: Positive = 1024  # images a step over all processes (CAPI)
    learning_rates: Rates = (1e-4, 3e-4, 1e-3, 3e-3)  # x batch / 256; the hold-out chooses
    crop: Annotated[float, Field(gt=0, le=1)] | None = (
        224 / 256
    )  # Resize(256), CenterCrop(224) of CAPI's eval_classification.py; null: features.crop
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # AdamW's, not of biases (CAPI chooses from 5e-4, 1e-3, 5e-2)

    curve: StrictBool = True  # every layer has heads of its own, between which the hold-out chooses (ours), which takes their tokens into memory; false: features.layers alone

    @property
    def pools_tokens(self) -> bool:
        return not self.curve

    def variants(self, own: Variant, backbone: Backbone) -> list[Variant]:
        return [own, *(Variant((layer,), "tokens") for layer in range(backbone.first, backbone.depth + 1) if self.curve)]

    def layers(self, train: Train) -> tuple[int, ...]:
        return tuple(sorted({layer for variant in train.variants for layer in variant.layers}))

    def heads(self, train: Train, widths: dict[int, int], prefix: int, images_per_step: float) -> "AttentiveHeads":
        return AttentiveHeads(
            widths,
            prefix,
            len(train.classes),
            learning_rates=self.learning_rates,
            weight_decay=self.weight_decay,
            images_per_step=images_per_step,
            seed=train.seed,
            device=train.device,
        )


class AttentiveHeads:
    """Heads for every layer and learning rate; a head trained beside others is the head trained alone."""

    def __init__(
        self,
        widths: dict[int, int],
        prefix: int,
        classes: int,
        *,
        learning_rates: Sequence[float],
        weight_decay: float,
        images_per_step: float,
        seed: int,
        device: torch.device,
    ):
        """widths: D of each layer that is probed.  prefix: P.  learning_rates: for 256 images a step, scaled by `images_per_step`.
        weight_decay: of everything but biases."""
        self.prefix = prefix
        self.heads = [f"attention over layer {layer}, rate {rate:g}" for layer in widths for rate in learning_rates]
        self.parts: dict[int, list[_Weights]] = {}
        self.rates = [rate * images_per_step / 256 for rate in learning_rates for _ in range(2)]
        groups: list[dict] = []
        for layer, width in widths.items():
            self.parts[layer] = [_Weights(width, classes, seed, device) for _ in learning_rates]
            for weights in self.parts[layer]:
                groups += [{"params": weights.decayed, "weight_decay": weight_decay}, {"params": weights.biases, "weight_decay": 0.0}]
        self.rates = self.rates * len(widths)
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=BETAS)
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.images = torch.zeros(1, device=device)  # of this step

    def logits(self, layer: int, tokens: Tensor) -> Tensor:
        """tokens [B, P + N, D] -> [R, B, C]."""
        found = layer_norm(tokens[:, self.prefix :].float(), tokens.shape[-1:], eps=EPSILON)  # [B, N, D]
        parts = self.parts[layer]
        query = torch.stack([part.query for part in parts])  # [R, A, E]
        key, value = (torch.stack([getattr(part, name) for part in parts]) for name in ("key", "value"))  # [R, A, E, D]
        rates, attention, width = query.shape
        looked_for = torch.einsum("rae,raed->rad", query, key) / math.sqrt(width)
        share = (found @ looked_for.flatten(0, 1).T).softmax(dim=1)  # [B, N, R A]
        mean = (share.transpose(1, 2) @ found).unflatten(1, (rates, attention))  # [B, R, A, D]
        pooled = torch.einsum("brad,raed->rbae", mean, value).flatten(2)
        pooled = pooled + torch.stack([part.value_bias for part in parts]).unsqueeze(1)  # [R, B, D]
        head, bias = torch.stack([part.head for part in parts]), torch.stack([part.head_bias for part in parts])
        return torch.baddbmm(bias.unsqueeze(1), pooled, head.transpose(1, 2))

    def see(self, tokens: dict[int, Tensor], labels: Tensor) -> None:
        with torch.enable_grad():
            for layer in self.parts:
                logits = self.logits(layer, tokens[layer])
                cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="sum").backward()
        self.images += len(labels)

    def step(self, factor: float) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        *summed, images = sum_over_processes([*gradients, self.images])
        for parameter, gradient in zip(self.trained, summed, strict=True):
            parameter.grad = gradient / images
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.images.zero_()

    @torch.no_grad()
    def predict(self, tokens: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        found = [self.logits(layer, tokens[layer]).softmax(dim=2).max(dim=2) for layer in self.parts]
        return torch.cat([best for _, best in found]), torch.cat([probability for probability, _ in found])


class _Weights:
    """One head's, the same at the start for every learning rate."""

    def __init__(self, width: int, classes: int, seed: int, device: torch.device):
        attention = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        generator = torch.Generator().manual_seed(seed_of(seed, PROBE, HEAD))

        def drawn(*shape: int) -> Tensor:
            return (INITIAL_DEVIATION * torch.randn(shape, generator=generator)).to(device).requires_grad_()

        self.query = drawn(attention, width // attention)
        self.key = drawn(attention, width // attention, width)
        self.value = drawn(attention, width // attention, width)
        self.value_bias = torch.zeros(width, device=device, requires_grad=True)
        self.head = drawn(classes, width)
        self.head_bias = torch.zeros(classes, device=device, requires_grad=True)
        self.decayed = [self.query, self.key, self.value, self.head]
        self.biases = [self.value_bias, self.head_bias]
