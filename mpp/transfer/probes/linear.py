"""The linear probe: a grid of linear heads, learning rates x feature variants, trained in one pass over the features.

Letters: n images, B batch, D columns of a variant, W of a table, R learning rates, C classes.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, StrictBool
from torch import Tensor

from mpp.config.schema import Positive
from mpp.model.backbone import Backbone
from mpp.progress import Progress
from mpp.rng import PROBE, Draws
from mpp.text import counted
from mpp.transfer.features import EPSILON, Part, Variant, place, places_of
from mpp.transfer.grid import Axis, search
from mpp.transfer.metrics import wilson
from mpp.transfer.probes.contract import (
    TOP_1,
    Answers,
    Fitted,
    Measured,
    Picture,
    Probe,
    Said,
    Train,
    of_logits,
    place_of,
    score_of,
    scores_by_place,
    side_by_side,
)
from mpp.transfer.split import BATCHES

LIMITS = 1e-6, 100.0  # of a learning rate
MOMENTUM = 0.9  # ViT B.1.1; DINOv2's grid probe


class LinearProbe(Probe):
    key, title, takes_weights = "linear", "linear", True

    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (
        1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 3e-1, 5e-1,
    )  # fmt: skip  # 13, as DINOv2's grid; widened twofold at its ends within 1e-6 to 100
    curve: StrictBool = (
        True  # every layer's mean and class token, and the predictor's first block, are in the grid too (ours): the curve by layer
    )
    last_layers: Annotated[tuple[Positive, ...], Field(strict=False)] = (1, 4)  # concatenated, x poolings, beside `features` (DINOv2)
    epochs: Positive = 30
    batch: Positive = 1024
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    def memory(self, widths: Sequence[int], classes: int) -> tuple[int, str]:
        """Weight and velocity of each head, and logits, their softmax and a product's scratch of a minibatch; float32."""
        heads = len(self.learning_rates) * classes
        words = (
            f"{len(widths)} places in the encoder x {len(self.learning_rates)} learning rates x {classes:,} classes; lower linear.learning_rates=[0.1,0.3], "
            "linear.curve=false, linear.last_layers=[1] or linear.batch"
        )
        return 4 * heads * (2 * (sum(widths) + len(widths)) + 3 * self.batch), words

    def variants(self, own: Variant, backbone: Backbone) -> list[Variant]:
        """`own`; each layer's class token and mean, the predictor's first block (curve); {last k layers} x {cls, mean, both}.

        Source: the grid probe of DINOv2 (arXiv 2304.07193, B.3), {1, 4} last layers x {cls, cls + mean}; the mean alone and every layer are
        ours, as masked encoders probe best so, from middle layers on, and may have no class token.
        """
        depth = backbone.depth
        single: tuple[Part, ...] = ("mean", "cls") if backbone.class_tokens else ("mean",)
        poolings = (*single, "both") if backbone.class_tokens else single
        every = places_of(own, backbone) if self.curve else []
        last = [
            Variant(tuple(range(max(backbone.first, depth + 1 - k), depth + 1)), pooling) for k in self.last_layers for pooling in poolings
        ]
        return list(dict.fromkeys([own, *every, *last]))

    def fit(self, train: Train) -> "FittedLinear":
        features = train.features

        def heads(rows: np.ndarray, variants: Sequence[Variant], rates: Sequence[float]) -> Grid:
            return train_heads(
                features.values,
                rows,
                train.labels,
                len(train.classes),
                [features.layout.columns(variant) for variant in variants],
                rates,
                weights=train.class_weights(rows),
                epochs=self.epochs,
                batch=self.batch,
                weight_decay=self.weight_decay,
                seed=train.seed,
                device=train.device,
            )

        tried: dict[tuple[Variant, float], float] = {}

        def evaluate(values: list[list[Any]]) -> np.ndarray:
            """[variants, R]"""
            variants, rates = values
            if any((variant, rate) not in tried for variant in variants for rate in rates):
                answers = heads(train.split.fit, variants, rates).predict(features.values, train.split.choose)
                for variant, (predicted, _, _) in zip(variants, answers, strict=True):
                    tried.update(zip([(variant, rate) for rate in rates], train.on_holdout(predicted).tolist(), strict=True))
            return np.array([[tried[variant, rate] for rate in rates] for variant in variants])

        def chosen(variants: Sequence[Variant]) -> tuple[Variant, float, dict[str, Any]]:
            rates = Axis("learning rate", sorted(self.learning_rates), 2, *LIMITS, stride=2)
            found = search([Axis("features", list(variants)), rates], evaluate, train.widen)
            variant, rate = found.chosen(0), found.chosen(1)
            about = {"holdout_score": found.score, "chosen": {"features": str(variant), "learning_rate": rate}, "edge": found.edges}
            about |= {"metric": train.metric, "labels": len(train.split.both)}
            return variant, rate, about | ({} if train.last is None else {"place": str(variant)})

        # The rates are widened for the last block as they were for all, so that it is tuned as hard.
        ends = [variant for variant in train.variants if variant.layers == (train.last,)]
        picked = [chosen(variants) for variants in (train.variants, ends) if variants]
        variants = list(dict.fromkeys(variant for variant, _, _ in picked))
        rates = list(dict.fromkeys(rate for _, rate, _ in picked))
        trained = heads(train.split.both, variants, rates)  # in one pass
        made = [FittedLinear(about, trained.only(variants.index(variant), rates.index(rate))) for variant, rate, about in picked]
        about = picked[0][2]
        about["grid"] = [
            {"features": str(v), "layers": list(v.layers), "pooling": v.pooling, "learning_rate": r, "holdout_score": score}
            for (v, r), score in tried.items()
        ]
        if train.last is not None:
            about["by_layer"] = scores_by_place((*place, score) for (v, _), score in tried.items() if (place := place_of(v)))
        return replace(made[0], last=made[1]) if ends else made[0]

    @classmethod
    def pictures(cls, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], images: int) -> Iterator[Picture]:
        from mpp.transfer import plots

        score = score_of(rows)
        curves = {name: layer_curve(figures["grid"], images if score == TOP_1 else 0) for name, figures in rows.items()}
        if curves := {name: points for name, points in curves.items() if len(points) > 1}:
            title = f"Linear probe by layer, the best of its grid, on the hold-out of train ({images} images)"
            yield "layers.png", plots.by_layer(curves, title, names, score)


@dataclass(frozen=True)
class FittedLinear(Fitted):
    about: dict[str, Any]
    head: "Grid"  # the winner alone, trained again on all of fit and choose with the same epochs
    last: "FittedLinear | None" = None  # likewise, of the last block's output alone

    def summary(self) -> str:
        return f"linear on {self.about['chosen']['features']}, lr {self.about['chosen']['learning_rate']:g}"

    def answer(self, images: Measured) -> Answers:
        predicted, confidence, score = self.head.predict(images.features.values, images.rows)[0]
        return Answers(predicted[0], confidence[0], None if score is None else score[0])


def layer_curve(grid: Sequence[Mapping[str, Any]], images: int) -> list[tuple[int, float, tuple[float, float]]]:
    """(layer, the best hold-out score of its heads, Wilson's interval) of each single layer in the linear probe's grid; images: 0 for a
    score that is no share of them, and has no interval here."""
    best: dict[int, float] = {}
    for head in grid:
        if len(head["layers"]) == 1:
            layer = head["layers"][0]
            best[layer] = max(best.get(layer, 0.0), head["holdout_score"])
    return [(layer, share, wilson(round(share * images), images) if images else (share, share)) for layer, share in sorted(best.items())]


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

    def only(self, variant: int, rate: int) -> "Grid":
        """One head alone."""
        found = self.heads[variant]
        return replace(self, heads=[Heads(found.columns, found.weight[rate : rate + 1], found.bias[rate : rate + 1])])

    def predict(self, values: Tensor, rows: np.ndarray, batch: int = 4096) -> list[Said]:
        """For each variant what its heads say of those rows of float32 [n, W]."""
        parts: list[list[Said]] = [[] for _ in self.heads]
        places = [place(heads.columns) for heads in self.heads]
        for chosen in torch.from_numpy(rows).split(batch):
            x = (values[chosen].to(self.mean.device) - self.mean) * self.scale
            for part, where, heads in zip(parts, places, self.heads, strict=True):
                part.append(
                    of_logits((heads.weight.flatten(0, 1) @ x[:, where].T).unflatten(0, heads.bias.shape) + heads.bias.unsqueeze(-1))
                )
        return [side_by_side(part) for part in parts]


def train_heads(
    values: Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    columns: Sequence[Tensor],
    learning_rates: Sequence[float],
    *,
    weights: Tensor | None = None,
    epochs: int,
    batch: int,
    weight_decay: float,
    seed: int,
    device: torch.device,
) -> Grid:
    """Zero-initialised softmax heads on rows of float32 [n, W], all on the same minibatches; SGD with momentum, cosine to zero.

    rows: int64 [m].  labels: integers [n].  columns: int64 [D] a variant.  weights: float [C], of the images of each class (1 in the mean over rows).
    No augmentation: features are computed once.
    A head trained in the grid is the head trained alone; only the rounding of the matrix products may differ.
    Source: ViT B.1.1 (zero head, momentum .9, cosine); DINOv2 (arXiv 2304.07193, B.3) for the grid in one pass.
    """
    mean, scale = (part.to(device) for part in standardisation(values, rows))
    places = [place(c) for c in columns]
    heads = len(learning_rates)
    rate = torch.tensor(learning_rates, dtype=torch.float32, device=device).repeat_interleave(classes)  # [R C]
    # Heads lie along the rows, images along the columns: then the softmax and both products run over memory in order.
    matrices = [torch.zeros(heads * classes, len(c), device=device) for c in columns]
    biases = [torch.zeros(heads * classes, device=device) for _ in columns]
    velocity = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in zip(matrices, biases, strict=True)]
    share = None if weights is None else weights.float().to(device)
    per_epoch = -(-len(rows) // batch)
    step, steps = 0, epochs * per_epoch
    targets = torch.from_numpy(labels.astype(np.int64))
    orders = (torch.from_numpy(rows[Draws(seed, PROBE, BATCHES, epoch).permutation(len(rows))]) for epoch in range(epochs))
    with Progress(counted(heads * len(columns), "head"), steps, "steps") as bar:
        for chosen in itertools.chain.from_iterable(order.tensor_split(per_epoch) for order in orders):
            x = values[chosen].to(device).sub_(mean).mul_(scale)
            y = targets[chosen].to(device)
            here = torch.arange(len(y), device=device)
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            for where, w, b, (v_w, v_b) in zip(places, matrices, biases, velocity, strict=True):
                x_i = x[:, where]
                logits = (w @ x_i.T).add_(b.unsqueeze(1)).view(heads, classes, len(y))
                gradient = logits.softmax(dim=1)
                gradient[:, y, here] -= 1
                if share is not None:
                    gradient *= share[y]
                flat = gradient.view(heads * classes, len(y))
                v_w.addmm_(flat, x_i, beta=MOMENTUM, alpha=1 / len(y))  # of the mean cross-entropy
                v_b.mul_(MOMENTUM).add_(flat.mean(dim=1))
                if weight_decay:
                    v_w.add_(w, alpha=weight_decay)
                w.addcmul_(v_w, rate.unsqueeze(1), value=-decay)
                b.addcmul_(v_b, rate, value=-decay)
            step += 1
            bar.update()
    shape = (heads, classes)
    trained = [Heads(c.to(device), w.unflatten(0, shape), b.view(shape)) for c, w, b in zip(columns, matrices, biases, strict=True)]
    return Grid(mean, scale, trained)


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
