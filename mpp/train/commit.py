"""What makes a checkpoint exist: a folder of files and one COMMIT.json, written last, that names each file's size and sha256.

    checkpoints/000012500/rank00000.safetensors ...   weight/NAME, exp_avg/NAME, exp_avg_sq/NAME, each parameter in one file
    checkpoints/000012500/COMMIT.json                 files, step, samples seen, config, versions, manifest hash
A folder without a valid COMMIT.json does not exist; there is no other pointer.  The folder's number is the optimiser step.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpp.config import PretrainConfig, load
from mpp.errors import CheckpointError
from mpp.files import write_atomically
from mpp.watch import watch

FORMAT = 1


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

    def verify(self) -> None:
        """Compare every file with its recorded sha256.  Raises CheckpointError."""
        for name, facts in self.record["files"].items():
            try:
                found = sha256_of(self.folder / name)
            except OSError as error:
                raise CheckpointError(
                    f"{self.folder / name} cannot be read ({error.strerror}); is another run using this folder?"
                ) from error
            if found != facts["sha256"]:
                raise CheckpointError(
                    f"{self.folder / name} is not what was committed (sha256 differs from COMMIT.json); delete {self.folder} to use an older checkpoint"
                )


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"{step:09d}"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_commit(folder: Path, record: dict[str, Any]) -> None:
    """The instant at which a checkpoint comes to exist."""
    write_atomically(folder / "COMMIT.json", (json.dumps({"format": FORMAT} | record, indent=1) + "\n").encode())


def read_commit(folder: Path) -> Commit | None:
    """None where there is no valid commit; a damaged one is named on stderr."""
    try:
        record = json.loads((folder / "COMMIT.json").read_text())
        if record["format"] != FORMAT:
            raise CheckpointError(f"{folder} has checkpoint format {record['format']}, this mpp reads {FORMAT}; use the mpp that wrote it")
        commit = Commit(folder, record)
        missing = [name for name, facts in record["files"].items() if (folder / name).stat().st_size != facts["bytes"]]
    except FileNotFoundError as error:
        missing = [str(error.filename)]
        if str(error.filename).endswith("COMMIT.json"):
            return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing = [f"COMMIT.json ({error})"]
    if missing:
        sys.stderr.write(f"warning: {folder} is passed over, damaged: {', '.join(missing)}\n")
        return None
    return commit


def commits(run_dir: Path) -> list[Commit]:
    """Those that exist, oldest first."""
    folders = sorted((run_dir / "checkpoints").glob("[0-9]" * 9))
    return [commit for folder in folders if (commit := read_commit(folder))]


def newest_commit(run_dir: Path) -> Commit | None:
    folders = sorted((run_dir / "checkpoints").glob("[0-9]" * 9), reverse=True)
    return next((commit for folder in folders if (commit := read_commit(folder))), None)


def find_commit(run_dir: Path, resume: str | int) -> Commit | None:
    """What `resume` asks for: "auto" the newest, or None; "must" the newest; a number that step.  Raises CheckpointError."""
    if isinstance(resume, int):
        commit = read_commit(checkpoint_folder(run_dir, resume))
        if commit is None:
            there = ", ".join(str(found.step) for found in commits(run_dir)) or "none"
            raise CheckpointError(f"resume={resume}: {run_dir} has no checkpoint of step {resume}; there are: {there}")
        return commit
    commit = newest_commit(run_dir)
    if commit is None and resume == "must":
        raise CheckpointError(
            f"resume=must: {run_dir}/checkpoints holds no commit; start it with resume=auto, or give the run_dir that has one"
        )
    return commit


@watch.slowly("deleting older checkpoints")
def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the `keep` newest commits, and older leftovers of writes that never committed."""
    kept = {commit.folder for commit in commits(run_dir)[-keep:]}
    if kept:
        for folder in (run_dir / "checkpoints").glob("[0-9]" * 9):
            if folder not in kept and folder < max(kept):
                (folder / "COMMIT.json").unlink(missing_ok=True)  # first, so that a half-deleted folder does not exist
                shutil.rmtree(folder)


def set_aside_after(run_dir: Path, step: int) -> list[Path]:
    """Rename what lies beyond `step`, which a run that goes on from there leaves behind; returns the new names of those that were committed."""
    aside = []
    for folder in sorted((run_dir / "checkpoints").glob("[0-9]" * 9)):
        if int(folder.name) > step and read_commit(folder):
            number = next(n for n in count(1) if not folder.with_name(f"{folder.name}.aside{n}").exists())
            aside.append(folder.rename(folder.with_name(f"{folder.name}.aside{number}")))
    return aside


def read_config(commit: Commit) -> PretrainConfig:
    return load(PretrainConfig, None, [f"{key}={json.dumps(value)}" for key, value in commit.record["config"].items()])


def read_tensors(commit: Commit, prefix: str) -> dict[str, torch.Tensor]:
    """Every stored tensor whose name begins with `prefix`, without it, on the CPU.  Raises CheckpointError."""
    tensors: dict[str, torch.Tensor] = {}
    for name in commit.record["files"]:
        try:
            with safe_open(str(commit.folder / name), framework="pt") as file:
                tensors |= {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{commit.folder / name} cannot be read ({error}); delete {commit.folder} to use an older checkpoint"
            ) from error
    if not tensors:
        raise CheckpointError(f"{commit.folder} holds no tensor named {prefix}...; it is of another model")
    return tensors
