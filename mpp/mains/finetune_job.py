"""What a fine-tuning is asked for, alone or in repeats: its encoder and images, what has been done of it, and every refusal that needs no other process.

RUN of a fine-tuning alone; of repeats RUN/repeat-0, RUN/repeat-1, ..., each what the same seed gives alone on the same hold-out.
"""

import copy
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpp.base.errors import CheckpointError, ConfigError
from mpp.base.rng import INIT, seed_of
from mpp.base.text import counted
from mpp.config import small
from mpp.config.finetune import FinetuneConfig
from mpp.config.sections import OptimConfig
from mpp.data.batch_plan import BatchPlan, plan_batch
from mpp.data.finetune_set import Choose, FinetuneSet, Triple, open_finetune_set
from mpp.data.order import Order
from mpp.interop.encoder_folder import is_written
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.interop.read_encoder import read_encoder
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.tokens import choose_attention, fuses_attention, set_norm_eps
from mpp.processes.agreement import agree_on_weights
from mpp.processes.peers import Peers
from mpp.processes.world import World, from_first
from mpp.train.commit import folders_of
from mpp.train.run import Run
from mpp.train.run_folder import write_run_folder
from mpp.transfer.ledger import Reads, log_test_read
from mpp.transfer.repeats import MEASURED, repeat_folder, repeats_in
from mpp.transfer.results import RESULTS
from mpp.transfer.split import CHOOSE, few_labels, hold_out

PROGRAM = "mpp/finetune.py"  # as command lines are noted
Again = Callable[[Mapping[str, Any]], FinetuneConfig]  # the config anew, with these keys ("a.b") below the file and the words


@dataclass
class Job:
    """What all repeats share."""

    config: FinetuneConfig
    run_dir: Path
    argv: Sequence[str] | None
    loaded: LoadedEncoder
    size: tuple[int, int]  # (height, width) in pixels
    sets: FinetuneSet  # as the first repeat sees it
    plan: BatchPlan
    words: tuple[str, ...] = ()  # what a preset has settled, for people
    reads: Reads | None = None  # of the test split, once this command has read it
    noted: bool = False

    @property
    def command(self) -> list[str]:
        return [PROGRAM, *(sys.argv[1:] if self.argv is None else self.argv)]

    def note_start(self, world: World) -> None:
        """Once a command: the folder above the repeats says what was asked for, as each of theirs does."""
        if self.config.repeats > 1 and world.first and not self.noted:
            write_run_folder(self.run_dir, self.config, self.argv, PROGRAM)
        self.noted = True

    def read_test(self, world: World) -> Reads:
        """Collective, before test images are looked at: one read for a command, however many repeats it measures, is logged; how many there were."""
        test = self.sets.test
        assert test is not None
        note = functools.partial(log_test_read, self.run_dir, test.pixels.source, len(test.ids), ledger=self.config.ledger)
        if not self.reads:
            self.reads = from_first(world, lambda: note(command=self.command, encoder=self.loaded.source, named=str(self.config.test)))
        return self.reads


@dataclass(frozen=True)
class Repeat:
    """A whole training: the only one, or one of several, in a folder and with a seed of its own."""

    job: Job
    number: int
    config: FinetuneConfig  # its own
    sets: FinetuneSet
    order: Order
    run: Run

    @property
    def words(self) -> str:
        return f"repeat {self.number + 1} of {self.job.config.repeats} | seed {self.config.seed} | {len(self.sets.labels):,} labels"

    @property
    def results(self) -> Path:
        return self.run.run_dir / (RESULTS if self.job.config.repeats == 1 else MEASURED)


def open_job(config: FinetuneConfig, run_dir: Path, argv: Sequence[str] | None, again: Again, peers: Peers) -> Job:
    """Collective.  again: the config with these keys below the file and the words."""
    loaded = read_encoder(config.encoder)
    agree_on_weights(peers, {"encoder": loaded.digest})
    size = image_size(config, loaded)
    sets = open_sets(config, size, loaded.mean, peers)
    config, sets, words = fitted(config, sets, size, loaded.mean, again)
    return Job(config, run_dir, argv, loaded, size, sets, plan_of(config, peers.size), words)


def open_sets(config: FinetuneConfig, size: tuple[int, int], mean: Triple, peers: Peers, download: bool = True) -> FinetuneSet:
    """Collective.  As the first repeat sees them.  size: (height, width) of crops; mean: of the input normalisation; download: as of `open_labelled`."""
    data = config.data
    divide = functools.partial(
        hold_out,
        fraction=data.holdout_fraction,
        seed=config.seed if data.holdout_seed is None else data.holdout_seed,
        use=CHOOSE,
        remedy=f"give more images of them, or {'' if config.test else 'a test split (test=) and '}data.holdout_fraction=0",
    )
    return open_finetune_set(config, size, mean, divide, chooser(config), peers, download)


def fitted(
    config: FinetuneConfig, sets: FinetuneSet, size: tuple[int, int], mean: Triple, again: Again
) -> tuple[FinetuneConfig, FinetuneSet, tuple[str, ...]]:
    """With what a preset settles once the labels are known, and the plan in words; as it was without one."""
    if not config.fit:
        return config, sets, ()
    given = lambda section, key: getattr(section, key) if key in section.model_fields_set else None
    config = again(small.tuning(len(sets.labels), given(config.optim, "epochs"), given(config.data, "global_batch")))
    return config, sets.drawn(config.augment, size, mean), (fitted_words(config, len(sets.labels)),)


def plan_of(config: FinetuneConfig, processes: int) -> BatchPlan:
    """How so many share a step."""
    data = config.data
    return plan_batch(data.global_batch, data.streams, processes, config.system.micro_batch_max, together=config.augment.together)


def fitted_words(config: FinetuneConfig, labels: int) -> str:
    """The plan, for people."""
    optim, augment = config.optim, config.augment
    length = f"{optim.steps:,} steps" if optim.steps else f"{optim.epochs:g} passes"
    mixed = f"pairs mixed (mixup {augment.mixup:g}, CutMix {augment.cutmix:g})" if augment.mixes else "pairs not mixed"
    return f"fit {config.fit}: {counted(labels, 'label')} | {length} in batches of {config.data.global_batch} | {mixed}"


def chooser(config: FinetuneConfig) -> Choose:
    """Of the labels that are trained on."""
    data = config.data
    return functools.partial(few_labels, seed=config.seed, fraction=data.label_fraction, per_class=data.labels_per_class)


def repeat_of(job: Job, number: int, peers: Peers) -> Repeat:
    """Collective.  With what is committed of it.  Raises UserError for what cannot go on."""
    config, sets, run_dir = job.config, job.sets, job.run_dir
    if config.repeats > 1:
        run_dir = repeat_folder(run_dir, number)
        config = config_of_repeat(config, number, run_dir)
        sets = sets.redrawn(config.seed, chooser(config))
    order = sets.order(config, job.plan)
    schedule = clock_of(config, order.steps_per_epoch)
    depends_on = {"encoder": job.loaded.digest, "train": sets.identities["train"]}
    steps_of = lambda optim: length_of(optim, order.steps_per_epoch)
    run = Run(PROGRAM, job.argv, config, run_dir, job.plan, schedule, steps_of, depends_on, str, job.config.repeats, peers=peers)
    return Repeat(job, number, config, sets, order, run)


def config_of_repeat(config: FinetuneConfig, number: int, run_dir: Path) -> FinetuneConfig:
    """That of a fine-tuning alone which does the same: another seed, and the hold-out that all repeats share."""
    held_by = config.seed if config.data.holdout_seed is None else config.data.holdout_seed
    data = config.data.model_copy(update={"holdout_seed": held_by})
    own = {"seed": config.seed + number, "repeats": 1, "run_dir": str(run_dir), "resume": "auto", "data": data}
    return config.model_copy(update=own)


def refuse_other_layout(config: FinetuneConfig, run_dir: Path) -> None:
    """One fine-tuning trains in RUN, several in RUN/repeat-0, ...  Raises ConfigError where the other is there, and CheckpointError where resume=must
    finds nothing."""
    there = repeats_in(run_dir, "checkpoints")
    if config.repeats == 1:
        if there:
            raise ConfigError(
                f"run_dir={run_dir} holds repeats of a fine-tuning; give repeats={there[-1] + 1} to go on, or another run_dir"
            )
        return
    if folders_of(run_dir):
        raise ConfigError(
            f"run_dir={run_dir} holds a fine-tuning of its own, and repeats={config.repeats} train in {repeat_folder(run_dir, 0)}, ...; "
            "give another run_dir"
        )
    if finished := [number for number in repeats_in(run_dir, MEASURED) if number >= config.repeats]:
        raise ConfigError(
            f"repeats={config.repeats} would leave out {repeat_folder(run_dir, finished[-1])}, which has been measured; "
            f"give repeats={finished[-1] + 1}, or another run_dir"
        )
    if config.resume == "must" and not there:
        raise CheckpointError(f"resume=must: {run_dir}/repeat-*/checkpoints hold no commit; start it with resume=auto, or give its run_dir")


def refuse_unlike(repeats: Sequence[Repeat]) -> None:
    """Raises ConfigError where some were extended and others were not: their learning rates went other ways."""
    cycles = [each.run.course.extended_at for each in repeats]
    for each, extended_at in zip(repeats, cycles, strict=True):
        if extended_at != cycles[0]:
            raise ConfigError(
                f"{repeats[0].run.run_dir} was trained in {len(cycles[0]) + 1} cycles of the learning rate and {each.run.run_dir} would be in "
                f"{len(extended_at) + 1}: a series is extended when all of it has finished, and then has no more repeats; give another run_dir"
            )


def is_finished(repeat: Repeat, peers: Peers) -> bool:
    """Collective: whether nothing is left to train or to measure of a run that has settled on its commit."""
    commit = repeat.run.commit
    return bool(commit and repeat.run.course.finished and peers.from_first(functools.partial(is_measured, repeat, commit.seal)))


def is_measured(repeat: Repeat, seal: str) -> bool:
    """Whether what a run writes last, its results, is there, of the commit with this seal and of these images, chosen as is asked for now, and its
    encoder/ is there, too, and whole."""
    found = _read(repeat.results)
    return found.get("commit") == seal and _measures_alike(found, repeat.job) and is_written(repeat.run.run_dir / "encoder", seal)


def is_joined(job: Job, seals: Sequence[str]) -> bool:
    found = _read(job.run_dir / RESULTS)
    return found.get("commits") == seals and _measures_alike(found, job)


def _measures_alike(found: Mapping[str, Any], job: Job) -> bool:
    identities = {split: each["identity"] for split, each in found["data"].items()}
    return identities == job.sets.identities and found.get("metric", "accuracy") == job.config.metric


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is none, and for what cannot be results."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("data"), dict) else {}


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
        weight_decay=optim.weight_decay,
        warmup_samples=warmup * batch,
        total_samples=steps * batch,
    )


def length_of(optim: Mapping[str, Any], steps_per_epoch: int) -> int:
    """Steps that an optim section asks for."""
    return optim.get("steps") or max(1, round(optim.get("epochs", 0) * steps_per_epoch))


def classifier_of(
    config: FinetuneConfig, loaded: LoadedEncoder, classes: int, size: tuple[int, int], device: str = ""
) -> tuple[torch.nn.Module, str, dict[str, Any]]:
    """The model that learns, timm's name of its architecture, and the arguments it was made with.  device: of another machine, by which the kind of
    attention is chosen; else this one's."""
    arch, encoder_arguments = loaded.architecture
    arguments = classifier_arguments(loaded.net, encoder_arguments, config.model, size)
    random = config.init == "random"
    net = loaded.fresh(seed_of(config.seed, INIT, 0)) if random else copy.deepcopy(loaded.net)  # which is changed, and may be wanted again
    model = build_classifier(net, arch, arguments, classes, config.model, size, seed_of(config.seed, INIT, 1), random=random)
    set_norm_eps(model, loaded.norm_eps)
    choose_attention(model, fuses_attention(config.system, device))
    return model, arch, arguments
