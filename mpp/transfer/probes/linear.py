"""The linear probe: a grid of linear heads, learning rates x feature variants, trained in one pass over the features.

A head never looks at another one, so processes divide the grid.  What one of them trains at a time is a `Block`: heads of one variant in one matrix
product.  Blocks are cut alike however many processes there are, and nothing else enters a product, so every head has the same bits in each.

Letters: n images, B batch, D columns of a variant, W of a table, R learning rates, C classes.
"""

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, StrictBool
from torch import Tensor

from mpp.base.progress import Progress
from mpp.base.rng import PROBE, Draws
from mpp.base.text import counted
from mpp.config.schema import Positive
from mpp.model.backbone import Backbone
from mpp.transfer.features import EPSILON, Part, Variant, places_of, sliced
from mpp.transfer.grid import Axis, Found, searching
from mpp.transfer.metrics import wilson
from mpp.transfer.probes.contract import (
    TOP_1,
    Answers,
    Fitted,
    Measured,
    Picture,
    Said,
    Train,
    of_logits,
    place_of,
    score_of,
    scores_by_place,
    side_by_side,
)
from mpp.transfer.probes.divided import DividedProbe, Search, Trials, deal
from mpp.transfer.split import BATCHES

Chosen = tuple[Variant, float, dict[str, Any]]  # a place, a learning rate, and what is told of them
LIMITS = 1e-6, 100.0  # of a learning rate
MOMENTUM = 0.9  # ViT B.1.1; DINOv2's grid probe
BLOCK = 256  # rows of a matrix product that are enough for it to run at full speed; what is cut finer is slower (10 rows: by half)
BESIDE = 64  # columns whose products take as long as the softmax and the step of a head


class LinearProbe(DividedProbe):
    key, title, takes_weights = "linear", "linear", True

    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (
        1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 3e-1, 5e-1,
    )  # fmt: skip  # 13, as DINOv2's grid; widened twofold at its ends within 1e-6 to 100
    curve: StrictBool = (
        True  # every layer's mean and class token, and the predictor's first block, are in the grid too (ours): the curve by layer
    )
    last_layers: Annotated[tuple[Positive, ...], Field(strict=False)] = (1, 4)  # concatenated, x poolings, beside `features` (DINOv2)
    epochs: Positive = 30  # passes over the images (ours)
    batch: Positive = 1024  # images a step
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # none (DINOv2)

    def memory(self, widths: Sequence[int], classes: int, processes: int = 1) -> tuple[int, str]:
        """Weight and velocity of each head of the largest share, and logits, their softmax and a product's scratch of a block's minibatch; float32."""
        rates = [len(group) for group in groups(self.learning_rates, classes)]
        blocks = [(width, count) for width in widths for count in rates]
        shares = deal([[cost(width, count) for width, count in blocks]], processes)
        of_share = lambda mine: sum(2 * (width + 1) * count for width, count in (blocks[i] for _, i in mine))
        # What was chosen is trained again by one process: one head of any place, and one of the last block.
        most = max(2 * 2 * (max(widths) + 1), *map(of_share, shares))
        words = (
            f"{len(widths)} places in the encoder x {len(self.learning_rates)} learning rates x {classes:,} classes"
            f"{f', divided among {processes} processes,' if processes > 1 else ''}; lower linear.learning_rates=[0.1,0.3], "
            "linear.curve=false, linear.last_layers=[1] or linear.batch, or give more processes"
        )
        return 4 * classes * (most + 3 * self.batch * max(rates)), words

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

    def search(self, train: Train) -> Search:
        features, classes = train.features, len(train.classes)

        def heads(rows: np.ndarray, blocks: Sequence[tuple[Variant, Sequence[float]]]) -> Grid:
            return train_heads(
                features.values,
                rows,
                train.labels,
                classes,
                [Block(features.layout.columns(variant), rates) for variant, rates in blocks],
                weights=train.class_weights(rows),
                epochs=self.epochs,
                batch=self.batch,
                weight_decay=self.weight_decay,
                seed=train.seed,
                device=train.device,
            )

        tried: dict[tuple[Variant, float], float] = {}

        def evaluate(values: list[list[Any]]) -> Generator[Trials, list[list[float]], np.ndarray]:
            """[variants, R]"""
            variants, rates = values
            if any((variant, rate) not in tried for variant in variants for rate in rates):
                blocks = [(variant, group) for variant in variants for group in groups(rates, classes)]

                def scores(mine: Sequence[int]) -> list[list[float]]:
                    answers = heads(train.split.fit, [blocks[i] for i in mine]).predict(features.values, train.split.choose)
                    return [train.on_holdout(predicted).tolist() for predicted, _, _ in answers]

                costs = [cost(len(features.layout.columns(variant)), len(group)) for variant, group in blocks]
                for (variant, group), of_group in zip(blocks, (yield Trials(costs, scores)), strict=True):
                    tried.update(zip([(variant, rate) for rate in group], of_group, strict=True))
            return np.array([[tried[variant, rate] for rate in rates] for variant in variants])

        def chosen(variants: Sequence[Variant]) -> Generator[Trials, list[list[float]], tuple[Variant, float, dict[str, Any]]]:
            rates = Axis("learning rate", sorted(self.learning_rates), 2, *LIMITS, stride=2)
            found: Found = yield from searching([Axis("features", list(variants)), rates], evaluate, train.widen)
            variant, rate = found.chosen(0), found.chosen(1)
            about = {"holdout_score": found.score, "chosen": {"features": str(variant), "learning_rate": rate}, "edge": found.edges}
            about |= {"metric": train.metric, "labels": len(train.split.both)}
            return variant, rate, about | ({} if train.last is None else {"place": str(variant)})

        picked = [(yield from chosen(train.variants))]
        # The rates are widened for the last block as they were for all, so that it is tuned as hard.
        if ends := [variant for variant in train.variants if variant.layers == (train.last,)]:
            picked.append((yield from chosen(ends)))
            picked = best_of_all(*picked)

        def again() -> FittedLinear:
            """What was chosen, in one pass."""
            blocks = list(dict.fromkeys((variant, (rate,)) for variant, rate, _ in picked))
            trained = heads(train.split.both, blocks)
            made = [FittedLinear(about, trained.only(blocks.index((variant, (rate,))))) for variant, rate, about in picked]
            about = picked[0][2]
            about["grid"] = [
                {"features": str(v), "layers": list(v.layers), "pooling": v.pooling, "learning_rate": r, "holdout_score": score}
                for (v, r), score in tried.items()
            ]
            if train.last is not None:
                about["by_layer"] = scores_by_place((*place, score) for (v, _), score in tried.items() if (place := place_of(v)))
            return replace(made[0], last=made[1]) if ends else made[0]

        return again

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


def best_of_all(first: Chosen, last: Chosen) -> list[Chosen]:
    """What was chosen of all places and of the last block alone, as it is reported.  The last block's rates may have been widened by themselves, where
    all were level with it: if that was better on the hold-out, it is the best of all."""
    score = lambda chosen: chosen[2]["holdout_score"]
    return [(last[0], last[1], dict(last[2])) if score(last) > score(first) else first, last]


def layer_curve(grid: Sequence[Mapping[str, Any]], images: int) -> list[tuple[int, float, tuple[float, float]]]:
    """(layer, the best hold-out score of its heads, Wilson's interval) of each single layer in the linear probe's grid; images: 0 for a
    score that is no share of them, and has no interval here."""
    best: dict[int, float] = {}
    for head in grid:
        if len(head["layers"]) == 1:
            layer = head["layers"][0]
            best[layer] = max(best.get(layer, 0.0), head["holdout_score"])
    return [(layer, share, wilson(round(share * images), images) if images else (share, share)) for layer, share in sorted(best.items())]


def groups(learning_rates: Sequence[float], classes: int) -> list[tuple[float, ...]]:
    """The rates whose heads share a matrix product: as few as make BLOCK rows of it, in groups of much the same size."""
    count = -(-len(learning_rates) // -(-BLOCK // classes))
    return [tuple(group.tolist()) for group in np.array_split(np.array(learning_rates), count)]


def cost(width: int, learning_rates: int) -> float:
    """How long so many heads of a variant of `width` columns take to train, beside others of the same grid."""
    return (width + BESIDE) * learning_rates


@dataclass(frozen=True)
class Block:
    """Heads that share a matrix product: of one variant, one a learning rate."""

    columns: Tensor  # int64 [D] of the feature table
    learning_rates: Sequence[float]  # R


@dataclass(frozen=True)
class Heads:
    """A block, trained; the standardisation is that of the rows trained on (a BatchNorm without affine, at its end)."""

    columns: Tensor  # int64 [D] of the feature table
    mean: Tensor  # float32 [D]
    scale: Tensor  # float32 [D]: 1 / standard deviation
    weight: Tensor  # float32 [R, C, D], of standardised features
    bias: Tensor  # float32 [R, C]


@dataclass(frozen=True)
class Grid:
    """What one pass trains, by block."""

    heads: list[Heads]

    def only(self, block: int) -> "Grid":
        """One block alone."""
        return Grid([self.heads[block]])

    def predict(self, values: Tensor, rows: np.ndarray, batch: int = 4096) -> list[Said]:
        """For each block what its heads say of those rows of float32 [n, W]."""
        parts: list[list[Said]] = [[] for _ in self.heads]
        needed = Needed([heads.columns for heads in self.heads])
        for chosen in torch.from_numpy(rows).split(batch):
            read = needed.read(values, chosen).to(self.heads[0].mean.device)
            for part, heads, x in zip(parts, self.heads, needed.each(read), strict=True):
                logits = heads.weight.flatten(0, 1) @ ((x - heads.mean) * heads.scale).T
                part.append(of_logits(logits.unflatten(0, heads.bias.shape) + heads.bias.unsqueeze(-1)))
        return [side_by_side(part) for part in parts]


class Needed:
    """The columns of a feature table that some variants take, each read once, and no others."""

    def __init__(self, variants: Sequence[Tensor]):
        """variants: int64 [D] each."""
        columns = torch.unique(torch.cat([columns.cpu() for columns in variants]))  # ascending
        ends = [0, *(torch.nonzero(columns.diff() > 1).flatten() + 1).tolist(), len(columns)]
        self.stretches = [slice(int(columns[first]), int(columns[end - 1]) + 1) for first, end in itertools.pairwise(ends)]
        self.places = [sliced(torch.searchsorted(columns, own.cpu())) for own in variants]

    def read(self, values: Tensor, rows: Tensor) -> Tensor:
        """A copy of those rows of float32 [n, W]."""
        parts = [values[:, stretch][rows] for stretch in self.stretches]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def each(self, read: Tensor) -> Iterator[Tensor]:
        """Each variant's columns of what was read, or of anything that lies so."""
        return (read[..., where] for where in self.places)


def train_heads(
    values: Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    blocks: Sequence[Block],
    *,
    weights: Tensor | None = None,
    epochs: int,
    batch: int,
    weight_decay: float,
    seed: int,
    device: torch.device,
) -> Grid:
    """Zero-initialised softmax heads on rows of float32 [n, W], all on the same minibatches; SGD with momentum, cosine to zero.

    rows: int64 [m].  labels: integers [n].  weights: float [C], of the images of each class (1 in the mean over rows).
    No augmentation: features are computed once.
    A block has the same bits whatever is trained beside it.  A head is the head trained alone; only the rounding of its block's products may differ.
    Source: ViT B.1.1 (zero head, momentum .9, cosine); DINOv2 (arXiv 2304.07193, B.3) for the grid in one pass.
    """
    by_columns = [list(same) for _, same in itertools.groupby(range(len(blocks)), key=lambda i: tuple(blocks[i].columns.tolist()))]
    needed = Needed([blocks[same[0]].columns for same in by_columns])
    means, scales = (list(needed.each(part.to(device))) for part in standardisation(values, rows, needed))
    rate = [torch.tensor(b.learning_rates, dtype=torch.float32, device=device).repeat_interleave(classes) for b in blocks]  # [R C]
    # Heads lie along the rows, images along the columns: then the softmax and both products run over memory in order.
    matrices = [torch.zeros(len(r), len(b.columns), device=device) for r, b in zip(rate, blocks, strict=True)]
    biases = [torch.zeros(len(r), device=device) for r in rate]
    velocity = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in zip(matrices, biases, strict=True)]
    share = None if weights is None else weights.float().to(device)
    per_epoch = -(-len(rows) // batch)
    step, steps = 0, epochs * per_epoch
    targets = torch.from_numpy(labels.astype(np.int64))
    orders = (torch.from_numpy(rows[Draws(seed, PROBE, BATCHES, epoch).permutation(len(rows))]) for epoch in range(epochs))
    with Progress(counted(sum(len(b.learning_rates) for b in blocks), "head"), steps, "steps") as bar:
        for chosen in itertools.chain.from_iterable(order.tensor_split(per_epoch) for order in orders):
            read = needed.read(values, chosen).to(device)
            y = targets[chosen].to(device)
            here = torch.arange(len(y), device=device)
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            for same, part, mean, scale in zip(by_columns, needed.each(read), means, scales, strict=True):
                x = (part - mean).mul_(scale)  # a copy of its own, so that a product does not depend on what lies beside it in memory
                for i in same:
                    w, b, (v_w, v_b) = matrices[i], biases[i], velocity[i]
                    logits = (w @ x.T).add_(b.unsqueeze(1)).view(-1, classes, len(y))
                    gradient = logits.softmax(dim=1)
                    gradient[:, y, here] -= 1
                    if share is not None:
                        gradient *= share[y]
                    flat = gradient.view(-1, len(y))
                    v_w.addmm_(flat, x, beta=MOMENTUM, alpha=1 / len(y))  # of the mean cross-entropy
                    v_b.mul_(MOMENTUM).add_(flat.mean(dim=1))
                    if weight_decay:
                        v_w.add_(w, alpha=weight_decay)
                    w.addcmul_(v_w, rate[i].unsqueeze(1), value=-decay)
                    b.addcmul_(v_b, rate[i], value=-decay)
            step += 1
            bar.update()
    of_block = {i: number for number, same in enumerate(by_columns) for i in same}
    return Grid(
        [
            Heads(block.columns.to(device), means[of_block[i]], scales[of_block[i]], w.view(-1, classes, w.shape[1]), b.view(-1, classes))
            for i, (block, w, b) in enumerate(zip(blocks, matrices, biases, strict=True))
        ]
    )


def standardisation(values: Tensor, rows: np.ndarray, needed: Needed) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + EPSILON), float32 [D] each, of the columns needed of rows of float32 [n, W]; summed in float64, in pieces."""
    total = torch.zeros((), dtype=torch.float64)
    for chosen in torch.from_numpy(rows).split(4096):
        total = total + needed.read(values, chosen).double().sum(0)
    mean = total / len(rows)
    square = torch.zeros_like(mean)
    for chosen in torch.from_numpy(rows).split(4096):
        square += (needed.read(values, chosen).double() - mean).square_().sum(0)
    return mean.float(), (square / len(rows) + EPSILON).rsqrt().float()
