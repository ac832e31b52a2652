"""What mpp/pretrain.py does, top to bottom.

A step: take this rank's share of the global batch, predict the hidden patches, average the loss over them, step, and on some steps write down
what happened.  What every training loop does in the same order stands in train/run.py; what a recipe computes, in recipe/model.py.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from mpp.base.errors import AGAIN
from mpp.base.progress import tracked
from mpp.base.text import counted, say
from mpp.config.pretrain import PretrainConfig
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.joined_shards import JoinedShards
from mpp.data.loader import batches, fixed_batches
from mpp.data.order import BatchPlan, OrderSampler, plan_batch, ranges_in_words, steps_over
from mpp.data.shards import few_open_files
from mpp.data.training_set import TrainingSet, open_training_set
from mpp.disk.files import write_atomically
from mpp.interop.encoder_folder import PREFIXES, is_written, write_encoder
from mpp.interop.lent import Brought, bring
from mpp.interop.pretraining import pretraining_of
from mpp.interop.start_from import initialise_from
from mpp.mains.settling import Again, settle
from mpp.model.encoder import encoder_in_words
from mpp.model.tokens import fuses_attention
from mpp.monitor.arithmetic import training_flop
from mpp.monitor.board import logged
from mpp.monitor.collapse import Goals, figures
from mpp.monitor.layout import of_pretraining
from mpp.monitor.memory import step_bytes
from mpp.monitor.pictures import reconstruction
from mpp.monitor.projector import MOST
from mpp.monitor.signs import Course, Signs
from mpp.monitor.skill import NONE, Baseline, ImageSums, fit_baseline, verdict
from mpp.processes.agreement import agree_on_weights
from mpp.processes.peers import Peers
from mpp.processes.watch import watch
from mpp.processes.world import World, device_of, leave
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Across, everywhere
from mpp.recipe.teacher import TeacherKnobs
from mpp.train.commit import Commit, commits, read_tensors
from mpp.train.copies import Copies
from mpp.train.engine import Engine
from mpp.train.gathering import gather
from mpp.train.meters import Meters
from mpp.train.optim import build_optimiser
from mpp.train.progress import signed
from mpp.train.run import Run, Step
from mpp.train.sample_log import SampleLog
from mpp.train.schedule import small_rate_note
from mpp.train.shared_sum import shared_sum
from mpp.train.signals import stopped_words
from mpp.train.step import masked_images
from mpp.train.teacher import teacher_of
from mpp.transfer.encoder_looks import EncoderLooks
from mpp.transfer.while_training import FeatureLooks, cadence, choose, unlooked_words

PROGRAM = "mpp/pretrain.py"  # as command lines are noted
BASELINE_SAMPLES = 512  # training samples that fit the trivial predictors
APART_SAMPLES = 512  # held-out ones on which a moving target is looked at


def _over_all(operation: Any) -> Callable[[Tensor], Tensor]:
    def joined(part: Tensor) -> Tensor:
        whole = part.clone()
        if isinstance(whole, FakeTensor):  # arithmetic is counted (monitor/arithmetic.py)
            return whole
        dist.all_reduce(whole, operation)
        return whole

    return joined


ACROSS = Across(total=_over_all(dist.ReduceOp.SUM), most=_over_all(dist.ReduceOp.MAX))  # collective
Holdout = list[tuple[Batch, Tensor]]  # batches, and the weight [B] of each image


def run_of(
    config: PretrainConfig,
    run_dir: Path,
    sets: TrainingSet,
    brought: Brought,
    plan: BatchPlan,
    peers: Peers,
    argv: Sequence[str] | None = None,
    copies: Copies | None = None,
) -> Run:
    """What it goes on from, if it may; nothing is held or written.  Parameters as of Run.  Raises as Run."""
    steps_of = lambda optim: optim.get("total_samples", 0) // config.data.global_batch
    called = lambda name: sets.called(name) if name in sets.manifests else f"what {name} names"
    depends_on = {**sets.manifests, **brought.digests}
    return Run(
        PROGRAM,
        argv,
        config,
        run_dir,
        plan,
        config.optim,
        steps_of,
        depends_on,
        called,
        branch_from=config.branch_from,
        peers=peers,
        copies=copies,
    )


def pretrain(asked: PretrainConfig, run_dir: Path, argv: Sequence[str] | None, again: Again) -> int:
    """Train, from the newest commit in `run_dir` on where there is one.

    asked, again: the config, and how to have it anew with what it leaves open (mains/settling.py).  argv: the command line, to be noted.  Raises UserError.
    """
    peers = gather(PROGRAM, asked)
    copies = peers.together(lambda: Copies(asked.checkpoint, run_dir) if peers.first and asked.checkpoint.copy_to else None)
    settled = settle(asked, again, run_dir, peers, (lambda: copies.find(asked.resume)) if copies else None)
    config = settled.config
    data, system = config.data, config.system

    # Which samples, in which order; and everything that can be refused before there are collectives.
    sets = open_training_set(config, peers)
    plan = plan_batch(data.global_batch, data.streams, peers.size, system.micro_batch_max, data.views)
    order = sets.order(config, plan)
    every, images = cadence(config)
    chosen = choose(config, sets, images, peers) if every else None
    fused_attention = fuses_attention(system)
    brought = bring(config, sets.manifests["shards"], fused_attention)
    run = run_of(config, run_dir, sets, brought, plan, peers, argv, copies)
    model = build_model(config, fused_attention, replace(brought.lent, across=ACROSS))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    begun = {"init_from": initialise_from(model, config)} if config.init_from and not run.commit else {}
    agree_on_weights(peers, {**brought.digests, **begun})

    run.claim()
    if run.commit and run.course.finished:
        if peers.first:
            say(f"run {run_dir} | {run.course.finished_words('optim.total_samples')}")
            export_encoder(run_dir, run.commit, config)
            if known := run.commit.record.get("baseline"):
                conclude(run_dir, Baseline(**known), len(sets.holdout.pool))
        if copies:
            copies.begin(commits(run_dir))
        run.finish_copies()
        return leave()

    passed = steps_over(data.skip_samples, data.global_batch, run.total_steps)
    sampler = OrderSampler(order, plan, peers.rank, peers.size, run.first_step, run.total_steps, passed=passed)
    device = device_of(peers)
    reach = order.shards_in_reach(peers.size)
    kept_open = sets.trained_on.keep_open(reach)
    hand = sets.in_hand(order, peers.size, peers.local_size)
    placed = sets.placed(config, device, peers.local_size, run.first_step)
    each = hand.bytes // peers.local_size if hand else 0
    stream = batches(placed, sampler, run.workers, pin_memory=device.type == "cuda", local_world=peers.local_size, hand=each)
    run.join(stream, settled.world)
    world, masking = run.world, sets.masking
    brought.lent.to(world.device)
    teacher = teacher_of(model.to(world.device), config, run.course.began)
    engine = run.begin(
        model,
        build_optimiser(model, config.optim, model.target.own_scales),
        lambda engine: engine.forward(*blank_inputs(config, masking, world.device))[0],
        lambda: flop_of(model, config, masking, world.device),
        teacher,
    )
    held = -(-len(sets.holdout.pool) // (plan.micro_batch * world.size))
    fixed = fixed_batches(sets.holdout, np.array(sets.holdout.pool), plan.micro_batch, world.rank, world.size)
    holdout = list(tracked(fixed, "reading the hold-out", held, "batches", at_once=True))
    names: tuple[str, ...] = ()
    if isinstance(sets.held_out, JoinedShards):
        names = sets.held_out.names
        for batch, _ in holdout:
            batch["origin"] = torch.tensor(sets.held_out.sources_of(batch["shown"].tolist()))
    (bad_held_out,) = shared_sum([run.bad.note([fault for batch, _ in holdout for fault in batch["bad"]])], world)
    run.bad.stop_beyond(bad_held_out, data.holdout_samples, data.max_bad_fraction)
    with watch.slowly("fitting trivial predictors"):
        baseline = baseline_of_run(run, model, config, sets)
    with watch.slowly("reading the images to look at features on"):
        looks = Looks(FeatureLooks(config, chosen, world), EncoderLooks(config, chosen, world, engine.stage == 3)) if chosen else None
    run.announce(
        [
            *settled.words,
            f"encoder {encoder_in_words(config.model)}: {masking.patches} patches, "
            f"{masking.counts.predicted} predicted | {parameters:,} parameters with the decoder | target {config.target.name}",
            f"{run.total_steps} steps of {data.global_batch} | {order.words} | "
            f"{run.rate_words} | ZeRO {system.zero_stage}, {system.precision}",
            *filter(None, [small_rate_note(config.optim, data.global_batch)]),
            *brought.words,
            *sets.sources_words(config, order),
            *sets.remarks,
            *filter(None, [sets.stream.shared_words(run.workers)] if sets.stream else []),
            *([few_open_files(reach, kept_open)] if kept_open < reach else []),
            *sets.fetched_words(hand),
            f"{placed.pixels.decoder} | {counted(data.views, 'view')} of each image | {run.loader_words}",
            run.plan_words("as many images a step") if sets.stream else run.plan_words(),
            *([f"steps that see positions {ranges_in_words(data.skip_samples)} are passed over"] if data.skip_samples else []),
            baseline.said(len(sets.holdout.pool)),
            *([f"features are looked at every {every} steps on {looks.features.words}"] if looks else unlooked_words(config)),
            *([f"beside the reference on the board: {run.reference.about}"] if run.reference else []),
        ],
        of_pretraining(
            reference=run.reference is not None,
            skill=baseline.defines_skill,
            teacher=teacher is not None,
            looks=looks is not None,
            labels=looks is not None and looks.features.labelled,
            decay_moves=run.schedule.final_weight_decay is not None,
            sources=bool(names),
        ),
    )
    if world.first and isinstance(sets.trained_on, JoinedShards):
        write_atomically(run_dir / "sources.json", sets.trained_on.as_json().encode())
    if run.board:
        run.board.explain(Signs(Course(config.optim.warmup_samples, config.optim.total_samples, baseline.name, baseline.knows_more)))
    if looks and not run.first_step:
        look_at_features(run, model, looks, 0, 0)  # what random initialisation is worth

    meters = Meters(6, world.device, finite=True)  # loss, patches, loss of masked ones, masked patches, the target's own, how often
    for step in run.steps(data.views, SampleLog(run_dir, world.rank) if config.log.samples else None, passed):
        for batch in step.batches():
            _, loss, masked, own = engine.forward(*masked_images(batch, world.device))
            step.backward(loss.mean() + own)
            loss = loss.detach()
            meters.add(loss, torch.ones_like(loss), loss * masked, masked, own.detach(), torch.ones_like(own))
        step.update()
        if step.shown:
            *sums, own, times = meters.look(clear=step.logs)
            train_loss, skill = loss_and_skill(sums, baseline)
            words = f"samples {step.samples_seen:,}  loss {train_loss:.4f}  skill {signed(skill)}"
            more = {"target/own_loss": own / times if times else math.nan} if isinstance(model.target, nn.Module) else {}
            more |= {"teacher/decay": teacher.decay_at(step.number)} if teacher else {}
            run.log(step, {"train/loss": train_loss, "train/skill": skill} | more, words)
        if step.number % config.log.holdout_every_steps == 0 or step.last:
            sums, by_image, by_source = on_holdout(engine, holdout, world, len(names))
            apart = told_apart(model, holdout, world) if teacher else {}
            loss_, skill = loss_and_skill(sums, baseline)
            if run.board:
                error = baseline.skill_error(by_image)
                of_each = dict(zip(names, by_source, strict=True))
                values = {"holdout/loss": loss_, "holdout/skill": skill, "holdout/skill_error": error} | apart
                run.board.scalars(
                    step.samples_seen, step.number, values | {f"holdout/loss/{name}": value for name, value in of_each.items()}
                )
                say(
                    "  ".join(
                        [
                            f"  hold-out loss {loss_:.4f}",
                            *(f"{name} {value:.4f}" for name, value in of_each.items()),
                            f"skill {signed(skill)}",
                        ]
                    )
                )
        if looks and (step.number % every == 0 or step.last):
            look_at_features(run, model, looks, step.samples_seen, step.number)
        if step.number % config.log.pictures_every_steps == 0 or step.last:
            picture(run, model, *holdout[0], baseline, config, step)
        if step.commits:
            run.save(step, {"baseline": baseline.as_dict()})

    watch.moved("writing the encoder", step=run.total_steps, slow=True)
    if run.board:
        commit = run.commit
        assert commit is not None  # the last step is committed
        if looks and (shown := looks.features.projection(MOST)):
            run.board.project(commit.samples_seen, *shown)
        run.board.close()
        export_encoder(run_dir, commit, config)
        if commit.step == run.total_steps:
            conclude(run_dir, baseline, len(sets.holdout.pool))
    run.finish_copies()
    if run.board:
        commit = run.commit
        assert commit is not None
        say("done" if commit.step == run.total_steps else stopped_words(f"at step {commit.step}"))
        say(
            f"encoder {run_dir}/encoder{' | teacher ' + str(run_dir / 'teacher') if teacher else ''} | pictures {run_dir}/pictures | tensorboard --logdir {shlex.quote(str(run_dir))}"
        )
    leave()
    return 0 if run.commit and run.commit.step == run.total_steps else AGAIN


def export_encoder(run_dir: Path, commit: Commit, config: PretrainConfig) -> None:
    """RUN/encoder of this commit, and RUN/teacher where the target has one, unless they are there and whole."""
    networks = ["encoder", "teacher"] if isinstance(config.target, TeacherKnobs) else ["encoder"]
    for network in networks:
        folder, words = run_dir / network, f"{'' if network == 'encoder' else 'teacher of '}{run_dir.name} at {commit.samples_seen} samples"
        if not is_written(folder, commit.seal):
            weights, data = read_tensors(commit, PREFIXES[network]), config.data
            write_encoder(folder, weights, config.model, data.mean, data.std, words, commit.seal, pretraining_of(commit, network))


def conclude(run_dir: Path, baseline: Baseline, images: int) -> None:
    """Say, and write to RUN/verdict.json unless it stands there, whether the run has learned anything; images: of the hold-out."""
    found, file = verdict(baseline, logged(run_dir, "holdout/loss"), images), run_dir / "verdict.json"
    if found:
        data = (json.dumps(found.as_dict(), indent=2) + "\n").encode()
        if not file.exists() or file.read_bytes() != data:
            write_atomically(file, data)
        say(f"verdict  {found.words}")


def loss_and_skill(sums: Sequence[float], baseline: Baseline) -> tuple[float, float | None]:
    """sums: of loss, patches, loss of masked ones, masked patches."""
    loss, count, masked_loss, masked = sums
    if not count:  # all steps since the row before were skipped, or passed over
        return math.nan, None
    return loss / count, baseline.skill(masked_loss / masked) if masked else None


@watch.slowly("measuring on the hold-out")
@torch.no_grad()
def on_holdout(engine: Engine, holdout: Holdout, world: World, sources: int = 0) -> tuple[list[float], ImageSums, list[float]]:
    """Collective: the sums of `loss_and_skill`, those by image, and the loss of each source where there are several, over the same images with the same
    crops and masks every time."""
    engine.train(False)
    meters, by_image = Meters(4, world.device), Meters(6, world.device, torch.float64)  # whose squares nearly cancel
    by_source = Meters(2 * sources, world.device)
    for batch, weight in holdout:
        _, loss, masked, _ = engine.forward(*masked_images(batch, world.device))
        counted = weight.to(world.device)[:, None].expand_as(loss)
        meters.add(loss * counted, counted, loss * counted * masked, counted * masked)
        lost, patches = (loss * counted * masked).double().sum(1), (counted * masked).double().sum(1)  # [B]
        by_image.add(counted[:, 0].double(), lost, patches, lost * lost, lost * patches, patches * patches)
        if sources:
            own = [(batch["origin"] == number).to(world.device)[:, None] * counted for number in range(sources)]
            by_source.add(*(loss * mine for mine in own), *own)
    engine.train(True)
    of_sources = by_source.look(clear=True) if sources else []
    means = [total / count for total, count in zip(of_sources[:sources], of_sources[sources:], strict=True)]
    return meters.look(clear=True), ImageSums(*by_image.look(clear=True)), means


@watch.slowly("measuring on the hold-out")
@torch.no_grad()
def told_apart(model: PretrainingModel, holdout: Holdout, world: World) -> dict[str, float]:
    """Collective: what is left of the differences between images in a moving target and its teacher, on some of the hold-out.

    Every rank asks the target as often, and of as many images, padding included: a target may itself speak with all processes.
    """
    assert model.teacher is not None
    goals = None
    for batch, weight in holdout[: -(-APART_SAMPLES // (world.size * len(holdout[0][1])))]:
        images, *masks = masked_images(batch, world.device)
        found = model.target(images, everywhere(Masks(*masks)), model.teacher).flatten(2)
        goals = goals or Goals(found.shape[1], found.shape[2], world.device)
        real = (weight > 0).to(world.device)
        goals.add(found[real], model.teacher.patches(images[real], normed=True)[0].mean(1))
    assert goals is not None  # a rank without images has padding
    dist.all_reduce(goals.sums)
    features: list[Any] = [None] * world.size
    dist.all_gather_object(features, torch.cat(goals.features))
    return figures(goals.sums, torch.cat(features), model.encoder.grid)


@dataclass(frozen=True)
class Looks:
    features: FeatureLooks
    encoder: EncoderLooks


@watch.slowly("looking at features")
def look_at_features(run: Run, model: PretrainingModel, looks: Looks, samples_seen: int, step: int) -> None:
    """Collective; rank 0 writes down what it finds."""
    run.engine.train(False)
    with looks.features.timed(), torch.autocast(run.world.device.type, torch.bfloat16, enabled=run.config.system.precision == "bf16"):
        found = looks.features.look(model.features)
        inside, drawn = looks.encoder.look(model, run.engine.gathered, samples_seen)
    run.engine.train(True)
    if run.board:
        share = {"speed/features_share": looks.features.share} if step else {}
        run.board.scalars(samples_seen, step, found | inside | share)
        if drawn:
            run.board.picture(samples_seen, "inside/encoder", drawn)
        say(f"  {looks.features.said(found)}  ({f'{looks.features.share:.1%} of the time' if step else 'before the first step'})")


@watch.slowly("drawing")
@torch.no_grad()
def picture(
    run: Run, model: PretrainingModel, batch: Batch, weight: Tensor, baseline: Baseline, config: PretrainConfig, step: Step
) -> None:
    """Collective; rank 0 draws the first images of the batch, whose weight is 0 for padding."""
    if config.log.pictures:
        drawn = max(1, min(config.log.pictures, int(weight.sum())))  # of a rank that has nothing but padding one
        few = {name: value[:drawn] for name, value in batch.items()}
        run.engine.train(False)
        inputs = masked_images(few, run.world.device)
        prediction, *_ = run.engine.forward(*inputs)
        run.engine.train(True)
        images, masks = inputs[0], Masks(*inputs[1:])
        truth = model.target(images, masks, model.teacher)  # by every rank, as it may speak with all
        if run.board:
            title = f"{config.target.name}, {step.samples_seen:,} samples seen"
            sheet = reconstruction(model, images, masks, prediction, truth, baseline, title)
            run.board.picture(step.samples_seen, "holdout/reconstruction", sheet)


def baseline_of_run(run: Run, model: PretrainingModel, config: PretrainConfig, sets: TrainingSet) -> Baseline:
    """Collective: fitted once by rank 0, kept in every commit, and written to baseline.json for people; a commit without it has it fitted again."""
    holder: list[Any] = [None]
    if run.commit and "baseline" in run.commit.record:
        holder[0] = Baseline(**run.commit.record["baseline"])
    elif run.world.first:
        cells = lambda data, ids: lambda: clean_cells(model, data, ids, run.world.device)
        held_out = cells(sets.holdout, np.array(sets.holdout.pool))
        fit = lambda baselines: fit_baseline(
            baselines, config.model.grid, cells(*sets.some_training(BASELINE_SAMPLES)), held_out, model.target.looks_beyond
        )
        holder[0] = fit(model.target.baselines) if model.target.baselines else NONE
    if run.world.first:
        write_atomically(run.run_dir / "baseline.json", (json.dumps(holder[0].as_dict(), indent=2) + "\n").encode())
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def clean_cells(model: PretrainingModel, data: CropDataset, ids: np.ndarray, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """Goals of every patch, and their kinds, on the CPU, batch by batch."""
    for batch, weight in fixed_batches(data, ids, batch=32):
        real = weight > 0
        images, *masks = (part[real.to(device)] for part in masked_images(batch, device))
        yield model.target(images, everywhere(Masks(*masks)), model.teacher).cpu(), batch["kind"][real]


def blank_inputs(
    config: PretrainConfig, masking: Masking, device: torch.device, batch: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Black images, of what a pretraining model is given."""
    side = config.model.image_size
    places = torch.arange(masking.patches, device=device).repeat(batch, 1)
    images = torch.zeros(batch, 3, side, side, device=device)
    return images, torch.zeros_like(places), places, places[:, : masking.counts.visible], places[:, : masking.counts.predicted]


def flop_of(model: PretrainingModel, config: PretrainConfig, masking: Masking, device: torch.device) -> int:
    """Of training on one view of an image."""

    return training_flop(model, lambda: blank_loss(model, config, masking, device))


def micro_step_bytes(model: PretrainingModel, config: PretrainConfig, masking: Masking, batch: int, device: torch.device) -> int:
    """What a training step on so many views holds at its fullest (monitor/memory.py), gradients included."""

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.system.precision == "bf16"):
            return blank_loss(model, config, masking, device, batch)

    return step_bytes(model, loss)


def blank_loss(model: PretrainingModel, config: PretrainConfig, masking: Masking, device: torch.device, batch: int = 1) -> Tensor:
    _, loss, _, own = model(*blank_inputs(config, masking, device, batch))
    return loss.mean() + own
