"""Of mpp/doctor.py: the encoder, the labelled images and the recipe of a fine-tuning, alone or in repeats."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mpp.checks import labelled, recipe
from mpp.checks.finding import Finding, attempt
from mpp.checks.images import samples
from mpp.checks.report import Report
from mpp.config.finetune import FinetuneConfig
from mpp.config.sections import OptimConfig
from mpp.data.decode import require_codecs
from mpp.data.finetune_set import FinetuneSet
from mpp.data.shards import ShardSet
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.mains.doctor import Asked, Examiner, Learner
from mpp.mains.finetune import blank_loss, flop_of, micro_step_bytes
from mpp.mains.finetune_job import (
    PROGRAM,
    Job,
    Repeat,
    classifier_of,
    clock_of,
    fitted,
    image_size,
    is_measured,
    open_sets,
    plan_of,
    refuse_other_layout,
    refuse_unlike,
    repeat_of,
)
from mpp.mains.plan import Counts, bytes_by_batch, parameters_of
from mpp.model.architecture import in_words
from mpp.model.recompute import recompute_blocks
from mpp.processes.peers import Peers
from mpp.transfer.repeats import repeat_folder

UNREAD = (
    (224, 224),
    (0.5, 0.5, 0.5),
)  # pixels of an encoder that could not be read, and its mean, so that the images are looked at nevertheless
CPU = torch.device("cpu")


class FinetuningExaminer(Examiner):
    program = PROGRAM
    config: FinetuneConfig

    def __init__(self, asked: Asked, report: Report, peers: Peers):
        super().__init__(asked, report, peers)
        self.of_file = cast(FinetuneConfig | None, asked.of_file)
        self.encoder: LoadedEncoder | None = None
        self.sets: FinetuneSet | None = None  # as the first repeat sees them
        self.schedule: OptimConfig | None = None  # the learning rate's, in samples

    @property
    def run_dirs(self) -> list[Path]:
        repeats = self.config.repeats
        return [self.run_dir] if repeats == 1 else [repeat_folder(self.run_dir, number) for number in range(repeats)]

    def look_at_images(self) -> None:
        report, peers = self.report, self.peers
        loaded = self.encoder = self._read_encoder()
        size, mean = (image_size(self.config, loaded), loaded.mean) if loaded else UNREAD
        if not report.passes("images", lambda: peers.together(require_codecs)):
            return
        opened = report.attempt("labels", lambda: open_sets(self.config, size, mean, peers, download=False))
        if opened is None:
            return
        report.add(*labelled.labels(opened, self.config), labelled.hold_out(opened, self.config))
        settled = report.attempt("length", lambda: fitted(self.config, opened, size, mean, self.again))
        if settled is None:
            return
        self.config, sets, said = settled
        self.sets = sets
        report.add(*(Finding("length", "ok", words) for words in said))
        plan = self.look_at_plan(lambda: plan_of(self.config, self.size))
        order = self.order = report.attempt("samples", lambda: sets.order(self.config, plan)) if plan else None
        if plan is None or order is None:
            return
        schedule = self.schedule = report.attempt("length", lambda: clock_of(self.config, order.steps_per_epoch))
        if schedule is None:
            return
        self.steps = schedule.total_samples // self.config.data.global_batch
        report.add(samples(order, schedule.total_samples))
        if isinstance(source := sets.source("train"), ShardSet):
            hand = report.attempt("cache", lambda: [source.in_hand(order, self.size, self.per_node)])
            report.add(*(Finding("cache", "ok", source.fetched_words(each)) for each in hand or [] if each))
        self.look_at_shared_memory(sets.training, order, plan, sets.training.ids)

    def _read_encoder(self) -> LoadedEncoder | None:
        """Collective: as each rank reads it; None where one cannot, or reads another one."""
        mine: LoadedEncoder | None = None

        def look() -> list[Finding]:
            nonlocal mine
            found = attempt("encoder", lambda: read_encoder(self.config.encoder, quiet=True))
            if isinstance(found, Finding):
                return [found]
            mine = found
            return [labelled.encoder(found, self.config.init)]

        self.each(look)
        digests = self.peers.gather(mine.digest if mine else None)
        if None in digests:
            return None
        if other := next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None):
            found = f"encoder={self.config.encoder}: {self.peers.called(other)} reads other weights there than rank 0"
            self.report.add(Finding("encoder", "FAILED", found, "give one that all nodes share, or copy it to each of them"))
            return None
        return mine

    def look_at_recipe(self) -> None:
        peers, config, plan, sets = self.peers, self.config, self.plan, self.sets
        self._look_at_rate()
        if sets is None:
            return
        self.first("images", lambda: labelled.readable(sets))
        learner = self._learner(sets)
        if learner is None:
            return
        if self.encoder and plan and self.schedule:
            self._look_at_start(Job(config, self.run_dir, [], self.encoder, image_size(config, self.encoder), sets, plan))
        average = learner.model if config.optim.ema else None
        self.look_at_disk(recipe.commit_bytes(learner.model, average, moments_of(config)), learner.total_samples)
        self.look_at_loader(sets.training, lambda: sets.placed(config, self.device, peers.local_size))
        self.look_at_steps(learner)

    def _look_at_rate(self) -> None:
        if self.schedule is None:  # how long the warm-up is depends on the images
            return
        optim, of_file = self.config.optim, self.of_file
        file = (OptimConfig(base_lr=of_file.optim.base_lr, lr_batch=of_file.optim.lr_batch), of_file.data.global_batch) if of_file else None
        self.report.add(recipe.rate(self.schedule, self.config.data.global_batch, None if self.config.fit else file, optimiser=optim.name))

    def _look_at_start(self, job: Job) -> None:
        """Every refusal of the program that is left, and from where each repeat would go on.  Nothing is held or written."""
        report, peers, config = self.report, self.peers, self.config
        layout = lambda: refuse_other_layout(config, self.run_dir) if peers.first else None
        if not report.passes("start", lambda: peers.together(layout)):
            return
        repeats = report.attempt("start", lambda: [repeat_of(job, number, peers) for number in range(config.repeats)])
        if repeats is None or not report.passes("start", lambda: refuse_unlike(repeats)):
            return
        words = peers.from_first(lambda: [start_words(each) for each in repeats])
        report.add(labelled.starts(words, repeats[0].run.total_steps, self.run_dirs))

    def _learner(self, sets: FinetuneSet) -> Learner | None:
        """The classifier of the first repeat."""
        config, loaded = self.config, self.encoder
        if loaded is None:
            return None
        size = image_size(config, loaded)
        kind = "cuda" if self.planned else self.device.type
        made = self.report.attempt("model", lambda: classifier_of(config, loaded, len(sets.classes), size, kind))
        if made is None:
            return None
        model = made[0]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        said = f"{in_words(made[1], made[2])} at {size[0]}x{size[1]} with a head for {len(sets.classes)} classes: {parameters:,} parameters"
        self.report.add(Finding("model", "ok", said))
        prepare = lambda: recompute_blocks(model, config.system.recompute)

        def count() -> Counts:
            flop = round(flop_of(model, size, CPU))  # what is computed again counts once
            prepare()
            beside = [model] if config.optim.ema else []  # the average
            held = bytes_by_batch(lambda batch: micro_step_bytes(model, config, size, batch, CPU), self.micro_batch)
            return Counts(parameters_of(model, beside, moments_of(config)), flop, held)

        def blank(device: torch.device, batch: int) -> Callable[[], Tensor]:
            model.to(device)
            return lambda: blank_loss(model, size, device, batch)

        total = self.schedule.total_samples if self.schedule else config.data.global_batch
        length = "optim.steps, repeats" if config.optim.steps else "optim.epochs, repeats"
        found, lighter = self.counted(count, prepare), "make shards with --resize"
        return Learner(found, model, blank, False, config.augment.together, total, config.repeats, length, lighter)


def moments_of(config: FinetuneConfig) -> int:
    """Of the optimiser, for each parameter."""
    return 2 if config.optim.name == "adamw" else int(config.optim.momentum > 0)


def start_words(repeat: Repeat) -> str:
    run = repeat.run
    if run.commit and run.course.finished and is_measured(repeat, run.commit.seal):
        return f"already finished at step {run.course.first_step}: nothing to do"
    return run.course.start_words(run.commit is not None)
