"""The probes of one row of the table: first everything is chosen and fitted on train, then figures are read on images not seen so far.

`choose` never gets the images that `answers_to` reads, so no hyper-parameter can depend on them.  Neither knows files: tables may lie in memory.
A column of the table is named by its probe, or by probe/part where it has several (few_shot/5).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mpp.base.progress import Progress
from mpp.model.backbone import Backbone
from mpp.transfer.features import Variant, refuse_other_features
from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers, Fitted, Measured, Probe, Train, stacked
from mpp.transfer.probes.divided import Searched


@dataclass(frozen=True)
class Chosen:
    """One row's probes, ready to be reported."""

    train: Train
    fitted: dict[str, Fitted]  # by key
    seconds: dict[str, float]  # likewise, of all that were tried


def chosen_words(summaries: Sequence[str], seconds: Mapping[str, float]) -> str:
    """summaries: of what was fitted; seconds: of all that was tried, by probe."""
    return "; ".join(filter(None, summaries)) + f" (seconds: {', '.join(f'{key} {took:.1f}' for key, took in seconds.items())})"


def variants_of(probes: Sequence[Probe], own: Variant, backbone: Backbone) -> list[Variant]:
    """All that a table must hold for these probes, `own` first."""
    return list(dict.fromkeys([own, *(variant for probe in probes for variant in probe.variants(own, backbone))]))


def may_choose(probe: Probe, train: Train, backbone: Backbone | None) -> Train:
    """With what this probe may choose from.  backbone: what the features are of; None (raw pixels): from `train.own` alone."""
    variants = [train.own] if backbone is None else probe.variants(train.own, backbone)
    return replace(train, variants=variants, last=None if backbone is None else backbone.depth)


def choose(
    probes: Sequence[Probe],
    train: Train,
    backbone: Backbone | None = None,
    ended: Callable[[], object] = lambda: None,
    searched: Searched | None = None,
) -> Chosen:
    """Fit every probe on `split.fit`, choose on `split.choose`; what was chosen then gets both.

    backbone: as of `may_choose`.  ended: is told of each probe that has been fitted.  searched: of a single probe, what several processes have
    found together.
    """
    fitted, seconds = {}, {}
    for probe in probes:
        began = time.perf_counter()
        with Progress(probe.title, at_once=True):
            found = searched.fit() if searched else probe.fit(may_choose(probe, train, backbone))
        seconds[probe.key] = round(time.perf_counter() - began + (searched.seconds if searched else 0.0), 3)
        ended()
        if found is not None:
            fitted[probe.key] = found
    return Chosen(train, fitted, seconds)


AllAnswers = dict[str, tuple[dict[str, Any], Answers]]  # by column: what is known of it, and its answers, [m] or [T, m]


def answers_to(chosen: Chosen, images: Measured) -> AllAnswers:
    """On images that `choose` has not seen, of the same FeatureSpec as the training features (else ConfigError)."""
    refuse_other_features(chosen.train.features.spec, images.features.spec)
    return {f"{key}/{part}" if part else key: said for key, fitted in chosen.fitted.items() for part, said in fitted.parts(images).items()}


def report(runs: Sequence[Sequence[AllAnswers]], truth: Tensor, classes: int) -> tuple[dict[str, Any], dict[str, Answers]]:
    """Figures with 95 % intervals beside what was chosen, and every answer, [S, T, m], for comparison.

    runs: of S seeds of the network R repeats each (T: repeats x draws within each); truth: int64 [m].  Of several runs the first one's choices stand
    beside the figures, and what each of them chose below `chosen_in_each`.
    """
    found: dict[str, Any] = {}
    answers: dict[str, Answers] = {}
    for column in runs[0][0]:
        abouts = [[repeat[column][0] for repeat in seed] for seed in runs]
        given = answers[column] = stacked([_in_a_row([repeat[column][1] for repeat in seed]) for seed in runs])
        figure = abouts[0][0] | figures(given.predicted, truth, classes, given.confidence, given.score)
        if len(runs) * len(runs[0]) > 1:
            figure["chosen_in_each"] = [[about["chosen"] for about in seed] for seed in abouts]
            held = [about["holdout_score"] for seed in abouts for about in seed if about.get("holdout_score") is not None]
            figure["holdout_score"] = sum(held) / len(held) if held else None
            figure["edge"] = sorted({edge for seed in abouts for about in seed for edge in about.get("edge", [])})
            if "place" in figure:
                figure["place"] = " or ".join(dict.fromkeys(about["place"] for seed in abouts for about in seed))
            if "by_layer" in figure:
                figure["by_layer"] = _mean_by_layer([about["by_layer"] for seed in abouts for about in seed])
        key, _, part = column.partition("/")
        if part:
            found.setdefault(key, {})[part] = figure
        else:
            found[key] = figure
    return found, answers


def _mean_by_layer(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of several seeds and draws, at the places of the first."""
    return [place | {"holdout_score": sum(run[i]["holdout_score"] for run in runs) / len(runs)} for i, place in enumerate(runs[0])]


def _in_a_row(repeats: Sequence[Answers]) -> Answers:
    """[T, m], of several [m] or [T, m]."""
    rows = [{name: part.reshape(-1, part.shape[-1]) for name, part in one.parts().items()} for one in repeats]
    return Answers(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]})
