"""What mpp/doctor.py does, in order: each check gives a finding (checks/), rank 0 tells them, and nothing of a run is begun or changed."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from mpp.agreement import agree
from mpp.checks import folder, images, links, machine, recipe
from mpp.checks.finding import Finding, attempt, merged, status
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import flat
from mpp.data.decode import require_codecs
from mpp.data.joined_shards import open_shards
from mpp.data.loader import default_workers
from mpp.data.order import BatchPlan, Order, OrderSampler, plan_batch
from mpp.data.shard_cache import caching
from mpp.data.streams import StreamOrder, is_stream, tars_of
from mpp.data.training_set import TrainingSet, open_training_set
from mpp.disks import disks
from mpp.errors import ConfigError
from mpp.interop.lent import Brought, bring
from mpp.interop.start_from import initialise_from
from mpp.machine import allow_open_files
from mpp.model.recompute import recompute_blocks
from mpp.model.tokens import fuses_attention
from mpp.peers import Peers, meet
from mpp.planning import GPUS, REACHED, SLACK, Counts, counts
from mpp.pretraining import PROGRAM
from mpp.progress import Progress
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.settling import Again, settle
from mpp.text import counted, say, say_json
from mpp.train.commit import find_commit
from mpp.train.engine import quiet_deepspeed
from mpp.train.resume import as_first_sees
from mpp.train.run import Run
from mpp.train.teacher import teacher_of
from mpp.train.zero_costs import Parameters
from mpp.world import device_of

MEETING_SECONDS = 120.0  # in which all processes must have come, and for which one may let the others wait
DISK_SECONDS = 5.0  # for which a disk that fails is tried again
Made = TypeVar("Made")


@dataclass(frozen=True)
class Planned:
    """Machines that a run is meant for and that this one is not."""

    gpus: int
    per_node: int
    gpu: str
    cores: int  # of a node


class Report:
    """Tells each finding as soon as it is there: what comes later may hang."""

    def __init__(self, as_json: bool, speaks: bool):
        self.as_json, self.speaks, self.findings, self.began = as_json, speaks, list[Finding](), time.perf_counter()

    def add(self, *findings: Finding) -> None:
        self.findings += findings
        if self.speaks and not self.as_json:
            for finding in findings:
                for line in finding.lines:
                    say(line)

    def attempt(self, name: str, work: Callable[[], Made]) -> Made | None:
        """What it gives that all processes give alike; None, and told, where it is refused."""
        found = attempt(name, work)
        if isinstance(found, Finding):
            self.add(found)
            return None
        return found

    def passes(self, name: str, work: Callable[[], object]) -> bool:
        """Whether it is not refused, which is told."""
        return self.attempt(name, lambda: [work()]) is not None

    def end(self, peers: Peers) -> int:
        """Exit status, of all ranks that of rank 0."""
        seconds = time.perf_counter() - self.began
        of = {verdict: sum(each.verdict == verdict for each in self.findings) for verdict in ("ok", "warning", "FAILED")}
        if self.speaks and self.as_json:
            say_json(
                {
                    "checks": [{k: v for k, v in each.as_dict().items() if k != "figure"} | {"verdict": each.verdict.lower()} for each in self.findings],
                    "ok": of["ok"], "warnings": of["warning"], "failed": of["FAILED"],
                    "processes": peers.size, "hosts": list(dict.fromkeys(peers.hosts)), "seconds": round(seconds, 1),
                }
            )  # fmt: skip
        elif self.speaks:
            say(
                f"{counted(len(self.findings), 'finding')} in {seconds:.0f} s: {of['ok']} ok, {counted(of['warning'], 'warning')}, {of['FAILED']} failed"
            )
        return peers.from_first(lambda: status(self.findings))


def examine(
    asked: PretrainConfig, run_dir: Path, again: Again, of_file: PretrainConfig | None, planned: Planned | None, as_json: bool
) -> int:
    """Collective.  asked, again: as of pretraining.  of_file: the config without the words.  planned: where the run is meant for other machines; of a
    process alone.  Returns the exit status: 1 where a check failed."""
    disks.patience = DISK_SECONDS
    caching.use(asked.system.cache, asked.system.cache_gb)
    quiet_deepspeed()
    report = Report(as_json, os.environ.get("RANK", "0") == "0")
    peers = report.attempt("processes", lambda: meet(MEETING_SECONDS))
    if peers is None:
        return report.end(Peers(hosts=(socket.gethostname(),)))
    if planned and peers.size > 1:
        raise ConfigError(f"--gpus is for a process alone, and here are {peers.size}, which look at themselves; leave it out")
    report.speaks = peers.first
    report.add(
        Finding(
            "processes",
            "ok",
            f"{counted(peers.size, 'process', 'processes')} on {counted(peers.nodes, 'host')} ({peers.hosts[0]}{' ...' if peers.nodes > 1 else ''})",
        )
    )
    examiner = Examiner(asked, run_dir, again, of_file, planned, report, peers)
    if examiner.alike():
        examiner.look_at_machines()
        examiner.look_at_images()
        examiner.look_at_folder()
        examiner.look_at_recipe()
        examiner.look_at_links()
    return report.end(peers)


class Examiner:
    """The parts of an examination, each collective; later ones leave out what earlier ones found to be missing."""

    def __init__(
        self,
        asked: PretrainConfig,
        run_dir: Path,
        again: Again,
        of_file: PretrainConfig | None,
        planned: Planned | None,
        report: Report,
        peers: Peers,
    ):
        self.config, self.run_dir, self.again, self.of_file = asked, run_dir, again, of_file
        self.planned, self.report, self.peers = planned, report, peers
        self.size = planned.gpus if planned else peers.size
        self.nodes, self.per_node = (planned.gpus // planned.per_node, planned.per_node) if planned else (peers.nodes, peers.local_size)
        self.device, self.has_device = torch.device("cpu"), True
        self.sets: TrainingSet | None = None
        self.plan: BatchPlan | None = None
        self.order: Order | StreamOrder | None = None
        self.loaded: images.LoaderRate | None = None
        self.compute: float | None = None  # seconds of a step on a rank
        self.gradient_bytes = 0
        self.budget: str | None = None  # that is still to set the length

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

        if not self.report.passes("versions", lambda: agree(self.peers, "mpp/doctor.py", settings)):
            return False
        of = (
            "all processes have the same command, settings, mpp, Python and packages"
            if self.peers.size > 1
            else "one process: nothing to compare"
        )
        self.report.add(Finding("versions", "ok", of))
        return True

    def look_at_machines(self) -> None:
        allow_open_files()
        peers = self.peers
        found = self.report.attempt("device", lambda: device_of(peers))
        self.device, self.has_device = found or torch.device("cpu"), found is not None
        steps = self.config.optim.total_samples // self.config.data.global_batch
        looks = lambda: [machine.device(self.device)] if found else []
        self.each(
            lambda: [
                *looks(),
                machine.cores(self.device, peers.local_size, self.workers),
                machine.compiler(self.config, self.device, steps),
                machine.open_files(self.workers),
            ]
        )

    def look_at_images(self) -> None:
        report, peers = self.report, self.peers
        report.passes("images", lambda: peers.together(require_codecs))
        opened = report.attempt("shards", self._open_shards)
        if opened:
            report.add(*opened)
        elif self.config.fit or self.config.budget or self.config.optim.epochs:
            return  # what the run will be like depends on them
        settled = report.attempt("length", self._settled)
        if settled is None:
            return
        if settled.budget is None:
            self.budget = self.config.budget
        self.config = settled
        data, system = settled.data, settled.system
        self.plan = report.attempt(
            "batch", lambda: plan_batch(data.global_batch, data.streams, self.size, system.micro_batch_max, data.views)
        )
        plan = self.plan
        if plan:
            report.add(recipe.batch(plan, self.size, "as many images" if opened and is_stream(data.shards) else "the same batches"))
            if self.nodes > 1 and self.nodes * self.per_node == self.size:
                report.add(recipe.lost_nodes(plan, self.nodes, self.per_node))
        sets = self.sets = report.attempt("samples", lambda: open_training_set(settled, peers)) if opened else None
        if plan is None or sets is None:
            return
        order = self.order = report.attempt("samples", lambda: sets.order(settled, plan))
        if order is None:
            return
        report.add(images.samples(order, settled) if isinstance(order, Order) else images.stream_samples(sets, settled, self.workers))
        hand = report.attempt("cache", lambda: sets.in_hand(order, self.size, self.per_node))
        report.add(*(Finding("cache", "ok", words) for words in sets.fetched_words(hand)))
        sampler = OrderSampler(order, plan, 0, self.size, 0, settled.optim.total_samples // data.global_batch)
        self.each(lambda: [machine.shared_memory(sets.training, sampler, self.workers, peers.local_size)])

    def _open_shards(self) -> list[Finding]:
        """Collective.  Raises UserError."""
        words, peers = self.config.data.shards, self.peers
        if is_stream(words):
            return [images.stream(peers.together(lambda: tars_of(words)))]
        return [images.shards(open_shards(words, peers), peers.size)]

    def _settled(self) -> PretrainConfig:
        """As the run would settle it, but that no budget is measured: then as long as without one."""
        config, peers, again = self.config, self.peers, self.again
        if not config.budget or as_first_sees(peers, lambda: find_commit(self.run_dir, config.resume)):
            return settle(config, again, self.run_dir, peers).config
        without = lambda below, above: again(below, {**above, "budget": None})
        return settle(without({}, {}), without, self.run_dir, peers).config

    def look_at_folder(self) -> None:
        report, peers = self.report, self.peers
        if found := report.attempt("run folder", lambda: folder.shared(self.run_dir, peers)):
            report.add(found)
        self.first("other runs", lambda: folder.held(self.run_dir))

    def look_at_recipe(self) -> None:
        report, peers, config, plan = self.report, self.peers, self.config, self.plan
        report.add(recipe.rate(config, None if config.fit else self.of_file))
        fused = fuses_attention(config.system, "cuda" if self.planned else self.device.type)
        manifest = self.sets.manifests["shards"] if self.sets else None
        brought = report.attempt("model", lambda: peers.together(lambda: bring(config, manifest, fused)))
        model = report.attempt("model", lambda: build_model(config, fused, brought.lent)) if brought else None
        if model is None or brought is None:
            return
        masking = Masking(config.model.grid, config.mask, config.corruption)
        with Progress("counting parameters, arithmetic and memory", at_once=True):
            found = self._counted(model, masking)
        self.gradient_bytes = found.parameters.trained * (2 if config.system.gradient_precision == "bf16" else 4)
        if self.sets and plan and (run := report.attempt("start", lambda: self._run(plan, brought))):
            begins = lambda: initialise_from(model, config) if peers.first and config.init_from and not run.commit else None
            if report.passes("start", lambda: peers.together(begins)):
                words = run.course.start_words(run.commit is not None)
                report.add(Finding("start", "ok", f"{words}, {run.total_steps:,} steps in all"))
        needed = recipe.commit_bytes(model, config)
        self.first("disk", lambda: folder.room(self.run_dir, config.checkpoint, needed, config.optim.total_samples))
        if config.checkpoint.copy_to:
            self.first("copies", lambda: folder.copies(self.run_dir, config.checkpoint, needed))
        if self.sets:
            sets = self.sets
            self.first("target", lambda: images.target(model, config, sets))
        if plan is None:
            return
        self.loaded = self._loader_rate(plan)
        if self.has_device:
            self._steps(model, masking, found, plan)

    def _run(self, plan: BatchPlan, brought: Brought) -> Run:
        """What the run would be: whether it begins, or goes on from what is there.  Nothing is held or written."""
        config, sets = self.config, self.sets
        assert sets is not None
        steps_of = lambda optim: optim.get("total_samples", 0) // config.data.global_batch
        called = lambda name: sets.called(name) if name in sets.manifests else f"what {name} names"
        depends_on = {**sets.manifests, **brought.digests}
        return Run(
            PROGRAM,
            None,
            config,
            self.run_dir,
            plan,
            config.optim,
            steps_of,
            depends_on,
            called,
            branch_from=config.branch_from,
            peers=self.peers,
        )

    def _counted(self, model: PretrainingModel, masking: Masking) -> Counts:
        """Of the model, which has its teacher then and recomputes what the config says."""
        micro_batch = self.plan.micro_batch if self.plan else self.config.system.micro_batch_max
        if self.peers.first:
            found = counts(model, self.config, masking, micro_batch)
            told = [vars(found.parameters), found.flop, list(found.step_bytes.items())]
        else:
            teacher_of(model, self.config)
            recompute_blocks(model, self.config.system.recompute)
            told = []
        parameters, flop, held = self.peers.from_first(lambda: told)
        return Counts(Parameters(**parameters), flop, dict(map(tuple, held)))

    def _loader_rate(self, plan: BatchPlan) -> images.LoaderRate | None:
        """Collective: of this rank, while all of them load."""
        sets, order = self.sets, self.order
        if sets is None or order is None:
            return None
        if self.config.system.images != "shards":
            self.each(lambda: [images.unmeasured(self.config, sets, self.peers.local_size, machine.free_memory)])
            return None
        dataset = sets.placed(self.config, self.device, self.peers.local_size)
        return self.report.attempt("loader", lambda: self.peers.together(lambda: images.loader_rate(dataset, order, plan, self.workers)))

    def _steps(self, model: PretrainingModel, masking: Masking, found: Counts, plan: BatchPlan) -> None:
        config, peers, loaded = self.config, self.peers, self.loaded
        if self.planned:
            self._steps_elsewhere(found, plan, self.planned)
            return
        room, what = recipe.room_of(self.device, machine.free_memory(), peers.local_size)
        mine: recipe.StepRate | None = None
        try:
            mine = recipe.step_rate(model, config, masking, plan, self.device, found.flop)
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
            findings = [recipe.memory(found, config, plan, self.size, room, what, mine.peak), recipe.step(mine, found.flop)]
            findings += [images.loader(loaded, mine.views)] if loaded else []
        self.each(lambda: findings)
        views = peers.gather(mine.views if mine else None)
        if any(each is None for each in views):
            return
        if slow := recipe.slow_ranks(views, list(peers.hosts)):
            self.report.add(slow)
        self.compute = plan.micro_batch * plan.accumulation / min(views)
        self.report.add(recipe.length(config, min(views), self.size, loaded.rank if loaded else None, self.budget))

    def _steps_elsewhere(self, found: Counts, plan: BatchPlan, planned: Planned) -> None:
        config, gpu = self.config, GPUS[planned.gpu]
        what = f"{SLACK:.0%} of an {gpu.name}, by arithmetic"
        self.report.add(recipe.memory(found, config, plan, self.size, SLACK * gpu.gigabytes * 1e9, what))
        views = REACHED[config.corruption.drops] * gpu.tflops * 1e12 / found.flop
        if self.loaded:
            self.report.add(images.loader_of_a_node(self.loaded.core, views, planned.per_node, planned.cores))
        self.report.add(recipe.length(config, views, self.size, None, self.budget))

    def look_at_links(self) -> None:
        report, peers = self.report, self.peers
        if peers.size == 1 or not self.has_device:
            report.add(links.clocks(peers))
            return
        report.add(links.clocks(peers))
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
