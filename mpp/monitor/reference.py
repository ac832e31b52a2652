"""The shipped curves of a recipe: what other runs of exactly this recipe, on exactly these images, looked like.

A file of configs/references/ holds, for each figure, the least, the median and the greatest of several seeds by samples seen
(benchmarks/reference.py writes it).  It belongs to a run whose `identity` it names, and to no other: on other images a curve says nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpp.base.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "references"


@dataclass(frozen=True)
class Band:
    samples: tuple[float, ...]  # ascending
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]

    def at(self, samples: float) -> tuple[float, float, float] | None:
        """Low, middle, high, between its points in straight lines; None outside of them."""
        if not self.samples[0] <= samples <= self.samples[-1]:
            return None
        low, middle, high = (float(np.interp(samples, self.samples, each)) for each in (self.low, self.middle, self.high))
        return low, middle, high


@dataclass(frozen=True)
class Reference:
    name: str
    about: str  # seeds, machine, commit, command, for people
    bands: Mapping[str, Band]  # by figure, such as holdout/skill

    def beside(self, samples: float, names: Sequence[str]) -> dict[str, float]:
        """Of those figures that it has at this point: NAME/low and NAME/high."""
        found = {name: band.at(samples) for name, band in self.bands.items() if name in names}
        return {f"{name}/{end}": values[at] for name, values in found.items() if values for end, at in (("low", 0), ("high", 2))}


def find_reference(identity: str, folder: Path = FOLDER) -> Reference | None:
    """The one whose runs were of this identity (train/run_folder.py); None where nobody has shipped one.  Raises DataError for a damaged file."""
    for path in sorted(folder.glob("*.json")):
        try:
            about = json.loads(path.read_text())
            if about["identity"] == identity:
                bands = {name: Band(**{key: tuple(values) for key, values in band.items()}) for name, band in about["bands"].items()}
                return Reference(path.stem, about["about"], bands)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); benchmarks/reference.py writes it: git checkout it, or delete it") from error
    return None


def band_of(courses: Sequence[Mapping[float, float]]) -> Band:
    """Of several runs, each {samples seen: figure}, at the points that all of them have."""
    points = sorted(set.intersection(*(set(course) for course in courses)))
    values = np.array([[course[point] for point in points] for course in courses])
    ends = (values.min(0), np.median(values, axis=0), values.max(0))
    low, middle, high = (tuple(round(float(value), 5) for value in each) for each in ends)
    return Band(tuple(points), low, middle, high)
