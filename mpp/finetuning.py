"""What mpp/finetune.py does, top to bottom: training, once or in repeats, and the measurement at the end of each.

The loop is pretraining's (train/run.py): the same order of samples on any cluster, the same checkpoints, the same resuming.  Whatever is chosen
(weights or their average, and by you: learning rates, epochs) is chosen on a hold-out of train; the test split is read once, at the end, every
image exactly once, and each read is logged.
"""

import copy
import functools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpp.config.finetune import FinetuneConfig
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import batches
from mpp.data.order import OrderSampler
from mpp.files import write_stream
from mpp.finetune_job import (
    Job,
    Repeat,
    is_joined,
    is_measured,
    open_job,
    refuse_other_layout,
    refuse_unlike,
    repeat_of,
)
from mpp.interop.encoder_folder import WEIGHTS_FILE, is_written, write_classifier
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.machine import allow_open_files
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.tokens import choose_attention, set_norm_eps
from mpp.monitor.board import Board
from mpp.rng import INIT, seed_of
from mpp.text import counted, say
from mpp.train.average import WeightAverage, short_at_first
from mpp.train.classify import Predictions, balanced_weights, cross_entropy, inputs_and_targets, measure
from mpp.train.commit import Commit
from mpp.train.engine import Engine
from mpp.train.optim import build_finetune_optimiser
from mpp.train.progress import shared_sum
from mpp.train.run import Meters, meet
from mpp.train.run_folder import environment, hold_run_folder
from mpp.train.signals import StopRequest
from mpp.transfer.metrics import figures, student
from mpp.transfer.protocol import Answers
from mpp.transfer.repeats import side_by_side, write_measured
from mpp.transfer.results import draw_answers, write_predictions, write_results
from mpp.transfer.table import FINETUNED
from mpp.watch import watch
from mpp.world import find_place, from_first, leave

WEIGHTS, AVERAGE = "weights", "average"  # what is measured


def finetune(config: FinetuneConfig, run_dir: Path, argv: Sequence[str] | None) -> int:
    """Train and measure, config.repeats times, each from the newest commit of its folder on where there is one; argv: the command line, to be
    noted.  Raises UserError."""
    find_place()

    # Everything that can be refused is refused before the processes join.
    allow_open_files()
    refuse_other_layout(config, run_dir)
    job = open_job(config, run_dir, argv)
    repeats = [repeat_of(job, number) for number in range(config.repeats)]
    refuse_unlike(repeats)
    build = lambda repeat: classifier_of(repeat.config, job.loaded, len(job.sets.classes), job.size)
    ready = {0: build(repeats[0])}

    # In a series the folder above the repeats is held, too, for as long as this program runs.
    held = functools.partial(hold_run_folder, run_dir, "auto", None)
    world, _lock = meet(run_dir, config.system, held) if config.repeats > 1 else (None, None)
    stop: StopRequest | None = None
    for repeat in repeats:
        run = repeat.run
        run.join(world, stop)
        world = run.world
        if run.commit and run.course.finished and from_first(world, functools.partial(is_measured, repeat, run.commit.seal)):
            say_finished(repeat)
        else:
            if not train(repeat, *(ready.pop(repeat.number, None) or build(repeat))):
                return leave()
            stop = run.stop
        if config.repeats > 1:
            run.close()  # the next one needs the memory
            if stop and repeat is not repeats[-1] and shared_sum([stop.requested], world)[0]:
                if world.first:
                    say(f"stopped as asked after repeat {repeat.number + 1} of {config.repeats}; the same command goes on from there")
                return leave()
    if world and config.repeats > 1:
        from_first(world, functools.partial(join_repeats, job, repeats))
    return leave()


def train(repeat: Repeat, model: torch.nn.Module, arch: str, model_arguments: dict[str, Any]) -> bool:
    """Collective: one training, from the commit that `run` has found to its measurement; False where somebody has asked to stop."""
    job, config, run, sets, order = repeat.job, repeat.config, repeat.run, repeat.sets, repeat.order
    augment, system, loaded, size, world = config.augment, config.system, job.loaded, job.size, run.world
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.to(world.device)
    average = WeightAverage(model, short_at_first(config.optim.ema)) if config.optim.ema else None
    blank = lambda engine: engine.forward(torch.zeros(1, 3, *size, device=world.device))
    engine = run.begin(model, build_finetune_optimiser(model, config.optim), blank, average)
    seconds_before = run.commit.record["seconds"] if run.commit else 0.0
    sampler = OrderSampler(order, job.plan, world.rank, world.size, run.first_step, run.total_steps, sets.training.ids)
    placed = sets.placed(config, world.device, world.local_size)
    stream = batches(placed, sampler, run.workers, pin_memory=world.device.type == "cuda", local_world=world.local_size)
    weight = balanced_weights(sets.labels, len(sets.classes)).to(world.device) if config.optim.class_weight else None
    held = f", {len(sets.holdout.ids):,} held out" if sets.holdout else ""
    random = config.init == "random"
    job.note_start(world)
    run.announce(
        [
            *([repeat.words] if job.config.repeats > 1 else []),
            f"encoder {loaded.source}{' (random initialisation)' if random else ''} | {arch} at {size[0]}x{size[1]} | {parameters:,} parameters",
            f"{order.samples:,} labelled images of {len(sets.classes)} classes{held} | {order.steps_per_epoch} steps an epoch",
            *(f"note: {remark}" for remark in sets.remarks),
            f"{run.total_steps} steps of {config.data.global_batch} | peak learning rate {run.peak_rate:.3g}, "
            f"layer decay {config.optim.layer_decay:g} | ZeRO {system.zero_stage}, {system.precision}",
            *([f"the loss weighs classes: {weights_in_words(weight, sets.classes)}"] if weight is not None else []),
            f"{placed.images.decoder} | {counted(run.workers, 'loader process', 'loader processes')} a rank",
            run.plan_words,
        ],
    )

    tuned = Tuned(repeat, average, arch, model_arguments)
    meters = Meters(2, world.device)  # loss, samples
    for step in run.steps(stream):
        for batch in step.batches():
            images, targets = inputs_and_targets(batch, len(sets.classes), augment.smoothing, loaded.mean, loaded.std, world.device)
            loss = cross_entropy(engine.forward(images), targets, weight)
            engine.backward(loss.mean())
            meters.add(loss.detach(), torch.ones_like(loss))
        step.update()
        if step.shown:
            loss_sum, count = meters.look(clear=step.logs)
            run.log(step, {"train/loss": loss_sum / count}, f"epoch {step.number / order.steps_per_epoch:.1f}  loss {loss_sum / count:.4f}")
        if sets.holdout and not step.last and step.number % (order.steps_per_epoch * config.log.holdout_every_epochs) == 0:
            note_holdout(run.board, step.samples_seen, step.number, measured(tuned, sets.holdout))
        if step.commits:
            run.save(step, {"program": "finetune", "seconds": round(seconds_before + run.seconds, 1)})

    watch.moved("writing results", step=run.total_steps, slow=True)
    assert run.commit is not None  # the last step is committed
    if run.commit.step < run.total_steps:
        if run.board:
            run.board.close()
            say(f"stopped as asked at step {run.commit.step}; the same command goes on from there")
        return False
    conclude(tuned, run.commit, {"train_images": order.samples, "parameters": parameters})
    return True


@dataclass(frozen=True)
class Tuned:
    """What a run has made, on its way to being measured."""

    repeat: Repeat
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
    reads = 0
    if sets.test:
        reads = job.read_test(run.world)
        final, where = measured(tuned, sets.test, names=[chosen])[chosen], "test"
    else:
        final, where = on_holdout[chosen], "holdout of train"
    weights = final_weights(run.engine, tuned.average if chosen == AVERAGE else None)
    if not run.board:
        return
    write_model(tuned, commit, weights, chosen)
    given, truth = Answers(torch.from_numpy(final.predicted), torch.from_numpy(final.confidence)), torch.from_numpy(final.truth)
    answers = {tuned.row: {FINETUNED: given}}
    write_predictions(run.run_dir, answers, final.truth, (sets.test or sets.holdout).ids)  # type: ignore[union-attr]
    top1 = figures_of(given.predicted[None], given.confidence[None], truth, sets.classes)
    rows = {tuned.row: {FINETUNED: top1 | {"loss": final.loss, "weights": chosen}}}
    draw_answers(run.run_dir, tuned.row, FINETUNED, rows, answers, final.truth, sets.classes, where)
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
        "test_reads": reads,
        "data": {split: {"path": getattr(config, split), "identity": identity} for split, identity in sets.identities.items()},
        "holdout_fraction": config.data.holdout_fraction,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "seconds": commit.record["seconds"],
    }
    write_results(run.run_dir, found) if job.config.repeats == 1 else write_measured(run.run_dir, found)
    kind = "test" if sets.test else "holdout"
    values = {f"{kind}/accuracy": final.accuracy, f"{kind}/balanced_accuracy": final.balanced_accuracy}
    run.board.scalars(commit.samples_seen, commit.step, values)
    run.board.close()
    by = " by balanced accuracy" if on_holdout and config.metric == "balanced_accuracy" else ""
    times = f", read {reads} time{'s' if reads > 1 else ''} by this folder" if sets.test else ", on which the weights were chosen"
    say(f"measured {final.counted} of {config.test if sets.test else 'a hold-out of train'} ({chosen}{by}{times})")
    say(f"{accuracies_in_words(top1)} | {commit.samples_seen:,} samples, {commit.record['seconds']:.0f} s")
    say(f"done | {repeat.results} | {run.run_dir}/encoder | tensorboard --logdir {run.run_dir}")


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
    rows = {row: {FINETUNED: figures_of(given.predicted, given.confidence, truth, sets.classes)}}
    top1 = rows[row][FINETUNED]
    top1["loss"] = math.fsum(each["rows"][row][FINETUNED]["loss"] for each in found) / len(found)
    copy_encoder(folders[best] / "encoder", run_dir / "encoder")
    write_predictions(run_dir, {row: {FINETUNED: given}}, truth.numpy(), samples.numpy())
    as_one = Answers(given.predicted.flatten(), given.confidence.flatten())
    where = f"{found[0]['reported_on']}, {len(repeats)} repeats"
    draw_answers(run_dir, row, FINETUNED, rows, {row: {FINETUNED: as_one}}, truth.repeat(len(repeats)).numpy(), sets.classes, where)
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
            "config": config.model_dump(mode="json"),
            "environment": environment(),
            "seconds": round(math.fsum(each["seconds"] for each in found), 1),
        },
    )
    seeds = f"seeds {repeats[0].config.seed} to {repeats[-1].config.seed}"
    say(
        f"{len(repeats)} repeats ({seeds}, {len(sets.labels):,} labels each) on the same {len(truth):,} images of {config.test or 'a hold-out of train'}"
    )
    say(f"mean {accuracies_in_words(top1)}")
    say(f"over the draws top-1 goes {spread_in_words(top1)}")
    say(f"{run_dir}/encoder is repeat {best + 1}'s, {'the best on the hold-out' if sets.holdout else 'the first, as there is no hold-out'}")
    say(f"done | {run_dir}/results.json | {run_dir}/encoder | tensorboard --logdir {run_dir}")


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


def figures_of(predicted: torch.Tensor, confidence: torch.Tensor, truth: torch.Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Of T draws on the same m images: predicted int64 [T, m], confidence float32 [T, m], truth int64 [m].

    With several, accuracies are means over the draws and `ci95` is Student's interval of that mean: of the draws, on these images.
    """
    draws, images = len(predicted), torch.bincount(truth, minlength=len(classes))
    found = figures(predicted.flatten(), truth.repeat(draws), len(classes), confidence.flatten())
    largest = int(images.argmax())
    found |= {"majority_class": classes[largest], "majority_share": int(images[largest]) / len(truth)}
    if draws == 1:
        return found
    each = [figures(one, truth, len(classes)) for one in predicted]
    of_draws = f"Student's t, over {draws} draws, not over images"
    for name, interval in (("accuracy", "ci95"), ("balanced_accuracy", "balanced_ci95")):
        mean, half = student([one[name] for one in each])
        assert half is not None  # of two or more
        found |= {name: mean, interval: [max(0.0, mean - half), min(1.0, mean + half)], f"{interval}_kind": of_draws}
    found["per_class"] = {key: found["per_class"][key] for key in ("accuracy",)} | {"images": images.tolist()}
    accuracies = [one["accuracy"] for one in each]
    return found | {"images": len(truth), "draws": draws, "accuracies": accuracies, "spread": float(np.std(accuracies, ddof=1))}


def accuracies_in_words(top1: Mapping[str, Any]) -> str:
    low, high = top1["ci95"]
    balanced_low, balanced_high = top1["balanced_ci95"]
    share, name = top1["majority_share"], top1["majority_class"]
    return (
        f"top-1 {100 * top1['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f}), balanced {100 * top1['balanced_accuracy']:.2f} % "
        f"({100 * balanced_low:.2f} to {100 * balanced_high:.2f}); always naming {name!r} gives {100 * share:.1f} %"
        f"{', which is more' if share > top1['accuracy'] else ''}"
    )


def spread_in_words(top1: Mapping[str, Any]) -> str:
    accuracies = top1["accuracies"]
    return f"from {100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} %, standard deviation {100 * top1['spread']:.2f} points"


def weights_in_words(weight: torch.Tensor, classes: Sequence[str]) -> str:
    shown = [f"{name} {value:.3g}" for name, value in zip(classes[:8], weight.tolist(), strict=False)]
    return ", ".join(shown) + (", ..." if len(classes) > len(shown) else "")


def row_of(config: FinetuneConfig) -> str:
    return "from scratch" if config.init == "random" else "fine-tuned"


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


def classifier_of(
    config: FinetuneConfig, loaded: LoadedEncoder, classes: int, size: tuple[int, int]
) -> tuple[torch.nn.Module, str, dict[str, Any]]:
    """The model that learns, timm's name of its architecture, and the arguments it was made with."""
    arch, encoder_arguments = loaded.architecture
    arguments = classifier_arguments(loaded.net, encoder_arguments, config.model, size)
    random = config.init == "random"
    net = loaded.fresh(seed_of(config.seed, INIT, 0)) if random else copy.deepcopy(loaded.net)  # which is changed, and may be wanted again
    model = build_classifier(net, arch, arguments, classes, config.model, size, seed_of(config.seed, INIT, 1), random=random)
    set_norm_eps(model, loaded.norm_eps)
    fused = config.system.fused_attention
    choose_attention(model, fused if fused is not None else torch.cuda.is_available())
    return model, arch, arguments


def say_finished(repeat: Repeat) -> None:
    if repeat.job.config.repeats > 1:
        words = f"{repeat.words} | already finished at step {repeat.run.course.first_step}"
    else:
        key = "optim.steps" if repeat.config.optim.steps else "optim.epochs"
        words = f"run {repeat.run.run_dir} | {repeat.run.course.finished_words(key)} | {repeat.results}"
    if repeat.run.world.first:
        say(words)


@watch.slowly("measuring")
def measured(tuned: Tuned, data: CropDataset, names: Sequence[str] = (WEIGHTS, AVERAGE)) -> dict[str, Predictions]:
    """Collective: the weights as they are, and their average where there is one (of `names`)."""
    run, loaded, average, found = tuned.repeat.run, tuned.repeat.job.loaded, tuned.average, {}
    take = functools.partial(
        measure, data=data, mean=loaded.mean, std=loaded.std, micro_batch=run.plan.micro_batch, workers=run.workers, world=run.world
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
