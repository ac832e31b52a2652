"""Measured on what training asks at each step: rates, decay, the optimiser's groups, the teacher's average, crops."""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch

from mpp.base.rng import CROP, Draws
from mpp.claims.subject import Subject
from mpp.data.augment import Augment
from mpp.data.poses import LEFT_RIGHT
from mpp.train.optim import build_optimiser, parameter_groups
from mpp.train.schedule import learning_rate, weight_decay

IMAGENET = 1_281_167  # images to train on
CROPS, SQUARE = 3000, 1000  # crops that are drawn, of an image of so many pixels a side
Measure = Callable[[Subject], Any]


def images(epochs: float) -> int:
    return round(epochs * IMAGENET)


def batch(subject: Subject) -> int:
    """As set: how it is divided among processes does not change it."""
    return subject.config.data.global_batch


def epochs(subject: Subject) -> float:
    """Of ImageNet, until the last step."""
    return subject.config.optim.total_samples / IMAGENET


def steps(subject: Subject) -> int:
    return subject.config.optim.total_samples // batch(subject)


def rate_at(samples: int) -> Measure:
    """Of the step that begins there."""
    return lambda subject: learning_rate(samples, subject.config.optim, batch(subject))


def rate_at_end(subject: Subject) -> float:
    return learning_rate(subject.config.optim.total_samples, subject.config.optim, batch(subject))


def peak(subject: Subject) -> float:
    """The highest rate of a thousand steps of the run, and of the one after warm-up."""
    optim = subject.config.optim
    seen = [optim.warmup_samples, *(optim.total_samples * share // 1000 for share in range(1001))]
    return max(learning_rate(samples, optim, batch(subject)) for samples in seen)


def decay_at(samples: int) -> Measure:
    return lambda subject: weight_decay(samples, subject.config.optim)


def decay_at_end(subject: Subject) -> float:
    return weight_decay(subject.config.optim.total_samples, subject.config.optim)


def optimiser(subject: Subject) -> str:
    return type(_optimiser(subject)).__name__


def betas(subject: Subject) -> list[float]:
    return list(_optimiser(subject).defaults["betas"])


def clip(subject: Subject) -> float:
    """As set; 0: no clipping."""
    return subject.config.optim.clip_norm


def decays(subject: Subject) -> list[float]:
    """The weight decay of matrices, of biases, of the norms' scales, and of tokens and learned positions, as the optimiser begins."""
    names = {id(parameter): name for name, parameter in subject.small.named_parameters()}
    found: dict[str, set[float]] = defaultdict(set)
    for group in _optimiser(subject).param_groups:
        for parameter in group["params"]:
            if not names[id(parameter)].startswith("target."):
                found[_sort(names[id(parameter)])].add(group["weight_decay"])
    return [decay for sort in ("matrices", "biases", "norms", "tokens") for decay in sorted(found[sort])]


def decaying(subject: Subject) -> int:
    """How many of the encoder's parameters decay in full."""
    optim = subject.config.optim
    groups = parameter_groups(subject.whole.encoder, optim.weight_decay, optim.norm_decay_scale, optim.patch_embed_lr_scale)
    return sum(parameter.numel() for group in groups for parameter in group["params"] if group["decay_scale"] == 1)


def patch_embedding_rate(subject: Subject) -> float:
    """The learning rate of the patch embedding, in that of the rest."""
    vit: Any = subject.small.encoder.vit
    return _group_of(subject, vit.patch_embed.proj.weight)["lr_scale"]


def clusters_rate_and_decay(subject: Subject) -> list[float]:
    """Of a target that learns itself: its learning rate, in that of the rest, and its weight decay."""
    target: Any = subject.small.target
    group = _group_of(subject, target.clusters.weight)
    return [group["lr_scale"], group["weight_decay"]]


def teacher_decay(step: int) -> Measure:
    """How much of the teacher's weights is left after this step, told by an update of zeros with a model of ones."""

    def measured(subject: Subject) -> float:
        average = subject.average
        assert average is not None
        student = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(average.net.weight)
        torch.nn.init.ones_(student.weight)
        engine: Any = SimpleNamespace(module=torch.nn.ModuleDict({"encoder": student}), stage=0)
        average.update(engine, step)
        return 1 - float(average.net.weight)

    return measured


def last_step_decay(subject: Subject) -> float:
    return teacher_decay(steps(subject))(subject)


def crop_areas(subject: Subject) -> list[float]:
    """Of many crops of a square image, the smallest and the largest, in its area."""
    areas = [(right - left) * (bottom - top) / SQUARE**2 for left, top, right, bottom in _crops(subject)[0]]
    return [min(areas), max(areas)]


def flipped(subject: Subject) -> list[float]:
    """The share of many views that are mirrored left to right, and of those that lie any other way than upright."""
    poses = _crops(subject)[1]
    return [poses.count(LEFT_RIGHT) / CROPS, sum(pose not in (0, LEFT_RIGHT) for pose in poses) / CROPS]


def _crops(subject: Subject) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    data = subject.config.data
    augment = Augment(subject.config.model.image_size, data.crop_scale, data.crop_ratio, data.flip, data.vertical_flip, data.turns)
    return _views(augment, subject.config.seed)


@lru_cache(maxsize=1)
def _views(augment: Augment, seed: int) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    views = [augment.draw(Draws(seed, CROP, 0, sample, 0)) for sample in range(CROPS)]
    return [view.box(SQUARE, SQUARE) for view in views], [view.pose for view in views]


def _optimiser(subject: Subject) -> torch.optim.Optimizer:
    return build_optimiser(subject.small, subject.config.optim, subject.small.target.own_scales)


def _group_of(subject: Subject, parameter: torch.nn.Parameter) -> dict[str, Any]:
    return next(group for group in _optimiser(subject).param_groups if any(each is parameter for each in group["params"]))


def _sort(name: str) -> str:
    module, _, last = name.rpartition(".")
    if last in ("mask_token", "cls_token", "reg_token", "pos_embed", "gamma", "gamma_1", "gamma_2"):
        return "tokens"
    if last in ("bias", "length") or last.endswith("_bias"):  # a unit-length head has a length for each row
        return "biases"
    return "norms" if re.search(r"norm\w*$", module.rpartition(".")[2]) or ".norms." in name else "matrices"
