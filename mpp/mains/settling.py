"""What a config leaves open until the images and the machine are known, settled before a run is built: its length, in epochs or in minutes of this
machine, and all that a preset fits to the set.

    settle(config, again, run_dir) -> the config as it trains, the processes if they had to meet for it, and what to tell people

A run that goes on keeps what it was begun with.
"""

import functools
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from mpp.base.errors import ConfigError
from mpp.base.progress import tracked
from mpp.base.text import counted
from mpp.config import small
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import seconds_of
from mpp.data.batch_plan import plan_batch
from mpp.data.joined_shards import Opened, open_shards
from mpp.data.loader import batches, default_workers
from mpp.data.order import OrderSampler
from mpp.data.streams import refuse_unsized
from mpp.data.training_set import open_training_set
from mpp.interop.lent import bring
from mpp.model.tokens import fuses_attention
from mpp.processes.peers import ALONE, Peers
from mpp.processes.watch import watch
from mpp.processes.world import World, from_first
from mpp.recipe.model import build_model
from mpp.train.commit import Commit, find_commit
from mpp.train.engine import Engine, start_distributed
from mpp.train.optim import build_optimiser
from mpp.train.resume import as_first_sees
from mpp.train.shared_sum import shared_sum
from mpp.train.step import masked_images
from mpp.train.teacher import teacher_of

Keys = Mapping[str, Any]  # "a.b" -> value
Again = Callable[[Keys, Keys], PretrainConfig]  # the config anew: with these below the file and the words, and these above them
WARM_UP, TIMED, MOST_STEPS = 3, 0.03, 200  # steps that are not timed; share of the budget that is; steps at most
TRIES = 3  # at another batch
SPARE = 0.05  # of a budget: the hold-out, pictures, commits and the end


@dataclass(frozen=True)
class Settled:
    config: PretrainConfig
    world: World | None = None  # where the processes had to meet
    words: tuple[str, ...] = ()


def settle(
    config: PretrainConfig, again: Again, run_dir: Path, peers: Peers = ALONE, find: Callable[[], Commit | None] | None = None
) -> Settled:
    """Collective.  find: of rank 0, what the run goes on from; null: what lies in `run_dir`.  Raises UserError."""
    if not (config.fit or config.budget or config.optim.epochs):
        return Settled(config)
    refuse_unsized(config.data.shards, {"fit": config.fit, "budget": config.budget, "optim.epochs": config.optim.epochs})
    shards = open_shards(config.data.shards, peers)
    commit = as_first_sees(peers, find or (lambda: find_commit(run_dir, config.resume)))
    fit = Fit(config, facts_of(config, shards, peers))
    if config.fit and not commit and len(shards) < small.LEAST_IMAGES and "global_batch" not in config.data.model_fields_set:
        raise ConfigError(
            f"fit={config.fit}: {shards.path} holds {counted(len(shards), 'image')}, and {small.LEAST_IMAGES} are the fewest that it is fitted to; see "
            "whether these are the images you mean, or give data.global_batch="
        )
    if commit:
        return fit.as_begun(again, commit)
    if not config.budget:
        return fit.to(again, fit.samples_asked())
    world, samples, rate = None, small.SAMPLES, 0.0
    for _ in range(TRIES):  # a shorter run has a smaller batch, which is slower
        keys = fit.open_keys(samples)
        world, rate = measure(again(keys, {}), run_dir, world, peers)
        left = from_first(world, lambda: seconds_of(config.budget or "") * (1 - SPARE) - (time.time() - psutil.Process().create_time()))
        samples = int(left * rate)
        if fit.open_keys(samples).get("data.global_batch") == keys.get("data.global_batch"):
            break
    if samples < small.SMALLEST * small.LEAST_STEPS:
        raise ConfigError(
            f"budget={config.budget}: at {rate:.0f} images/s, as measured, what is left of it is {max(0, samples)} images, and a run has at least "
            f"{small.SMALLEST * small.LEAST_STEPS}; give more minutes, or optim.total_samples= in place of a budget"
        )
    settled = fit.to(again, samples)
    total = settled.config.optim.total_samples
    words = f"budget {config.budget}: {rate:,.0f} images/s were measured, so {total:,} samples, {total / len(shards):.1f} passes"
    return replace(settled, world=world, words=(words, *settled.words))


def settle_unmeasured(config: PretrainConfig, again: Again, run_dir: Path, peers: Peers = ALONE) -> PretrainConfig:
    """Collective.  As the run would be settled, but that no budget is measured: then as long as without one."""
    if not config.budget or as_first_sees(peers, lambda: find_commit(run_dir, config.resume)):
        return settle(config, again, run_dir, peers).config
    without = lambda below, above: again(below, {**above, "budget": None})
    return settle(without({}, {}), without, run_dir, peers).config


def facts_of(config: PretrainConfig, shards: Opened, peers: Peers = ALONE) -> small.Facts:
    mean, std = tuple(shards.mean), tuple(shards.std)
    apart = len(open_shards(config.data.holdout_shards, peers, key="data.holdout_shards")) if config.data.holdout_shards else 0
    return small.Facts(len(shards), config.model.grid, torch.cuda.is_available(), peers.size, mean, std, apart)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fit:
    config: PretrainConfig  # as the file and the words have it
    facts: small.Facts

    def open_keys(self, samples: int) -> dict[str, Any]:
        """What the preset says of everything that neither file nor words name."""
        if not self.config.fit:
            return {}
        batch = self.config.data.global_batch if "global_batch" in self.config.data.model_fields_set else None
        found = small.shape(self.facts) | small.course(samples, self.facts, batch)
        if "mask.unit" in found and not hasattr(self.config.mask, "unit"):
            del found["mask.unit"]
        return found

    def samples_asked(self) -> int:
        config = self.config
        if config.optim.epochs:
            held_out = 0 if self.facts.apart else self.open_keys(0).get("data.holdout_samples", config.data.holdout_samples)
            return round(config.optim.epochs * (self.facts.images - held_out))
        if not config.fit or "total_samples" in config.optim.model_fields_set:
            return config.optim.total_samples
        return small.usual_samples(self.facts)

    def to(self, again: Again, samples: int) -> Settled:
        """The config for so many samples."""
        keys = self.open_keys(samples)
        batch = keys.get("data.global_batch", self.config.data.global_batch)
        whole = max(1, samples // batch) * batch
        settled = again(keys, {"optim.total_samples": whole} if self.config.budget or self.config.optim.epochs else {})
        return Settled(settled, None, tuple(said(settled, self.facts) if self.config.fit else ()))

    def as_begun(self, again: Again, commit: Commit) -> Settled:
        """The config of a run that goes on: with what its commit says of everything that is settled here.  Raises ConfigError."""
        config, then = self.config, commit.record["config"]
        if config.budget != then.get("budget"):
            raise ConfigError(
                f"budget={config.budget}: {commit.folder.parent.parent} was begun with budget={then.get('budget')}, which settled "
                f"optim.total_samples={then['optim']['total_samples']}; leave it as it was, or begin another run_dir"
            )
        keys = {key: functools.reduce(dict.__getitem__, key.split("."), then) for key in self.open_keys(small.SAMPLES)}
        above = {}
        if config.optim.epochs != then["optim"].get("epochs"):
            batch = then["data"]["global_batch"]
            above["optim.total_samples"] = max(1, self.samples_asked() // batch) * batch
        elif config.optim.epochs or config.budget:
            above["optim.total_samples"] = then["optim"]["total_samples"]
        return Settled(again(keys, above))


def said(config: PretrainConfig, facts: small.Facts) -> list[str]:
    """The plan, for people."""
    model, optim, data = config.model, config.optim, config.data
    steps, unit = optim.total_samples // data.global_batch, getattr(config.mask, "unit", 1)
    first = (
        f"fit {config.fit}: {counted(facts.images, 'image')} cut to {model.image_size} px, on {'a GPU' if facts.gpu else 'CPU cores'} | encoder "
        f"{model.depth} x {model.width}, {model.heads} heads | masks in units of {unit} x {unit} | {steps:,} steps of {data.global_batch}, "
        f"{optim.total_samples / facts.images:.1f} passes | mean and deviation of the set"
    )
    return [first, *small.expectation(facts, optim.total_samples, from_weights=bool(config.init_from or config.branch_from))]


def measure(config: PretrainConfig, run_dir: Path, world: World | None, peers: Peers = ALONE) -> tuple[World, float]:
    """Collective, and the processes meet for it if they have not yet: images a second of the first steps of such a run, which is then forgotten.

    Raises UserError.
    """
    data, system = config.data, config.system
    sets = open_training_set(config, peers)
    plan = plan_batch(data.global_batch, data.streams, peers.size, system.micro_batch_max, data.views)
    fused = fuses_attention(system)
    brought = bring(config, sets.manifests["shards"], fused)
    model = build_model(config, fused, brought.lent)
    world = world or start_distributed(system.patience_seconds, system.patience_slow_seconds, run_dir, peers)
    watch.moved("measuring the speed", step=0, slow=True)
    brought.lent.to(world.device)
    average = teacher_of(model.to(world.device), config)
    engine = Engine(model, build_optimiser(model, config.optim, model.target.own_scales), plan, world, system, config.optim.clip_norm)
    workers = system.workers if system.workers is not None else default_workers(world.local_size)
    sampler = OrderSampler(sets.order(config, plan), plan, world.rank, world.size, 0, MOST_STEPS)
    stream = batches(sets.placed(config, world.device, world.local_size), sampler, workers, world.device.type == "cuda", world.local_size)
    times: list[float] = []
    for step in tracked(range(MOST_STEPS), "measuring the speed", None, "steps", at_once=True):
        began = time.perf_counter()
        for _ in range(plan.accumulation):
            _, loss, _, own = engine.forward(*masked_images(next(stream), world.device))
            engine.backward(loss.mean() + own)
        engine.update(0.0)
        if average:
            average.update(engine, step + 1)
        enough = world.first and sum(times) > TIMED * seconds_of(config.budget or "")
        if shared_sum([enough], world)[0]:  # waits for the device
            break
        times += [time.perf_counter() - began] if step >= WARM_UP else []
    rate = from_first(world, lambda: data.global_batch / float(np.median(times)))
    engine.close()
    del model, engine, stream, average
    gc.collect()
    return world, rate
