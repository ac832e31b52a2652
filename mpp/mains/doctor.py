"""What mpp/doctor.py does, in order: each check gives a finding (checks/), rank 0 tells them, and nothing of a run is begun or changed.

Here stands what is looked at of any training program; of the images and of what learns each looks in its own way: mains/doctor_pretraining.py,
mains/doctor_finetuning.py.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpp.base.errors import ConfigError, UserError
from mpp.base.machine import allow_open_files, free_memory
from mpp.base.progress import Progress
from mpp.base.text import counted
from mpp.checks import folder, images, links, machine, recipe
from mpp.checks.finding import Finding, attempt, merged
from mpp.checks.report import Report
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import flat
from mpp.data.batch_plan import BatchPlan
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import default_workers
from mpp.data.order import OrderSampler, SampleOrder
from mpp.data.shard_cache import caching
from mpp.disk.patience import disks
from mpp.mains.plan import GPUS, REACHED, SLACK, Counts
from mpp.processes.agreement import agree
from mpp.processes.peers import Peers, meet
from mpp.processes.watch import leave_at_once, watch
from mpp.processes.world import device_of
from mpp.train.engine import quiet_deepspeed
from mpp.train.zero_costs import Parameters

MEETING_SECONDS = 120.0  # in which all processes must have come, and for which one may let the others wait
PATIENCE, PATIENCE_SLOW = 30.0, 90.0  # seconds of the watchmen, who know more: less than that
DISK_SECONDS = 5.0  # for which a disk that fails is tried again


@dataclass(frozen=True)
class Planned:
    """Machines that a run is meant for and that this one is not."""

    gpus: int
    per_node: int
    gpu: str
    cores: int  # of a node


@dataclass(frozen=True)
class Asked:
    """What is to be examined."""

    config: PretrainConfig | FinetuneConfig
    run_dir: Path
    again: Callable[..., Any]  # the config anew, as the program itself has it
    of_file: PretrainConfig | FinetuneConfig | None  # the config without the words
    planned: Planned | None  # where the run is meant for other machines; of a process alone


@dataclass(frozen=True)
class Learner:
    """What learns, as far as memory, speed and disks are concerned."""

    counts: Counts
    model: nn.Module
    # Puts all on a device; then the loss of so many black images, as often as it is asked for.
    blank: Callable[[torch.device, int], Callable[[], Tensor]]
    drops: bool  # the encoder sees a part of the patches
    together: int  # views that stay in one micro-batch
    total_samples: int  # of a run
    repeats: int = 1
    shorter: str = recipe.SHORTER  # keys of a run's length, in words
    lighter: str = images.LIGHTER  # what makes its loader's work less, likewise


def examine(kind: type["Examiner"], asked: Asked, as_json: bool) -> int:
    """Collective.  Returns the exit status: 1 where a check failed."""
    system = asked.config.system
    disks.patience = DISK_SECONDS
    caching.use(system.cache, system.cache_gb)
    quiet_deepspeed()
    report = Report(as_json, os.environ.get("RANK", "0") == "0")
    peers = report.attempt("processes", lambda: meet(MEETING_SECONDS))
    if peers is None:
        return report.end(Peers(hosts=(socket.gethostname(),)))
    if asked.planned and peers.size > 1:
        raise ConfigError(f"--gpus is for a process alone, and here are {peers.size}, which look at themselves; leave it out")
    report.speaks = peers.first
    report.add(
        Finding(
            "processes",
            "ok",
            f"{counted(peers.size, 'process', 'processes')} on {counted(peers.nodes, 'host')} ({peers.hosts[0]}{' ...' if peers.nodes > 1 else ''})",
        )
    )
    examiner = kind(asked, report, peers)
    try:
        if examiner.alike():
            if peers.size > 1:
                watch_over(peers, report)
            for phase, look in (
                ("looking at its machine", examiner.look_at_machines),
                ("looking at images", examiner.look_at_images),
                ("looking at compilers", examiner.look_at_compilers),
                ("looking at the run folder", examiner.look_at_folder),
                ("looking at the recipe", examiner.look_at_recipe),
                ("comparing clocks, exchanging tensors", examiner.look_at_links),
            ):
                watch.moved(phase, slow=True)
                look()
        return report.end(peers)
    except UserError as error:  # one has left, or does not answer: what is refused is a finding of its own
        if not peers.first:
            raise
        report.break_off(peers, str(error))
        return 1


def watch_over(peers: Peers, report: Report) -> None:
    """Collective: from here on a process that dies, or stands still, is a finding within seconds, and ends the examination."""

    def told(words: str) -> None:
        report.break_off(peers, words)
        leave_at_once(1)

    os.environ.update(LOCAL_WORLD_SIZE=str(peers.local_size), MASTER_ADDR=peers.launch.address)
    watch.patience, watch.slow, watch.told = PATIENCE, PATIENCE_SLOW, told
    watch.begin(peers.rank, peers.size, None, lambda mine: peers.from_first(lambda: mine))


class Examiner:
    """The parts of an examination, each collective; later ones leave out what earlier ones found to be missing."""

    program: str  # which would run
    config: PretrainConfig | FinetuneConfig

    def __init__(self, asked: Asked, report: Report, peers: Peers):
        self.config, self.run_dir, self.again = asked.config, asked.run_dir, asked.again
        self.planned, self.report, self.peers = asked.planned, report, peers
        planned = self.planned
        self.size = planned.gpus if planned else peers.size
        self.nodes, self.per_node = (planned.gpus // planned.per_node, planned.per_node) if planned else (peers.nodes, peers.local_size)
        self.device, self.has_device = torch.device("cpu"), True
        self.plan: BatchPlan | None = None
        self.order: SampleOrder | None = None
        self.steps: int | None = None  # of a run, where that is known
        self.loaded: images.LoaderRate | None = None
        self.compute: float | None = None  # seconds of a step on a rank
        self.gradient_bytes = 0
        self.budget: str | None = None  # that is still to set the length

    # Of the program.

    def look_at_images(self) -> None:
        """Sets plan, order and steps."""
        raise NotImplementedError

    def look_at_recipe(self) -> None:
        raise NotImplementedError

    @property
    def run_dirs(self) -> list[Path]:
        """In which checkpoints will lie."""
        return [self.run_dir]

    # Of all of them.

    @property
    def workers(self) -> int:
        asked = self.config.system.workers
        return asked if asked is not None else default_workers(self.peers.local_size)

    def each(self, work: Callable[[], list[Finding]]) -> None:
        """Collective: what every rank finds on its own, told as one."""
        found = self.peers.collect([each.as_dict() for each in work()])
        if self.peers.first:
            self.report.add(*merged(found, self.peers.called))

    def first(self, name: str, work: Callable[[], Finding]) -> None:
        """Collective: what rank 0 finds for all."""
        told = self.peers.from_first(lambda: attempt(name, work).as_dict())
        self.report.add(Finding(**{**told, "ranks": ()}))

    def alike(self) -> bool:
        """Versions, code, command and settings; without which processes would ask each other different things."""
        settings = flat(self.config.model_dump(mode="json"))

        if not self.report.passes("versions", lambda: agree(self.peers, "mpp/doctor.py", settings | {"program": self.program})):
            return False
        of = (
            "all processes have the same command, settings, mpp, Python and packages"
            if self.peers.size > 1
            else "one process: nothing to compare"
        )
        self.report.add(Finding("program", "ok", f"looked at as {self.program} would run it"), Finding("versions", "ok", of))
        return True

    def look_at_machines(self) -> None:
        allow_open_files()
        peers = self.peers
        found = self.report.attempt("device", lambda: device_of(peers))
        self.device, self.has_device = found or torch.device("cpu"), found is not None
        looks = lambda: [machine.device(self.device)] if found else []
        self.each(lambda: [*looks(), machine.cores(self.device, peers.local_size, self.workers), machine.open_files(self.workers)])

    def look_at_compilers(self) -> None:
        self.each(lambda: [machine.compiler(self.config.system, self.device, self.steps or 0)])

    def look_at_plan(self, plan: Callable[[], BatchPlan], what: str = "the same batches") -> BatchPlan | None:
        """Collective.  what: any of the numbers of processes that share a step gives."""
        found = self.plan = self.report.attempt("batch", plan)
        if found:
            self.report.add(recipe.batch(found, self.size, what))
            if self.nodes > 1 and self.nodes * self.per_node == self.size:
                self.report.add(recipe.lost_nodes(found, self.nodes, self.per_node))
        return found

    def look_at_shared_memory(self, training: CropDataset, order: SampleOrder, plan: BatchPlan, chosen: np.ndarray | None = None) -> None:
        """Collective.  chosen: ids, where the order is over some of the images only."""
        sampler = OrderSampler(order, plan, 0, self.size, 0, self.steps or 1, chosen)
        self.each(lambda: [machine.shared_memory(training, sampler, self.workers, self.peers.local_size)])

    def look_at_folder(self) -> None:
        report, peers = self.report, self.peers
        if found := report.attempt("run folder", lambda: folder.shared(self.run_dir, peers)):
            report.add(found)
        self.first("other runs", lambda: folder.held(*dict.fromkeys([self.run_dir, *self.run_dirs])))

    def look_at_disk(self, commit_bytes: int, total_samples: int) -> None:
        self.first("disk", lambda: folder.room(self.run_dirs, self.config.checkpoint, commit_bytes, total_samples))

    def counted(self, count: Callable[[], Counts], prepare: Callable[[], None]) -> Counts:
        """Collective: rank 0 counts for all; the others bring their models into the state in which it has its own then."""
        with Progress("counting parameters, arithmetic and memory", at_once=True):
            if self.peers.first:
                found = count()
                told = [vars(found.parameters), found.flop, list(found.step_bytes.items())]
            else:
                prepare()
                told = []
            parameters, flop, held = self.peers.from_first(lambda: told)
        made = Counts(Parameters(**parameters), flop, dict(map(tuple, held)))
        self.gradient_bytes = made.parameters.trained * (2 if self.config.system.gradient_precision == "bf16" else 4)
        return made

    @property
    def micro_batch(self) -> int:
        return self.plan.micro_batch if self.plan else self.config.system.micro_batch_max

    def look_at_loader(self, training: CropDataset, placed: Callable[[], CropDataset]) -> None:
        """Collective: of this rank, while all of them load.  placed: training, with its pixels where system.images wants them."""
        order, plan, peers = self.order, self.plan, self.peers
        if order is None or plan is None:
            return
        if (where := self.config.system.images) != "shards":
            self.each(lambda: [images.unmeasured(where, training, peers.local_size, free_memory)])
            return
        rate = lambda: images.loader_rate(placed(), order, plan, self.workers)
        self.loaded = self.report.attempt("loader", lambda: peers.together(rate))

    def look_at_steps(self, learner: Learner) -> None:
        config, peers, loaded, plan = self.config, self.peers, self.loaded, self.plan
        if plan is None or not self.has_device:
            return
        if self.planned:
            self._look_at_steps_elsewhere(learner, plan, self.planned)
            return
        room, what = recipe.room_of(self.device, free_memory(), peers.local_size)
        found, mine = learner.counts, None
        try:
            mine = recipe.step_rate(learner.model, learner.blank, config.system.precision, plan, self.device, found.flop)
        except torch.OutOfMemoryError as error:
            words = str(error).partition(". ")[0]
            findings = [
                Finding(
                    "memory",
                    "FAILED",
                    f"micro-batch {plan.micro_batch}: {words}",
                    "lower system.micro_batch_max, or system.recompute=selective",
                )
            ]
        else:
            memory = recipe.memory(found, config.system.zero_stage, plan, self.size, room, what, mine.peak, learner.together)
            findings = [memory, recipe.step(mine, found.flop)]
            findings += [images.loader(loaded, mine.views, learner.lighter)] if loaded else []
        self.each(lambda: findings)
        views = peers.gather(mine.views if mine else None)
        if any(each is None for each in views):
            return
        if slow := recipe.slow_ranks(views, list(peers.hosts)):
            self.report.add(slow)
        self.compute = plan.micro_batch * plan.accumulation / min(views)
        self._look_at_length(learner, min(views), loaded.rank if loaded else None)

    def _look_at_steps_elsewhere(self, learner: Learner, plan: BatchPlan, planned: Planned) -> None:
        gpu, stage = GPUS[planned.gpu], self.config.system.zero_stage
        what = f"{SLACK:.0%} of an {gpu.name}, by arithmetic"
        room = SLACK * gpu.gigabytes * 1e9
        self.report.add(recipe.memory(learner.counts, stage, plan, self.size, room, what, together=learner.together))
        views = REACHED[learner.drops] * gpu.tflops * 1e12 / learner.counts.flop
        if self.loaded:
            self.report.add(images.loader_of_a_node(self.loaded.core, views, planned.per_node, planned.cores, learner.lighter))
        self._look_at_length(learner, views, None)

    def _look_at_length(self, learner: Learner, views: float, loaded: float | None) -> None:
        total, batch = learner.total_samples, self.config.data.global_batch
        self.report.add(recipe.length(total, batch, views, self.size, loaded, self.budget, learner.repeats, learner.shorter))

    def look_at_links(self) -> None:
        report, peers = self.report, self.peers
        report.add(links.clocks(peers))
        if peers.size == 1 or not self.has_device:
            return
        failure, mine = None, None
        try:
            with Progress("exchanging tensors", at_once=True):
                mine = links.exchange(peers, self.device, self.gradient_bytes or links.MOST_BYTES)
        except RuntimeError as error:
            failure = str(error).splitlines()[0]
        told = peers.gather([failure, vars(mine) if mine else None])
        if broken := [(rank, words) for rank, (words, _) in enumerate(told) if words]:
            rank, words = broken[0]
            who = f"{peers.called(rank)}{f' and {len(broken) - 1} more' if broken[1:] else ''}"
            report.add(Finding("all-reduce", "FAILED", f"{who}: {words}", links.FIX))
            return
        report.add(links.exchanged([links.Exchange(**each) for _, each in told], peers, self.gradient_bytes, self.compute))
