"""What mpp/finetune.py does, top to bottom: training, once or in repeats, and the measurement at the end of each.

The loop is pretraining's (train/run.py): the same order of samples on any cluster, the same checkpoints, the same resuming.  Whatever is chosen
(weights or their average, and by you: learning rates, epochs) is chosen on a hold-out of train; the test split is read once, at the end, every
image exactly once, and each read is logged.
"""

import functools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpp.base.errors import AGAIN
from mpp.base.text import say
from mpp.config.finetune import FinetuneConfig
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.fingerprints import content_id
from mpp.data.in_hand import InHand
from mpp.data.loader import LoaderProcesses
from mpp.data.order import OrderSampler
from mpp.data.shards import ShardSet
from mpp.interop.encoder_folder import write_classifier
from mpp.mains.finetune_job import (
    PROGRAM,
    Again,
    Job,
    Repeat,
    classifier_of,
    is_finished,
    open_job,
    refuse_other_layout,
    refuse_unlike,
    repeat_of,
)
from mpp.mains.finetune_report import (
    accuracies_in_words,
    encoder_words,
    holdout_figures,
    join_repeats,
    row_of,
    rows_of,
    seen_before,
    verdict_of,
)
from mpp.model.architecture import in_words
from mpp.model.tokens import class_tokens_of
from mpp.monitor.arithmetic import training_flop
from mpp.monitor.board import Board
from mpp.monitor.layout import of_finetuning
from mpp.monitor.memory import step_bytes
from mpp.processes.peers import Peers
from mpp.processes.watch import watch
from mpp.processes.world import device_of, from_first, leave, together
from mpp.train.average import WeightAverage, short_at_first
from mpp.train.classify import Predictions, balanced_weights, cross_entropy, inputs_and_targets, measure
from mpp.train.commit import Commit, find_commit
from mpp.train.engine import Engine
from mpp.train.gathering import gather, held_folder, start
from mpp.train.meters import Meters
from mpp.train.optim import build_finetune_optimiser
from mpp.train.run_folder import environment, hold_run_folder
from mpp.train.shared_sum import shared_sum
from mpp.train.signals import StopRequest, stopped_words
from mpp.transfer.ledger import Reads
from mpp.transfer.protocol import Answers
from mpp.transfer.results import draw_answers, write_predictions, write_results
from mpp.transfer.table import FINETUNED

WEIGHTS, AVERAGE = "weights", "average"  # what is measured


def finetune(asked: FinetuneConfig, run_dir: Path, argv: Sequence[str] | None, again: Again) -> int:
    """Train and measure, as often as `repeats` says, each from the newest commit of its folder on where there is one.

    asked, again: the config, and how to have it anew with what a preset says of what it leaves open.  argv: the command line, to be noted.  Raises
    UserError.
    """
    peers = gather(PROGRAM, asked)

    # Everything that can be refused is refused before there are collectives.
    peers.together(lambda: refuse_other_layout(asked, run_dir) if peers.first else None)
    job = open_job(asked, run_dir, argv, again, peers)
    config = job.config
    repeats = [repeat_of(job, number, peers) for number in range(config.repeats)]
    refuse_unlike(repeats)
    build = lambda repeat: classifier_of(repeat.config, job.loaded, len(job.sets.classes), job.size)
    ready = {0: build(repeats[0])}

    # In a series the folder above the repeats is held, too, for as long as this program runs.
    if config.repeats > 1:
        _lock = held_folder(run_dir, lambda: hold_run_folder(run_dir, lambda: find_commit(run_dir, "auto"), None), peers)
    for repeat in repeats:
        repeat.run.claim()
    left = [repeat for repeat in repeats if not is_finished(repeat, peers)]
    loaders = Loaders(job, left, peers) if left else None
    world = start(run_dir, config.system, peers) if config.repeats > 1 else None
    stop: StopRequest | None = None
    for repeat in repeats:
        run = repeat.run
        if loaders is None or repeat.number not in loaders.placed:
            if peers.first:
                say_finished(repeat)
        else:
            run.join(loaders.stream(repeat), world, stop)
            if not train(repeat, loaders, *(ready.pop(repeat.number, None) or build(repeat))):
                leave()
                return AGAIN
            stop = run.stop
        if config.repeats > 1:
            run.close()  # the next one needs the memory
            assert world is not None
            if stop and repeat is not repeats[-1] and shared_sum([stop.requested], world)[0]:
                if world.first:
                    say(stopped_words(f"after repeat {repeat.number + 1} of {config.repeats}"))
                leave()
                return AGAIN
    if world and config.repeats > 1:
        from_first(world, functools.partial(join_repeats, job, repeats))
    return leave()


class Loaders:
    """All loader processes of a fine-tuning, which begin before its processes join (`Run.join`): some read training images, for one repeat after the
    other, and others what is measured on.  Nobody looks at test images before that is logged."""

    def __init__(self, job: Job, repeats: Sequence[Repeat], peers: Peers):
        """Collective.  repeats: that are left.  Raises ConfigError for images that do not fit where system.images or the cache want them."""
        config, sets, device = job.config, job.sets, device_of(peers)
        self.world = peers.size, peers.local_size
        orders = [repeat.order for repeat in repeats]
        self.hands: dict[int, InHand] = {}  # by repeat: what is read at a time, where shards are fetched first
        if isinstance(source := sets.source("train"), ShardSet):
            source.keep_open(max(order.shards_in_reach(peers.size) for order in orders))
            found = {repeat.number: source.in_hand(repeat.order, *self.world) for repeat in repeats}
            self.hands = {number: hand for number, hand in found.items() if hand}
        # Of all repeats once, since their images may lie in memory.
        drawn = np.unique(np.concatenate([repeat.sets.training.ids for repeat in repeats]))
        pixels = replace(sets, training=replace(sets.training, pool=drawn)).placed(config, device, peers.local_size).pixels
        self.placed = {repeat.number: replace(repeat.sets.training, pixels=pixels) for repeat in repeats}
        begin = lambda datasets: LoaderProcesses(datasets, repeats[0].run.workers, device.type == "cuda", peers.local_size)
        self.measuring = begin([data for data in (sets.holdout, sets.test) if data])
        self._training, self._rank = begin(list(self.placed.values())), peers.rank
        self._begun = {repeats[0].number: self._stream(repeats[0])}  # whose first batches are read while the processes join

    def stream(self, repeat: Repeat) -> Iterator[Batch]:
        """The batches of the steps that are left of it."""
        return self._begun.pop(repeat.number, None) or self._stream(repeat)

    def _stream(self, repeat: Repeat) -> Iterator[Batch]:
        run, (world, local_world), hand = repeat.run, self.world, self.hands.get(repeat.number)
        sampler = OrderSampler(repeat.order, run.plan, self._rank, world, run.first_step, run.total_steps, repeat.sets.training.ids)
        own = hand.bytes // local_world if hand else 0
        return self._training.batches(self.placed[repeat.number], sampler, "training", own)


def train(repeat: Repeat, loaders: Loaders, model: torch.nn.Module, arch: str, model_arguments: dict[str, Any]) -> bool:
    """Collective: one training, from the commit that `run` has found to its measurement; False where somebody has asked to stop."""
    job, config, run, sets, order = repeat.job, repeat.config, repeat.run, repeat.sets, repeat.order
    augment, system, loaded, size, world = config.augment, config.system, job.loaded, job.size, run.world
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.to(world.device)
    average = WeightAverage(model, short_at_first(config.optim.ema)) if config.optim.ema else None
    one = lambda: torch.zeros(1, 3, *size, device=world.device)
    blank = lambda engine: engine.forward(one())
    flop = lambda: flop_of(model, size, world.device)
    engine = run.begin(model, build_finetune_optimiser(model, config.optim), blank, flop, average)
    seconds_before = run.commit.record["seconds"] if run.commit else 0.0
    source, hand = sets.source("train"), loaders.hands.get(repeat.number)
    weight = balanced_weights(sets.labels, len(sets.classes)).to(world.device) if config.optim.class_weight else None
    held = f", {len(sets.holdout.ids):,} held out" if sets.holdout else ""
    random = config.init == "random"
    job.note_start(world)
    run.announce(
        [
            *([repeat.words] if job.config.repeats > 1 else []),
            *job.words,
            f"encoder {loaded.source}{' (random initialisation)' if random else ''} | {in_words(arch, model_arguments)} at {size[0]}x{size[1]} | {parameters:,} parameters",
            f"{order.samples:,} labelled images of {len(sets.classes)} classes{held} | {order.steps_per_epoch} steps an epoch",
            *(f"note: {remark}" for remark in sets.remarks),
            f"{run.total_steps} steps of {config.data.global_batch} | {run.rate_words}, "
            f"layer decay {config.optim.layer_decay:g} | ZeRO {system.zero_stage}, {system.precision}",
            *([f"the loss weighs classes: {weights_in_words(weight, sets.classes)}"] if weight is not None else []),
            *([source.fetched_words(hand)] if hand and isinstance(source, ShardSet) else []),
            f"{loaders.placed[repeat.number].pixels.decoder} | {run.loader_words}",
            run.plan_words(),
        ],
        of_finetuning(run.schedule.final_weight_decay is not None),
    )

    tuned = Tuned(repeat, loaders, average, arch, model_arguments)
    meters = Meters(2, world.device, finite=True)  # loss, samples
    for step in run.steps():
        for batch in step.batches():
            images, targets = inputs_and_targets(batch, len(sets.classes), augment.smoothing, loaded.mean, loaded.std, world.device)
            loss = cross_entropy(engine.forward(images), targets, weight)
            step.backward(loss.mean())
            meters.add(loss.detach(), torch.ones_like(loss))
        step.update()
        if step.shown:
            loss_sum, count = meters.look(clear=step.logs)
            loss_mean = loss_sum / count if count else math.nan
            run.log(step, {"train/loss": loss_mean}, f"epoch {step.number / order.steps_per_epoch:.1f}  loss {loss_mean:.4f}")
        if sets.holdout and not step.last and step.number % (order.steps_per_epoch * config.log.holdout_every_epochs) == 0:
            note_holdout(run.board, step.samples_seen, step.number, measured(tuned, sets.holdout))
        if step.commits:
            run.save(step, {"program": "finetune", "seconds": round(seconds_before + run.speed.seconds, 1)})

    watch.moved("writing results", step=run.total_steps, slow=True)
    assert run.commit is not None  # the last step is committed
    if run.commit.step < run.total_steps:
        if run.board:
            run.board.close()
            say(stopped_words(f"at step {run.commit.step}"))
        return False
    conclude(tuned, run.commit, {"train_images": order.samples, "parameters": parameters})
    return True


@dataclass(frozen=True)
class Tuned:
    """What a run has made, on its way to being measured."""

    repeat: Repeat
    loaders: Loaders
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


def weights_in_words(weight: torch.Tensor, classes: Sequence[str]) -> str:
    shown = [f"{name} {value:.3g}" for name, value in zip(classes[:8], weight.tolist(), strict=False)]
    return ", ".join(shown) + (", ..." if len(classes) > len(shown) else "")


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


def blank_loss(model: torch.nn.Module, size: tuple[int, int], device: torch.device, batch: int) -> torch.Tensor:
    """Of black images."""
    return model(torch.zeros(batch, 3, *size, device=device)).sum()


def flop_of(model: torch.nn.Module, size: tuple[int, int], device: torch.device) -> float:
    """Of training on one image."""
    return training_flop(model, lambda: blank_loss(model, size, device, 2)) / 2  # some norms need two


def micro_step_bytes(model: torch.nn.Module, config: FinetuneConfig, size: tuple[int, int], batch: int, device: torch.device) -> int:
    """What a training step on so many images holds at its fullest (monitor/memory.py), gradients included."""

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.system.precision == "bf16"):
            return blank_loss(model, size, device, batch)

    return step_bytes(model, loss)


def say_finished(repeat: Repeat) -> None:
    if repeat.job.config.repeats > 1:
        words = f"{repeat.words} | already finished at step {repeat.run.course.first_step}"
    else:
        key = "optim.steps" if repeat.config.optim.steps else "optim.epochs"
        words = f"run {repeat.run.run_dir} | {repeat.run.course.finished_words(key)} | {repeat.results}"
    say(words)


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
        kept=tuned.loaders.measuring,
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
