"""The training loop of mpp/finetune.py, top to bottom, and the measurement at its end.

One straight loop, as in pretraining: the same order of samples on any cluster, the same checkpoints, the same resuming.  Whatever is chosen
(weights or their average, and by you: learning rates, epochs) is chosen on a hold-out of train; the test split is read once, at the end, every
image exactly once, and each read is logged.
"""

import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mpp.config.finetune import FinetuneConfig
from mpp.config.sections import OptimConfig
from mpp.data.finetune_set import open_finetune_set
from mpp.data.loader import batches, default_workers
from mpp.data.order import OrderSampler, plan_batch
from mpp.errors import ConfigError, UserError
from mpp.files import make_folder
from mpp.interop.encoder_folder import is_written, write_classifier
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.machine import allow_open_files
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.encoder import choose_attention, set_norm_eps
from mpp.monitor.board import Board
from mpp.rng import DROP_PATH, INIT, seed_of
from mpp.text import counted, say
from mpp.train.average import WeightAverage
from mpp.train.checkpoint import restore, save, whole
from mpp.train.classify import Predictions, cross_entropy, inputs_and_targets, measure
from mpp.train.commit import find_commit, prune, set_aside_after
from mpp.train.engine import Engine, start_distributed
from mpp.train.optim import build_finetune_optimiser
from mpp.train.progress import clock, shared_sum
from mpp.train.quarantine import Quarantine
from mpp.train.resume import course_of, settle, way_out
from mpp.train.run_folder import cut_back_logs, environment, hold_run_folder, write_run_folder
from mpp.train.schedule import learning_rate, peak_rate
from mpp.train.signals import StopRequest
from mpp.transfer.metrics import figures
from mpp.transfer.protocol import Answers
from mpp.transfer.results import RESULTS, draw_answers, write_predictions, write_results
from mpp.transfer.split import CHOOSE, few_labels, hold_out
from mpp.transfer.table import FINETUNED, log_test_read
from mpp.watch import watch
from mpp.world import World, find_place, from_first, leave

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
    schedule, total_steps = clock_of(config, order.steps_per_epoch)
    depends_on = {"encoder": loaded.digest, "train": sets.identities["train"]}
    commit = find_commit(run_dir, config.resume)
    steps_of = lambda optim: length_of(optim, order.steps_per_epoch)
    course_of(commit, config, total_steps, steps_of, depends_on, what="{}")
    arch, encoder_arguments = loaded.architecture
    model_arguments = classifier_arguments(loaded.net, encoder_arguments, config.model, size)
    random = config.init == "random"
    net = loaded.fresh(seed_of(config.seed, INIT, 0)) if random else loaded.net
    model = build_classifier(
        net, arch, model_arguments, len(sets.classes), config.model, size, seed_of(config.seed, INIT, 1), random=random
    )
    set_norm_eps(model, loaded.norm_eps)
    choose_attention(model, system.fused_attention if system.fused_attention is not None else torch.cuda.is_available())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    make_folder(run_dir, "run_dir")
    if os.environ.get("RANK", "0") == "0":
        lock = hold_run_folder(run_dir, config.resume, commit)  # noqa: F841, held until this process ends

    world = start_distributed(system.patience_seconds, system.patience_slow_seconds, run_dir)
    commit = settle(run_dir, config.resume, commit, world)
    course = course_of(commit, config, total_steps, steps_of, depends_on, what="{}")
    if commit and course.finished and from_first(world, functools.partial(is_measured, run_dir, commit.seal)):
        if world.first:
            say(
                f"run {run_dir} | {course.finished_words('optim.steps' if config.optim.steps else 'optim.epochs')} | {run_dir}/results.json"
            )
        return leave()
    from_first(world, lambda: cut_back_logs(run_dir, commit.samples_seen if commit else 0))
    model.to(world.device)
    average = WeightAverage(model, config.optim.ema) if config.optim.ema else None
    engine = Engine(model, build_finetune_optimiser(model, config.optim), plan, world, system, config.optim.clip_norm)
    first_step, bad_samples, seconds_before = 0, 0, 0.0
    if commit:
        restore(commit, engine, prime=lambda: take_empty_step(engine, size, plan.accumulation, world))
        if average:
            average.restore(commit)
        first_step, bad_samples, seconds_before = commit.step, commit.record["bad_samples"], commit.record["seconds"]
    workers = system.workers if system.workers is not None else default_workers(world.local_size)
    sampler = OrderSampler(order, plan, world.rank, world.size, first_step, total_steps, sets.training.ids)
    placed = sets.placed(config, world.device, world.local_size)
    stream = batches(placed, sampler, workers, pin_memory=world.device.type == "cuda", local_world=world.local_size)
    quarantine = Quarantine(run_dir, world)

    board = None
    if world.first:
        for newer in set_aside_after(run_dir, first_step):
            say(f"a newer checkpoint is set aside: {newer}")
        write_run_folder(run_dir, config, argv, PROGRAM)
        board = Board(run_dir, first_step * data.global_batch)
        say(
            f"run {run_dir} | {course.start_words(commit is not None)} | {counted(world.size, 'process', 'processes')} on {world.device.type}"
        )
        for line in course.words():
            say(line)
        say(
            f"encoder {loaded.source}{' (random initialisation)' if random else ''} | {arch} at {size[0]}x{size[1]} | {parameters:,} parameters"
        )
        say(
            f"{order.samples:,} labelled images of {len(sets.classes)} classes"
            f"{f', {len(sets.holdout.ids):,} held out' if sets.holdout else ''} | {order.steps_per_epoch} steps an epoch"
        )
        for remark in sets.remarks:
            say(f"note: {remark}")
        say(
            f"{total_steps} steps of {data.global_batch} | peak learning rate {peak_rate(schedule, data.global_batch):.3g}, "
            f"layer decay {config.optim.layer_decay:g} | ZeRO {system.zero_stage}, {system.precision}"
        )
        say(f"{placed.images.decoder} | {counted(workers, 'loader process', 'loader processes')} a rank")
        say(
            f"micro-batch {plan.micro_batch} x accumulation {plan.accumulation} | "
            f"the same batches on {', '.join(map(str, plan.worlds[:12]))}{', ...' if len(plan.worlds) > 12 else ''} processes"
        )

    # The loop.
    stop = StopRequest()
    meters = torch.zeros(2, device=world.device)  # sums since the last log: loss, samples
    began = last_save = time.perf_counter()
    busy, waited, logged_step = 0.0, 0.0, first_step
    stopping = False
    for step in range(first_step, total_steps):
        step_began = time.perf_counter()
        watch.moved(step=step)
        rate = learning_rate(step * data.global_batch, schedule, data.global_batch, course.began)
        torch.manual_seed(seed_of(config.seed, DROP_PATH, step, world.rank))  # noise inside the model belongs to (seed, step, rank)
        bad_now = 0
        for _ in range(plan.accumulation):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            bad_now += quarantine.note(batch["bad"])
            images, targets = inputs_and_targets(batch, len(sets.classes), augment.smoothing, loaded.mean, loaded.std, world.device)
            loss = cross_entropy(engine.predict(images), targets)
            engine.backward(loss.mean())
            meters += torch.stack([loss.detach().sum(), torch.ones_like(loss).sum()])
        norm = engine.update(rate)
        if average:
            average.update(engine, step + 1)
        samples_seen = (step + 1) * data.global_batch

        # The one wait for the device in a step: what every rank must decide alike.
        minutes = (time.perf_counter() - last_save) / 60
        save_due = world.first and config.checkpoint.every_minutes is not None and minutes >= config.checkpoint.every_minutes
        broken, stop_now, save_now, bad_now = shared_sum([~torch.isfinite(norm), stop.requested, save_due, bad_now], world)
        stopping = bool(stop_now)
        busy += time.perf_counter() - step_began
        if broken:
            raise UserError(
                f"the gradient norm of step {step + 1} is not finite (learning rate {rate:.3g}); "
                f"{way_out(run_dir, config.model_dump(), step - 1)}"
            )
        bad_samples += bad_now
        quarantine.stop_beyond(bad_samples, samples_seen, data.max_bad_fraction)

        last = step + 1 == total_steps
        log_due = (step + 1) % config.log.every_steps == 0 or last or stopping
        if log_due or step == first_step:  # the first step is shown at once, for people alone
            sums = meters.clone()
            dist.all_reduce(sums)
            loss_sum, count = sums.tolist()
            values = {
                "train/loss": loss_sum / count,
                "optim/learning_rate": rate,
                "optim/gradient_norm": float(norm),
                "speed/samples_per_second": (step + 1 - logged_step) * data.global_batch / busy,
                "speed/wait_share": waited / busy,
                "data/bad_samples": float(bad_samples),
            }
            if board:
                if log_due:
                    board.scalars(samples_seen, step + 1, values)
                left = (time.perf_counter() - began) / (step + 1 - first_step) * (total_steps - step - 1)
                say(
                    f"step {step + 1}/{total_steps}  epoch {(step + 1) / order.steps_per_epoch:.1f}  loss {values['train/loss']:.4f}  "
                    f"lr {rate:.2e}  norm {values['optim/gradient_norm']:.3f}  {values['speed/samples_per_second']:.0f} img/s  "
                    f"wait {values['speed/wait_share']:.0%}  eta {clock(left)}"
                )
            if log_due:
                meters.zero_()
                busy, waited, logged_step = 0.0, 0.0, step + 1
        if sets.holdout and not last and (step + 1) % (order.steps_per_epoch * config.log.holdout_every_epochs) == 0:
            found = measured(engine, average, sets.holdout, config, loaded, plan.micro_batch, workers, world)
            note_holdout(board, samples_seen, step + 1, found)
        every = config.checkpoint.every_samples
        crossed = every is not None and samples_seen // every > (samples_seen - data.global_batch) // every
        if save_now or crossed or last or stopping:
            record = {"program": "finetune", "step": step + 1, "samples_seen": samples_seen, "bad_samples": bad_samples}
            record |= {"config": config.model_dump(mode="json"), "manifests": depends_on, "world_size": world.size}
            record |= {"zero_stage": system.zero_stage, "seconds": round(seconds_before + time.perf_counter() - began, 1)}
            commit = save(run_dir, engine, world, record | course.record(), average.tensors() if average else None)
            last_save = time.perf_counter()
            if world.first:
                prune(run_dir, config.checkpoint.keep)
        if stopping:
            break

    watch.moved("writing results", step=total_steps, slow=True)
    assert commit is not None  # the last step is committed
    newest = commit
    if newest.step < total_steps:
        if board:
            board.close()
            say(f"stopped as asked at step {newest.step}; the same command goes on from there")
        return leave()

    # The end: choose on the hold-out, then measure once.
    seconds = newest.record["seconds"]
    on_holdout: dict[str, Predictions] = {}
    if sets.holdout:
        on_holdout = measured(engine, average, sets.holdout, config, loaded, plan.micro_batch, workers, world)
        note_holdout(board, newest.samples_seen, newest.step, on_holdout)
    chosen = max(on_holdout, key=lambda name: on_holdout[name].right) if on_holdout else AVERAGE if average else WEIGHTS
    reads = 0
    if sets.test:
        command = [PROGRAM, *(sys.argv[1:] if argv is None else argv)]
        note = functools.partial(log_test_read, run_dir, command=command, encoder=loaded.source, test=str(config.test))
        reads = from_first(world, lambda: note(test_identity=sets.identities["test"]))
        only = average if chosen == AVERAGE else None
        found = measured(engine, only, sets.test, config, loaded, plan.micro_batch, workers, world, names=[chosen])
        final, where = found[chosen], "test"
    else:
        final, where = on_holdout[chosen], "holdout of train"
    weights = final_weights(engine, average if chosen == AVERAGE else None)
    if board:
        about = {
            "source": f"{run_dir.name}: {loaded.source}{' (random initialisation)' if random else ''}, fine-tuned on {newest.samples_seen} samples",
            "commit": newest.seal,
            "encoder_digest": loaded.digest,
            "init": config.init,
            "weights": chosen,
            "norm_eps": loaded.norm_eps,
        }
        write_classifier(
            run_dir / "encoder", weights, arch, model_arguments, sets.classes, size, loaded.mean, loaded.std, data.test_crop, about
        )
        row, measured_ids = "from scratch" if random else "fine-tuned", (sets.test or sets.holdout).ids  # type: ignore[union-attr]
        answers = Answers(torch.from_numpy(final.predicted), torch.from_numpy(final.confidence))
        write_predictions(run_dir, {row: {FINETUNED: answers}}, final.truth, measured_ids)
        truth = torch.from_numpy(final.truth)
        top1 = figures(answers.predicted, truth, len(sets.classes), answers.confidence)
        low, high = top1["ci95"]
        rows = {row: {FINETUNED: top1 | {"loss": final.loss, "weights": chosen}}}
        draw_answers(run_dir, row, FINETUNED, rows, {row: {FINETUNED: answers}}, final.truth, sets.classes, where)
        results = {
            "command": shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)]),
            "kind": "finetune",
            "encoder": {"path": config.encoder, "source": loaded.source, "digest": loaded.digest, "init": config.init},
            "reported_on": where,
            "rows": rows,
            "holdout": {
                name: {"accuracy": each.accuracy, "loss": each.loss, "images": len(each.truth)} for name, each in on_holdout.items()
            },
            "reported_images": len(final.truth),
            "counted": final.counted,
            "train_images": order.samples,
            "samples_seen": newest.samples_seen,
            "commit": newest.seal,
            "steps": total_steps,
            "learning_rate": peak_rate(schedule, data.global_batch),
            "resolution": list(size),
            "parameters": parameters,
            "classes": sets.classes,
            "seed": config.seed,
            "test_reads": reads,
            "data": {split: {"path": getattr(config, split), "identity": identity} for split, identity in sets.identities.items()},
            "holdout_fraction": data.holdout_fraction,
            "config": config.model_dump(mode="json"),
            "environment": environment(),
            "seconds": seconds,
        }
        write_results(run_dir, results)
        board.scalars(newest.samples_seen, newest.step, {f"{'test' if sets.test else 'holdout'}/accuracy": final.accuracy})
        board.close()
        times = f", read {reads} time{'s' if reads > 1 else ''} by this folder" if sets.test else ", on which the weights were chosen"
        say(f"measured {final.counted} of {config.test if sets.test else 'a hold-out of train'} ({chosen}{times})")
        say(f"top-1 {100 * final.accuracy:.2f} % ({100 * low:.2f} to {100 * high:.2f}) | {newest.samples_seen:,} samples, {seconds:.0f} s")
        say(f"done | {run_dir}/results.json | {run_dir}/encoder | tensorboard --logdir {run_dir}")
    return leave()


def image_size(config: FinetuneConfig, loaded: LoadedEncoder) -> tuple[int, int]:
    """(height, width) in pixels."""
    wanted = config.model.resolution or loaded.image_size
    return (wanted, wanted) if isinstance(wanted, int) else wanted


def clock_of(config: FinetuneConfig, steps_per_epoch: int) -> tuple[OptimConfig, int]:
    """The schedule in samples, and how many steps there are.  Raises ConfigError for a warm-up longer than the run."""
    optim, batch = config.optim, config.data.global_batch
    steps = length_of(optim.model_dump(), steps_per_epoch)
    warmup = optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_epochs * steps_per_epoch)
    if warmup > steps:
        raise ConfigError(f"a warm-up of {warmup} steps exceeds the run's {steps}; lower optim.warmup_epochs or optim.warmup_steps")
    schedule = OptimConfig(
        base_lr=optim.base_lr,
        lr_batch=optim.lr_batch,
        final_lr=optim.final_lr,
        warmup_samples=warmup * batch,
        total_samples=steps * batch,
    )
    return schedule, steps


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
def measured(
    engine: Engine,
    average: WeightAverage | None,
    data: Any,
    config: FinetuneConfig,
    loaded: LoadedEncoder,
    micro_batch: int,
    workers: int,
    world: World,
    names: Sequence[str] = (WEIGHTS, AVERAGE),
) -> dict[str, Predictions]:
    """Collective: the weights as they are, and their average where there is one (of `names`)."""
    found = {}
    take = functools.partial(measure, data=data, mean=loaded.mean, std=loaded.std, micro_batch=micro_batch, workers=workers, world=world)
    if WEIGHTS in names:
        engine.train(False)
        found[WEIGHTS] = take(engine.predict)
        engine.train(True)
    if average and AVERAGE in names:

        def predict(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.system.precision == "bf16"):
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
    state = dict(engine.module.state_dict()) if average is None else dict(average.net.state_dict())
    if average is None:
        state |= {name: whole(engine, parameter) for name, parameter in engine.module.named_parameters()}
    return state


def take_empty_step(engine: Engine, size: tuple[int, int], accumulation: int, world: World) -> None:
    """An optimiser step at learning rate 0 with zero gradients: changes nothing, creates the optimiser's state."""
    images = torch.zeros(1, 3, *size, device=world.device)
    for _ in range(accumulation):
        engine.backward(engine.predict(images).float().sum() * 0)
    engine.update(0.0)
