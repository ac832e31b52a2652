"""What makes a checkpoint exist: a folder of files and one COMMIT.json, written last, that names each file's size and sha256.

    checkpoints/000012500/rank00000.safetensors ...           weight/NAME, and averages of weights: each parameter in one rank's file
    checkpoints/000012500/rank00000.moments.safetensors ...   exp_avg/NAME, exp_avg_sq/NAME: what only a run that goes on reads
    checkpoints/000012500/COMMIT.json                 files, step, samples seen, config, versions, manifest hash, and a seal over all of it
A folder without a COMMIT.json does not exist; there is no other pointer.  The folder's number is the optimiser step.

A commit that exists may still be damaged: its seal or its own numbers disagree, a file is not what was committed, or holds numbers that are not
finite.  Nobody uses such a one.  The run it belongs to renames it (NNN.damaged1), readers pass over it, both aloud; nothing deletes it.
Commits from before there were seals (format 1) are held to what can be checked without one: files, step, samples and batch.
"""

import json
import os
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpp.base.errors import CheckpointError, ConfigError
from mpp.base.text import counted, say
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.disk.files import seal_of, sha256_of, write_atomically
from mpp.disk.patience import patiently
from mpp.processes.watch import watch

FORMAT = 2  # 1: without a seal
MOMENTS = ".moments.safetensors"  # how the names of files end that hold nothing else (older commits: none)
PLAIN_NAME = re.compile(r"[\w-][\w.-]*")  # of a file inside the folder


class DamagedError(CheckpointError):
    """A commit that exists and cannot be used; `folder` and `fault`, in words."""

    def __init__(self, folder: Path, fault: str):
        super().__init__(f"{folder} is damaged: {fault}")
        self.folder, self.fault = folder, fault


@dataclass(frozen=True)
class Commit:
    folder: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        return self.record["step"]

    @property
    def samples_seen(self) -> int:
        return self.record["samples_seen"]

    @property
    def optimiser_steps(self) -> int:
        """That changed weights: skipped ones and those passed over did not.  Commits from before such steps were counted have none."""
        return self.record.get("optimiser_steps", self.step)

    @property
    def seal(self) -> str:
        return seal_of(self.record)

    @property
    def of_weights(self) -> list[str]:
        """The files that hold more than moments."""
        return [name for name in self.record["files"] if not name.endswith(MOMENTS)]

    def share_of(self, rank: int, size: int) -> list[str]:
        """The files that one of so many ranks reads, for all."""
        files = self.record["files"]
        return sorted(files, key=lambda name: (-files[name]["bytes"], name))[rank::size]

    def fault(self, names: Iterable[str] | None = None) -> str | None:
        """Read these files (null: all) whole; what is wrong with the first that is not as committed, or not finite."""
        for name in self.record["files"] if names is None else names:
            path = self.folder / name
            try:
                found = patiently(lambda: sha256_of(path), str(path))  # noqa: B023, called at once
                if found != self.record["files"][name]["sha256"]:
                    return f"{name} is not what was committed (sha256 differs from COMMIT.json)"
                if broken := [key for key, tensor in _tensors(self.folder / name) if not_finite(tensor)]:
                    return f"{name} holds numbers that are not finite, in {some(broken)}"
            except (OSError, SafetensorError) as error:
                return f"{name} cannot be read ({error})"
        return None

    def verify(self) -> None:
        """All but moments.  Raises DamagedError."""
        if fault := self.fault(self.of_weights):
            raise DamagedError(self.folder, fault)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"{step:09d}"


def not_finite(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def some(names: Sequence[str]) -> str:
    return f"{counted(len(names), 'tensor')} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def write_commit(folder: Path, record: dict[str, Any]) -> Commit:
    """The instant at which a checkpoint comes to exist."""
    commit = sealed(folder, record)
    write_atomically(folder / "COMMIT.json", (json.dumps(commit.record, indent=1) + "\n").encode())
    return commit


def sealed(folder: Path, record: dict[str, Any]) -> Commit:
    record = record | {"format": FORMAT}
    return Commit(folder, record | {"seal": seal_of(record)})


def read_commit(folder: Path) -> Commit | None:
    """None where none was written.  Looks at COMMIT.json and the sizes of the files; `Commit.fault` reads them.  Raises DamagedError."""
    path = folder / "COMMIT.json"
    try:
        data = patiently(lambda: _bytes_of(path), str(path))
        if data is None and folder.is_dir() and not os.path.lexists(path):
            return None
        record = json.loads(path.read_bytes() if data is None else data)
        if isinstance(record, dict) and "seal" in record and record["seal"] == seal_of(record) and record.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {record.get('format')}, this mpp reads {FORMAT} and 1; use the mpp that wrote it"
            )
        fault = _disagreement(folder, record)
    except PermissionError as error:
        raise CheckpointError(
            f"{error.filename} may not be read ({error.strerror}); give its reader the right to, and try again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        if not folder.exists():  # pruned since it was listed
            return None
        fault = f"COMMIT.json cannot be read ({error})"
    if fault:
        raise DamagedError(folder, fault)
    return Commit(folder, record)


def _bytes_of(path: Path) -> bytes | None:
    """None where there is nothing to read, for a disk that fails for a while is not taken for that."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _size_of(path: Path) -> int | None:
    """Bytes; None where it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _disagreement(folder: Path, record: Any) -> str | None:
    """What in COMMIT.json contradicts its seal, itself, its folder or the files beside it."""
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict) or not isinstance(record.get("config"), dict):
        return "COMMIT.json names no files or no config"
    if (record["seal"] if "seal" in record else record.get("format")) != (seal_of(record) if "seal" in record else 1):
        return "COMMIT.json does not fit its own seal"
    step, samples = record.get("step"), record.get("samples_seen")
    if type(step) is not int or f"{step:09d}" != folder.name:
        return f"COMMIT.json says step {step}, its folder {folder.name}"
    batch = data["global_batch"] if isinstance(data := record["config"].get("data"), dict) and "global_batch" in data else None
    if type(samples) is not int or (batch is not None and samples != step * batch):
        return f"COMMIT.json says {samples} samples seen after {step} steps of {batch}"
    for name, facts in record["files"].items():
        if not (PLAIN_NAME.fullmatch(name) and isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys()):
            return f"COMMIT.json does not say what {name!r} holds"
        path = folder / name
        found = patiently(lambda: _size_of(path), str(path))  # noqa: B023, called at once
        if found is None:
            return f"{name} is missing"
        if not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied", str(path))
        if found != facts["bytes"]:
            return f"{name} has {found} bytes, {facts['bytes']} were committed"
    return None if record["files"] else "COMMIT.json names no files"


def asked_commit(folder: Path, verify: bool = False) -> Commit | None:
    """As `read_commit`, of the one checkpoint that somebody has named.  verify: every byte is compared but those of moments.  Raises CheckpointError."""
    try:
        commit = read_commit(folder)
        if commit and verify:
            commit.verify()
    except DamagedError as error:
        raise CheckpointError(f"{error}; bring it back from a copy, or give another checkpoint") from error
    return commit


def folders_of(run_dir: Path) -> list[Path]:
    """Those that may be checkpoints, newest first."""
    return sorted((run_dir / "checkpoints").glob("[0-9]" * 9), reverse=True)


def survey(run_dir: Path) -> Iterator[Commit | DamagedError]:
    """Every commit that exists, newest first; of a damaged one its error."""
    for folder in folders_of(run_dir):
        try:
            if commit := read_commit(folder):
                yield commit
        except DamagedError as error:
            yield error


def commits(run_dir: Path) -> list[Commit]:
    """Those at which nothing is seen to be wrong, newest first."""
    return [found for found in survey(run_dir) if isinstance(found, Commit)]


def find_commit(run_dir: Path, resume: str | int) -> Commit | None:
    """What `resume` asks for: "auto" the newest, or None; "must" the newest; a number that step.  A first look, which reads no tensors.

    Raises CheckpointError, also where checkpoints were there and none is whole: to begin again would lose what was trained, unasked.
    """
    if isinstance(resume, int):
        commit = asked_commit(checkpoint_folder(run_dir, resume)) if checkpoint_folder(run_dir, resume).exists() else None
        if commit is None:
            there = ", ".join(str(found.step) for found in reversed(commits(run_dir))) or "none"
            raise CheckpointError(f"resume={resume}: {run_dir} has no checkpoint of step {resume}; there are: {there}")
        return commit
    commit, damaged = None, []
    for found in survey(run_dir):
        if isinstance(found, Commit):
            commit = found
            break
        damaged.append(found)
    if commit is None and (damaged or any((run_dir / "checkpoints").glob("*.damaged*"))):
        raise none_whole(run_dir, damaged)
    if commit is None and resume == "must":
        raise CheckpointError(
            f"resume=must: {run_dir}/checkpoints holds no commit; start it with resume=auto, or give the run_dir that has one"
        )
    return commit


def none_whole(run_dir: Path, damaged: Sequence[DamagedError], remedy: str = "") -> CheckpointError:
    """remedy: empty for that of the run itself."""
    faults = [f"{error.folder.name}: {error.fault}" for error in damaged]
    faults += sorted(path.name for path in (run_dir / "checkpoints").glob("*.damaged*"))
    remedy = remedy or (
        f"nothing was changed: bring one back from a copy, or, to begin again at step 0, give another run_dir or move {run_dir}/checkpoints away"
    )
    return CheckpointError(f"no checkpoint in {run_dir} is whole ({'; '.join(faults)}); {remedy}")


def whole_commit(source: Path) -> Commit | None:
    """For readers: the newest commit of a run, or the checkpoint folder itself, every byte compared but those of moments.  None where none was ever
    written.

    Damaged ones are passed over aloud, and left as they are.  Raises CheckpointError where commits exist and none is whole.
    """
    if os.path.lexists(source / "COMMIT.json"):
        return asked_commit(source, verify=True)
    damaged = []
    for found in survey(source):
        if isinstance(found, Commit):
            fault = found.fault(found.of_weights)
            if fault is None:
                return found
            if not found.folder.exists():  # the run has pruned it meanwhile
                continue
            found = DamagedError(found.folder, fault)
        warn(f"{found.folder} is passed over, damaged: {found.fault}")
        damaged.append(found)
    if damaged or any((source / "checkpoints").glob("*.damaged*")):
        raise none_whole(source, damaged, "bring one back from a copy, or give another")
    return None


def warn(text: str) -> None:
    """Of rank 0."""
    if os.environ.get("RANK", "0") == "0":
        say(f"warning: {' '.join(text.split())}", error=True)


def set_aside(folder: Path, kind: str) -> Path:
    """Rename it to NNN.KIND1, or the next number that is free; returns the new name."""
    number = next(n for n in count(1) if not os.path.lexists(folder.with_name(f"{folder.name}.{kind}{n}")))
    return folder.rename(folder.with_name(f"{folder.name}.{kind}{number}"))


def set_aside_damaged(error: DamagedError, further: str = "") -> None:
    warn(f"{error}; it is set aside as {set_aside(error.folder, 'damaged')}{further}")


@watch.slowly("deleting older checkpoints")
def prune(run_dir: Path, keep: int, spared: Container[Path] = ()) -> None:
    """Delete all but the `keep` newest commits and those that are kept for good (record["kept"]), and older leftovers of writes that never
    committed.  What is damaged is set aside instead.  spared: folders that are to stay for now."""
    found = list(survey(run_dir))
    there = [each for each in found if isinstance(each, Commit)]
    kept = {commit.folder for number, commit in enumerate(there) if number < keep or commit.record.get("kept")}
    if not kept:
        return
    for error in found:
        if isinstance(error, DamagedError) and error.folder < max(kept):
            set_aside_damaged(error)
    for folder in folders_of(run_dir):
        if folder not in kept and folder < max(kept) and folder not in spared:
            (folder / "COMMIT.json").unlink(missing_ok=True)  # first, so that a half-deleted folder does not exist
            shutil.rmtree(folder)


def set_aside_after(run_dir: Path, step: int) -> list[Path]:
    """Rename what lies beyond `step`, which a run that goes on from there leaves behind; returns the new names of those that were committed."""
    return [set_aside(found.folder, "aside") for found in reversed(commits(run_dir)) if found.step > step]


def read_config(commit: Commit) -> PretrainConfig:
    """Raises CheckpointError where it was written with choices or keys that are not known here."""
    try:
        return load(PretrainConfig, None, [f"{key}={json.dumps(value)}" for key, value in commit.record["config"].items()])
    except ConfigError as error:
        handed = commit.folder.parent.parent / "encoder"
        instead = f"give the mpp that wrote it, or the encoder alone, {handed}" if handed.is_dir() else "use the mpp that wrote it"
        raise CheckpointError(f"the config of {commit.folder} is not one of this mpp ({error}); {instead}") from error


def read_tensors(commit: Commit, prefix: str) -> dict[str, torch.Tensor]:
    """Every stored tensor but moments whose name begins with `prefix`, without it, on the CPU.  Raises CheckpointError."""
    tensors: dict[str, torch.Tensor] = {}
    for name in commit.of_weights:
        try:
            tensors |= {key.removeprefix(prefix): tensor for key, tensor in _tensors(commit.folder / name, prefix)}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{commit.folder / name} cannot be read ({error}); give the command again") from error
    if not tensors:
        raise CheckpointError(f"{commit.folder} holds no tensor named {prefix}...; it is of another model")
    return tensors


def _tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(str(path), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.startswith(prefix):
                yield key, file.get_tensor(key)
