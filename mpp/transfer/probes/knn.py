"""k nearest neighbours by cosine similarity, votes weighted by exp(similarity / temperature).

Source: Wu et al. 2018 (arXiv 1805.01978) as DINO and DINOv2 use it: temperature .07, k from 10, 20, 100, 200; features are not centred.
`nearest` looks through the bank once; `vote` then serves every k and temperature.

Letters: n images in the bank, m queries, W columns of a feature table, D columns of a variant, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, StrictBool
from torch import Tensor
from torch.nn.functional import normalize

from mpp.base.errors import ConfigError
from mpp.base.progress import tracked
from mpp.config.schema import Positive
from mpp.model.backbone import Backbone
from mpp.transfer.features import Variant, places_of, sliced
from mpp.transfer.grid import Axis, Found, search
from mpp.transfer.probes.contract import Answers, Fitted, Measured, Train, place_of, scores_by_place
from mpp.transfer.probes.divided import DividedProbe, Search, Trials

TEMPERATURES = 0.002, 20.0  # limits of the grid: the nearest alone, and all votes alike
MOST_NEIGHBOURS = 2000
BESIDE = 128  # columns whose product with the bank takes as long as finding the largest in it


class KnnProbe(DividedProbe):
    key, title = "knn", "k-NN"

    k: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (5, 10, 20, 50, 100, 200)  # widened twofold, 1 to 2,000
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (
        0.02,
        0.07,
        0.2,
    )  # DINO: .07; widened threefold, .002 to 20

    curve: StrictBool = True  # the hold-out also chooses where: each layer's mean or class token, or the predictor's first block (ours)

    def variants(self, own: Variant, backbone: Backbone) -> list[Variant]:
        return places_of(own, backbone) if self.curve else [own]

    def search(self, train: Train) -> Search:
        """Each place is a trial."""
        places = list(train.variants or [train.own])

        def at(mine: Sequence[int]) -> list[Found]:
            return [self._at(train, places[i]) for i in tracked(mine, "neighbours", len(mine), "places")]

        costs = [len(train.features.layout.columns(variant)) + BESIDE for variant in places]
        found = dict(zip(places, (yield Trials(costs, at)), strict=True))
        best = _best(found)
        ends = [variant for variant in found if variant.layers == (train.last,)]
        by_layer = scores_by_place((*place, one.score) for variant, one in found.items() if (place := place_of(variant)))
        about = _about(train, best, found[best]) | ({"by_layer": by_layer} if train.last is not None else {})
        last = _best({variant: found[variant] for variant in ends}) if ends else None
        fitted = FittedKnn(about, best, train, None if last is None else FittedKnn(_about(train, last, found[last]), last, train))
        return lambda: fitted

    def _at(self, train: Train, variant: Variant) -> Found:
        """What its neighbours are worth on the hold-out; each place's grid is widened for itself."""
        bank, queries = train.split.fit, train.features.of(variant)[train.split.choose]
        known: list[tuple[Tensor, Tensor]] = []  # the neighbours of the largest k so far

        def evaluate(values: list[list[Any]]) -> np.ndarray:
            """[T, K]"""
            temperatures, ks = values
            if not known or known[-1][0].shape[1] < max(ks):
                known[:] = [neighbours_of(train, bank, variant, queries, max(ks))]
            return train.on_holdout(vote(*known[0], len(train.classes), ks, temperatures)[0]).numpy()

        axes = [
            Axis("temperature", sorted(self.temperatures), 3, *TEMPERATURES),
            Axis("k", sorted(usable_k(self.k, len(bank))), 2, 1, min(len(bank), MOST_NEIGHBOURS)),
        ]
        return search(axes, evaluate, train.widen)


def _best(found: Mapping[Variant, Found]) -> Variant:
    """The first of several."""
    return max(found, key=lambda variant: found[variant].score)


def _about(train: Train, variant: Variant, found: Found) -> dict[str, Any]:
    place = {} if train.last is None else {"place": str(variant)}
    return place | {
        "holdout_score": found.score,
        "chosen": {"features": str(variant), "k": found.chosen(1), "temperature": found.chosen(0)},
        "edge": [edge for edge in found.edges if (edge, found.chosen(1)) != ("k", 1)],  # there is no fewer
        "labels": len(train.split.both),
        "grid": [
            {"k": count, "temperature": temperature, "holdout_score": float(found.scores[i, j])}
            for i, temperature in enumerate(found.values[0])
            for j, count in enumerate(found.values[1])
        ],
    }


@dataclass(frozen=True)
class FittedKnn(Fitted):
    about: dict[str, Any]
    variant: Variant
    train: Train
    last: "FittedKnn | None" = None  # the same of the last block's output alone

    @property
    def bank(self) -> np.ndarray:
        """int64, rows of train: the neighbours, all of fit and choose."""
        return self.train.split.both

    def summary(self) -> str:
        chosen = self.about["chosen"]
        return f"k-NN on {chosen['features']}, k {chosen['k']}, temperature {chosen['temperature']:g}"

    def answer(self, images: Measured) -> Answers:
        chosen, queries = self.about["chosen"], images.features.of(self.variant)[images.rows]
        near = neighbours_of(self.train, self.bank, self.variant, queries, chosen["k"])
        voted, share = vote(*near, len(self.train.classes), [chosen["k"]], [chosen["temperature"]])
        return Answers(voted[0, 0], share[0, 0])


def neighbours_of(train: Train, bank: np.ndarray, variant: Variant, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the rows `bank` of train to queries float32 [m, D]: similarities float32 and labels int64, [m, k], for `vote`."""
    similarity, index = nearest(queries, train.features.values, bank, train.features.layout.columns(variant), k, train.device)
    return similarity, train.truth(bank)[index]


def usable_k(grid: Sequence[int], neighbours: int) -> list[int]:
    """The k of the grid that a bank of so many neighbours can serve.  Raises ConfigError when there is none."""
    usable = [k for k in grid if k <= neighbours]
    if not usable:
        raise ConfigError(
            f"knn.k={list(grid)}: there are only {neighbours} labelled images to be neighbours; set knn.k=[{neighbours}] or less"
        )
    return usable


def nearest(
    queries: Tensor,
    values: Tensor,
    rows: np.ndarray,
    columns: Tensor,
    k: int,
    device: torch.device,
    chunk: int = 256,
    bank_chunk: int = 65536,
) -> tuple[Tensor, Tensor]:
    """The k most similar rows for each query, the most similar first: similarities float32 [m, k] and places in `rows`, int64 [m, k].

    queries: float32 [m, D].  values: float32 [n, W], of which `rows` (at least k) and `columns` are the bank; it is read once, `bank_chunk` rows at a
    time, and of `chunk` x `bank_chunk` similarities only the best are kept, so memory does not grow with the bank.  Which of equally similar rows
    comes first is left open.
    """
    asked = normalize(queries.to(device), dim=1)
    best = torch.full((len(queries), 0), -torch.inf, device=device)
    where = torch.zeros(len(queries), 0, dtype=torch.int64, device=device)
    chosen = sliced(columns.to(values.device))
    for first in range(0, len(rows), bank_chunk):
        part = torch.from_numpy(rows[first : first + bank_chunk])
        known = values[:, chosen][part] if isinstance(chosen, slice) else values[part][:, chosen]
        known = normalize(known.to(device), dim=1)
        # One buffer for all products: on a CPU new memory for each would cost as much as the product.
        buffer = torch.empty(min(chunk, len(queries)) * len(part), device=device)
        found = []
        for block in asked.split(chunk):
            product = torch.mm(block, known.T, out=buffer[: len(block) * len(part)].view(len(block), -1))
            found.append(product.topk(min(k, len(part)), dim=1))
        best = torch.cat([best, torch.cat([similarity for similarity, _ in found])], dim=1)
        where = torch.cat([where, torch.cat([index for _, index in found]) + first], dim=1)
        if best.shape[1] > k:
            best, kept = best.topk(k, dim=1)
            where = where.gather(1, kept)
    return best.cpu(), where.cpu()


def vote(
    similarity: Tensor, voters: Tensor, classes: int, grid: Sequence[int], temperatures: Sequence[float], chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """The class each query is given, int64 [T, K, m], and the share of the votes it won, float32 [T, K, m]; equal votes go to the lower class.

    similarity: float32 [m, k], the highest first; voters: int64 [m, k], the neighbours' labels.  grid: K numbers of neighbours, at most k;
    temperatures: T of them.
    """
    order = sorted(range(len(grid)), key=lambda i: grid[i])
    predicted = torch.empty(len(temperatures), len(grid), len(voters), dtype=torch.int64)
    won = torch.empty(len(temperatures), len(grid), len(voters))
    for first in range(0, len(voters), chunk):
        here = slice(first, first + chunk)
        near, labels = similarity[here], voters[here]
        for t, temperature in enumerate(temperatures):
            weight = ((near - near[:, :1]) / temperature).exp()  # relative to the nearest: a low temperature would overflow
            votes, counted = weight.new_zeros(len(near), classes), 0
            for i in order:
                votes.scatter_add_(1, labels[:, counted : grid[i]], weight[:, counted : grid[i]])
                counted = grid[i]
                most, best = votes.max(dim=1)
                predicted[t, i, here], won[t, i, here] = best.cpu(), (most / votes.sum(dim=1)).cpu()
    return predicted, won
