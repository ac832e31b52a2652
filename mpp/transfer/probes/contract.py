"""What a probe is: a section of the config whose methods fit, choose and answer.

One file a probe, and one line in this folder's list; everything else (--help, the table, results.json, pictures, paired differences) follows from
what it says about itself here.  A probe knows no files: features, labels and the encoder's views are given, so that the same probe can be read at
the end of a run from tables on the disk, or during one from features in memory.

Who may see which images.  `Train` holds every image that a probe may look at, and `split` says what for: a probe is fitted on rows `split.fit`,
every hyper-parameter is chosen by `metric` on rows `split.choose`, and what was chosen may then be fitted again on `split.both`; it must not
touch other rows, which may be those that figures are on.  `Measured` comes once, after everything was chosen, without its labels.

Letters: n images of train, m images measured, B batch, P prefix tokens, N patches, D width of a layer, H heads, C classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from mpp.config.schema import Section
from mpp.model.backbone import Backbone
from mpp.transfer.features import PREDICTOR, Features, Variant
from mpp.transfer.metrics import Metric, share_right
from mpp.transfer.split import Split

Picture = tuple[str, bytes]  # its file's name, and a PNG
Predict = Callable[[dict[int, Tensor]], tuple[Tensor, Tensor]]
"""Tokens [B, P + N, D] by layer -> classes int64 [H, B] and the probabilities given to them, float32 [H, B]."""


@dataclass(frozen=True)
class Answers:
    """What a probe says of m images; of several runs of it [T, m], T draws of the labels, or [S, T, m], S seeds of the network."""

    predicted: Tensor  # int64 [m]
    confidence: Tensor | None = None  # float32 [m]: probability, or share of votes, of that class; None: the probe has none
    score: Tensor | None = (
        None  # float32 [m]: of two classes, how much more speaks for the second (a difference of logits); None: as the confidence
    )

    def parts(self) -> dict[str, Tensor]:
        """By name, those that there are."""
        return {name: part for name, part in vars(self).items() if part is not None}

    def of(self, images: Tensor) -> "Answers":
        """images: bool [m]."""
        return Answers(**{name: part[..., images] for name, part in self.parts().items()})


def stacked(runs: Sequence[Answers]) -> Answers:
    """Runs side by side along a new first axis."""
    return Answers(**{name: torch.stack([run.parts()[name] for run in runs]) for name in runs[0].parts()})


Said = tuple[Tensor, Tensor, Tensor | None]
"""Of H heads: classes int64 [H, B], the probabilities given to them float32 [H, B], and of two classes the score float32 [H, B]."""


def of_logits(logits: Tensor) -> Said:
    """[H, C, B]; what it gives lies on the CPU."""
    probability, best = logits.softmax(dim=1).max(dim=1)
    return best.cpu(), probability.cpu(), (logits[:, 1] - logits[:, 0]).cpu() if logits.shape[1] == 2 else None


def side_by_side(parts: Sequence[Said]) -> Said:
    """Of batches, all images."""
    scores = [score for _, _, score in parts if score is not None]
    return (
        torch.cat([p for p, _, _ in parts], dim=1),
        torch.cat([c for _, c, _ in parts], dim=1),
        torch.cat(scores, dim=1) if scores else None,
    )


class Views(Protocol):
    """The frozen encoder on the images themselves, for probes that augment or look at every token.  Collective: every process takes part."""

    @property
    def prefix(self) -> int:
        """P."""

    @property
    def class_tokens(self) -> int:
        """How many of the P are class tokens: the first ones."""

    @property
    def rank(self) -> int: ...

    @property
    def processes(self) -> int: ...

    def width_of(self, layer: int) -> int:
        """D."""

    def augmented(
        self, epoch: int, parts: Sequence[np.ndarray], layers: Sequence[int], crop_scale: tuple[float, float]
    ) -> Iterable[tuple[dict[int, Tensor], np.ndarray]]:
        """(tokens [B, P + N, D] by layer, their rows) of each part of the rows, in that order: random resized crops and flips by (seed, epoch, row)."""

    def answers(self, predict: Predict, layers: Sequence[int], rows: np.ndarray, crop: float | None = None) -> list[Answers]:
        """Each of H heads' answers to those rows as centre crops of `crop` of the short side (None: as the features'), the same in every process; each
        image counts once."""


@dataclass(frozen=True)
class Train:
    """All that a probe may look at to fit and to choose."""

    features: Features  # of n images; those of `split` alone are for the probe
    own: Variant  # of the features: what was asked for
    labels: np.ndarray  # integers [n]
    classes: Sequence[str]  # C names
    split: Split
    seed: int
    device: torch.device
    metric: Metric = "accuracy"  # of the hold-out, which choices go by
    balanced: bool = False  # class_weight=balanced
    widen: bool = True  # a grid whose best value lies at an end
    variants: Sequence[Variant] = ()  # what this probe may choose from, `own` first (`Probe.variants`; `choose` fills it in)
    views: Views | None = None  # of the same n images; None for raw pixels, and where none are at hand
    last: int | None = None  # the layer that leaves the last block (likewise); None: the features have no layers (raw pixels)

    def truth(self, rows: np.ndarray) -> Tensor:
        """int64 [len(rows)]: the rows' classes."""
        return torch.from_numpy(self.labels[rows].astype(np.int64))

    def on_holdout(self, predicted: Tensor) -> Tensor:
        """float64 [...]: the metric on the hold-out of int64 [..., len(split.choose)]; what a probe chooses by."""
        return share_right(predicted, self.truth(self.split.choose), self.metric)

    def class_weights(self, rows: np.ndarray) -> Tensor | None:
        """float64 [C]: n / (K n_c) over the K classes that have any of these rows, 0 for the others (scikit-learn's "balanced"); None: all alike."""
        if not self.balanced:
            return None
        counts = np.bincount(self.labels[rows], minlength=len(self.classes))
        return torch.from_numpy(np.where(counts, len(rows) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0))


@dataclass(frozen=True)
class Measured:
    """The images that figures are on; their labels stay with the caller."""

    features: Features
    rows: np.ndarray  # int64 [m] of the features, and of the views
    views: Views | None = None


LAST = "last"  # the part of a probe's figures that is read off the last block, whatever place was chosen


def scores_by_place(places: Iterable[tuple[int | None, str, float]]) -> list[dict[str, Any]]:
    """`by_layer` of results.json: the best score on the hold-out at each place.  places: (layer, None for the predictor's; pooling; score) of all that
    was tried."""
    best: dict[tuple[int | None, str], float] = {}
    for layer, pooling, score in places:
        best[layer, pooling] = max(best.get((layer, pooling), score), score)
    return [{"layer": layer, "pooling": pooling, "holdout_score": score} for (layer, pooling), score in best.items()]


def place_of(variant: Variant) -> tuple[int | None, str] | None:
    """(layer, pooling) as in `by_layer`; None for several layers side by side."""
    if variant == PREDICTOR:
        return None, "predictor"
    return (variant.layers[0], variant.pooling) if len(variant.layers) == 1 else None


class Fitted:
    """A probe, fitted and chosen."""

    about: dict[str, Any]
    """For results.json: {"chosen": ..., "holdout_score": ..., "labels": trained on, "edge": ..., and what was tried}; of a probe that chose where in an
    encoder it looks also {"place": in words, "by_layer": `scores_by_place`}."""
    last: "Fitted | None" = None  # the same on what leaves the last block alone, of a probe that chose where it looks

    def summary(self) -> str:
        """What was chosen, in words."""
        raise NotImplementedError

    def answer(self, images: Measured) -> Answers:
        """Collective where the probe looks at views."""
        raise NotImplementedError

    def parts(self, images: Measured) -> dict[str, tuple[dict[str, Any], Answers]]:
        """What is known of each column of the table, and the answers there (several draws: [T, m]); by "" and LAST, or by names of a probe with several."""
        return {"": (self.about, self.answer(images))} | ({LAST: (self.last.about, self.last.answer(images))} if self.last else {})


TOP_1 = "top-1 accuracy"


def score_of(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the scores on the hold-out are, for people; rows: as `Probe.pictures` has them."""
    metrics = {figures.get("metric", "accuracy") for figures in rows.values()}
    return TOP_1 if metrics <= {"accuracy"} else " or ".join(sorted(metrics)).replace("_", " ")


class Probe(Section):
    """The knobs of one probe, and what it does with them."""

    key: ClassVar[str]  # of its section in the config, and of its figures
    title: ClassVar[str]  # of its column in the table
    in_the_loop: ClassVar[bool] = False
    """Whether it looks at views: then it is read only when asked for (augmented=), by all processes, and not on raw pixels.  Else one process fits it,
    though several may have searched (divided.py)."""
    takes_weights: ClassVar[bool] = False
    """Whether class_weight=balanced means anything to it."""

    @property
    def pools_tokens(self) -> bool:
        """Whether it looks at the tokens of features.layers, of which features.pooling=predictor has none."""
        return False

    def remark(self, labels: np.ndarray, classes: Sequence[str]) -> str:
        """What these labels (integers, of the rows to fit on) leave undone, said before anything is extracted; raises DataError for what cannot be."""
        return ""

    def memory(self, widths: Sequence[int], classes: int, processes: int = 1) -> tuple[int, str]:
        """Bytes that fitting takes in a process beside the features, about, of variants of so many columns each, where so many processes share what can be
        shared; and what makes them so many and what lowers them, in words.  (0, ""): they are few whatever there is to choose from."""
        return 0, ""

    def variants(self, own: Variant, backbone: Backbone) -> list[Variant]:
        """The features it chooses from, `own` first: tables are made to hold them."""
        return [own]

    def fit(self, train: Train) -> Fitted | None:
        """Fit, choose, fit again; None where it is set to do nothing.  Ties go to what was tried first.  Deterministic in `train.seed`."""
        raise NotImplementedError

    # What is said and drawn of figures as they stand in results.json; rows: name of a row -> this probe's figures there, of those rows that have any.

    @classmethod
    def columns(cls, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """The table's columns: heading -> name of a row -> its figures."""
        last = {name: figures[LAST] for name, figures in rows.items() if LAST in figures}
        return {cls.title: rows} | ({f"{cls.title}, {LAST}": last} if last else {})

    @classmethod
    def pictures(cls, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], images: int) -> Iterator[Picture]:
        """What was tried on a hold-out of so many images; names: of all rows, so that a row has the same colour in every picture."""
        yield from ()
