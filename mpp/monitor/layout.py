"""How TensorBoard shows a run: the charts of its custom-scalars page, in the order of the questions that people ask, and its row among the
hyper-parameters.  Tags are regular expressions."""

from collections.abc import Mapping
from typing import Any

from mpp.config.schema import flat

Chart = tuple[str, list[str]]  # "Multiline" of tags, or "Margin" of a tag, its lower and its upper one
Layout = dict[str, dict[str, Chart]]
REFERENCE = "reference"
FINAL = ("holdout/skill", "holdout/loss", "holdout/accuracy", "features/linear", "features/knn", "features/rank", "test/accuracy")


def lines(*tags: str) -> Chart:
    return "Multiline", [f"^{tag}$" for tag in tags]


def band(tag: str) -> Chart:
    """Beside the reference that belongs to this recipe (reference.py)."""
    return "Margin", [tag, f"{REFERENCE}/{tag}/low", f"{REFERENCE}/{tag}/high"]


_DEPTH = {
    "gradient norm by depth": lines("norm/gradient/.*"),
    "weight norm by depth": lines("norm/weight/.*"),
    "attention distance by depth": lines("attention/distance.*"),
    "attention entropy by depth": lines("attention/entropy.*"),
}
_SPEED = {
    "images a second": lines("speed/samples_per_second"),
    "share of the machine's matrix rate (MFU)": lines("speed/mfu"),
    "share of time waiting for data": lines("speed/wait_share"),
    "memory, GB at its fullest": lines("speed/peak_gb"),
    "milliseconds a step, by phase": lines("speed/.*_ms"),
    "bad samples": lines("data/bad_samples"),
    "skipped steps, loss spikes": lines("train/skipped_steps", "train/loss_spikes"),
    "energy, J since the row before": lines("speed/energy_joules"),
}


def _optimiser(decay_moves: bool) -> dict[str, Chart]:
    return {
        "learning rate": lines("optim/learning_rate"),
        "gradient norm, before clipping": lines("optim/gradient_norm"),
        **({"weight decay": lines("optim/weight_decay")} if decay_moves else {}),
    }


def of_pretraining(
    *, reference: bool, skill: bool, teacher: bool, looks: bool, labels: bool, decay_moves: bool, sources: bool = False
) -> Layout:
    """reference: whether a shipped curve is drawn behind the run's own.  skill: whether it is defined.  teacher: whether the target moves with one.
    looks, labels: whether features are looked at, and with labels.  decay_moves: the weight decay.  sources: whether the
    hold-out is of several."""
    beside = {f"{tag}: this run, and the range of the reference": band(tag) for tag in ("holdout/skill", "features/linear") if reference}
    sections: Layout = {
        "1 Does it learn?": {
            **beside,
            **({"skill (0: the best trivial rule, 1: perfect)": lines("train/skill", "holdout/skill")} if skill else {}),
            "loss": lines("train/loss", "holdout/loss"),
            **({"hold-out loss by source": lines("holdout/loss/.*")} if sources else {}),
        },
        "2 Are the features any good?": {
            **({"held-out images given their own class": lines("features/linear", "features/knn")} if labels else {}),
            **({"rank of features": lines("features/rank", "teacher/rank")} if looks or teacher else {}),
            **({"deviation and mean cosine": lines("(features|teacher)/(deviation|mean_cosine)")} if looks or teacher else {}),
            **({"what the place alone tells of the target": lines("target/position")} if teacher else {}),
        },
        "3 Optimiser": _optimiser(decay_moves) | ({"decay of the teacher's average": lines("teacher/decay")} if teacher else {}),
        "4 By depth": _DEPTH,
        "5 Speed": _SPEED,
    }
    return {title: charts for title, charts in sections.items() if charts}


def of_finetuning(decay_moves: bool) -> Layout:
    return {
        "1 Does it learn?": {
            "accuracy": lines("(holdout|test)/(balanced_)?accuracy(_of_average)?"),
            "loss": lines("train/loss", "holdout/loss(_of_average)?"),
        },
        "2 Optimiser": _optimiser(decay_moves),
        "3 By depth": {title: chart for title, chart in _DEPTH.items() if "norm" in title},
        "4 Speed": _SPEED,
    }


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """A config's keys, dotted, as HParams takes them; what is not set is left out."""
    return {key: value if isinstance(value, str | int | float) else str(value) for key, value in flat(config).items() if value is not None}
