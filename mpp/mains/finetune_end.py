"""How a fine-tuning ends: the hold-out chooses between the weights and their average, the test split is read once, and it is all written down."""

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpp.base.text import say
from mpp.data.crop_dataset import CropDataset
from mpp.data.fingerprints import content_id
from mpp.data.loader import LoaderProcesses
from mpp.interop.encoder_folder import write_classifier
from mpp.mains.finetune_job import Repeat
from mpp.mains.finetune_report import accuracies_in_words, encoder_words, holdout_figures, row_of, rows_of, seen_before, verdict_of
from mpp.model.tokens import class_tokens_of
from mpp.monitor.board import Board
from mpp.processes.watch import watch
from mpp.processes.world import together
from mpp.train.average import WeightAverage
from mpp.train.classify import Predictions, measure
from mpp.train.commit import Commit
from mpp.train.engine import Engine
from mpp.train.run_folder import environment
from mpp.transfer.ledger import Reads
from mpp.transfer.protocol import Answers
from mpp.transfer.results import draw_answers, write_predictions, write_results
from mpp.transfer.table import FINETUNED

WEIGHTS, AVERAGE = "weights", "average"  # what is measured


@dataclass(frozen=True)
class Tuned:
    """What a run has made, on its way to being measured."""

    repeat: Repeat
    loader: LoaderProcesses  # of what is measured
    average: WeightAverage | None
    arch: str  # timm's name
    model_arguments: dict[str, Any]  # of timm.create_model

    @property
    def random(self) -> bool:
        return self.repeat.config.init == "random"

    @property
    def row(self) -> str:
        return row_of(self.repeat.config)


def conclude(tuned: Tuned, commit: Commit, about: dict[str, Any]) -> None:
    """Collective: choose on the hold-out, then measure once, and write it all down.  about: for results.json."""
    repeat, job = tuned.repeat, tuned.repeat.job
    config, run, sets, loaded = repeat.config, repeat.run, repeat.sets, job.loaded
    on_holdout: dict[str, Predictions] = {}
    if sets.holdout:
        on_holdout = measured(tuned, sets.holdout)
        note_holdout(run.board, commit.samples_seen, commit.step, on_holdout)
    best = lambda name: on_holdout[name].figure(config.metric)
    chosen = max(on_holdout, key=best) if on_holdout else AVERAGE if tuned.average else WEIGHTS
    reads: Reads | None = None
    if sets.test:
        reads = job.read_test(run.world)
        final, where = measured(tuned, sets.test, names=[chosen])[chosen], "test"
    else:
        final, where = on_holdout[chosen], "holdout of train"
    seen = together(run.world, lambda: seen_before(config, sets) if run.world.first else None)
    weights = final_weights(run.engine, tuned.average if chosen == AVERAGE else None)
    if not run.board or seen is None:
        return
    write_model(tuned, commit, weights, chosen)
    shown = sets.test or sets.holdout
    assert shown is not None  # one of them was measured
    given, truth = Answers(torch.from_numpy(final.predicted), torch.from_numpy(final.confidence)), torch.from_numpy(final.truth)
    rows, answers = rows_of(tuned.row, given, truth, sets, {"loss": final.loss, "weights": chosen})
    write_predictions(run.run_dir, answers, truth, shown.ids, seen.train)
    overlap, overlap_lines = seen.report(answers, truth, len(sets.classes))
    verdict = verdict_of(tuned.row, rows, answers, truth)
    found = {
        "command": shlex.join(job.command),
        "kind": "finetune",
        "encoder": encoder_words(config, loaded),
        "reported_on": where,
        "rows": rows,
        "holdout": {name: holdout_figures(each) for name, each in on_holdout.items()},
        "metric": config.metric,
        "reported_images": len(final.truth),
        "counted": final.counted,
        **about,
        "labels": len(sets.labels),
        "labels_per_class": np.bincount(sets.labels, minlength=len(sets.classes)).tolist(),
        "repeats": 1,
        "seeds": [config.seed],
        "samples_seen": commit.samples_seen,
        "commit": commit.seal,
        "steps": run.total_steps,
        "learning_rate": run.peak_rate,
        "resolution": list(job.size),
        "classes": sets.classes,
        "seed": config.seed,
        "test_reads": reads.times if reads else 0,
        "test_reads_folders": reads.folders if reads else 0,
        "overlap": overlap,
        "verdict": [verdict],
        "data": {
            split: {"path": getattr(config, split), "identity": identity, "content": content_id(sets.source(split).prints)}
            for split, identity in sets.identities.items()
        },
        "holdout_fraction": config.data.holdout_fraction,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "seconds": commit.record["seconds"],
        "pictures": draw_answers(run.run_dir, tuned.row, FINETUNED, rows, answers, final.truth, sets.classes, where, {tuned.row: shown}),
    }
    write_results(run.run_dir, found, repeat.results.name)
    kind = "test" if sets.test else "holdout"
    values = {f"{kind}/accuracy": final.accuracy, f"{kind}/balanced_accuracy": final.balanced_accuracy}
    run.board.scalars(commit.samples_seen, commit.step, values)
    run.board.close()
    by = " by balanced accuracy" if on_holdout and config.metric == "balanced_accuracy" else ""
    times = f"; {reads.words()}" if reads else ", on which the weights were chosen"
    if reads and reads.note:
        say(f"note: {reads.note}")
    say(f"measured {final.counted} of {config.test if sets.test else 'a hold-out of train'} ({chosen}{by}{times})")
    for line in overlap_lines:
        say(" ".join(line.split()))
    say(f"{accuracies_in_words(rows, tuned.row)} | {commit.samples_seen:,} samples, {commit.record['seconds']:.0f} s")
    say(f"verdict {verdict['words']}")
    say(f"done | {repeat.results} | {run.run_dir}/encoder | tensorboard --logdir {shlex.quote(str(run.run_dir))}")


@watch.slowly("measuring")
def measured(tuned: Tuned, data: CropDataset, names: Sequence[str] = (WEIGHTS, AVERAGE)) -> dict[str, Predictions]:
    """Collective: the weights as they are, and their average where there is one (of `names`)."""
    run, loaded, average, found = tuned.repeat.run, tuned.repeat.job.loaded, tuned.average, {}
    take = functools.partial(
        measure,
        data=data,
        mean=loaded.mean,
        std=loaded.std,
        micro_batch=run.plan.micro_batch,
        workers=run.workers,
        world=run.world,
        kept=tuned.loader,
    )
    if WEIGHTS in names:
        run.engine.train(False)
        found[WEIGHTS] = take(run.engine.forward)
        run.engine.train(True)
    if average and AVERAGE in names:

        def predict(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(run.world.device.type, torch.bfloat16, enabled=tuned.repeat.config.system.precision == "bf16"):
                return average.net(images)

        found[AVERAGE] = take(predict)
    return found


def note_holdout(board: Board | None, samples_seen: int, step: int, found: dict[str, Predictions]) -> None:
    if board:
        values: dict[str, float] = {}
        for name, each in found.items():
            suffix = "" if name == WEIGHTS else "_of_average"
            values |= {
                f"holdout/accuracy{suffix}": each.accuracy,
                f"holdout/balanced_accuracy{suffix}": each.balanced_accuracy,
                f"holdout/loss{suffix}": each.loss,
            }
        board.scalars(samples_seen, step, values)
        words = lambda each: f"{100 * each.accuracy:.2f} %, balanced {100 * each.balanced_accuracy:.2f} %, loss {each.loss:.4f}"
        say("  hold-out " + " | ".join(f"{name} {words(each)}" for name, each in found.items()))


def final_weights(engine: Engine, average: WeightAverage | None) -> dict[str, torch.Tensor]:
    """Collective at ZeRO-3: float32, with timm's names, buffers included."""
    if average:
        return dict(average.net.state_dict())
    return dict(engine.module.state_dict()) | {name: engine.whole(parameter) for name, parameter in engine.module.named_parameters()}


def write_model(tuned: Tuned, commit: Commit, weights: dict[str, torch.Tensor], chosen: str) -> None:
    """RUN/encoder: the classifier, with its head."""
    run, job, config = tuned.repeat.run, tuned.repeat.job, tuned.repeat.config
    loaded = job.loaded
    afresh = " (random initialisation)" if tuned.random else ""
    words_of_run = run.run_dir.name if run.run_dir == job.run_dir else f"{job.run_dir.name}/{run.run_dir.name}"
    about = {
        "source": f"{words_of_run}: {loaded.source}{afresh}, fine-tuned on {commit.samples_seen} samples",
        "commit": commit.seal,
        "encoder_digest": loaded.digest,
        "init": config.init,
        "weights": chosen,
        "norm_eps": loaded.norm_eps,
        "class_tokens": class_tokens_of(loaded.net),
        "pooling": config.model.pooling,  # timm has none for the mean of several class tokens: its logits are each token's own then
    }
    write_classifier(
        run.run_dir / "encoder",
        weights,
        tuned.arch,
        tuned.model_arguments,
        job.sets.classes,
        job.size,
        loaded.mean,
        loaded.std,
        config.data.test_crop,
        about,
    )
