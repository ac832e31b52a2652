"""Of mpp/doctor.py: the images and the recipe of a pretraining run."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from mpp.checks import folder, images, recipe
from mpp.checks.finding import Finding
from mpp.checks.report import Report
from mpp.config.pretrain import PretrainConfig
from mpp.data.batch_plan import plan_batch
from mpp.data.decode import require_codecs
from mpp.data.joined_shards import open_shards
from mpp.data.order import Order
from mpp.data.streams import is_stream, tars_of
from mpp.data.training_set import TrainingSet, open_training_set
from mpp.interop.lent import Brought, bring
from mpp.interop.start_from import initialise_from
from mpp.mains.doctor import Asked, Examiner, Learner
from mpp.mains.plan import counts
from mpp.mains.pretrain import PROGRAM, blank_inputs, run_of
from mpp.mains.settling import settle_unmeasured
from mpp.model.recompute import recompute_blocks
from mpp.model.tokens import fuses_attention
from mpp.processes.peers import Peers
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.teacher import TeacherKnobs
from mpp.train.run import Run
from mpp.train.schedule import small_rate_note
from mpp.train.teacher import teacher_of


class PretrainingExaminer(Examiner):
    program = PROGRAM
    config: PretrainConfig

    def __init__(self, asked: Asked, report: Report, peers: Peers):
        super().__init__(asked, report, peers)
        self.of_file = cast(PretrainConfig | None, asked.of_file)
        self.sets: TrainingSet | None = None
        self.steps = self.config.optim.total_samples // self.config.data.global_batch

    def look_at_images(self) -> None:
        report, peers = self.report, self.peers
        readable = report.passes("images", lambda: peers.together(require_codecs))
        opened = report.attempt("shards", self._open_shards) if readable else None
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
        self.steps = settled.optim.total_samples // data.global_batch
        plan = self.look_at_plan(
            lambda: plan_batch(data.global_batch, data.streams, self.size, system.micro_batch_max, data.views),
            "as many images" if opened and is_stream(data.shards) else "the same batches",
        )
        sets = self.sets = report.attempt("samples", lambda: open_training_set(settled, peers)) if opened else None
        if plan is None or sets is None:
            return
        order = self.order = report.attempt("samples", lambda: sets.order(settled, plan))
        if order is None:
            return
        total = settled.optim.total_samples
        report.add(images.samples(order, total, data.views) if isinstance(order, Order) else images.stream_samples(sets, self.workers))
        hand = report.attempt("cache", lambda: sets.in_hand(order, self.size, self.per_node))
        report.add(*(Finding("cache", "ok", words) for words in sets.fetched_words(hand)))
        self.look_at_shared_memory(sets.training, order, plan)

    def _open_shards(self) -> list[Finding]:
        """Collective.  Raises UserError."""
        words, peers = self.config.data.shards, self.peers
        if is_stream(words):
            return [images.stream(peers.together(lambda: tars_of(words)))]
        return [images.shards(open_shards(words, peers), peers.size)]

    def _settled(self) -> PretrainConfig:
        return settle_unmeasured(self.config, self.again, self.run_dir, self.peers)

    def look_at_recipe(self) -> None:
        report, peers, config, plan = self.report, self.peers, self.config, self.plan
        optim, batch = config.optim, config.data.global_batch
        of_file = (self.of_file.optim, self.of_file.data.global_batch) if self.of_file and not config.fit else None
        report.add(recipe.rate(optim, batch, of_file, small_rate_note(optim, batch)))
        fused = fuses_attention(config.system, "cuda" if self.planned else self.device.type)
        manifest = self.sets.manifests["shards"] if self.sets else None
        brought = report.attempt("model", lambda: peers.together(lambda: bring(config, manifest, fused)))
        model = report.attempt("model", lambda: build_model(config, fused, brought.lent)) if brought else None
        if model is None or brought is None:
            return
        learner = self._learner(model)
        if self.sets and plan and (run := report.attempt("start", lambda: self._run(brought))):
            begins = lambda: initialise_from(model, config) if peers.first and config.init_from and not run.commit else None
            if report.passes("start", lambda: peers.together(begins)):
                words = run.course.start_words(run.commit is not None)
                report.add(Finding("start", "ok", f"{words}, {run.total_steps:,} steps in all"))
        average = model.teacher.net if model.teacher and isinstance(config.target, TeacherKnobs) else None
        needed = recipe.commit_bytes(model, average)
        self.look_at_disk(needed, config.optim.total_samples)
        if config.checkpoint.copy_to:
            self.first("copies", lambda: folder.copies(self.run_dir, config.checkpoint, needed))
        if sets := self.sets:
            self.first("target", lambda: images.target(model, config, sets))
            self.look_at_loader(sets.training, lambda: sets.placed(config, self.device, peers.local_size))
        self.look_at_steps(learner)

    def _learner(self, model: PretrainingModel) -> Learner:
        config = self.config
        masking = Masking(config.model.grid, config.mask, config.corruption)

        def prepare() -> None:
            teacher_of(model, config)
            recompute_blocks(model, config.system.recompute)

        def blank(device: torch.device, batch: int) -> Callable[[], Tensor]:
            model.to(device)
            if model.teacher:
                model.teacher.net.to(device)
            inputs = blank_inputs(config, masking, device, batch)

            def loss() -> Tensor:
                _, loss, _, own = model(*inputs)
                return loss.mean() + own

            return loss

        found = self.counted(lambda: counts(model, config, masking, self.micro_batch), prepare)
        return Learner(found, model, blank, config.corruption.drops, config.data.views, config.optim.total_samples)

    def _run(self, brought: Brought) -> Run:
        """What the run would be: whether it begins, or goes on from what is there.  Nothing is held or written."""
        config, sets, plan = self.config, self.sets, self.plan
        assert sets is not None and plan is not None
        return run_of(config, self.run_dir, sets, brought, plan, self.peers)
