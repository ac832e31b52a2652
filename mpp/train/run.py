"""A training run: what every training program does in the same order, once.

    peers = gather(...)         the processes of the job meet, and agree on the command
    run = Run(..., peers)       the newest commit, as rank 0 sees it, and whether this start may go on from it
    run.claim()                 the run folder is this run's alone, and one whole commit is settled on
    run.join(stream)            loader processes have begun; now the processes get collectives, and each its device
    run.begin(model, ...)       logs are cut back to it, the engine is built, weights and moments are put back
    run.announce(lines)         the run folder says what was asked for, and people are told
    for step in run.steps():
        for batch in step.batches():     this rank's share of the global batch, in micro-batches
            ... engine.forward, step.backward
        step.update()           clip, step, and the one small sum in which all ranks decide alike what comes next, read when it is there
        if step.shown: run.log(step, ...)
        if step.commits: run.save(step, ...)
    run.close()                 where another run follows in the same process

A step's samples, its learning rate and its noise belong to its number, so a resumed run does what an uninterrupted one does.
"""

import gc
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpp.base.errors import CheckpointError, UserError
from mpp.base.machine import usable_cores
from mpp.base.progress import Progress
from mpp.base.rng import DROP_PATH, seed_of
from mpp.base.text import counted, say
from mpp.config.schema import Section
from mpp.config.sections import OptimConfig
from mpp.data.batch_plan import BatchPlan, lost_nodes_words
from mpp.data.crop_dataset import Batch
from mpp.data.loader import default_workers
from mpp.monitor.board import Board
from mpp.monitor.layout import Layout
from mpp.monitor.reference import Reference, find_reference
from mpp.processes.peers import ALONE, Peers
from mpp.processes.watch import watch
from mpp.processes.world import World, from_first
from mpp.remote.urls import is_url
from mpp.train.average import WeightAverage
from mpp.train.bad_numbers import BadNumbers
from mpp.train.bad_samples import BadSamples
from mpp.train.branch import branch_course, check_branch, find_trunk
from mpp.train.checkpoint import Saving, restore
from mpp.train.commit import Commit, commits, find_commit, set_aside_after
from mpp.train.compiling import pays
from mpp.train.copies import Copies, local
from mpp.train.engine import Engine
from mpp.train.flight import Flight
from mpp.train.gathering import TrainingConfig, held_folder, start
from mpp.train.progress import progress_line
from mpp.train.resume import Course, agreed_commit, agreed_trunk, as_first_sees, course_of
from mpp.train.run_folder import cut_back_logs, hold_run_folder, identity_of, write_run_folder
from mpp.train.sample_log import SampleLog
from mpp.train.saving import Saver
from mpp.train.schedule import learning_rate, rate_words, stable_until, weight_decay
from mpp.train.shared_sum import SharedSum
from mpp.train.signals import StopRequest
from mpp.train.speed import TIMED_STEPS, Speed, rate_of_all


class Run:
    """First there are `commit`, `course` and `first_step`, which `claim` makes final; after `join` `world`; after `begin` `engine` and `bad` (samples)."""

    def __init__(
        self,
        program: str,
        argv: Sequence[str] | None,
        config: TrainingConfig,
        run_dir: Path,
        plan: BatchPlan,
        schedule: OptimConfig,
        steps_of: Callable[[Mapping[str, Any]], int],
        depends_on: dict[str, str],
        what: Callable[[str], str],
        repeats: int = 1,
        branch_from: str | None = None,
        peers: Peers = ALONE,
        copies: Copies | None = None,
    ):
        """program, argv: as the command line is noted.  schedule: the learning rate's, in samples.  steps_of: a commit's optim section -> its total steps.
        depends_on: sha256 of each thing that must not change under a run; what: its name -> what messages call it.  repeats: of which this run is one.
        branch_from: the run, or one of its checkpoints, from which this one begins (train/branch.py).  peers: who trains together; collective.
        copies: of rank 0, where the run folder is kept in a store, too.  Raises UserError for what cannot go on."""
        self.program, self.argv, self.config, self.run_dir, self.plan, self.schedule = program, argv, config, run_dir, plan, schedule
        self.global_batch = plan.samples * plan.views
        self.total_steps = schedule.total_samples // self.global_batch
        self._course_from = lambda commit: (
            branch_course(self.trunk, branch_from or "", config, self.total_steps, depends_on, what)
            if commit is None and self.trunk
            else course_of(commit, config, self.total_steps, steps_of, depends_on, what)
        )
        self._depends_on, self.repeats, self._branch_from, self._peers = depends_on, repeats, branch_from or "", peers
        self.copies = copies
        self._find = lambda: copies.find(config.resume) if copies else find_commit(run_dir, config.resume)
        self.commit: Commit | None = as_first_sees(peers, self._find)
        peers.together(lambda: copies.refuse_other_run(self.commit) if copies else None)
        if branch_from and self.commit:
            check_branch(run_dir, self.commit, branch_from)
        self.trunk: Commit | None = None
        if branch_from and not self.commit:
            if is_url(branch_from):  # every host reads it from its own cache
                peers.together(lambda: local(branch_from) if peers.first_of_host else None)
            self.trunk = as_first_sees(peers, lambda: find_trunk(branch_from))
        try:
            self.course: Course = self._course_from(self.commit)
        except CheckpointError as error:
            if copies and self.commit and copies.there.get(self.commit.step) == self.commit:
                raise CheckpointError(f"{error}; it was to be fetched from checkpoint.copy_to={copies.where}") from error
            raise
        begins = stable_until(schedule.model_dump()) // self.global_batch * self.global_batch if schedule.cooldown_samples else 0
        # Samples seen; the last step before a cool-down is where a run may be trained on.
        self.keep_at = {*config.checkpoint.keep_at_samples, *filter(None, [begins])}
        self._first_step: int | None = None  # once training begins, when `commit` goes on
        self.board: Board | None = None
        self.average: WeightAverage | None = None
        self.bad_samples = 0  # since the run began
        self.stop: StopRequest | None = None  # from the first step on
        self._flop_per_image: float | None = None
        self._rate_of_all: float | None = None  # FLOP/s

    def claim(self) -> None:
        """Collective.  Raises UserError where another run holds the folder, where not all see it, and where no commit is whole."""
        watch.moved("starting", step=0, slow=True)
        hold = lambda: hold_run_folder(self.run_dir, self._find, self.commit)  # until `close`, or this process ends
        self._lock = held_folder(self.run_dir, hold, self._peers)
        if self._copy_to:
            self.commit = as_first_sees(self._peers, lambda: self.copies.bring(self.config.resume) if self.copies else None)
        self.commit = agreed_commit(self.run_dir, self.config.resume, self.commit, self._peers)
        self.course = self._course_from(self.commit)
        if self.commit is None and self.trunk:
            self.commit = agreed_trunk(self._branch_from, self.trunk, self._peers)

    def join(self, stream: Iterator[Batch], world: World | None = None, stop: StopRequest | None = None) -> None:
        """Collective.  stream: the batches of all steps, of loader processes that have begun: they are forked off before this process has collectives, a
        model on its device, or much memory.  world, stop: of a run before this one in the same processes."""
        self._stream = stream
        self.world, self.stop = world or start(self.run_dir, self.config.system, self._peers), stop

    @property
    def first_step(self) -> int:
        """Steps that are done when this start begins."""
        return self._first_step if self._first_step is not None else self.commit.step if self.commit else 0

    def begin(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        blank: Callable[[Engine], Tensor],
        flop_per_image: Callable[[], float],
        average: WeightAverage | None = None,
    ) -> Engine:
        """Collective.  blank: a forward pass of anything, whose gradients are not used: it creates the optimiser's state before it is put back.
        flop_per_image: of training, to be held against this machine.  average: of the weights, which is updated after each step and lies beside them in
        each commit."""
        commit, world = self.commit, self.world
        self._flop_per_image = flop_per_image() if world.first and self.is_timed else None
        from_first(world, lambda: cut_back_logs(self.run_dir, commit.samples_seen if commit else 0))
        self.average = average
        system = self.config.system.model_copy(update={"compile": pays(self.config.system, self.total_steps)})
        self.engine = engine = Engine(model.to(world.device), optimiser, self.plan, world, system, self.config.optim.clip_norm)
        if commit:
            restore(commit, engine, world, average, prime=lambda: self._take_empty_step(blank))
            self.bad_samples = commit.record["bad_samples"]
        self._first_step = commit.step if commit else 0
        self.bad = BadSamples(self.run_dir, world)
        if self.is_timed:
            self._rate_of_all = rate_of_all(self.config.system, world)
        return engine

    @property
    def is_timed(self) -> bool:
        """Whether there are steps enough for a share of the machine's limit to mean something."""
        return self.total_steps - (self.commit.step if self.commit else 0) >= TIMED_STEPS

    def _take_empty_step(self, blank: Callable[[Engine], Tensor]) -> None:
        """An optimiser step at learning rate 0 with zero gradients: changes nothing, creates the optimiser's state."""
        for _ in range(self.plan.accumulation):
            self.engine.backward(blank(self.engine).float().sum() * 0)
        self.engine.update(0.0)

    @cached_property
    def workers(self) -> int:
        """Loader processes of this rank."""
        asked = self.config.system.workers
        return asked if asked is not None else default_workers(self._peers.local_size)

    @property
    def loader_words(self) -> str:
        return f"{counted(self.workers, 'loader process', 'loader processes')} a rank"

    @cached_property
    def reference(self) -> Reference | None:
        """Of a run from scratch, where there is one."""
        from_elsewhere = self._branch_from or getattr(self.config, "init_from", None)
        return None if from_elsewhere else find_reference(identity_of(self.config, self._depends_on))

    def announce(self, lines: Iterable[str], layout: Layout) -> None:
        """Rank 0: what was asked for goes into the run folder, the board is opened, and people are told.  layout: of the board."""
        if not self.world.first:
            return
        for newer in set_aside_after(self.run_dir, self.first_step):
            say(f"a newer checkpoint is set aside: {newer}")
        if self.copies:
            self.copies.set_aside_after(self.first_step)
        write_run_folder(self.run_dir, cast(Section, self.config), self.argv, self.program)
        self.board = Board(self.run_dir, self.first_step * self.global_batch)
        self.board.describe(layout, self.config.that_changes_results(), self.reference)
        processes, device = counted(self.world.size, "process", "processes"), self.world.device.type
        if device == "cpu":  # how the cores are shared out; OMP_NUM_THREADS and --num_gpus have the last word
            device += f", {counted(torch.get_num_threads(), 'thread')} each ({counted(usable_cores(), 'core')} here)"
        say(f"run {self.run_dir} | {self.course.start_words(self.commit is not None)} | {processes} on {device}")
        for line in (*self.course.words(), *lines):
            say(line)

    def plan_words(self, what: str = "the same batches") -> str:
        """what: any of those numbers of processes gives."""
        plan, more = self.plan, ", ..." if len(self.plan.worlds) > 12 else ""
        worlds = ", ".join(map(str, plan.worlds[:12]))
        words = f"micro-batch {plan.micro_batch} x accumulation {plan.accumulation} | {what} on {worlds}{more} processes"
        peers = self._peers
        if peers.nodes > 1 and peers.size == peers.nodes * peers.local_size:
            words += f" | {lost_nodes_words(plan, peers.nodes, peers.local_size)}"
        return words

    @property
    def peak_rate(self) -> float:
        return self.schedule.peak_rate(self.global_batch)

    @property
    def rate_words(self) -> str:
        return rate_words(self.schedule, self.global_batch)

    def steps(self, views: int = 1, sample_log: SampleLog | None = None, passed: Container[int] = ()) -> Iterator["Step"]:
        """One after the other, from the commit's to the last, or to the one in which somebody asked to stop.  views: of each sample in a batch.
        passed: steps (0 is the first) that see no batch and change nothing, while their samples count as seen; the stream is without them."""
        self.stop = self.stop or StopRequest()
        self._views, self._sample_log, self._passed = views, sample_log, passed
        self.speed = Speed(
            self.engine.phases, self.world, self.first_step, self.global_batch, passed, self._flop_per_image, self._rate_of_all
        )
        if self.copies:  # after loader processes were forked: it has a thread
            self.copies.begin(commits(self.run_dir))
        self._saver = Saver(self.run_dir, self.world, self.config.checkpoint, self._committed, self.copies)
        self._unread: Step | None = None  # the last one, as long as nobody has read what all ranks agreed on
        self._owed = False  # whether a commit waits for a step that is not skipped
        config = self.config.model_dump(mode="json")
        about = {
            "program": self.program,
            "config": config,
            "depends_on": self._depends_on,
            "device": self.world.device.type,
            "micro_batch": self.plan.micro_batch,
            "accumulation": self.plan.accumulation,
        }
        self.flight = Flight(self.run_dir, self.world, about, views, self.plan.accumulation, self.config.log.every_steps)
        self.numbers = BadNumbers(
            self.run_dir,
            config,
            self.global_batch,
            self.repeats,
            self.commit,
            self.engine,
            self.average,
            self.flight,
            self._saver.finish,
        )
        for done in range(self.first_step, self.total_steps):
            step = Step(self, done)
            if done == self.first_step:
                with Progress(f"step {step.number} of {self.total_steps:,}", at_once=True):  # loaders begin in it, and all may be compiled
                    yield step
            else:
                yield step
            if step.stopping and not step.last:
                self.flight.write_together(f"stopped as asked at step {step.number}")
                return
        self.flight.close(remove=True)

    def log(self, step: "Step", values: Mapping[str, float | None], words: str) -> None:
        """On a step that is shown: what is known of it goes to people, and to the board where that is due.  values, words: what the program measured."""
        known: dict[str, Any] = {
            **values,
            "optim/learning_rate": step.rate,
            **({"optim/weight_decay": step.weight_decay} if self.schedule.final_weight_decay is not None else {}),
            "optim/gradient_norm": None if step.passed else float(step.norm),
            **self.speed.figures(step.number, step.logs),
            **(self.engine.norms_by_depth(gradients=not step.passed) if step.logs else {}),
            **(self.speed.joules() if step.logs else {}),
            "data/bad_samples": float(self.bad_samples),
            **self.numbers.figures(),
        }
        if self.board:
            if step.logs:
                self.board.scalars(step.samples_seen, step.number, known)
            say(progress_line(step.number, self.total_steps, words, known, self.speed.seconds_left(step.number, self.total_steps)))
        self.speed.shown(step.number, step.logs)

    def save(self, step: "Step", more: Mapping[str, Any]) -> None:
        """Collective: commit this step (train/saving.py); `commit` is the newest one that exists.  more: what the program wants beside the record."""
        record: dict[str, Any] = {"step": step.number, "samples_seen": step.samples_seen, "bad_samples": self.bad_samples}
        record |= self.numbers.record() | {"config": self.config.model_dump(mode="json"), "manifests": self._depends_on}
        record |= {"world_size": self.world.size, "zero_stage": self.config.system.zero_stage} | self.course.record() | dict(more)
        record |= {"kept": True} if step.kept else {}
        beside = self.average.tensors() if self.average else None
        with self.copied_however_it_ends():
            self._saver.save(lambda: Saving(self.run_dir, self.engine, self.world, record, beside), ends=step.last or step.stopping)

    def _committed(self, commit: Commit) -> None:
        self.commit = commit

    @property
    def _copy_to(self) -> str | None:
        return getattr(self.config.checkpoint, "copy_to", None)

    def finish_copies(self) -> None:
        """Collective: wait until the store has all that is in the run folder.  Raises CheckpointError where it does not take it."""
        if self._copy_to:
            finish = lambda: self.copies.finish() if self.copies else None
            from_first(self.world, finish) if hasattr(self, "world") else self._peers.together(finish)

    @contextmanager
    def copied_however_it_ends(self) -> Iterator[None]:
        """Around what may end the run on all ranks together: the store then gets its newest commit, and what the flight recorder says of it."""
        try:
            yield
        except UserError:
            with suppress(UserError):  # each copy that failed was told of
                self.finish_copies()
            raise

    def close(self) -> None:
        """The folder is let go, and what the run held in memory is given back; `commit` and `course` stay."""
        if self._lock:
            self._lock.close()
        if hasattr(self, "flight"):
            self.flight.close(remove=False)
        if hasattr(self, "engine"):
            self.engine.close()
            del self.engine
        if hasattr(self, "numbers"):
            del self.numbers, self.speed  # which know the engine
        self.average = self.board = self._lock = None
        self._stream = iter(())
        gc.collect()  # models and optimisers refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Step:
    """number: steps done when this one is.  After `update`: norm, stopping, and what is due (logs, shown, commits, and
    whether its commit is kept for good)."""

    def __init__(self, run: Run, done: int):
        self.run, self.number = run, done + 1
        self.samples_seen = self.number * run.global_batch
        self.last = self.number == run.total_steps
        self.rate = learning_rate(done * run.global_batch, run.schedule, run.global_batch, run.course.began)
        self.weight_decay = weight_decay(done * run.global_batch, run.schedule, run.course.began)
        self.stopping = False
        self._bad = 0
        run.speed.step_begins()
        self.passed = done in run._passed
        watch.moved(step=done)
        noise = seed_of(run.config.seed, DROP_PATH, done, run.world.rank)  # noise inside the model belongs to (seed, step, rank)
        torch.manual_seed(noise)
        samples = [self.samples_seen - run.global_batch, self.samples_seen]
        run.flight.begin(
            self.number, {"samples": samples, "learning_rate": self.rate, "weight_decay": self.weight_decay, "noise_seed": noise}
        )

    def batches(self) -> Iterator[Batch]:
        run = self.run
        for _ in range(0 if self.passed else run.plan.accumulation):
            with run.speed.waiting():
                batch = next(run._stream)
            self._bad += run.bad.note(batch["bad"])
            if run._sample_log:
                run._sample_log.note(batch)
            run.flight.note(batch)
            yield batch

    def backward(self, loss: Tensor) -> None:
        """loss: the mean over the batch in hand, on the device.  The flight recorder has it, too, and spikes are told by it."""
        self.run.engine.backward(loss)
        self.run.flight.lost(loss)

    def update(self) -> None:
        """Collective.  Raises UserError, on all ranks, where too many gradients in a row, this step's or the one before's the last, were not finite
        (none of those steps has changed a weight) and where too many samples were bad."""
        run, checkpoint, stop = self.run, self.run.config.checkpoint, self.run.stop
        assert stop is not None  # since `steps`
        self.logs = self.number % run.config.log.every_steps == 0 or self.last
        if self.passed:
            self.norm = torch.full((), math.nan, device=run.world.device)
        else:
            self.norm = run.engine.update(self.rate, self.weight_decay, by_depth=self.logs)
            if run.average:  # in a skipped step, too, towards weights that stand still: nobody waits to see whether it was one
                run.average.update(run.engine, self.number)
            run.flight.stepped(self.norm)

        # What every rank must decide alike is asked for now and read a step later, when the device has long finished: so nothing waits for it but a step
        # that shows or commits something.
        saver, first = run._saver, run.world.first
        broken = False if self.passed else ~torch.isfinite(self.norm)
        stops = stop.requested or (first and saver.late)
        self._saving, self._agreed = saver.pending, SharedSum([broken, stops, first and saver.due, self._bad, saver.is_written], run.world)
        self.shown = self.logs or self.number == run.first_step + 1  # the first step is shown at once, for people alone
        self.kept = any(self.samples_seen - run.global_batch < at <= self.samples_seen for at in run.keep_at)
        self.kept = self.kept or self.crosses(checkpoint.keep_every_samples)
        self.commits = run._owed or self.crosses(checkpoint.every_samples) or self.kept or self.last
        before, run._unread = run._unread, self
        with run.copied_however_it_ends():
            if before:
                self._heed(before)
            if self.shown or self.commits:
                self._heed(self)
                run._unread = None
                run.numbers.listen(self.number)
        # One that is due in a skipped step waits for the next that is none, so that none from before the trouble is pruned for it.
        if self.commits:
            run._owed = bool(run.numbers.in_a_row) and not (self.kept or self.last or self.stopping)
            self.commits = not run._owed
        run.speed.step_ends()

    def _heed(self, asked: "Step") -> None:
        """Do what all ranks agreed on in the step that asked, this one or the one before."""
        run = self.run
        broken, stopping, save_now, bad, written = asked._agreed.read()
        if written == run.world.size and asked._saving is run._saver.pending:
            run._saver.finish()
        if broken:
            moved = self is not asked and not self.passed and not self._agreed.read()[0]
            run.numbers.skip(asked.number, asked.rate, self.number, moved)
        elif not asked.passed:
            run.numbers.taken()
        run.bad_samples += bad
        run.bad.stop_beyond(run.bad_samples, asked.samples_seen // run._views, run.config.data.max_bad_fraction)
        if stopping:
            self.stopping = self.logs = self.shown = True
        self.commits = self.commits or bool(stopping or save_now)

    def crosses(self, every_samples: int | None) -> bool:
        """Whether a multiple of so many samples was reached in this step: when what is done every so many samples is due."""
        return (
            every_samples is not None and self.samples_seen // every_samples > (self.samples_seen - self.run.global_batch) // every_samples
        )
