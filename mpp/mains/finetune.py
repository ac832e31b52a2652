"""What mpp/finetune.py does, top to bottom: training, once or in repeats, each to its end (mains/finetune_end.py).

The loop is pretraining's (train/run.py): the same order of samples on any cluster, the same checkpoints, the same resuming.  Whatever is chosen
(weights or their average, and by you: learning rates, epochs) is chosen on a hold-out of train; the test split is read once, at the end, every
image exactly once, and each read is logged.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpp.base.errors import AGAIN
from mpp.base.text import say
from mpp.config.finetune import FinetuneConfig
from mpp.data.crop_dataset import Batch
from mpp.data.in_hand import InHand
from mpp.data.loader import LoaderProcesses
from mpp.data.order import OrderSampler
from mpp.data.shards import ShardSet
from mpp.mains.finetune_end import Tuned, conclude, measured, note_holdout
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
from mpp.mains.finetune_report import join_repeats
from mpp.model.architecture import in_words
from mpp.monitor.arithmetic import training_flop
from mpp.monitor.layout import of_finetuning
from mpp.monitor.memory import step_bytes
from mpp.processes.peers import Peers
from mpp.processes.watch import watch
from mpp.processes.world import device_of, from_first, leave
from mpp.train.average import WeightAverage, short_at_first
from mpp.train.classify import balanced_weights, cross_entropy, inputs_and_targets
from mpp.train.commit import find_commit
from mpp.train.gathering import gather, held_folder, start
from mpp.train.meters import Meters
from mpp.train.optim import build_finetune_optimiser
from mpp.train.run_folder import hold_run_folder
from mpp.train.shared_sum import shared_sum
from mpp.train.signals import StopRequest, stopped_words


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

    tuned = Tuned(repeat, loaders.measuring, average, arch, model_arguments)
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


def weights_in_words(weight: torch.Tensor, classes: Sequence[str]) -> str:
    shown = [f"{name} {value:.3g}" for name, value in zip(classes[:8], weight.tolist(), strict=False)]
    return ", ".join(shown) + (", ..." if len(classes) > len(shown) else "")


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
