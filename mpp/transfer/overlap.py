"""Which of the images that figures are on have been seen before: in train, or by the encoder when it was trained.

Images are the same where their encoded bytes are (data/fingerprints.py); a copy that was resized or encoded anew is another image here.  What an
encoder was trained on, its run's checkpoint tells; what cannot be known or checked is said, never counted as none.

Letters: m images that figures are on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.base.errors import UserError
from mpp.config.schema import listed
from mpp.data.array_images import ROOT, is_array
from mpp.data.fingerprints import how_stored, overlap
from mpp.data.images import Images
from mpp.data.joined_shards import shared_out
from mpp.data.labelled import open_labelled
from mpp.data.shards import ShardSet
from mpp.interop.foreign_encoder import TIMM
from mpp.interop.read_encoder import read_encoder
from mpp.remote.urls import is_url
from mpp.train.commit import Commit, commits, read_commit
from mpp.train.copies import local
from mpp.transfer.metrics import figures, share_right
from mpp.transfer.near_duplicates import Near
from mpp.transfer.probes.contract import Answers
from mpp.transfer.verdict import title_of

MATTERS = 0.002  # a change of an accuracy that is told row by row
PRETRAINING, FINETUNING = "the pretraining set", "the set it was fine-tuned on"


@dataclass(frozen=True)
class TrainedOn:
    """One set of images that an encoder was trained on."""

    what: str  # PRETRAINING or FINETUNING, and of what where that is not the encoder itself
    path: str = ""  # as the run was given it
    images: Images | None = None
    held_out: int = 0  # the last so many images, which the run kept apart
    problem: str = ""  # why there are no images here: it is not known which (no path), or they cannot be opened


@dataclass(frozen=True)
class Seen:
    """How many of the m images are in one such set."""

    encoder: str  # as it was asked for
    set: TrainedOn
    mask: np.ndarray | None = None  # bool [m]; None: not known
    held_out: int = 0  # of them, in the part that the run kept apart alone
    other_bytes: bool = False  # images of this set were resized or encoded in another way, so that copies go unseen

    @property
    def count(self) -> int | None:
        return None if self.mask is None else int(self.mask.sum())

    def words(self, of: int, main: bool) -> str:
        whose = "" if main else f" of {self.encoder}"
        if self.count is None and not self.set.path:
            return f"{self.set.what}{whose} is not known ({self.set.problem})"
        if self.count is None:
            return f"{self.set.what}{whose} ({self.set.path}) could not be checked: {self.set.problem}"
        more = [f"{self.held_out} of them in its hold-out"] if self.held_out else []
        more += ["its images were resized or encoded in another way: copies go unseen"] if self.other_bytes else []
        return f"{self.count:,} of {of:,} in {self.set.what}{whose} ({', '.join([self.set.path, *more])})"


@dataclass(frozen=True)
class Overlap:
    """Of the m images that figures are on."""

    name: str  # of what they are: "test image", or "hold-out image"
    train: np.ndarray  # bool [m]: those also among the images of train that may be fitted on
    seen: Sequence[Seen] = field(default_factory=list)  # by encoder and set
    main: str = ""  # the first encoder
    choices: tuple[int, int] = (0, 0)  # of the hold-out that choices are made on: images also among those fitted on, and all
    other_bytes: bool = False  # as Seen's, of train
    near: Near | None = None  # what looks like an image of train, where that was asked for

    def words(self) -> str:
        m = len(self.train)
        rest = "train" if self.name.startswith("test") else "the rest of train"
        first = f"{int(self.train.sum()):,} of {m:,} {self.name}s are also in {rest}"
        first += " (stored resized or encoded in another way: copies go unseen)" if self.other_bytes else ""
        counted = [each.words(m, each.encoder == self.main) for each in self.seen if each.mask is not None]
        unknown = [each.words(m, each.encoder == self.main) for each in self.seen if each.mask is None]
        said = "overlap   " + "; ".join([", ".join([first, *counted]) + ", byte for byte", *unknown])
        if self.choices[0]:
            said += f"; {self.choices[0]:,} of {self.choices[1]:,} images that choices are made on are also among those fitted on"
        return said

    def without(self, answers: Mapping[str, Mapping[str, Answers]], truth: Tensor, classes: int) -> dict[str, dict[str, Any]]:
        """Figures of each row on the images that are not in train; empty where all are, or none is.

        answers: row -> column -> answers to the m images; truth: int64 [m].
        """
        left = torch.from_numpy(~self.train)
        if not left.any() or left.all():
            return {}
        take = lambda given: figures(given.predicted, truth[left], classes, given.confidence, given.score)
        return {row: {column: take(given.of(left)) for column, given in columns.items()} for row, columns in answers.items() if columns}

    def report(self, answers: Mapping[str, Mapping[str, Answers]], truth: Tensor, classes: int) -> tuple[dict[str, Any], list[str]]:
        """For results.json, and the lines to print."""
        without, left = self.without(answers, truth, classes), int((~self.train).sum())
        lines = [self.words(), *([self.near.words(self.name)] if self.near else [])]
        if self.train.all():
            lines.append("without   no image is left that is not in train: no figure here is of unseen images")
        if without:
            lines += self._changes(without, answers, truth, left)
        about = {
            "images": len(self.train),
            "train": int(self.train.sum()),
            "encoders": [
                {
                    "encoder": each.encoder,
                    "set": each.set.what,
                    "path": each.set.path or None,
                    "images": each.count,
                    "held_out": each.held_out,
                    "other_bytes": each.other_bytes,
                    "problem": each.set.problem or None,
                }
                for each in self.seen
            ],
            "holdout_in_fit": {"images": self.choices[0], "of": self.choices[1]},
            "other_bytes": self.other_bytes,
            "words": self.words(),
            "without": without,
            "near_duplicates": self.near.about() if self.near else None,
        }
        return about, lines

    def _changes(
        self, without: Mapping[str, Mapping[str, Any]], answers: Mapping[str, Mapping[str, Answers]], truth: Tensor, left: int
    ) -> list[str]:
        """How accuracies change where those images are left out: of each row where it matters."""
        where = f"on the {left:,} {self.name}s that are not in train"
        lines, most = [], 0.0
        for row, columns in without.items():
            all_of = {column: float(share_right(given.predicted, truth, "accuracy").mean()) for column, given in answers[row].items()}
            change = max(abs(each["accuracy"] - all_of[column]) for column, each in columns.items())
            most = max(most, change)
            if change >= MATTERS:
                figures_of = ", ".join(f"{title_of(column)} {100 * each['accuracy']:.2f}" for column, each in columns.items())
                lines.append(f"without   {row}: {figures_of}, {where}")
        return lines or [f"without   no figure is more than {100 * most:.2f} points another {where}"]


def find_overlap(
    images: Images,
    ids: np.ndarray,
    train: Images,
    fitted: np.ndarray,
    encoders: Sequence[str],
    chosen_on: tuple[np.ndarray, np.ndarray] | None = None,
) -> Overlap:
    """ids: int64 [m], of `images`.  fitted: int64, ids of the images of train that may be fitted or chosen on.  encoders: as asked for, the first one the main one.

    chosen_on: ids of train (fitted, held out to choose on).  Raises DataError for an image of these two sets that cannot be read.
    """
    prints, tested = images.prints[ids], images is not train
    seen = []
    for encoder in dict.fromkeys(encoders):
        for each in trained_on(encoder):
            if each.images is None:
                seen.append(Seen(encoder, each))
                continue
            same = next((known for known in (train, images) if known.identity == each.images.identity), each.images)
            try:
                theirs = same.prints
            except UserError as error:
                seen.append(Seen(encoder, TrainedOn(each.what, each.path, problem=str(error))))
                continue
            mask = overlap(prints, theirs)
            kept = mask & ~overlap(prints, theirs[: len(theirs) - each.held_out]) if each.held_out else np.zeros(0, bool)
            seen.append(Seen(encoder, each, mask, int(kept.sum()), how_stored(images) != how_stored(same)))
    choices = (0, 0)
    if chosen_on is not None:
        fit, held = (train.prints[part] for part in chosen_on)
        choices = int(overlap(held, fit).sum()), len(held)
    return Overlap(
        "test image" if tested else "hold-out image",
        overlap(prints, train.prints[fitted]),
        seen,
        encoders[0] if encoders else "",
        choices,
        tested and how_stored(images) != how_stored(train),
    )


def trained_on(encoder: str, of: str = "") -> list[TrainedOn]:
    """Every set that an encoder, as it is asked for, was trained on, those of the encoders it began from included.

    of: words for messages where it is itself what another began from.
    """
    unknown = lambda why: [TrainedOn(PRETRAINING + of, problem=why)]
    if encoder.startswith(TIMM):
        return [] if encoder.endswith("@random") else unknown(f"{encoder} does not tell")
    try:
        path = Path(local(encoder))
        commit = _commit_of(path)
    except UserError as error:
        return unknown(str(error))
    if commit is None:
        return unknown(f"{encoder} lies in no run of this machine")
    config, manifests = commit.record["config"], commit.record["manifests"]
    if commit.record.get("program") == "finetune":
        found = [_opened(FINETUNING + of, config["train"], manifests["train"], commit)]
        return found if config.get("init") == "random" else found + _began_from(config["encoder"], manifests.get("encoder"), commit)
    data = config["data"]
    held_out = 0 if data.get("holdout_shards") else data.get("holdout_samples", 0)
    words = listed(data["shards"])
    identities = [manifests["shards"]] if len(words) == 1 else [manifests[f"shards[{number}]"] for number in range(len(words))]
    found = [_opened(PRETRAINING + of, word, identity, commit) for word, identity in zip(words, identities, strict=True)]
    if held_out and all(each.images is not None for each in found):
        sizes = [len(each.images or ()) for each in found]
        last = [held_out] if len(words) == 1 else shared_out(held_out, sizes)
        found = [replace(each, held_out=count) for each, count in zip(found, last, strict=True)]
    return found + (_began_from(config["init_from"], None, commit) if config.get("init_from") else [])


def _began_from(encoder: str, digest: str | None, commit: Commit) -> list[TrainedOn]:
    """digest: of that encoder at the time, where it was noted."""
    of = f" of {encoder}, from which it began"
    if encoder.startswith(TIMM):
        return trained_on(encoder, of)
    place = encoder if is_url(encoder) else next((str(path) for path in _places(encoder, commit) if path.exists()), None)
    if place is None:
        return [TrainedOn(PRETRAINING + of, problem=f"{encoder} is no longer there")]
    try:
        if digest and read_encoder(place, quiet=True).digest != digest:
            return [TrainedOn(PRETRAINING + of, problem=f"{encoder} is now another encoder")]
    except UserError as error:
        return [TrainedOn(PRETRAINING + of, problem=str(error))]
    return trained_on(place, of)


def _commit_of(path: Path) -> Commit | None:
    """The checkpoint that tells what the encoder at `path` was trained on; None where none does.  Raises CheckpointError."""
    if (path / "COMMIT.json").exists():
        return read_commit(path)
    if found := commits(path):
        return found[0]
    try:
        seal = json.loads((path / "config.json").read_bytes())["mpp"]["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((commit for commit in commits(path.resolve().parent) if commit.seal == seal), None)


def _places(path: str, commit: Commit) -> Iterator[Path]:
    """Where a path that a run was given may lie now: as it is, or seen from a folder that the run lies in."""
    yield Path(path)
    if not Path(path).is_absolute():
        yield from (folder / path for folder in commit.folder.resolve().parents)


def _opened(what: str, path: str, identity: str, commit: Commit) -> TrainedOn:
    """The set at `path`, if it is still the one with this identity."""
    problem = "it is no longer there"
    if is_array(path):
        name, _, root = path.partition(":")
        places = [f"{name}:{place}" for place in _places(root or ROOT, commit) if place.is_dir()]  # nothing is downloaded for this
    else:
        places = [str(place) for place in _places(path, commit) if place.is_dir()]
    for place in places:
        try:
            images = ShardSet.open(place) if what.startswith(PRETRAINING) else open_labelled(place, "train")
        except UserError as error:
            problem = str(error)
            continue
        if images.identity == identity:
            return TrainedOn(what, path, images)
        problem = f"{images.path} holds other images now (its manifest's sha256 is {images.identity[:12]}, it was {identity[:12]})"
    return TrainedOn(what, path, problem=problem)
