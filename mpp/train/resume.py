"""Going on: from which commit, which all ranks have seen whole; towards which end; and what to do where a run cannot go on.

An extension.  A finished run is trained on when its length is asked for larger (optim.total_samples; optim.epochs or optim.steps).  Each extension
is a cycle of its own: from final_lr, where the one before has ended, up to the peak in warmup samples or a tenth of the extension, whichever is
less, then half a cosine to final_lr at the new end (train/schedule.py); the optimiser's moments are kept.  Re-warming and re-decaying is what
continued pretraining does (arXiv 2403.08763); the old cosine stretched to the new length would jump, from final_lr to far up the curve, in one step.
When each cycle began is part of every commit, so a kill inside an extension resumes as anywhere else, and further extensions follow the same rule.

A trunk.  Before its cool-down nothing in a run of optim.schedule=wsd or constant depends on where the run ends.  So as long as its commit is of that
part, and the cool-down that is asked for has not begun there, what says how it ends may change (run_folder.ENDS), without a cycle: a trunk that is
asked for more samples just goes on, bit for bit as if it had been asked for them at first.  A run that has cooled down is trained on from before its
cool-down: in place by resume=STEP, or in a new run folder by branch_from (train/branch.py).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.base.errors import CheckpointError
from mpp.disk.files import seal_of
from mpp.processes.peers import Peers
from mpp.train.commit import Commit, DamagedError, commits, folders_of, none_whole, set_aside_damaged, survey
from mpp.train.run_folder import ENDS, RunConfig, check_same_run
from mpp.train.schedule import stable_until

STALE_SECONDS = 60.0  # that a network file system may show a folder as it was


@dataclass(frozen=True)
class Course:
    """first_step steps are done, of total_steps."""

    first_step: int
    total_steps: int
    extended_at: tuple[int, ...] = ()  # samples seen when each extension began
    # Settings that were changed on purpose (resume_changes), and lengths: step, key, from, to; trunk: how one ends.
    changes: tuple[dict[str, Any], ...] = ()
    # The commit of another run that this one began at: checkpoint, step, samples_seen, commit (its seal) ...
    branched_from: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.first_step >= self.total_steps

    @property
    def began(self) -> int:
        """Samples seen when the present cycle of the learning rate began."""
        return self.extended_at[-1] if self.extended_at else 0

    def record(self) -> dict[str, Any]:
        """For the commit."""
        known = {"extended_at": list(self.extended_at), "changes": list(self.changes)}
        return known | ({"branched_from": self.branched_from} if self.branched_from else {})

    def start_words(self, resumed: bool) -> str:
        if self.finished:
            return f"all {self.total_steps} steps are done, only measuring is left"
        if self.branched_from and self.branched_from["step"] == self.first_step:
            return f"branches from {self.branched_from['checkpoint']} at step {self.first_step}"
        return f"resumes at step {self.first_step}" if resumed else "starts"

    def finished_words(self, key: str) -> str:
        """key: of the setting that makes the run longer."""
        return f"already finished at step {self.first_step}: nothing to do; a larger {key} trains it on"

    def words(self) -> list[str]:
        """What to say at the start beyond the usual."""
        said = [f"from step {each['step']} on {each['key']}={each['to']} (before: {each['from']})" for each in self.changes]
        if self.extended_at:
            said.append(
                f"extended at {', '.join(f'{samples:,}' for samples in self.extended_at)} samples: the learning rate is in a cycle of its own, from "
                f"optim.final_lr up to the peak, then half a cosine to optim.final_lr at step {self.total_steps}"
            )
        return said


def course_of(
    commit: Commit | None,
    config: RunConfig,
    total_steps: int,
    steps_of: Callable[[Mapping[str, Any]], int],
    manifests: dict[str, str],
    what: Callable[[str], str] = str,
) -> Course:
    """What this start asks for, on top of a commit.  steps_of: a commit's optim section -> its total steps.  Raises CheckpointError (check_same_run)."""
    if commit is None:
        return Course(0, total_steps)
    theirs = steps_of(commit.record["config"].get("optim", {}))
    longer = commit.step == theirs < total_steps
    trunk = of_trunk(commit, config)
    if theirs < total_steps and not trunk:
        refuse_cooled(commit)
    changed = check_same_run(commit, config, manifests, what, length=(commit.step, theirs, total_steps), trunk=trunk)
    extended_at = (*commit.record.get("extended_at", ()), *([commit.samples_seen] if longer and not trunk else []))
    changes = (*commit.record.get("changes", ()), *changes_of(commit, changed, trunk))
    return Course(commit.step, total_steps, extended_at, changes, commit.record.get("branched_from"))


def changes_of(commit: Commit, changed: Mapping[str, tuple[Any, Any]], trunk: bool) -> list[dict[str, Any]]:
    """For `Course.changes`.  changed: as check_same_run gives it."""
    marks = lambda key: {"trunk": True} if trunk and key in ENDS else {}
    return [{"step": commit.step, "key": key, "from": before, "to": now, **marks(key)} for key, (before, now) in changed.items()]


def of_trunk(commit: Commit, config: RunConfig) -> bool:
    """Whether nothing up to this commit depended on where its run ends, and nothing does on where this one ends.  Raises CheckpointError where the
    cool-down that is asked for would have begun before it."""
    asked = config.that_changes_results().get("optim", {})
    if commit.samples_seen > stable_until(commit.record["config"].get("optim", {})):
        return False
    if asked.get("schedule") == "wsd" and commit.samples_seen > stable_until(asked) and asked["total_samples"] > commit.samples_seen:
        raise CheckpointError(
            f"optim.cooldown_samples={asked['cooldown_samples']} of optim.total_samples={asked['total_samples']} begins at {stable_until(asked)} "
            f"samples, before {commit.folder} ({commit.samples_seen} samples seen), which was trained at the full rate; take "
            f"{asked['total_samples'] - commit.samples_seen} or fewer, or an earlier checkpoint"
        )
    return commit.samples_seen <= stable_until(asked)


def refuse_cooled(commit: Commit) -> None:
    """Raises CheckpointError for a commit whose rate has gone down by a cool-down: from there it would have to jump."""
    end = stable_until(commit.record["config"].get("optim", {}))
    if not 0 < end < commit.samples_seen:
        return
    run_dir = commit.folder.parent.parent
    before = next((each for each in commits(run_dir) if each.samples_seen <= end), None)
    remedy = (
        f"go on from {before.folder}: with branch_from={before.folder} in another run_dir, or here with resume={before.step}, which renames the newer ones"
        if before
        else f"none of {run_dir} from before that is left: begin from its weights, with init_from={run_dir} in another run_dir"
    )
    raise CheckpointError(f"{commit.folder} has cooled down since {end} samples, and is not trained on; {remedy}")


def as_first_sees(peers: Peers, find: Callable[[], Commit | None]) -> Commit | None:
    """Collective: the commit that rank 0 finds, for all: its record goes round, and nobody else looks for one."""
    found = peers.from_first(lambda: [str(commit.folder), commit.record] if (commit := find()) else None)
    return Commit(Path(found[0]), found[1]) if found else None


def agreed_commit(run_dir: Path, resume: str | int, commit: Commit | None, peers: Peers) -> Commit | None:
    """Collective: the commit that this run goes on from, the same on all ranks and whole; None where it starts.

    commit: what rank 0's `find_commit` has found.  Each rank reads its share of the files.  Where one is damaged, the commit before is taken, and
    only when a whole one is found does rank 0 set aside, aloud, those that were not.  Raises CheckpointError, on all ranks, where they see different
    folders, where none is whole, and where `resume` names one that is not.
    """
    _check_same_view(run_dir, commit, peers)
    damaged: list[DamagedError] = []
    while commit is not None and (fault := _fault(commit, peers)):
        damaged.append(DamagedError(commit.folder, fault))
        if isinstance(resume, int):
            raise CheckpointError(
                f"resume={resume}: {damaged[0]}; nothing was changed: give another step, or resume=auto for the newest whole one"
            )
        step = commit.step
        commit = as_first_sees(peers, lambda: next((found for found in commits(run_dir) if found.step < step), None))  # noqa: B023
        _check_same_view(run_dir, commit, peers)
    if commit is None and damaged:
        known = {error.folder for error in damaged}
        raise none_whole(run_dir, [*damaged, *(e for e in survey(run_dir) if isinstance(e, DamagedError) and e.folder not in known)])
    if commit is not None:
        whole = commit
        peers.together(lambda: _set_aside_beyond(run_dir, whole, damaged) if peers.first else None)
    return commit


def agreed_trunk(asked: str, commit: Commit, peers: Peers) -> Commit:
    """Collective: the same for the commit that a branch begins at (branch_from=asked), of which each rank reads its share.  Raises CheckpointError, on
    all ranks, where they do not see it, and where it is not whole."""
    _check_same_view(commit.folder.parent.parent, commit, peers)
    if fault := _fault(commit, peers):
        raise CheckpointError(f"branch_from={asked}: {DamagedError(commit.folder, fault)}; nothing was changed: give another checkpoint")
    return commit


def _set_aside_beyond(run_dir: Path, commit: Commit, damaged: Sequence[DamagedError]) -> None:
    seen = {error.folder: error for error in survey(run_dir) if isinstance(error, DamagedError) and error.folder > commit.folder}
    for _, error in sorted((seen | {error.folder: error for error in damaged}).items()):
        set_aside_damaged(error, f"; the run goes on from step {commit.step}")


def _fault(commit: Commit, peers: Peers) -> str | None:
    """Collective: what is wrong with the commit's files, of which each rank reads its share; the same words on all ranks."""
    return next(filter(None, peers.gather(commit.fault(commit.share_of(peers.rank, peers.size)))), None)


def _check_same_view(run_dir: Path, commit: Commit | None, peers: Peers) -> None:
    """Collective: raises CheckpointError, on all ranks, where one of them sees another commit than rank 0, or another folder."""
    end = time.monotonic() + STALE_SECONDS
    view = _view(run_dir, commit)
    while view is not None and not peers.first and time.monotonic() < end:  # a network file system may show a folder as it was a minute ago
        time.sleep(1)
        view = _view(run_dir, commit)
    views = peers.gather(view)
    if other := next((rank for rank, seen in enumerate(views) if seen is not None), None):
        first = "none" if commit is None else f"step {commit.step} ({commit.seal[:8]})"
        raise CheckpointError(
            f"the processes see different checkpoints in {run_dir} (rank 0 sees {first}, {peers.called(other)} sees {views[other]}); it must be one "
            "folder that all nodes share, and up to date"
        )


def _view(run_dir: Path, commit: Commit | None) -> str | None:
    """What this process sees in place of the commit, in words; None where it sees that, or none where there is none."""
    if commit is None:
        there = [folder for folder in folders_of(run_dir) if (folder / "COMMIT.json").exists()]
        return f"step {int(there[0].name)}" if there else None
    try:
        found = seal_of(json.loads((commit.folder / "COMMIT.json").read_bytes()))
    except (OSError, ValueError, AttributeError):
        return "none"
    return None if found == commit.seal else f"step {commit.step} ({found[:8]})"


def way_out(run_dir: Path, asked: Mapping[str, Any], step: int, repeats: int = 1) -> str:
    """What to do where numbers ceased to be finite: words that work as they stand.

    asked: the run's config, as a commit has it.  step: how many optimiser steps a commit may have that still gives finite numbers at a lower learning rate.
    repeats: of which the run is one.
    """
    lower = f"optim.base_lr={asked['optim']['base_lr'] / 10:.2g}"
    changes = ",".join(dict.fromkeys(["optim.base_lr", *asked["resume_changes"]]))
    if repeats > 1:
        return f"repeats must not differ in their learning rate: begin all again with {lower}, or optim.clip_norm or a longer warm-up, and another run_dir"
    known = commits(run_dir)
    usable = next((commit for commit in known if commit.step <= step), None)
    if usable:
        back = "" if usable is known[0] else f" resume={usable.step}"
        return (
            f"the newest good checkpoint is {usable.folder}: to go on from it at a lower learning rate, give the same command with "
            f"{lower} resume_changes={changes}{back} (optim.clip_norm and the warm-up may be changed in this way, too)"
        )
    if known:
        return (
            f"every checkpoint that is left in {run_dir} leads there at any rate, the oldest is of step {known[-1].step}: begin again with {lower}, or "
            "optim.clip_norm or a longer warm-up, and another run_dir"
        )
    named = f" resume_changes={changes}" if asked.get("branch_from") else ""  # of its trunk's settings
    return f"no checkpoint was written yet: give the same command with {lower}{named}, or with optim.clip_norm or a longer warm-up"
