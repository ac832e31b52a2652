"""What a pretraining run measures and draws along the way, and its verdict: the hold-out, frozen features, pictures, beside trivial predictors."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mpp.base.progress import tracked
from mpp.base.text import say
from mpp.config.pretrain import PretrainConfig
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.joined_shards import JoinedShards
from mpp.data.loader import fixed_batches
from mpp.data.training_set import TrainingSet
from mpp.disk.files import write_atomically
from mpp.monitor.board import logged
from mpp.monitor.collapse import Goals, figures
from mpp.monitor.pictures import reconstruction
from mpp.monitor.skill import NONE, Baseline, ImageSums, fit_baseline, verdict
from mpp.processes.watch import watch
from mpp.processes.world import World
from mpp.recipe.model import PretrainingModel
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import everywhere
from mpp.train.engine import Engine
from mpp.train.meters import Meters
from mpp.train.progress import signed
from mpp.train.run import Run, Step
from mpp.train.shared_sum import shared_sum
from mpp.train.step import masked_images
from mpp.transfer.encoder_looks import EncoderLooks
from mpp.transfer.while_training import FeatureLooks

BASELINE_SAMPLES = 512  # training samples that fit the trivial predictors
APART_SAMPLES = 512  # held-out ones on which a moving target is looked at


@dataclass(frozen=True)
class Holdout:
    """This rank's part of what is held out, the same crops and masks every time."""

    batches: list[tuple[Batch, Tensor]]  # and the weight [B] of each image, 0 for padding
    sources: tuple[str, ...]  # names, where there are several: batch["origin"] is each image's


def read_holdout(run: Run, config: PretrainConfig, sets: TrainingSet) -> Holdout:
    """Collective.  Raises DataError, on all ranks, where too many of them are bad."""
    micro_batch, world, data, pool = run.plan.micro_batch, run.world, config.data, sets.holdout.pool
    fixed = fixed_batches(sets.holdout, np.array(pool), micro_batch, world.rank, world.size)
    rounds = -(-len(pool) // (micro_batch * world.size))
    found = Holdout(
        list(tracked(fixed, "reading the hold-out", rounds, "batches", at_once=True)),
        sets.held_out.names if isinstance(sets.held_out, JoinedShards) else (),
    )
    if isinstance(sets.held_out, JoinedShards):
        for batch, _ in found.batches:
            batch["origin"] = torch.tensor(sets.held_out.sources_of(batch["shown"].tolist()))
    (bad,) = shared_sum([run.bad.note([fault for batch, _ in found.batches for fault in batch["bad"]])], world)
    run.bad.stop_beyond(bad, data.holdout_samples, data.max_bad_fraction)
    return found


def note_holdout(run: Run, model: PretrainingModel, holdout: Holdout, baseline: Baseline, step: Step) -> None:
    """Collective; rank 0 writes down loss and skill on the hold-out, and of a moving target what is left of it."""
    sums, by_image, by_source = on_holdout(run.engine, holdout, run.world)
    apart = told_apart(model, holdout, run.world) if run.average else {}
    loss, skill = loss_and_skill(sums, baseline)
    if run.board:
        each = dict(zip(holdout.sources, by_source, strict=True))
        values = {"holdout/loss": loss, "holdout/skill": skill, "holdout/skill_error": baseline.skill_error(by_image)} | apart
        run.board.scalars(step.samples_seen, step.number, values | {f"holdout/loss/{name}": value for name, value in each.items()})
        of_sources = [f"{name} {value:.4f}" for name, value in each.items()]
        say("  ".join([f"  hold-out loss {loss:.4f}", *of_sources, f"skill {signed(skill)}"]))


@watch.slowly("measuring on the hold-out")
@torch.no_grad()
def on_holdout(engine: Engine, holdout: Holdout, world: World) -> tuple[list[float], ImageSums, list[float]]:
    """Collective: the sums of `loss_and_skill`, those by image, and the loss of each source where there are several, over the same images with the same
    crops and masks every time."""
    engine.train(False)
    sources = len(holdout.sources)
    meters, by_image = Meters(4, world.device), Meters(6, world.device, torch.float64)  # whose squares nearly cancel
    by_source = Meters(2 * sources, world.device)
    for batch, weight in holdout.batches:
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
    for batch, weight in holdout.batches[: -(-APART_SAMPLES // (world.size * len(holdout.batches[0][1])))]:
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


def loss_and_skill(sums: Sequence[float], baseline: Baseline) -> tuple[float, float | None]:
    """sums: of loss, patches, loss of masked ones, masked patches."""
    loss, count, masked_loss, masked = sums
    if not count:  # all steps since the row before were skipped, or passed over
        return math.nan, None
    return loss / count, baseline.skill(masked_loss / masked) if masked else None


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


def conclude(run_dir: Path, baseline: Baseline, images: int) -> None:
    """Say, and write to RUN/verdict.json unless it stands there, whether the run has learned anything; images: of the hold-out."""
    found, file = verdict(baseline, logged(run_dir, "holdout/loss"), images), run_dir / "verdict.json"
    if found:
        data = (json.dumps(found.as_dict(), indent=2) + "\n").encode()
        if not file.exists() or file.read_bytes() != data:
            write_atomically(file, data)
        say(f"verdict  {found.words}")
