"""What mpp/pretrain.py does, top to bottom.

A step: take this rank's share of the global batch, predict the hidden patches, average the loss over them, step, and on some steps write down
what happened.  What every training loop does in the same order stands in train/run.py; what a recipe computes, in recipe/model.py.
"""

import math
import shlex
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from mpp.base.errors import AGAIN
from mpp.base.text import counted, say
from mpp.config.pretrain import PretrainConfig
from mpp.data.batch_plan import BatchPlan, plan_batch
from mpp.data.crop_dataset import Batch
from mpp.data.joined_shards import JoinedShards
from mpp.data.loader import batches
from mpp.data.order import Order, OrderSampler, ranges_in_words, steps_over
from mpp.data.shards import few_open_files
from mpp.data.streams import StreamOrder
from mpp.data.training_set import TrainingSet, open_training_set
from mpp.disk.files import write_atomically
from mpp.interop.encoder_folder import PREFIXES, is_written, write_encoder
from mpp.interop.lent import Brought, bring
from mpp.interop.pretraining import pretraining_of
from mpp.interop.start_from import initialise_from
from mpp.mains.pretrain_looks import Looks, baseline_of_run, conclude, look_at_features, loss_and_skill, note_holdout, picture, read_holdout
from mpp.mains.settling import Again, settle
from mpp.model.encoder import encoder_in_words
from mpp.model.tokens import fuses_attention
from mpp.monitor.arithmetic import training_flop
from mpp.monitor.layout import of_pretraining
from mpp.monitor.memory import step_bytes
from mpp.monitor.projector import MOST
from mpp.monitor.signs import Course, Signs
from mpp.monitor.skill import Baseline
from mpp.processes.agreement import agree_on_weights
from mpp.processes.peers import Peers
from mpp.processes.watch import watch
from mpp.processes.world import device_of, leave
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.targets.base import Across
from mpp.recipe.teacher import TeacherKnobs
from mpp.train.commit import Commit, commits, read_tensors
from mpp.train.copies import Copies
from mpp.train.gathering import gather
from mpp.train.meters import Meters
from mpp.train.optim import build_optimiser
from mpp.train.progress import signed
from mpp.train.run import Run
from mpp.train.sample_log import SampleLog
from mpp.train.schedule import small_rate_note
from mpp.train.signals import stopped_words
from mpp.train.step import masked_images
from mpp.train.teacher import teacher_of
from mpp.transfer.encoder_looks import EncoderLooks
from mpp.transfer.while_training import FeatureLooks, cadence, choose, unlooked_words

PROGRAM = "mpp/pretrain.py"  # as command lines are noted


def _over_all(operation: Any) -> Callable[[Tensor], Tensor]:
    def joined(part: Tensor) -> Tensor:
        whole = part.clone()
        if isinstance(whole, FakeTensor):  # arithmetic is counted (monitor/arithmetic.py)
            return whole
        dist.all_reduce(whole, operation)
        return whole

    return joined


ACROSS = Across(total=_over_all(dist.ReduceOp.SUM), most=_over_all(dist.ReduceOp.MAX))  # collective


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
        return finished_before(run, run.commit, config, sets, peers)

    # Loader processes begin before this process joins the others.
    passed = steps_over(data.skip_samples, data.global_batch, run.total_steps)
    stream, how_read = begin_reading(config, sets, order, run, peers, passed)
    run.join(stream, settled.world)
    world, masking = run.world, sets.masking

    # The model, in its engine, and what it is held against along the way.
    brought.lent.to(world.device)
    teacher = teacher_of(model.to(world.device), config, run.course.began)
    engine = run.begin(
        model,
        build_optimiser(model, config.optim, model.target.own_scales),
        lambda engine: engine.forward(*blank_inputs(config, masking, world.device))[0],
        lambda: flop_of(model, config, masking, world.device),
        teacher,
    )
    holdout = read_holdout(run, config, sets)
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
            *how_read(),
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
            sources=bool(holdout.sources),
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
            note_holdout(run, model, holdout, baseline, step)
        if looks and (step.number % every == 0 or step.last):
            look_at_features(run, model, looks, step.samples_seen, step.number)
        if step.number % config.log.pictures_every_steps == 0 or step.last:
            picture(run, model, *holdout.batches[0], baseline, config, step)
        if step.commits:
            run.save(step, {"baseline": baseline.as_dict()})

    watch.moved("writing the encoder", step=run.total_steps, slow=True)
    commit = run.commit
    assert commit is not None  # the last step is committed
    finished = commit.step == run.total_steps
    if run.board:
        if looks and (shown := looks.features.projection(MOST)):
            run.board.project(commit.samples_seen, *shown)
        run.board.close()
        export_encoder(run_dir, commit, config)
        if finished:
            conclude(run_dir, baseline, len(sets.holdout.pool))
    run.finish_copies()
    if run.board:
        say("done" if finished else stopped_words(f"at step {commit.step}"))
        say(
            f"encoder {run_dir}/encoder{' | teacher ' + str(run_dir / 'teacher') if teacher else ''} | pictures {run_dir}/pictures | tensorboard --logdir {shlex.quote(str(run_dir))}"
        )
    leave()
    return 0 if finished else AGAIN


def begin_reading(
    config: PretrainConfig, sets: TrainingSet, order: Order | StreamOrder, run: Run, peers: Peers, passed: Container[int]
) -> tuple[Iterator[Batch], Callable[[], list[str]]]:
    """Loader processes begin.  The batches of the steps that are left, and what is said at the start of how they are read.

    passed: steps (0 is the first) that see no batch.  Raises ConfigError for images that do not fit where system.images or the cache want them.
    """
    data, device = config.data, device_of(peers)
    sampler = OrderSampler(order, run.plan, peers.rank, peers.size, run.first_step, run.total_steps, passed=passed)
    reach = order.shards_in_reach(peers.size)
    kept_open = sets.trained_on.keep_open(reach)
    hand = sets.in_hand(order, peers.size, peers.local_size)
    placed = sets.placed(config, device, peers.local_size, run.first_step)
    own = hand.bytes // peers.local_size if hand else 0
    stream = batches(placed, sampler, run.workers, pin_memory=device.type == "cuda", local_world=peers.local_size, hand=own)
    words = lambda: [
        *sets.sources_words(config, order),
        *sets.remarks,
        *filter(None, [sets.stream.shared_words(run.workers)] if sets.stream else []),
        *([few_open_files(reach, kept_open)] if kept_open < reach else []),
        *sets.fetched_words(hand),
        f"{placed.pixels.decoder} | {counted(data.views, 'view')} of each image | {run.loader_words}",
        run.plan_words("as many images a step") if sets.stream else run.plan_words(),
        *([f"steps that see positions {ranges_in_words(data.skip_samples)} are passed over"] if data.skip_samples else []),
    ]
    return stream, words


def finished_before(run: Run, commit: Commit, config: PretrainConfig, sets: TrainingSet, peers: Peers) -> int:
    """Collective: what is left of a run that has finished is seen to: its encoder, its verdict, its copy in a store."""
    if peers.first:
        say(f"run {run.run_dir} | {run.course.finished_words('optim.total_samples')}")
        export_encoder(run.run_dir, commit, config)
        if known := commit.record.get("baseline"):
            conclude(run.run_dir, Baseline(**known), len(sets.holdout.pool))
    if run.copies:
        run.copies.begin(commits(run.run_dir))
    run.finish_copies()
    return leave()


def export_encoder(run_dir: Path, commit: Commit, config: PretrainConfig) -> None:
    """RUN/encoder of this commit, and RUN/teacher where the target has one, unless they are there and whole."""
    networks = ["encoder", "teacher"] if isinstance(config.target, TeacherKnobs) else ["encoder"]
    for network in networks:
        folder, words = run_dir / network, f"{'' if network == 'encoder' else 'teacher of '}{run_dir.name} at {commit.samples_seen} samples"
        if not is_written(folder, commit.seal):
            weights, data = read_tensors(commit, PREFIXES[network]), config.data
            write_encoder(folder, weights, config.model, data.mean, data.std, words, commit.seal, pretraining_of(commit, network))


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
