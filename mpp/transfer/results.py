"""What a measurement leaves behind: results.json, every answer, and pictures; and how it is read again.

OUT/results.json              figures, choices, FeatureSpec, counts, seeds, seconds, encoder and data identities
OUT/predictions.safetensors   <row>/<column>/predicted int32 [S, T, m], S seeds of the network, T draws of the labels; confidence, and of two classes
                              score, float32, where the probe has them; truth, samples int64 [m]; in_train bool [m]
OUT/*.png                     accuracy by layer, confusions, surest mistakes, reliability, regularisation path
"""

import functools
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

from mpp.base.errors import DataError
from mpp.data.crop_dataset import CropDataset
from mpp.disk.files import write_atomically
from mpp.transfer import metrics, plots
from mpp.transfer.mistakes import draw_mistakes
from mpp.transfer.probes import PROBES
from mpp.transfer.probes.contract import Answers
from mpp.transfer.table import figures_of

RESULTS, PREDICTIONS = "results.json", "predictions.safetensors"
IN_TRAIN = "in_train"


def write_results(out: Path, results: Mapping[str, Any], name: str = RESULTS) -> None:
    write_atomically(out / name, (json.dumps(results, indent=2) + "\n").encode())


def write_predictions(
    out: Path, answers: Mapping[str, Mapping[str, Answers]], truth: Tensor, samples: np.ndarray, in_train: np.ndarray
) -> None:
    """answers: row -> column -> answers to the same m images; truth, samples: integers [m]; in_train: bool [m], the images that train holds, too."""
    tensors = {"truth": truth.long(), "samples": torch.from_numpy(samples.astype(np.int64)), IN_TRAIN: torch.from_numpy(in_train)}
    for row, columns in answers.items():
        for column, given in columns.items():
            for name, part in given.parts().items():
                three = part.reshape((1,) * (3 - part.ndim) + part.shape)
                tensors[f"{row}/{column}/{name}"] = (three.int() if name == "predicted" else three.float()).contiguous()
    write_atomically(out / PREDICTIONS, save(tensors))


@dataclass(frozen=True)
class Result:
    """A folder with results.json."""

    folder: Path
    about: dict[str, Any]

    @functools.cached_property
    def problem(self) -> str:
        """Why there are no answers here; empty where there are."""
        try:
            self.predictions()
        except DataError as error:
            return str(error)
        return ""

    def predictions(self) -> dict[str, Tensor]:
        """Read once.  Raises DataError."""
        return self._predictions

    @functools.cached_property
    def _predictions(self) -> dict[str, Tensor]:
        try:
            with safe_open(str(self.folder / PREDICTIONS), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.folder / PREDICTIONS} cannot be read ({error}); measure again with the command in {RESULTS}") from error

    def answers(self, row: str) -> dict[str, Answers]:
        """By column.  Raises DataError."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.predictions().items():
            if name.startswith(f"{row}/"):
                column, _, part = name.removeprefix(f"{row}/").rpartition("/")
                found.setdefault(column, {})[part] = tensor.long() if part == "predicted" else tensor
        return {column: Answers(**parts) for column, parts in found.items()}


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
            found.append(Result(file.parent, of_today(about)))
    return found


def of_today(about: dict[str, Any]) -> dict[str, Any]:
    """Older results kept the accuracy of each draw under the name that now counts the draws, and looked for neighbours in one place alone."""
    for name in ("knn", "attentive"):
        if name in (about.get("config") or {}):
            about["config"][name].setdefault("curve", False)
    for row in about["rows"].values():
        for figure in (row.get("few_shot") or {}).values():
            if isinstance(figure.get("draws"), list):
                figure |= {"by_run": [figure["draws"]], "draws": len(figure["draws"])}
    return about


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
    given = {row: first_run(probes[probe]) for row, probes in answers.items() if probe in probes}
    runs = {row: answers[row][probe].predicted.numel() // len(truth) for row in given}
    named = {row: row if count == 1 else f"{row}, first of {count} runs" for row, count in runs.items()}
    true = torch.from_numpy(truth.astype(np.int64))
    matrices = {named[row]: metrics.confusion_matrix(each.predicted, true, len(classes)).numpy() for row, each in given.items()}
    sure = {name: row[probe]["calibration"] for name, row in rows.items() if probe in row}
    title = next((known.title for known in PROBES if known.key == probe), "fine-tuning")
    words = f"{title}, {where}, {len(truth):,} images"
    made = plots.confusions(matrices, classes, words) | {"reliability.png": plots.reliability(sure, f"{title}, {where}")}
    seen = [row for row in crops if row in given]
    files = plots.file_names("mistakes", [row for row in seen if row != main]) | {main: "mistakes.png"}
    for row in seen:
        if (confidence := given[row].confidence) is not None:
            made[files[row]] = draw_mistakes(crops[row], given[row].predicted, confidence, truth, classes, f"{named[row]}, {words}")
    return _written(out, made)


def first_run(given: Answers) -> Answers:
    """Of answers of several seeds and draws, [S, T, m]: a picture shows one."""
    return Answers(**{name: part.reshape(-1, part.shape[-1])[0] for name, part in given.parts().items()})


def _written(out: Path, made: Mapping[str, bytes]) -> list[str]:
    for file, data in made.items():
        write_atomically(out / file, data)
    return list(made)
