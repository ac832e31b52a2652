"""What a table says, in sentences: whether pretraining helped, is not shown to have, or hurt.

The rule, the same for every baseline.  Each row is taken at its best probe, which the hold-out of train has chosen, so that a baseline that one kind
of probe does not suit is not beaten by that.  The two rows are compared on the same images.  One is better only if
* the difference in the metric is beyond what chance gives: p < .05 where the interval covers every source of chance that there is between the two
  rows, p < .01 where it covers the images alone, and
* the other metric (balanced accuracy beside accuracy, or the other way round) does not show the contrary.
Against random initialisation the question is whether the encoder is more than one further initialisation could be, so at least two of them are needed
(baselines are three).  Where each row was trained once on few labels, or from other seeds, another draw may say the contrary: then nothing is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mpp.transfer.metrics import IMAGES, Metric, difference, share_right
from mpp.transfer.probes import PROBES
from mpp.transfer.probes.contract import Answers
from mpp.transfer.table import ALWAYS, FINETUNED, MAJORITY, PIXELS, PRETRAINED, RANDOM, SCRATCH, TUNED

BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"
ORDER = (RANDOM, SCRATCH, PIXELS, MAJORITY)  # in which baselines are spoken of
COVERED, IMAGES_ALONE = 0.05, 0.01  # levels of p
WORDS = {"accuracy": "top-1", "balanced_accuracy": "balanced accuracy"}
OTHER: dict[Metric, Metric] = {"accuracy": "balanced_accuracy", "balanced_accuracy": "accuracy"}


@dataclass(frozen=True)
class Judged:
    """A line of the table: by column its figures, as in results.json, and its answers."""

    name: str
    figures: Mapping[str, Mapping[str, Any]]
    answers: Mapping[str, Answers]

    def best(self) -> str | None:
        """The column whose choice did best on the hold-out, of those that learned from the most labels; the first where no hold-out has chosen."""
        columns = [column for column in self.answers if column in self.figures and column != ALWAYS]
        most = max((self.figures[column].get("labels") or 0 for column in columns), default=0)
        able = [column for column in columns if (self.figures[column].get("labels") or 0) == most]
        chosen = [column for column in able if self.figures[column].get("holdout_score") is not None]
        return max(chosen, key=lambda column: self.figures[column]["holdout_score"]) if chosen else next(iter(able), None)


def judge(
    ours: Judged, theirs: Judged, truth: Tensor, metric: Metric = "accuracy", one_draw: str = "", same_draws: bool = True
) -> dict[str, Any] | None:
    """None where one of the two has no answers.  truth: int64 [m]; one_draw: why what a single draw of the labels shows would not be shown; empty:
    it would be, since all labels that there are were used."""
    mine, other = ours.best(), ALWAYS if theirs.name == MAJORITY else theirs.best()
    if mine is None or other is None:
        return None
    alone = theirs.name == MAJORITY
    metric = "balanced_accuracy" if alone else metric  # which naming one class cannot raise
    a, b = ours.answers[mine].predicted, theirs.answers[other].predicted
    compared = lambda by: difference(a, b, truth, by, same_draws=same_draws, new_seed=theirs.name == RANDOM)
    found, contrary = compared(metric), compared(OTHER[metric])
    outcome, why = _outcome(ours, theirs, found, contrary, one_draw)
    share = lambda judged, column: float(share_right(judged.answers[column].predicted, truth, metric).mean())
    shared = [column for column in ours.answers if column in theirs.answers or alone]
    ahead = sum(share(ours, column) > share(theirs, ALWAYS if alone else column) for column in shared)
    said = found | {
        "over": theirs.name,
        "of": ours.name,
        "outcome": outcome,
        "why": why,
        "columns": [mine, other],
        "figures": [share(ours, mine), share(theirs, other)],  # of the images that count
        f"{OTHER[metric]}_difference": contrary["difference"],
        f"{OTHER[metric]}_p": contrary["p"],
        "ahead_in": [ahead, len(shared)],
    }
    return said | {"words": sentence(said)}


def _outcome(ours: Judged, theirs: Judged, found: Mapping[str, Any], contrary: Mapping[str, Any], one_draw: str) -> tuple[str, str]:
    """And why nothing is shown, in words."""
    draws = min(runs[1] for runs in found["runs"])
    if theirs.name == RANDOM and found["runs"][1][0] == 1:
        return NOT_SHOWN, "one random initialisation does not say how far two of them lie apart (random_inits=3)"
    if one_draw and draws == 1 and theirs.name != MAJORITY:
        return NOT_SHOWN, one_draw
    alone = found["ci95_covers"] == [IMAGES]
    if not found["p"] < (IMAGES_ALONE if alone else COVERED):
        return NOT_SHOWN, f"p {found['p']:.2g}, {IMAGES_ALONE if alone else COVERED:g} is asked for" + (
            " where the images alone vary" if alone else ""
        )
    if theirs.name != MAJORITY and contrary["p"] < COVERED and contrary["difference"] * found["difference"] < 0:
        return (
            NOT_SHOWN,
            f"{WORDS[contrary['metric']]} shows the contrary ({100 * contrary['difference']:+.2f} points, p {contrary['p']:.2g})",
        )
    return (BETTER if found["difference"] > 0 else WORSE), ""


def sentence(found: Mapping[str, Any]) -> str:
    """One sentence on the encoder beside one baseline."""
    metric, (mine, theirs), over = found["metric"], found["columns"], found["over"]
    what, said = {
        RANDOM: (
            "random initialisation",
            {BETTER: "pretraining helped", WORSE: "pretraining hurt", NOT_SHOWN: "not shown that pretraining helped"},
        ),
        SCRATCH: (
            "training from scratch",
            {BETTER: "pretraining helped", WORSE: "pretraining hurt", NOT_SHOWN: "not shown that pretraining helped"},
        ),
        MAJORITY: (
            "always naming the largest class",
            {
                BETTER: "it tells the classes apart",
                WORSE: "it is worse than no model",
                NOT_SHOWN: "not shown that it is better than no model",
            },
        ),
    }.get(
        over,
        (
            over,
            {
                BETTER: f"better than {over}",
                WORSE: f"{over} {'are' if over == PIXELS else 'is'} better",
                NOT_SHOWN: f"not shown to differ from {over}",
            },
        ),
    )
    low, high = found["ci95"]
    figures = " and ".join(f"{title_of(column)} {100 * share:.2f}" for column, share in zip((mine, theirs), found["figures"], strict=True))
    evidence = [f"{WORDS[metric]} {100 * found['difference']:+.2f} points over {what} ({100 * low:+.2f} to {100 * high:+.2f}; {figures})"]
    if found["ahead_in"][1] > 1:
        evidence.append(f"ahead in {found['ahead_in'][0]} of {found['ahead_in'][1]} columns")
    if over == MAJORITY and found["accuracy_difference"] < 0:
        evidence.append(f"top-1 is {-100 * found['accuracy_difference']:.2f} points below it")
    if found["why"]:
        evidence.append(found["why"])
    return f"{said[found['outcome']]}: {', '.join(evidence)}"


def title_of(column: str) -> str:
    key, _, part = column.partition(" ")[0].partition("/")
    if part.isdigit():
        return f"{part}-shot"
    title = {FINETUNED: "fine-tuned", ALWAYS: "the largest class"}.get(
        key, next((probe.title for probe in PROBES if probe.key == key), key)
    )
    return f"{title}, {part}" if part else title


def verdict(lines: Mapping[str, Judged], truth: Tensor, metric: Metric = "accuracy", one_draw: str = "") -> list[dict[str, Any]]:
    """Of the encoder (or what was fine-tuned from it) beside each baseline that there is, in words under `words`."""
    main = next((lines[name] for name in (PRETRAINED, TUNED) if name in lines), None)
    others = [lines[name] for name in ORDER if name in lines]
    found = [judge(main, other, truth, metric, one_draw) for other in others] if main else []
    return [each for each in found if each]
