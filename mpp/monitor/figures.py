"""Every figure that a run writes down: its name in metrics.jsonl and on the board, and what it means.

Names and meanings stay as they are; new ones may come (docs/metrics.md).  A `*` in a name stands for what differs, such as the number of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Program = Literal["pretraining", "fine-tuning"]
PRETRAINING: tuple[Program, ...] = ("pretraining",)
FINE_TUNING: tuple[Program, ...] = ("fine-tuning",)
BOTH: tuple[Program, ...] = ("pretraining", "fine-tuning")

# When a row that has the figure is written.
LOGS = "every log.every_steps, and at the last step"
LOOKS_AT_HOLDOUT = "every log.holdout_every_steps, and at the last step"
LOOKS_AT_EPOCHS = "every log.holdout_every_epochs, and at the end; with a hold-out"
LOOKS_AT_FEATURES = "before the first step, and five to twenty times (evaluate.every_steps)"
ENDS = "once, at the end"


@dataclass(frozen=True)
class Figure:
    title: str  # of an axis or a column
    unit: str  # "" where there is none: a mere number
    meaning: str
    when: str
    better: Literal["higher", "lower", ""] = ""  # as a run goes on, all else equal; "": neither
    by: tuple[Program, ...] = PRETRAINING

    @property
    def axis(self) -> str:
        """ "gradient norm", or "rate, images/s"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


SHARE = "share (0 to 1)"
MILLISECONDS = "ms a step"

FIGURES: dict[str, Figure] = {
    "train/loss": Figure(
        "training loss", "", "the mean loss since the row before: pretraining: of a predicted patch; fine-tuning: of an image, as it is mixed and smoothed",
        LOGS, "lower", BOTH,
    ),
    "train/skill": Figure(
        "training skill", "", "1 - loss / that of the best trivial predictor, on masked patches, since the row before; 0: as good as it, 1: no error; absent where "
        "no trivial predictor is defined",
        LOGS, "higher",
    ),
    "target/own_loss": Figure(
        "the target's own loss", "", "what a target that learns adds to the loss (target.name=clusters: the assignment's), mean since the row before",
        LOGS, "lower",
    ),
    "teacher/decay": Figure(
        "decay of the teacher", "", "d of teacher = d x teacher + (1 - d) x encoder in this step; with a teacher that is an average", LOGS,
    ),
    "optim/learning_rate": Figure("learning rate", "", "of this step, before layer decay and other factors of single weights", LOGS, "", BOTH),
    "optim/weight_decay": Figure("weight decay", "", "of this step; where optim.final_weight_decay is given", LOGS),
    "optim/gradient_norm": Figure("gradient norm", "", "of all gradients of this step together, before clipping", LOGS, "", BOTH),
    "norm/weight/*": Figure(
        "weight norm by depth", "", "of all weights of a part: embedding, block_00 ..., norm, decoder, target, head; at ZeRO 0 to 2", LOGS, "", BOTH,
    ),
    "norm/gradient/*": Figure("gradient norm by depth", "", "of the gradients of a part in this step, before clipping; at ZeRO 0", LOGS, "", BOTH),
    "train/skipped_steps": Figure(
        "skipped steps", "steps", "whose gradient was not finite and which have changed no weight, since the run began", LOGS, "lower", BOTH,
    ),
    "train/loss_spikes": Figure(
        "loss spikes", "spikes", "steps since the run began whose loss stood more than 6 standard deviations, and 5 %, above its running mean", LOGS, "lower", BOTH,
    ),
    "data/bad_samples": Figure("bad samples", "samples", "that could not be read, and were replaced, since the run began", LOGS, "lower", BOTH),
    "speed/samples_per_second": Figure(
        "speed", "samples/s", "of all processes, since the row before; hold-out, pictures and commits are not counted", LOGS, "higher", BOTH,
    ),
    "speed/wait_share": Figure("time spent waiting for images", SHARE, "of the time in steps that the first process had no batch", LOGS, "lower", BOTH),
    "speed/peak_gb": Figure(
        "peak memory", "GB", "10^9 bytes that the first process has held at most so far: on a GPU what torch allocated there, else in RAM", LOGS, "", BOTH,
    ),
    "speed/tflops": Figure(
        "arithmetic", "TFLOP/s", "10^12 operations a second of the model, all processes, forward and backward; from 100 steps on", LOGS, "higher", BOTH,
    ),
    "speed/mfu": Figure(
        "share of the machine's limit", SHARE, "speed/tflops of what the devices reach in large matrix products; from 100 steps on", LOGS, "higher", BOTH,
    ),
    "speed/energy_joules": Figure(
        "energy", "J", "since the row before, of the whole first machine, by the counters of its processors and GPUs; absent where none can be read",
        LOGS, "lower", BOTH,
    ),
    "speed/data_ms": Figure("waiting for a batch", MILLISECONDS, "mean since the row before, as are the next five", LOGS, "lower", BOTH),
    "speed/forward_ms": Figure("forward pass", MILLISECONDS, "target and loss included", LOGS, "lower", BOTH),
    "speed/backward_ms": Figure("backward pass", MILLISECONDS, "", LOGS, "lower", BOTH),
    "speed/reduce_ms": Figure("averaging gradients", MILLISECONDS, "what the backward pass has not hidden; with several processes", LOGS, "lower", BOTH),
    "speed/optimiser_ms": Figure("optimiser", MILLISECONDS, "clipping and update", LOGS, "lower", BOTH),
    "speed/rest_ms": Figure("the rest of a step", MILLISECONDS, "", LOGS, "lower", BOTH),
    "holdout/loss": Figure(
        "hold-out loss", "", "the same as train/loss, on the hold-out: pretraining: with crops and masks that never change; fine-tuning: not mixed, not smoothed",
        f"pretraining: {LOOKS_AT_HOLDOUT}; fine-tuning: {LOOKS_AT_EPOCHS}", "lower", BOTH,
    ),
    "holdout/loss/*": Figure(
        "hold-out loss by source", "", "holdout/loss on the held-out images of one source; where data.shards, or data.holdout_shards, are several",
        LOOKS_AT_HOLDOUT, "lower",
    ),
    "holdout/skill": Figure("hold-out skill", "", "the same as train/skill, on the hold-out", LOOKS_AT_HOLDOUT, "higher"),
    "holdout/skill_error": Figure("standard error of the hold-out skill", "", "over the held-out images", LOOKS_AT_HOLDOUT),
    "target/position": Figure(
        "target explained by the place", SHARE, "of the variance of a moving target over the hold-out, what the place in the image alone explains; near 1 the target "
        "says nothing of the content; with a teacher that is an average",
        LOOKS_AT_HOLDOUT, "lower",
    ),
    "teacher/rank": Figure("rank of the teacher's features", "directions", "as features/rank, of the teacher on the hold-out", LOOKS_AT_HOLDOUT, "higher"),
    "teacher/mean_cosine": Figure(
        "mean cosine of the teacher's features", "", "as features/mean_cosine, of the teacher on the hold-out", LOOKS_AT_HOLDOUT, "lower",
    ),
    "teacher/deviation": Figure(
        "deviation of the teacher's features", "", "as features/deviation, of the teacher on the hold-out; near 0: collapsed", LOOKS_AT_HOLDOUT, "higher",
    ),
    "features/rank": Figure(
        "rank of the features", "directions", "effective number of directions that the features of held-out images use about their mean; grows with the number of "
        "images, so compare runs of the same set and length",
        LOOKS_AT_FEATURES, "higher",
    ),
    "features/mean_cosine": Figure(
        "mean cosine of the features", "", "mean similarity of two held-out images; near 1 where all share a direction, as at random initialisation",
        LOOKS_AT_FEATURES, "lower",
    ),
    "features/deviation": Figure(
        "deviation of the features", "", "how far held-out images lie apart, once scaled to one length: 0: all alike, 1: evenly about 0", LOOKS_AT_FEATURES, "higher",
    ),
    "features/knn": Figure("k-NN on the features", SHARE, "of held-out images that get their own class by k-NN; with labels", LOOKS_AT_FEATURES, "higher"),
    "features/linear": Figure(
        "linear probe of the features", SHARE, "of held-out images that get their own class by least squares; with labels", LOOKS_AT_FEATURES, "higher",
    ),
    "attention/distance/*": Figure(
        "attention distance", "pixels", "how far from a patch lie the patches that it attends to, mean over heads, patches and images: block_01 ..., mean; with "
        "plain attention over patches",
        LOOKS_AT_FEATURES,
    ),
    "attention/entropy/*": Figure(
        "attention entropy", SHARE, "of what looking everywhere alike would have: 0: at one patch alone, 1: at all alike; block_01 ..., mean", LOOKS_AT_FEATURES,
    ),
    "speed/features_share": Figure(
        "time spent on features", SHARE, "of the time of this start, so far; not before the first step", LOOKS_AT_FEATURES, "lower",
    ),
    "holdout/accuracy": Figure("hold-out top-1", SHARE, "of held-out images that get their own class", LOOKS_AT_EPOCHS, "higher", FINE_TUNING),
    "holdout/balanced_accuracy": Figure(
        "hold-out balanced accuracy", SHARE, "the mean over classes of the share of their images that get it", LOOKS_AT_EPOCHS, "higher", FINE_TUNING,
    ),
    "holdout/accuracy_of_average": Figure(
        "hold-out top-1, average", SHARE, "of the average of the weights (optim.ema), as are the next two", LOOKS_AT_EPOCHS, "higher", FINE_TUNING,
    ),
    "holdout/balanced_accuracy_of_average": Figure("hold-out balanced accuracy, average", SHARE, "", LOOKS_AT_EPOCHS, "higher", FINE_TUNING),
    "holdout/loss_of_average": Figure("hold-out loss, average", "", "", LOOKS_AT_EPOCHS, "lower", FINE_TUNING),
    "test/accuracy": Figure("test top-1", SHARE, "of test images that get their own class, by the weights that the hold-out chose", ENDS, "higher", FINE_TUNING),
    "test/balanced_accuracy": Figure("test balanced accuracy", SHARE, "the same, mean over classes", ENDS, "higher", FINE_TUNING),
}  # fmt: skip


def figure_of(name: str, known: Mapping[str, Figure] = FIGURES) -> Figure | None:
    """What is known of a name in metrics.jsonl: its own entry, else that of the first pattern it fits; None where it is not known."""
    return known.get(name) or next((figure for pattern, figure in known.items() if fnmatchcase(name, pattern)), None)
