"""The run folder before there is a run: whether it can be written, is one for all, has room, and is nobody else's.  Nothing is left there."""

import fcntl
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mpp.base.errors import UserError
from mpp.base.progress import Progress, minutes
from mpp.base.text import counted, sized
from mpp.checks.finding import Finding
from mpp.config.pretrain import KeptCheckpointConfig
from mpp.config.sections import CheckpointConfig
from mpp.disk.files import temporary
from mpp.disk.locks import Owner
from mpp.processes.peers import Peers
from mpp.remote.retries import shown
from mpp.train.commit import commits
from mpp.train.copies import Helper

SEEN_SECONDS = 10.0  # in which a file of rank 0 is to be seen by all: it has a new name, of which no cache knows that it is not there
LOOK_SECONDS = 0.2


def levels_to(run_dir: Path) -> tuple[Path, int]:
    """The folder itself, or the nearest above it that exists, and how many levels up that is."""
    path, levels = run_dir.absolute(), 0
    while not path.exists():
        path, levels = path.parent, levels + 1
    return path, levels


def shared(run_dir: Path, peers: Peers, seconds: float = SEEN_SECONDS) -> Finding:
    """Collective: rank 0 writes a token, which the others are to see at the same place.  Raises UserError, in all, where it cannot be written."""

    def write() -> list:
        there, levels = levels_to(run_dir)
        token = temporary(there / "doctor")
        try:
            token.write_text(token.name)
        except OSError as error:
            raise UserError(
                f"run_dir={run_dir}: {there} cannot be written ({error.strerror}); give a folder on a disk that you may write to"
            ) from None
        return [levels, token.name]

    levels, name = peers.from_first(write)
    path = run_dir.absolute()
    token = (path if levels == 0 else path.parents[levels - 1]) / name
    try:
        ends = time.monotonic() + seconds
        while not (seen := _holds(token, name)) and time.monotonic() < ends:
            time.sleep(LOOK_SECONDS)
        blind = [rank for rank, sees in enumerate(peers.gather(seen)) if not sees]
    finally:
        if peers.first:
            token.unlink(missing_ok=True)
    where = f"{run_dir}{'' if levels == 0 else f' (to be made in {token.parent})'}"
    if blind:
        who = f"{peers.called(blind[0])}{f' and {len(blind) - 1} more' if blind[1:] else ''}"
        return Finding(
            "run folder", "FAILED", f"{where}: {who} does not see what rank 0 writes there", "give a run_dir on a disk that all nodes share, by an absolute path"
        )  # fmt: skip
    return Finding("run folder", "ok", f"{where} can be written" + (f", and all {peers.size} processes see it" if peers.size > 1 else ""))


def _holds(token: Path, text: str) -> bool:
    with suppress(OSError):
        return token.read_text() == text
    return False


def held(*run_dirs: Path) -> Finding:
    """Whether a run trains in one of them.  Its lock is asked for, and not kept."""
    found = [_held(run_dir) for run_dir in run_dirs]
    return next((each for each in found if each.verdict != "ok"), found[0])


def _held(run_dir: Path) -> Finding:
    lock, owner = run_dir / "lock", Owner.read(run_dir / "lock.owner")
    taken = False
    with suppress(FileNotFoundError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go when the file is closed
        except BlockingIOError:
            taken = True
        except OSError:  # no locks on that disk: the lease alone tells
            taken = owner is not None and not owner.has_ended
    if not taken:
        return Finding("other runs", "ok", f"nobody trains in {run_dir}")
    return Finding(
        "other runs", "FAILED", f"a run trains in {run_dir} now{f' ({owner.words})' if owner else ''}, so this one could not", "wait for it, stop its processes, or give another run_dir"
    )  # fmt: skip


def room(run_dirs: Sequence[Path], checkpoint: CheckpointConfig, commit_bytes: int, total_samples: int) -> Finding:
    """run_dirs: of a run, or of each of its repeats.  commit_bytes: of one checkpoint.  A new one is whole before the oldest goes."""
    there, _ = levels_to(run_dirs[0])
    for_good = total_samples // checkpoint.keep_every_samples if checkpoint.keep_every_samples else 0
    most = checkpoint.keep + 1 + for_good + len(checkpoint.keep_at_samples)
    most += bool(getattr(checkpoint, "copy_to", None))  # the one that is being copied stays
    there_now = [len(commits(run_dir)) for run_dir in run_dirs]
    needed, free = sum(max(1, most - each) for each in there_now) * commit_bytes, shutil.disk_usage(there).free
    present, each_of = sum(there_now), f" for each of {len(run_dirs)} repeats" if len(run_dirs) > 1 else ""
    found = (
        f"{counted(most, 'checkpoint')} of {sized(commit_bytes)}{each_of}{f', {present} of them there' if present else ''}: "
        f"{sized(needed)} are needed at most, {sized(free)} are free in {there}"
    )
    if needed > free:
        return Finding(
            "disk", "FAILED", found, "make room there, or give a run_dir on another disk, or a smaller checkpoint.keep (2 at least)"
        )
    return Finding("disk", "ok", found)


def copies(run_dir: Path, checkpoint: KeptCheckpointConfig, commit_bytes: int) -> Finding:
    """Whether checkpoint.copy_to can be listed, written, read and deleted from, and is quick enough.  commit_bytes: of one checkpoint.  Raises UserError."""
    assert checkpoint.copy_to is not None
    helper, where = Helper(checkpoint.copy_to, run_dir), shown(checkpoint.copy_to)
    try:
        with Progress(f"writing to {where}", at_once=True):
            found = helper.ask("probe")
    finally:
        helper.end()
    if found["held"]:
        return Finding(
            "copies", "FAILED", f"another run writes to {where} ({found['held']})", "wait for it, stop it, or give another place"
        )
    rate = found["bytes_per_second"]
    seconds, steps = commit_bytes / rate, [int(name) for name in found["commits"]]
    said = f"{where} can be listed, written, read and deleted from, at {rate / 1e6:.0f} MB/s: {minutes(seconds)} for a checkpoint of {sized(commit_bytes)}"
    said += f", and holds checkpoints up to step {max(steps)}" if steps else ""
    if checkpoint.every_minutes is not None and seconds > 60 * checkpoint.every_minutes:
        return Finding(
            "copies", "warning", f"{said}; one is due every {checkpoint.every_minutes:g} min, so some are passed over", "raise checkpoint.every_minutes, or give a place that is nearer"
        )  # fmt: skip
    return Finding("copies", "ok", said)
