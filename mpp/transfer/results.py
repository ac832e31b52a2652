"""What a measurement leaves behind: results.json, every answer, and pictures; and how it is read again.

OUT/results.json              figures, choices, FeatureSpec, counts, seeds, seconds, encoder and data identities
OUT/predictions.safetensors   <row>/<probe>/predicted int64 [m], <row>/<probe>/confidence float32 [m]; truth, samples int64 [m]
OUT/*.png                     accuracy by layer, confusions, surest mistakes, reliability, regularisation path
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpp.data.crop_dataset import CropDataset
from mpp.errors import DataError
from mpp.files import write_atomically
from mpp.transfer import metrics, plots
from mpp.transfer.mistakes import draw_mistakes
from mpp.transfer.probes import PROBES
from mpp.transfer.probes.contract import Answers
from mpp.transfer.table import figures_of

RESULTS, PREDICTIONS = "results.json", "predictions.safetensors"


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    write_atomically(out / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


def write_predictions(out: Path, answers: Mapping[str, Mapping[str, Answers]], truth: np.ndarray, samples: np.ndarray) -> None:
    """answers: row -> probe -> answers to the same m images; truth, samples: integers [m]."""
    tensors = {"truth": torch.from_numpy(truth.astype(np.int64)), "samples": torch.from_numpy(samples.astype(np.int64))}
    for row, probes in answers.items():
        for probe, given in probes.items():
            tensors |= {
                f"{row}/{probe}/predicted": given.predicted.contiguous(),
                f"{row}/{probe}/confidence": given.confidence.contiguous(),
            }
    write_atomically(out / PREDICTIONS, save(tensors))


@dataclass(frozen=True)
class Result:
    """A folder with results.json."""

    folder: Path
    about: dict[str, Any]

    def predictions(self) -> dict[str, Tensor]:
        """Raises DataError."""
        try:
            with safe_open(str(self.folder / PREDICTIONS), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.folder / PREDICTIONS} cannot be read ({error}); measure again with the command in {RESULTS}") from error


def find_results(paths: Sequence[str]) -> list[Result]:
    """Every results.json in or below these folders, sorted.  Raises DataError for a folder without any, or a damaged one."""
    found = []
    for path in paths:
        folder = Path(path)
        files = [folder] if folder.name == RESULTS else sorted(folder.rglob(RESULTS))
        if not files or not files[0].exists():
            raise DataError(f"{path}: holds no {RESULTS}; give folders in which mpp/linear_probe.py or mpp/finetune.py have written")
        for file in files:
            try:
                about = json.loads(file.read_text())
                if "rows" not in about:
                    raise ValueError("it has no rows")
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read ({error}); measure again, or leave it out") from error
            found.append(Result(file.parent, about))
    return found


def draw_choices(out: Path, rows: Mapping[str, Mapping[str, Any]], holdout_images: int) -> list[str]:
    """Pictures of what each probe tried on the hold-out of train; returns their names."""
    made: dict[str, bytes] = {}
    for probe in PROBES:
        if found := figures_of(probe.key, rows):
            made |= dict(probe.pictures(found, list(rows), holdout_images))
    return _written(out, made)


def draw_answers(
    out: Path,
    main: str,
    probe: str,
    rows: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, Answers]],
    truth: np.ndarray,
    classes: Sequence[str],
    where: str,
    crops: Mapping[str, CropDataset],
) -> list[str]:
    """Pictures of one probe's answers to the m images reported on: confusions and reliability of every row, the surest mistakes of those in `crops`.

    truth: integers [m]; where: in words; crops: by row, the m images as it saw them, `main` among them.  Returns the pictures' names.
    """
    given = {row: first_draw(probes[probe]) for row, probes in answers.items() if probe in probes}
    true = torch.from_numpy(truth.astype(np.int64))
    matrices = {row: metrics.confusion_matrix(each.predicted, true, len(classes)).numpy() for row, each in given.items()}
    sure = {name: row[probe]["calibration"] for name, row in rows.items() if probe in row}
    title = next((known.title for known in PROBES if known.key == probe), "fine-tuning")
    words = f"{title}, {where}, {len(truth):,} images"
    made = plots.confusions(matrices, classes, words) | {"reliability.png": plots.reliability(sure, f"{title}, {where}")}
    seen = [row for row in crops if row in given]
    files = plots.file_names("mistakes", [row for row in seen if row != main]) | {main: "mistakes.png"}
    for row in seen:
        each = given[row]
        made[files[row]] = draw_mistakes(crops[row], each.predicted, each.confidence, truth, classes, f"{row}, {words}")
    return _written(out, made)


def first_draw(given: Answers) -> Answers:
    """Of answers that several draws of the labels gave, [T, m]: a picture shows one."""
    return given if given.predicted.ndim == 1 else Answers(given.predicted[0], given.confidence[0])


def _written(out: Path, made: Mapping[str, bytes]) -> list[str]:
    for file, data in made.items():
        write_atomically(out / file, data)
    return list(made)
