"""What mpp/finetune.py does, top to bottom: training, and the measurement at its end.

The loop is pretraining's (train/run.py): the same order of samples on any cluster, the same checkpoints, the same resuming.  Whatever is chosen
(weights or their average, and by you: learning rates, epochs) is chosen on a hold-out of train; the test split is read once, at the end, every
image exactly once, and each read is logged.
"""

import functools
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpp.config.finetune import FinetuneConfig
from mpp.config.sections import OptimConfig
from mpp.data.crop_dataset import CropDataset
from mpp.data.finetune_set import FinetuneSet, open_finetune_set
from mpp.data.fingerprints import content_id
from mpp.data.loader import batches
from mpp.data.order import OrderSampler, plan_batch
from mpp.errors import ConfigError
from mpp.interop.encoder_folder import is_written, write_classifier
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.machine import allow_open_files
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.tokens import choose_attention, set_norm_eps
from mpp.monitor.board import Board
from mpp.rng import INIT, seed_of
from mpp.text import counted, say
from mpp.train.average import WeightAverage, short_at_first
from mpp.train.classify import Predictions, cross_entropy, inputs_and_targets, measure
from mpp.train.commit import Commit
from mpp.train.engine import Engine
from mpp.train.optim import build_finetune_optimiser
from mpp.train.run import Meters, Run
from mpp.train.run_folder import environment
from mpp.transfer.ledger import Reads, log_test_read
from mpp.transfer.metrics import figures
from mpp.transfer.overlap import Overlap, find_overlap
from mpp.transfer.protocol import Answers
from mpp.transfer.results import RESULTS, draw_answers, write_predictions, write_results
from mpp.transfer.split import CHOOSE, few_labels, hold_out
from mpp.transfer.table import FINETUNED
from mpp.watch import watch
from mpp.world import find_place, from_first, leave, together

PROGRAM = "mpp/finetune.py"  # as command lines are noted
WEIGHTS, AVERAGE = "weights", "average"  # what is measured


def finetune(config: FinetuneConfig, run_dir: Path, argv: Sequence[str] | None) -> int:
    """Train, from the newest commit in `run_dir` on where there is one, and measure; argv: the command line, to be noted.  Raises UserError."""
    data, system, augment = config.data, config.system, config.augment
    find_place()

    # Everything that can be refused is refused before the processes join.
    allow_open_files()
    loaded = read_encoder(config.encoder)
    size = image_size(config, loaded)
    sets = open_finetune_set(
        config,
        size,
        loaded.mean,
        functools.partial(
            hold_out,
            fraction=data.holdout_fraction,
            seed=config.seed,
            use=CHOOSE,
            remedy=f"give more images of them, or {'' if config.test else 'a test split (test=) and '}data.holdout_fraction=0",
        ),
        functools.partial(few_labels, seed=config.seed, fraction=data.label_fraction, per_class=data.labels_per_class),
    )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    plan = plan_batch(data.global_batch, data.streams, world_size, system.micro_batch_max, together=2 if augment.mixes else 1)
    order = sets.order(config, plan)
    schedule = clock_of(config, order.steps_per_epoch)
    depends_on = {"encoder": loaded.digest, "train": sets.identities["train"]}
    steps_of = lambda optim: length_of(optim, order.steps_per_epoch)
    run = Run(PROGRAM, argv, config, run_dir, plan, schedule, steps_of, depends_on, "{}")
    random = config.init == "random"
    model, arch, model_arguments = classifier_of(config, loaded, len(sets.classes), size)
    parameters = sum(parameter.numel() for parameter in model.parameters())

    run.join()
    if run.commit and run.course.finished and from_first(run.world, functools.partial(is_measured, run_dir, run.commit.seal)):
        if run.world.first:
            key = "optim.steps" if config.optim.steps else "optim.epochs"
            say(f"run {run_dir} | {run.course.finished_words(key)} | {run_dir}/results.json")
        return leave()
    world = run.world
    model.to(world.device)
    average = WeightAverage(model, short_at_first(config.optim.ema)) if config.optim.ema else None
    blank = lambda engine: engine.forward(torch.zeros(1, 3, *size, device=world.device))
    engine = run.begin(model, build_finetune_optimiser(model, config.optim), blank, average)
    seconds_before = run.commit.record["seconds"] if run.commit else 0.0
    sampler = OrderSampler(order, plan, world.rank, world.size, run.first_step, run.total_steps, sets.training.ids)
    placed = sets.placed(config, world.device, world.local_size)
    stream = batches(placed, sampler, run.workers, pin_memory=world.device.type == "cuda", local_world=world.local_size)
    held = f", {len(sets.holdout.ids):,} held out" if sets.holdout else ""
    run.announce(
        [
            f"encoder {loaded.source}{' (random initialisation)' if random else ''} | {arch} at {size[0]}x{size[1]} | {parameters:,} parameters",
            f"{order.samples:,} labelled images of {len(sets.classes)} classes{held} | {order.steps_per_epoch} steps an epoch",
            *(f"note: {remark}" for remark in sets.remarks),
            f"{run.total_steps} steps of {data.global_batch} | peak learning rate {run.peak_rate:.3g}, "
            f"layer decay {config.optim.layer_decay:g} | ZeRO {system.zero_stage}, {system.precision}",
            f"{placed.images.decoder} | {counted(run.workers, 'loader process', 'loader processes')} a rank",
            run.plan_words,
        ],
    )

    tuned = Tuned(config, run, sets, loaded, average, arch, model_arguments, size, [PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    meters = Meters(2, world.device)  # loss, samples
    for step in run.steps(stream):
        for batch in step.batches():
            images, targets = inputs_and_targets(batch, len(sets.classes), augment.smoothing, loaded.mean, loaded.std, world.device)
            loss = cross_entropy(engine.forward(images), targets)
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
        return leave()
    conclude(tuned, run.commit, {"train_images": order.samples, "parameters": parameters})
    return leave()


@dataclass(frozen=True)
class Tuned:
    """What a run has made, on its way to being measured."""

    config: FinetuneConfig
    run: Run
    sets: FinetuneSet
    loaded: LoadedEncoder
    average: WeightAverage | None
    arch: str  # timm's name
    model_arguments: dict[str, Any]  # of timm.create_model
    size: tuple[int, int]  # (height, width) in pixels
    command: list[str]

    @property
    def random(self) -> bool:
        return self.config.init == "random"


def conclude(tuned: Tuned, commit: Commit, about: dict[str, Any]) -> None:
    """Collective: choose on the hold-out, then measure once, and write it all down.  about: for results.json."""
    config, run, sets = tuned.config, tuned.run, tuned.sets
    on_holdout: dict[str, Predictions] = {}
    if sets.holdout:
        on_holdout = measured(tuned, sets.holdout)
        note_holdout(run.board, commit.samples_seen, commit.step, on_holdout)
    chosen = max(on_holdout, key=lambda name: on_holdout[name].right) if on_holdout else AVERAGE if tuned.average else WEIGHTS
    reads: Reads | None = None
    if sets.test:
        note = functools.partial(log_test_read, run.run_dir, sets.test.images.source, len(sets.test.ids), ledger=config.ledger)
        reads = from_first(run.world, lambda: note(command=tuned.command, encoder=tuned.loaded.source, named=str(config.test)))
        final, where = measured(tuned, sets.test, names=[chosen])[chosen], "test"
    else:
        final, where = on_holdout[chosen], "holdout of train"
    seen = together(run.world, lambda: seen_before(tuned) if run.world.first else None)
    weights = final_weights(run.engine, tuned.average if chosen == AVERAGE else None)
    if not run.board or seen is None:
        return
    write_model(tuned, commit, weights, chosen)
    row, shown = "from scratch" if tuned.random else "fine-tuned", sets.test or sets.holdout
    assert shown is not None  # one of them was measured
    answers = {row: {FINETUNED: Answers(torch.from_numpy(final.predicted), torch.from_numpy(final.confidence))}}
    write_predictions(run.run_dir, answers, torch.from_numpy(final.truth), shown.ids)
    given, truth = answers[row][FINETUNED], torch.from_numpy(final.truth)
    top1 = figures(given.predicted, truth, len(sets.classes), given.confidence)
    rows = {row: {FINETUNED: top1 | {"loss": final.loss, "weights": chosen}}}
    overlap, overlap_lines = seen.report(answers, truth, len(sets.classes))
    pictures = draw_answers(run.run_dir, row, FINETUNED, rows, answers, final.truth, sets.classes, where, {row: shown})
    write_results(
        run.run_dir,
        {
            "command": shlex.join(tuned.command),
            "kind": "finetune",
            "encoder": {"path": config.encoder, "source": tuned.loaded.source, "digest": tuned.loaded.digest, "init": config.init},
            "reported_on": where,
            "rows": rows,
            "holdout": {
                name: {"accuracy": each.accuracy, "loss": each.loss, "images": len(each.truth)} for name, each in on_holdout.items()
            },
            "reported_images": len(final.truth),
            "counted": final.counted,
            **about,
            "samples_seen": commit.samples_seen,
            "commit": commit.seal,
            "steps": run.total_steps,
            "learning_rate": run.peak_rate,
            "resolution": list(tuned.size),
            "classes": sets.classes,
            "seed": config.seed,
            "test_reads": reads.times if reads else 0,
            "test_reads_folders": reads.folders if reads else 0,
            "overlap": overlap,
            "data": {
                split: {"path": getattr(config, split), "identity": identity, "content": content_id(sets.source(split).prints)}
                for split, identity in sets.identities.items()
            },
            "holdout_fraction": config.data.holdout_fraction,
            "config": config.model_dump(mode="json"),
            "environment": environment(),
            "seconds": commit.record["seconds"],
            "pictures": pictures,
        },
    )
    run.board.scalars(commit.samples_seen, commit.step, {f"{'test' if sets.test else 'holdout'}/accuracy": final.accuracy})
    run.board.close()
    times = f"; {reads.words()}" if reads else ", on which the weights were chosen"
    low, high = top1["ci95"]
    seconds = commit.record["seconds"]
    if reads and reads.note:
        say(f"note: {reads.note}")
    say(f"measured {final.counted} of {config.test if sets.test else 'a hold-out of train'} ({chosen}{times})")
    for line in overlap_lines:
        say(" ".join(line.split()))
    say(f"top-1 {100 * final.accuracy:.2f} % ({100 * low:.2f} to {100 * high:.2f}) | {commit.samples_seen:,} samples, {seconds:.0f} s")
    say(f"done | {run.run_dir}/results.json | {run.run_dir}/encoder | tensorboard --logdir {run.run_dir}")


def seen_before(tuned: Tuned) -> Overlap:
    """Of the images that figures are on."""
    config, sets = tuned.config, tuned.sets
    train, trained = sets.source("train"), sets.training.ids
    encoders = [] if tuned.random else [config.encoder]
    if sets.holdout is None:
        return find_overlap(sets.source("test"), sets.test.ids, train, trained, encoders)  # type: ignore[union-attr]
    held = sets.holdout.ids
    if sets.test is None:
        return find_overlap(train, held, train, trained, encoders)
    return find_overlap(sets.source("test"), sets.test.ids, train, np.union1d(trained, held), encoders, (trained, held))


def write_model(tuned: Tuned, commit: Commit, weights: dict[str, torch.Tensor], chosen: str) -> None:
    """RUN/encoder: the classifier, with its head."""
    run, loaded = tuned.run, tuned.loaded
    afresh = " (random initialisation)" if tuned.random else ""
    about = {
        "source": f"{run.run_dir.name}: {loaded.source}{afresh}, fine-tuned on {commit.samples_seen} samples",
        "commit": commit.seal,
        "encoder_digest": loaded.digest,
        "init": tuned.config.init,
        "weights": chosen,
        "norm_eps": loaded.norm_eps,
    }
    write_classifier(
        run.run_dir / "encoder",
        weights,
        tuned.arch,
        tuned.model_arguments,
        tuned.sets.classes,
        tuned.size,
        loaded.mean,
        loaded.std,
        tuned.config.data.test_crop,
        about,
    )


def classifier_of(
    config: FinetuneConfig, loaded: LoadedEncoder, classes: int, size: tuple[int, int]
) -> tuple[torch.nn.Module, str, dict[str, Any]]:
    """The model that learns, timm's name of its architecture, and the arguments it was made with."""
    arch, encoder_arguments = loaded.architecture
    arguments = classifier_arguments(loaded.net, encoder_arguments, config.model, size)
    random = config.init == "random"
    net = loaded.fresh(seed_of(config.seed, INIT, 0)) if random else loaded.net
    model = build_classifier(net, arch, arguments, classes, config.model, size, seed_of(config.seed, INIT, 1), random=random)
    set_norm_eps(model, loaded.norm_eps)
    fused = config.system.fused_attention
    choose_attention(model, fused if fused is not None else torch.cuda.is_available())
    return model, arch, arguments


def image_size(config: FinetuneConfig, loaded: LoadedEncoder) -> tuple[int, int]:
    """(height, width) in pixels."""
    wanted = config.model.resolution or loaded.image_size
    return (wanted, wanted) if isinstance(wanted, int) else wanted


def clock_of(config: FinetuneConfig, steps_per_epoch: int) -> OptimConfig:
    """The schedule in samples.  Raises ConfigError for a warm-up longer than the run."""
    optim, batch = config.optim, config.data.global_batch
    steps = length_of(optim.model_dump(), steps_per_epoch)
    warmup = optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_epochs * steps_per_epoch)
    if warmup > steps:
        raise ConfigError(f"a warm-up of {warmup} steps exceeds the run's {steps}; lower optim.warmup_epochs or optim.warmup_steps")
    return OptimConfig(
        base_lr=optim.base_lr,
        lr_batch=optim.lr_batch,
        final_lr=optim.final_lr,
        warmup_samples=warmup * batch,
        total_samples=steps * batch,
    )


def length_of(optim: Mapping[str, Any], steps_per_epoch: int) -> int:
    """Steps that an optim section asks for."""
    return optim.get("steps") or max(1, round(optim.get("epochs", 0) * steps_per_epoch))


def is_measured(run_dir: Path, seal: str) -> bool:
    """Whether what a run writes last, its results, is there and of the commit with this seal, and its encoder/ is, too, and whole."""
    try:
        found = json.loads((run_dir / RESULTS).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("commit") == seal and is_written(run_dir / "encoder", seal)


@watch.slowly("measuring")
def measured(tuned: Tuned, data: CropDataset, names: Sequence[str] = (WEIGHTS, AVERAGE)) -> dict[str, Predictions]:
    """Collective: the weights as they are, and their average where there is one (of `names`)."""
    run, loaded, average, found = tuned.run, tuned.loaded, tuned.average, {}
    take = functools.partial(
        measure, data=data, mean=loaded.mean, std=loaded.std, micro_batch=run.plan.micro_batch, workers=run.workers, world=run.world
    )
    if WEIGHTS in names:
        run.engine.train(False)
        found[WEIGHTS] = take(run.engine.forward)
        run.engine.train(True)
    if average and AVERAGE in names:

        def predict(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(run.world.device.type, torch.bfloat16, enabled=tuned.config.system.precision == "bf16"):
                return average.net(images)

        found[AVERAGE] = take(predict)
    return found


def note_holdout(board: Board | None, samples_seen: int, step: int, found: dict[str, Predictions]) -> None:
    if board:
        values: dict[str, float] = {}
        for name, each in found.items():
            suffix = "" if name == WEIGHTS else "_of_average"
            values |= {f"holdout/accuracy{suffix}": each.accuracy, f"holdout/loss{suffix}": each.loss}
        board.scalars(samples_seen, step, values)
        say("  hold-out " + " | ".join(f"{name} {100 * each.accuracy:.2f} %, loss {each.loss:.4f}" for name, each in found.items()))


def final_weights(engine: Engine, average: WeightAverage | None) -> dict[str, torch.Tensor]:
    """Collective at ZeRO-3: float32, with timm's names, buffers included."""
    if average:
        return dict(average.net.state_dict())
    return dict(engine.module.state_dict()) | {name: engine.whole(parameter) for name, parameter in engine.module.named_parameters()}
