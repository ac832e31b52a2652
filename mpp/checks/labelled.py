"""The encoder and the labelled images of a fine-tuning before it begins: what was read, which classes there are, how many images are held out, and
whether some of them can be read.  Of the test split the images are counted; none is looked at, so that nobody has read it."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpp.base.text import counted
from mpp.checks.finding import Finding
from mpp.checks.images import LOOK_SECONDS, LOOKED_AT, NAMES_THEM, unreadable
from mpp.config.finetune import FinetuneConfig
from mpp.data.finetune_set import FinetuneSet
from mpp.data.loader import fixed_batches
from mpp.data.shards import ShardSet
from mpp.interop.loaded_encoder import LoadedEncoder

SKEWED = 10  # times that the largest class may have the images of the smallest (judged)
FEW_HELD = 100  # held-out images, below which an accuracy on them is known to ten points at best


def encoder(loaded: LoadedEncoder, init: str) -> Finding:
    """Of one that was read."""
    parameters = sum(parameter.numel() for parameter in loaded.net.parameters())
    notes = "".join(f"; {note}" for note in loaded.notes)
    random = ", to be initialised at random (init=random)" if init == "random" else ""
    found = f"{loaded.source}: {loaded.architecture[0]}, {parameters:,} parameters, pretrained at {loaded.image_size} px{random}{notes}"
    return Finding("encoder", "ok", found)


def labels(sets: FinetuneSet, config: FinetuneConfig) -> list[Finding]:
    """Of splits that were opened, and so checked: train, test, and what is unusual."""
    train, classes = sets.source("train"), sets.classes
    each = np.bincount(sets.labels, minlength=len(classes))
    least, most = int(each[each > 0].min()), int(each.max())
    held = f", {len(sets.holdout.ids):,} of them held out" if sets.holdout else ""
    said = f"train={train.path}: {counted(len(train), 'image')} of {counted(len(classes), 'class', 'classes')}{held}; trained on are {len(sets.labels):,}, {least:,} to {most:,} a class"
    found = [Finding("labels", "ok", said)]
    if most > SKEWED * least and config.optim.class_weight is None and config.metric == "accuracy":
        found = [
            Finding(
                "labels", "warning", f"{said}: the large classes will outweigh the small ones",
                "optim.class_weight=balanced weighs them alike in the loss, metric=balanced_accuracy in what is chosen by",
            )
        ]  # fmt: skip
    if sets.test:
        found.append(
            Finding(
                "test",
                "ok",
                f"test={sets.source('test').path}: {counted(len(sets.test.ids), 'image')} of the same classes, read once, at the end",
            )
        )
    else:
        found.append(Finding("test", "ok", "no test= is given: figures are on what is held out of train"))
    for remark in sets.remarks:
        words, _, fix = remark.rpartition("; ")
        found.append(Finding("labels", "warning", words or fix, fix if words else "give images of them, or take it as it is"))
    return found


def hold_out(sets: FinetuneSet, config: FinetuneConfig) -> Finding:
    """Whether what is chosen, or measured, on it means anything."""
    if sets.holdout is None:
        what = "the average of the weights" if config.optim.ema else "the last step's weights"
        return Finding("hold-out", "ok", f"none (data.holdout_fraction=0): {what} are measured on test, and nothing is chosen")
    held = len(sets.holdout.ids)
    points = 98 / math.sqrt(held)  # half of a 95 % interval of an accuracy of one half
    found = f"{counted(held, 'image')} of train, on which {config.metric.replace('_', ' ')} chooses{'' if sets.test else ', and is reported'}; 50 % of them would be known to ±{points:.0f} points"
    if sets.test is None and held < FEW_HELD:
        return Finding("hold-out", "warning", found, "raise data.holdout_fraction, or give a test split (test=)")
    return Finding("hold-out", "ok", found)


def readable(sets: FinetuneSet) -> Finding:
    """Some images of train, evenly, held-out ones as well."""
    looked, bad, began = 0, list[dict](), time.monotonic()
    parts = [replace(sets.training, mixing=None, erasing=0.0, recolour=None)]
    parts += [replace(sets.holdout, leaves_none_out=False)] if sets.holdout else []
    for part in parts:
        ids = part.ids[np.linspace(0, len(part.ids) - 1, min(LOOKED_AT // len(parts), len(part.ids))).astype(np.int64)]
        for batch, weight in fixed_batches(part, ids, batch=32):
            looked += int(weight.sum())
            bad += batch["bad"]
            if time.monotonic() - began > LOOK_SECONDS:
                break
    source = sets.source("train")
    if bad:
        fix = NAMES_THEM.format(source.path) if isinstance(source, ShardSet) else source.remedy
        found = unreadable("images", len(bad), looked, fix)
        return replace(found, found=f"{found.found}, the first is {bad[0]['where']} ({bad[0]['reason']})")
    return Finding("images", "ok", f"{looked} images of train were looked at, and can be read")


def starts(words: Sequence[str], steps: int, folders: Sequence[Path]) -> Finding:
    """words: by repeat, how it starts.  steps: of each.  folders: of each."""
    if len(words) == 1:
        return Finding("start", "ok", f"{words[0]}, {steps} steps in all")
    of = {each: [folder.name for folder, said in zip(folders, words, strict=True) if said == each] for each in dict.fromkeys(words)}
    said = "; ".join(f"{', '.join(names)}: {each}" for each, names in of.items())
    return Finding("start", "ok", f"{said}; {steps} steps in each")
