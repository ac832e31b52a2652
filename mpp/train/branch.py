"""A branch: a new run that goes on from a checkpoint of a trunk, with all that is in it, towards an end of its own.

    trunk     optim.schedule=constant (or wsd), checkpoint.keep_at_samples=[...]
    branch    the same config, branch_from=RUN/checkpoints/N, optim.schedule=wsd, optim.cooldown_samples, optim.total_samples

So one trunk gives the results of several lengths for the price of the longest and the cool-downs (arXiv 2405.18392).  Weights, moments, teacher, count
of bad samples and clock are the trunk's; the branch sees the samples that the trunk would have seen next.  It may differ from the trunk in how it ends
(run_folder.ENDS) and in what is named in resume_changes.  It lies in a run folder of its own, resumes as any run, and its commits say where it began.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpp.base.errors import CheckpointError
from mpp.remote.urls import is_url
from mpp.train.commit import Commit, asked_commit, commits
from mpp.train.copies import local, run_of
from mpp.train.resume import Course, changes_of, of_trunk
from mpp.train.run_folder import RunConfig, check_same_run
from mpp.train.schedule import stable_until


def find_trunk(asked: str) -> Commit:
    """asked: a run, whose newest commit it is, or a checkpoint folder; also in a store, s3://...  A first look, which reads no tensors.  Raises CheckpointError."""
    path = Path(local(asked))
    commit = asked_commit(path) if os.path.lexists(path / "COMMIT.json") else next(iter(commits(path)), None)
    if commit is None:
        raise CheckpointError(f"branch_from={asked} holds no checkpoint that is whole; give a run, or one of its RUN/checkpoints/N")
    return commit


def check_branch(run_dir: Path, commit: Commit, asked: str) -> None:
    """Raises CheckpointError where the run in `run_dir` that would be resumed is no branch of what is asked for."""
    trunk = commit.record.get("branched_from")
    if trunk is None or trunk["asked"] != _place(asked):
        began = f"branched from {trunk['asked']}" if trunk else "is no branch"
        raise CheckpointError(
            f"branch_from={asked}: the run in {run_dir} {began}; give another run_dir for a new branch, or leave branch_from out to go on with that run"
        )


def branch_course(
    commit: Commit, asked: str, config: RunConfig, total_steps: int, manifests: dict[str, str], what: Callable[[str], str]
) -> Course:
    """Of a run that begins at this commit of another.  Raises CheckpointError where it cannot."""
    optim: dict[str, Any] = commit.record["config"].get("optim", {})
    if commit.record.get("program") == "finetune":
        raise CheckpointError(
            f"branch_from={asked}: {commit.folder} is of fine-tuning; give a pretraining run, or encoder= of what was fine-tuned"
        )
    if not stable_until(optim):
        raise CheckpointError(
            f"branch_from={asked}: its learning rate at each step depends on where it ends (optim.schedule={optim.get('schedule', 'cosine')}); "
            "branches leave from runs of optim.schedule=wsd or constant; with init_from instead a run begins from its weights"
        )
    if commit.samples_seen > stable_until(optim):
        raise CheckpointError(
            f"branch_from={asked}: {commit.folder} ({commit.samples_seen} samples seen) lies in the cool-down that began at {stable_until(optim)} "
            "samples; give a checkpoint from before"
        )
    trunk = of_trunk(commit, config)
    if commit.step >= total_steps:
        raise CheckpointError(
            f"branch_from={asked}: {commit.folder} has seen {commit.samples_seen} samples; optim.total_samples must be more than that, by a step or more"
        )
    changed = check_same_run(commit, config, manifests, what, trunk=trunk, who="a branch keeps all but how it ends")
    of_schedule = changes_of(commit, changed, trunk)
    branched = {
        "asked": _place(asked),
        "checkpoint": f"{run_of(asked)}/checkpoints/{commit.folder.name}" if is_url(asked) else str(commit.folder),
        "step": commit.step,
        "samples_seen": commit.samples_seen,
        "commit": commit.seal,
    }
    if before := commit.record.get("branched_from"):
        branched["before"] = before
    return Course(
        commit.step, total_steps, tuple(commit.record.get("extended_at", ())), (*commit.record.get("changes", ()), *of_schedule), branched
    )


def _place(asked: str) -> str:
    """The same from every working folder."""
    return asked.rstrip("/") if is_url(asked) else str(Path(asked).resolve())
