"""What a probing leaves behind: the table, what it says in words, results.json, predictions and pictures."""

import platform
import shlex
import time
from typing import Any

import numpy as np
import timm
import torch

import mpp
from mpp.base import text
from mpp.data.fingerprints import content_id
from mpp.mains.probe_job import Probing, Reported
from mpp.monitor import rank
from mpp.transfer.extraction import centre_crops
from mpp.transfer.metrics import difference
from mpp.transfer.near_duplicates import PICTURE
from mpp.transfer.results import draw_answers, draw_choices, write_predictions, write_results
from mpp.transfer.table import PRETRAINED, RANDOM, by_column, format_table, layers_table, remarks_on_table
from mpp.transfer.verdict import Judged, judge, verdict


def compared(job: Probing, truth: torch.Tensor) -> dict[str, Any]:
    """What the encoder's line shows beside each other one: a verdict in words, and the paired difference in every column.

    Images that train holds, too, are left out: there the better memory wins.
    """
    fresh = torch.ones(len(truth), dtype=torch.bool) if job.overlap is None else torch.from_numpy(~job.overlap.train)
    if not fresh.any():
        return {"verdict": [], "gains": []}
    truth = truth[fresh]
    judged = {
        name: Judged(name, by_column(line.figures), {column: given.of(fresh) for column, given in line.answers.items()})
        for name, line in job.lines.items()
    }
    labels, config = len(job.train), job.config
    some = config.train_samples is not None and config.train_samples < labels and config.repeats == 1
    one_draw = f"one draw of {config.train_samples:,} of {labels:,} labels: another may say the contrary (repeats=5)" if some else ""
    ours = judged[PRETRAINED]
    found = verdict(judged, truth, config.metric, one_draw)
    found += [each for name in config.beside if (each := judge(ours, judged[name], truth, config.metric, one_draw))]
    gains = [
        {"over": name, "probe": column} | difference(ours.answers[column].predicted, given.predicted, truth, config.metric)
        for name, other in judged.items()
        if name != PRETRAINED
        for column, given in other.answers.items()
        if column in ours.answers
    ]
    return {"verdict": found, "gains": gains}


def write(job: Probing, shown: Reported | None, started: float) -> None:
    """The table, results.json, predictions and pictures; shown: None for the rank alone.  started: by time.perf_counter."""
    config, out = job.config, job.out
    figures = {name: line.figures for name, line in job.lines.items()}
    text.say()
    text.say_lines(format_table(figures, classes=job.train.classes))
    results: dict[str, Any] = {
        "command": shlex.join(["mpp/linear_probe.py", *job.words]),
        "kind": "probe",
        "encoder": {
            "path": config.encoder,
            "source": job.loaded.source,
            "digest": job.loaded.digest,
            "pretraining": job.loaded.pretraining,
        },
        "rows": {name: line.figures | {"about": line.about} for name, line in job.lines.items()},
        **job.about,
        "data": {
            name: None
            if images is None
            else {"path": str(images.path), "identity": images.identity, "content": content_id(images.prints), "images": len(images)}
            for name, images in (("train", job.train), ("test", job.test))
        },
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "holdout_fraction": config.holdout_fraction,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if job.world.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "processes": job.world.size,
    }
    pictures: list[str] = []
    text.say()
    if layers := layers_table(figures):
        text.say(
            f"by block, on the {job.about['holdout_images']} images held out of train to choose on (no figures to report: the best of many is "
            "flattered)"
        )
        text.say_lines(layers)
        text.say()
    for remark in remarks_on_table(figures):
        text.say(remark)
    seen: list[str] = []
    if shown is not None:
        assert job.overlap is not None
        answers = {name: line.answers for name, line in job.lines.items()}
        results["overlap"], seen = job.overlap.report(answers, shown.truth, len(job.train.classes))
        results |= compared(job, shown.truth)
        if shared := int(job.overlap.train.sum()):
            of = f"{len(shown.truth):,} images"
            text.say(
                f"verdict   on the {len(shown.truth) - shared:,} of {of} that train does not hold:"
                if shared < len(shown.truth)
                else "verdict   none: train holds all these images"
            )
        for found in results["verdict"]:
            text.say(f"verdict   {found['words']}")
        if not config.baselines:
            text.say("verdict   without raw pixels and random initialisations (baselines=true) nothing is said of pretraining")
        text.say("          training from scratch is measured by mpp/finetune.py init=random, and laid beside by mpp/results.py")
    for line in [*seen, *rank.notes(figures)]:
        text.say(line)
    if shown is not None and job.overlap is not None:
        write_predictions(out, answers, shown.truth, shown.ids, job.overlap.train)
        place = "test" if job.test is not None else "hold-out of train"
        pictures = draw_choices(out, results["rows"], job.about["holdout_images"])
        crops = {
            name: centre_crops(shown.images, shown.ids, row.encoder.spec, config.features)
            for name, row in job.rows.items()
            if row.encoder is not None and row.line != RANDOM
        }
        pictures += draw_answers(out, PRETRAINED, "linear", results["rows"], answers, shown.truth.numpy(), job.train.classes, place, crops)
        pictures += [PICTURE] if job.overlap and job.overlap.near else []
        results["pictures"] = pictures
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_results(out, results)
    text.say()
    text.say(", ".join([f"{results['seconds']} s; {out}/results.json", *pictures]))


def versions() -> dict[str, str]:
    return {
        "mpp": mpp.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }
