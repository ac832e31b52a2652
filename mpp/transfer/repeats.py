"""What the repeats of one fine-tuning leave behind, each in a folder of its own, and how it is laid side by side.

RUN/repeat-I/measured.json            what a fine-tuning alone writes into results.json; of another name, as it is not listed beside the joint one
RUN/repeat-I/predictions.safetensors  its answers
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mpp.base.errors import DataError
from mpp.transfer.probes.contract import Answers
from mpp.transfer.results import PREDICTIONS

MEASURED = "measured.json"


def repeat_folder(run_dir: Path, number: int) -> Path:
    return run_dir / f"repeat-{number}"


def repeats_in(run_dir: Path, holding: str) -> list[int]:
    """The numbers of the repeats in whose folders there is something of this name."""
    names = [path.parent.name.removeprefix("repeat-") for path in run_dir.glob(f"repeat-*/{holding}")]
    return sorted(int(name) for name in names if name.isdecimal())


def side_by_side(folders: Sequence[Path], row: str, probe: str) -> tuple[Answers, Tensor, Tensor]:
    """The answers of T draws to the same m images, int64 and float32 [T, m]; truth and samples, int64 [m].  Raises DataError."""
    found = []
    for folder in folders:
        try:
            found.append(load_file(folder / PREDICTIONS))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{folder / PREDICTIONS} cannot be read ({error}); delete {folder / MEASURED} and give the command again: it measures anew"
            ) from error
    truth, samples = found[0]["truth"], found[0]["samples"]
    for folder, each in zip(folders, found, strict=True):
        if not (torch.equal(each["truth"], truth) and torch.equal(each["samples"], samples)):
            raise DataError(
                f"{folder} was measured on other images than {folders[0]}; delete {folder / MEASURED} and give the command again: it measures anew"
            )
    stack = lambda what: torch.cat([each[f"{row}/{probe}/{what}"].reshape(-1, len(truth)) for each in found])
    return Answers(stack("predicted").long(), stack("confidence")), truth, samples
