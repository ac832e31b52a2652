"""Which labelled samples a probe fits on, chooses on and reports on: pure functions of a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpp.base.errors import DataError
from mpp.base.rng import PROBE, Draws

# What a probe's random numbers are for: the second part of the key (seed, PROBE, use, ...).
SUBSET, REPORT, CHOOSE, BATCHES, SHOTS, RANK, _, HEAD, LABELS = range(9)  # 6 was for resampling: the others keep their draws

NAMED = 3  # classes that a message names


@dataclass(frozen=True)
class Split:
    """Rows of one feature table, each ascending; `fit` and `choose` together are what the chosen probe is trained on."""

    fit: np.ndarray  # int64 [n]
    choose: np.ndarray  # int64 [m]: where every hyper-parameter comes from

    @property
    def both(self) -> np.ndarray:
        return np.sort(np.concatenate([self.fit, self.choose]))


def subset(total: int, count: int | None, seed: int, key: int = 0) -> np.ndarray:
    """int64, ascending: `count` of range(total) at random (all of them for None or a count beyond total)."""
    if count is None or count >= total:
        return np.arange(total)
    return Draws(seed, PROBE, SUBSET, key).first_of_permutation(total, count)


def hold_out(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    use: int,
    classes: Sequence[str] = (),
    remedy: str = "give more images of them",
    left: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (kept, held), each int64 ascending: `fraction` of every class is held, rounded, at least one, chosen at random.

    labels: integers [n].  use: REPORT or CHOOSE.  Raises DataError, by the names in `classes`, for classes of which nothing would be left; remedy:
    what the caller's options offer; left: after what, where not all images of a class are here.  A class without images is none.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    few = [(name_of(label, classes), n) for label, n in zip(numbers.tolist(), counts.tolist(), strict=True) if _held(fraction, n) >= n]
    if few:
        some = ", ".join(f"{name} ({n:,})" for name, n in few[:NAMED]) + (f" and {len(few) - NAMED:,} more" if len(few) > NAMED else "")
        raise DataError(
            f"{len(few):,} of {len(numbers):,} classes have too few labelled images{left} to hold out {fraction:g} of them, at least one, and fit on the rest: "
            f"{some}; {remedy}, or leave these classes out"
        )
    members, of, place = _by_class(labels, Draws(seed, PROBE, use).permutation(len(labels)))
    held = np.zeros(len(labels), bool)
    held[members[place < np.array([_held(fraction, n) for n in counts.tolist()], np.int64)[of]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _held(fraction: float, images: int) -> int:
    """How many images of a class are held out."""
    return max(1, round(fraction * images))


def name_of(label: int, classes: Sequence[str]) -> str:
    return repr(classes[label]) if label < len(classes) else f"number {label}"


def few_labels(
    labels: np.ndarray, seed: int, fraction: float | None = None, per_class: int | None = None, classes: Sequence[str] = ()
) -> np.ndarray:
    """Rows, int64 ascending: of every class `fraction`, rounded, at least one, or `per_class` at random; all of them where neither is given.

    labels: integers [n].  Fewer are always among more of the same seed.  Raises DataError, by its name in `classes`, for one with fewer than `per_class`.
    """
    if fraction is None and per_class is None:
        return np.arange(len(labels))
    numbers, counts = np.unique(labels, return_counts=True)
    wanted = [per_class if per_class is not None else max(1, round(fraction * n)) for n in counts.tolist()]
    for label, images, count in zip(numbers.tolist(), counts.tolist(), wanted, strict=True):
        if count > images:
            raise DataError(
                f"class {name_of(label, classes)} has {images} images to train on, fewer than labels_per_class={count}; lower it"
            )
    members, of, place = _by_class(labels, Draws(seed, PROBE, LABELS).permutation(len(labels)))
    return np.sort(members[place < np.array(wanted, np.int64)[of]])


def _by_class(labels: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows class after class, each class's in the order given; which class each is of, counted over those there are; its place in its class.

    labels: integers [n]; order: a permutation of range(n); all int64 [n].  One sort, where a look through the labels for every class would take
    n x classes steps.
    """
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    found = shuffled[by_class]
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(found)), bool), found[1:] != found[:-1]]))  # row of each class's first
    sizes = np.diff(first, append=len(found))
    return order[by_class], np.repeat(np.arange(len(first)), sizes), np.arange(len(found)) - np.repeat(first, sizes)
