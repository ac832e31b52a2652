"""The probes of one row of the table: first everything is chosen and fitted on train, then figures are read on images not seen so far.

`choose` never gets the images that `report` reads, so no hyper-parameter can depend on them.  Neither knows files: tables may lie in memory.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mpp.model.backbone import Backbone
from mpp.transfer.features import Variant, refuse_other_features
from mpp.transfer.probes.contract import Answers, Fitted, Measured, Probe, Train


@dataclass(frozen=True)
class Chosen:
    """One row's probes, ready to be reported."""

    train: Train
    fitted: dict[str, Fitted]  # by key
    seconds: dict[str, float]  # likewise, of all that were tried

    def summary(self) -> str:
        took = ", ".join(f"{key} {seconds:.1f}" for key, seconds in self.seconds.items())
        return "; ".join(filter(None, (found.summary() for found in self.fitted.values()))) + f" (seconds: {took})"


def variants_of(probes: Sequence[Probe], own: Variant, backbone: Backbone) -> list[Variant]:
    """All that a table must hold for these probes, `own` first."""
    return list(dict.fromkeys([own, *(variant for probe in probes for variant in probe.variants(own, backbone))]))


def choose(probes: Sequence[Probe], train: Train, backbone: Backbone | None = None) -> Chosen:
    """Fit every probe on `split.fit`, choose on `split.choose`; what was chosen then gets both.

    backbone: what the features are of, for what a probe may choose from; None (raw pixels): from `train.own` alone.
    """
    fitted, seconds = {}, {}
    for probe in probes:
        began = time.perf_counter()
        variants = [train.own] if backbone is None else probe.variants(train.own, backbone)
        found = probe.fit(replace(train, variants=variants))
        seconds[probe.key] = round(time.perf_counter() - began, 3)
        if found is not None:
            fitted[probe.key] = found
    return Chosen(train, fitted, seconds)


def report(chosen: Chosen, images: Measured, labels: np.ndarray) -> tuple[dict[str, Any], dict[str, Answers]]:
    """Figures with 95 % intervals on images that `choose` has not seen, beside what was chosen; and every answer, for comparison.

    images: of the same FeatureSpec as the training features (else ConfigError); labels: integers [m].
    """
    refuse_other_features(chosen.train.features.spec, images.features.spec)
    truth = torch.from_numpy(labels.astype(np.int64))
    figures: dict[str, Any] = {}
    answers: dict[str, Answers] = {}
    for key, fitted in chosen.fitted.items():
        figures[key], given = fitted.report(images, truth, len(chosen.train.classes))
        if given is not None:
            answers[key] = given
    return figures, answers
