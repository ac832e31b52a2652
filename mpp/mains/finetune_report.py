"""What is said of a fine-tuning's answers, and what its repeats leave behind together.

Letters: T repeats, m images measured.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mpp.base.text import say
from mpp.config.finetune import FinetuneConfig
from mpp.data.finetune_set import FinetuneSet
from mpp.disk.files import write_stream
from mpp.interop.encoder_folder import WEIGHTS_FILE, is_written
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.mains.finetune_job import Job, Repeat, is_joined
from mpp.train.classify import Predictions
from mpp.train.run_folder import environment
from mpp.transfer.metrics import figures
from mpp.transfer.overlap import Overlap, find_overlap
from mpp.transfer.probes.contract import Answers
from mpp.transfer.repeats import side_by_side
from mpp.transfer.results import draw_answers, write_predictions, write_results
from mpp.transfer.rows import majority
from mpp.transfer.table import ALWAYS, FINETUNED, MAJORITY, SCRATCH, TUNED, by_column
from mpp.transfer.verdict import Judged, judge

Rows = dict[str, dict[str, Any]]  # as in results.json


def rows_of(
    row: str, given: Answers, truth: Tensor, sets: FinetuneSet, more: Mapping[str, Any]
) -> tuple[Rows, dict[str, dict[str, Answers]]]:
    """The largest class, and `row`: figures, and answers by column.  given: [m], or [T, m] of several repeats; truth: int64 [m]; more: of `row`."""
    always = majority(truth, sets.classes)
    found = figures(given.predicted, truth, len(sets.classes), given.confidence) | {"labels": len(sets.labels), **more}
    return {MAJORITY: always.figures | {"about": always.about}, row: {FINETUNED: found}}, {
        MAJORITY: always.answers,
        row: {FINETUNED: given},
    }


def verdict_of(row: str, rows: Rows, answers: Mapping[str, Mapping[str, Answers]], truth: Tensor) -> dict[str, Any]:
    """Beside the largest class, the one baseline that is always there: whether pretraining helped, mpp/results.py says of this and a run from scratch."""
    judged = {name: Judged(name, by_column(rows[name]), answers[name]) for name in (row, MAJORITY)}
    found = judge(judged[row], judged[MAJORITY], truth)
    assert found is not None  # both have answers
    return found


def accuracies_in_words(rows: Rows, row: str) -> str:
    top1, always = rows[row][FINETUNED], rows[MAJORITY]
    words = lambda key, interval: f"{100 * top1[key]:.2f} % ({100 * top1[interval][0]:.2f} to {100 * top1[interval][1]:.2f})"
    said = f"top-1 {words('accuracy', 'ci95')}, balanced {words('balanced_accuracy', 'balanced_ci95')}"
    if "auroc" in top1:
        said += f", area under ROC {words('auroc', 'auroc_ci95')}"
    share = always[ALWAYS]["accuracy"]
    return f"{said}; always naming {always['about']['class']!r} gives {100 * share:.1f} %{', which is more' if share > top1['accuracy'] else ''}"


def spread_in_words(top1: Mapping[str, Any]) -> str:
    (accuracies,) = top1["by_run"]
    return f"from {100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} %, standard deviation {100 * top1['spread']:.2f} points"


def seen_before(config: FinetuneConfig, sets: FinetuneSet) -> Overlap:
    """Of the images that figures are on."""
    train, trained = sets.source("train"), sets.training.ids
    encoders = [] if config.init == "random" else [config.encoder]
    if sets.holdout is None:
        return find_overlap(sets.source("test"), sets.test.ids, train, trained, encoders)  # type: ignore[union-attr]
    held = sets.holdout.ids
    if sets.test is None:
        return find_overlap(train, held, train, trained, encoders)
    return find_overlap(sets.source("test"), sets.test.ids, train, np.union1d(trained, held), encoders, (trained, held))


def join_repeats(job: Job, repeats: Sequence[Repeat]) -> None:
    """Of rank 0: what the repeats have measured becomes one result, and the best on the hold-out RUN/encoder."""
    config, run_dir, sets = job.config, job.run_dir, job.sets
    seals = [each.run.commit.seal for each in repeats if each.run.commit]
    found = [json.loads(each.results.read_text()) for each in repeats]
    best = best_repeat(found, config.metric)
    if is_joined(job, seals) and is_written(run_dir / "encoder", seals[best]):
        say(
            f"run {run_dir} | all {len(repeats)} repeats have finished: nothing to do; a larger repeats= adds some | {run_dir}/results.json"
        )
        return
    row = row_of(config)
    folders = [each.run.run_dir for each in repeats]
    given, truth, samples = side_by_side(folders, row, FINETUNED)
    loss = math.fsum(each["rows"][row][FINETUNED]["loss"] for each in found) / len(found)
    rows, answers = rows_of(row, given, truth, sets, {"loss": loss})
    seen = seen_before(config, sets)
    overlap, said = seen.report(answers, truth, len(sets.classes))
    verdict = verdict_of(row, rows, answers, truth)
    copy_encoder(folders[best] / "encoder", run_dir / "encoder")
    write_predictions(run_dir, answers, truth, samples.numpy(), seen.train)
    where = f"{found[0]['reported_on']}, the first of {len(repeats)} repeats"
    shown = sets.test or sets.holdout
    assert shown is not None  # one of them was measured
    pictures = draw_answers(run_dir, row, FINETUNED, rows, answers, truth.numpy(), sets.classes, where, {row: shown})
    of_one = ("seed", "commit", "holdout", "samples_seen", "seconds")
    write_results(
        run_dir,
        {key: value for key, value in found[0].items() if key not in ("commit", "holdout")}
        | {
            "command": shlex.join(job.command),
            "rows": rows,
            "repeats": len(repeats),
            "seeds": [each.config.seed for each in repeats],
            "each_repeat": [
                {"folder": folder.name}
                | {key: each[key] for key in of_one}
                | {key: each["rows"][row][FINETUNED][key] for key in ("accuracy", "balanced_accuracy", "loss", "weights")}
                for folder, each in zip(folders, found, strict=True)
            ],
            "commits": seals,
            "encoder_of": {"repeat": best, "chosen_on": "holdout of train" if sets.holdout else None},
            "seed": config.seed,
            "test_reads": max(each["test_reads"] for each in found),
            "test_reads_folders": max(each["test_reads_folders"] for each in found),
            "overlap": overlap,
            "verdict": [verdict],
            "pictures": pictures,
            "config": config.model_dump(mode="json"),
            "environment": environment(),
            "seconds": round(math.fsum(each["seconds"] for each in found), 1),
        },
    )
    seeds = f"seeds {repeats[0].config.seed} to {repeats[-1].config.seed}"
    say(
        f"{len(repeats)} repeats ({seeds}, {len(sets.labels):,} labels each) on the same {len(truth):,} images of {config.test or 'a hold-out of train'}"
    )
    for line in said:
        say(" ".join(line.split()))
    say(f"mean {accuracies_in_words(rows, row)}")
    say(f"over the draws top-1 goes {spread_in_words(rows[row][FINETUNED])}")
    say(f"verdict {verdict['words']}")
    say(f"{run_dir}/encoder is repeat {best + 1}'s, {'the best on the hold-out' if sets.holdout else 'the first, as there is no hold-out'}")
    say(f"done | {run_dir}/results.json | {run_dir}/encoder | tensorboard --logdir {shlex.quote(str(run_dir))}")


def best_repeat(found: Sequence[Mapping[str, Any]], metric: str) -> int:
    """By the hold-out, which is the same images for all; the first where there is none."""
    on_holdout = [max((each[metric] for each in one["holdout"].values()), default=0.0) for one in found]
    return on_holdout.index(max(on_holdout))


def copy_encoder(there: Path, here: Path) -> None:
    """config.json last, whose seal is over both: a half-copied folder is noticed, and copied again."""
    here.mkdir(exist_ok=True)
    for name in (WEIGHTS_FILE, "config.json"):
        with (there / name).open("rb") as file:
            write_stream(here / name, iter(lambda: file.read(2**24), b""))


def row_of(config: FinetuneConfig) -> str:
    return SCRATCH if config.init == "random" else TUNED


def encoder_words(config: FinetuneConfig, loaded: LoadedEncoder) -> dict[str, Any]:
    return {
        "path": config.encoder,
        "source": loaded.source,
        "digest": loaded.digest,
        "init": config.init,
        "pretraining": loaded.pretraining,
    }


def holdout_figures(found: Predictions) -> dict[str, Any]:
    return {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy, "loss": found.loss, "images": len(found.truth)}
