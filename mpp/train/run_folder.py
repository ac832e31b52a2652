"""The run folder: what was asked for, on what, and whether a resumed run still asks for the same."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

import mpp
from mpp.base.errors import BusyError, CheckpointError, ConfigError
from mpp.base.machine import usable_cores
from mpp.config.schema import Section, dump, flat, load, may_change
from mpp.data.crop import jpeg_decoder
from mpp.data.order import ranges_in_words, steps_over
from mpp.disk.files import TEMPORARY, append, keep_lines, write_atomically
from mpp.disk.locks import Owner, lock_folder
from mpp.processes.agreement import PACKAGES
from mpp.processes.peers import Peers
from mpp.remote.retries import hidden
from mpp.train.commit import Commit, commits

# May move; what lies there may not change.
PATHS = ("data.shards", "data.holdout_shards", "encoder", "train", "target.encoder", "target.path")
# May change: no number that is computed depends on them, or, as in a stream, it depends on each start anyhow.
LIMITS = ("data.max_bad_fraction", "data.shuffle_buffer")
# Keys that came after references were shipped, at the values that leave a run what it was before.
LATER = {"data.weights": None, "data.shuffle_buffer": 1000}
PASSED_OVER = "data.skip_samples"  # may change for the steps that are still to come
LENGTHS = ("optim.total_samples", "optim.epochs", "optim.steps")  # may grow once the run has finished
# How a trunk ends: may change as long as no step of it depended on that (train/resume.py).
ENDS = ("optim.schedule", "optim.total_samples", "optim.cooldown_samples", "optim.cooldown_shape", "optim.final_lr")


class RunConfig(Protocol):
    """What a resumed run may ask of any program's config."""

    @property
    def resume_changes(self) -> tuple[str, ...]: ...

    def that_changes_results(self) -> dict[str, Any]: ...


def write_run_folder(run_dir: Path, config: Section, argv: Sequence[str] | None, program: str = "mpp/pretrain.py") -> None:
    """config.yaml, command.txt (a line each start) and environment.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "config.yaml", dump(config).encode())
    append(run_dir / "command.txt", shlex.join(map(hidden, sys.argv if argv is None else [program, *argv])) + "\n")
    write_atomically(run_dir / "environment.json", (json.dumps(environment(), indent=2) + "\n").encode())


def refuse_unshared(run_dir: Path, peers: Peers, seconds: float) -> None:
    """Collective, once rank 0 holds it: raises ConfigError, in all, where a process does not see the same folder, which a network file system may show
    so many seconds late."""
    seen = lambda: owner.token if (owner := Owner.read(run_dir / "lock.owner")) else ""
    held, end = peers.from_first(seen), time.monotonic() + seconds
    while seen() != held and time.monotonic() < end:
        time.sleep(0.5)
    blind = [rank for rank, token in enumerate(peers.gather(seen())) if token != held]
    if blind:
        raise ConfigError(
            f"run_dir={run_dir}: {peers.called(blind[0])}{f' and {len(blind) - 1} more' if blind[1:] else ''} does not see the folder in which rank 0 works; "
            "it must be one folder that all nodes share"
        )


def hold_run_folder(run_dir: Path, find: Callable[[], Commit | None], commit: Commit | None) -> TextIO:
    """Rank 0: keep other runs out for as long as the file that is returned stays open.  Files that a kill has left half-written are removed.

    find: what the run goes on from; commit: what it has found before.  Raises BusyError where another run is training here, or has just committed.
    """
    lock = (run_dir / "lock").open("w")
    busy = f"run_dir={run_dir}: another run is training here; wait for it, stop its processes, or give another run_dir"
    lock_folder(lock, busy, leased=True)
    if find() != commit:
        raise BusyError(f"run_dir={run_dir}: the run that was training here has committed just now; give the command again")
    for folder in (run_dir, *(run_dir / name for name in ("encoder", "teacher", "pictures", "flight"))):
        for path in folder.glob(TEMPORARY):  # what a kill has left half-written; in checkpoints a folder goes as a whole
            path.unlink(missing_ok=True)
    return lock


def cut_back_logs(run_dir: Path, position: int) -> None:
    """Drop what is noted of positions from `position` on, which a resumed run sees again, and of the hold-out, which each start reads again.

    Lines that a disk has made unreadable are kept.
    """
    for path in run_dir.glob("samples.rank*.tsv"):
        keep_lines(path, lambda line: not line.split("\t")[0].isdecimal() or int(line.split("\t")[0]) < position)
    for path in run_dir.glob("bad_samples.rank*.jsonl"):
        keep_lines(path, lambda line: (noted := _noted_position(line)) is not None and noted < position)


def _noted_position(line: str) -> int | None:
    """-1 for a line that says none any more, which is kept: nothing here may stop a run from going on."""
    try:
        noted = json.loads(line)["position"]
    except (ValueError, KeyError, TypeError):
        return -1
    return noted if noted is None or isinstance(noted, int) else -1


def environment() -> dict[str, Any]:
    return {
        "mpp": mpp.__version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "host": platform.node(),
        "cpus": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "jpegs": jpeg_decoder(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        **{package: version(package) for package in PACKAGES},
    }


def _as_of_today(config: RunConfig, then: dict[str, Any]) -> dict[str, Any]:
    """What changes results of a config that an older mpp may have written: by the names that keys have today, with the defaults of those that came later."""
    try:
        known: Any = load(type(config), None, [f"{key}={json.dumps(value)}" for key, value in then.items()])  # type: ignore[type-var]
        return known.that_changes_results()
    except ConfigError:  # what it says cannot be said any more: it is shown as it is
        return {section: then.get(section) for section in config.that_changes_results()}


def identity_of(config: RunConfig, depends_on: dict[str, str]) -> str:
    """Of what a run computes but for its seed: recipe, scale and images, sha256, hexadecimal.  depends_on: as of check_same_run."""
    known = {key: value for key, value in flat(config.that_changes_results()).items() if key not in (*PATHS, *LIMITS, PASSED_OVER, "seed")}
    known = {key: value for key, value in known.items() if key not in LATER or value != LATER[key]}
    return hashlib.sha256(json.dumps([known, depends_on], sort_keys=True).encode()).hexdigest()


def check_same_run(
    commit: Commit,
    config: RunConfig,
    manifests: dict[str, str],
    what: Callable[[str], str] = str,
    length: tuple[int, int, int] = (0, 0, 0),
    trunk: bool = False,
    who: str = "a resumed run keeps what changes results",
) -> dict[str, tuple[Any, Any]]:
    """A run that goes on must be the same run.  Raises CheckpointError naming the first difference that is not allowed.

    manifests: sha256 of each manifest (or whatever identifies what a run depends on) in use; what: its name -> how messages call it.  length: steps
    done, total steps then and now.  trunk: whether the commit is of one, whose end may change.  who: must not differ, in words.  Returns what
    differs and may: key -> (then, now).
    """
    ours = flat(config.that_changes_results())
    theirs = flat(_as_of_today(config, commit.record["config"]))
    afresh = f" (with init_from={commit.folder.parent.parent} to begin from its weights)" if hasattr(config, "init_from") else ""
    done, then, now = length
    changed = {}
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (not key.endswith(".name"), key)):
        if ours.get(key) == theirs.get(key) or key in PATHS or key in LIMITS:
            continue
        if key == PASSED_OVER:
            _check_still_to_come(commit, theirs.get(key) or [], ours.get(key) or [])
            changed[key] = theirs.get(key), ours.get(key)
            continue
        differs = f"{commit.folder} was written with {key}={theirs.get(key)}, this run asks for {ours.get(key)}; "
        if key in config.resume_changes or (key in LENGTHS and done == then < now) or (trunk and key in ENDS):
            changed[key] = theirs.get(key), ours.get(key)
        elif key in LENGTHS and done < then < now:
            raise CheckpointError(
                f"{differs}a run is extended when it has finished, and this one is at step {done} of {then}: set it back and let it finish first, "
                f"or give another run_dir{afresh}"
            )
        else:
            purpose = (
                f", to change it on purpose from here on add resume_changes={','.join([*config.resume_changes, key])}"
                if may_change(key)
                else ""
            )
            raise CheckpointError(f"{differs}{who}: set it back{purpose}, or give another run_dir{afresh}")
    for name, digest in manifests.items():
        before = commit.record["manifests"].get(name)
        if before != digest:
            was = f"then {before[:12]}..." if before else "then there was none"
            raise CheckpointError(
                f"{what(name)} has changed since {commit.folder} was written (sha256 {digest[:12]}..., {was}): the run would be another; restore it, or give "
                "another run_dir"
            )
    return changed


def _check_still_to_come(commit: Commit, then: Sequence[Sequence[int]], now: Sequence[Sequence[int]]) -> None:
    """Raises CheckpointError where the commit has trained on what is to be passed over now, or the other way round."""
    batch = commit.record["config"]["data"]["global_batch"]
    before = steps_over(now, batch, commit.step)
    if other := steps_over(then, batch, commit.step) ^ before:
        first = min(other)
        earlier = [each.step for each in commits(commit.folder.parent.parent) if each.step <= first]
        remedy = (
            f"go on from an earlier checkpoint, with resume={earlier[0]}" if earlier else "no checkpoint from before is left: set it back"
        )
        was = "trained on" if first in before else "passed over"
        raise CheckpointError(
            f"{PASSED_OVER}={ranges_in_words(now)}: positions {first * batch}:{(first + 1) * batch} were {was} before {commit.folder} was written; {remedy}"
        )


def _git_commit() -> str | None:
    where = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
