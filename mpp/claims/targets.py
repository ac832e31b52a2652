"""Measured on golden images: what is to be predicted, and what an error costs."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpp.claims.subject import Subject, shaken
from mpp.model.normalise import Triple
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import everywhere


def outputs(subject: Subject) -> int:
    """Numbers that are predicted for a patch."""
    return subject.whole.target.outputs


def class_of(*halves: Triple):
    """Of patches that are of this colour, or whose left and right halves are: the classes in a patch, each once."""

    def measured(subject: Subject) -> list[int]:
        side, patch = subject.config.model.image_size, subject.config.model.patch_size
        row = torch.arange(side) % patch * len(halves) // patch
        image = torch.tensor(halves)[row].T[:, None].expand(3, side, side)
        goals = _goals(subject, image)[0, 0]
        return sorted({int(each) for each in goals.flatten()})

    return measured


def goals_a_patch(subject: Subject) -> int:
    """How many answers a patch asks for."""
    return _goals(subject, subject.images[0])[0, 0].numel()


def statistics(subject: Subject) -> list[float]:
    """Mean and unbiased variance of the goal of a patch, all its values together: the patches' mean, and the farthest from 1."""
    goals = _goals(subject, subject.images[0])[0].flatten(1).double()
    variances = goals.var(1, unbiased=True)
    return [float(goals.mean()), float(variances[(variances - 1).abs().argmax()])]


def of_white(subject: Subject) -> float:
    """The goal of a white patch, at its first value."""
    side = subject.config.model.image_size
    return float(_goals(subject, torch.full((3, side, side), 255.0))[0, 0].flatten()[0])


def of_colour(colour: Triple):
    """The first two values of the goal of a patch of this colour."""

    def measured(subject: Subject) -> list[float]:
        side = subject.config.model.image_size
        image = torch.tensor(colour)[:, None, None].expand(3, side, side)
        return [float(value) for value in _goals(subject, image)[0, 0].flatten()[:2]]

    return measured


def turns_told(subject: Subject) -> str:
    """Whether the classes are the quarters that images are turned by before the encoder sees them."""
    goals = subject.small.target(subject.images, subject.few_masks(), None).flatten(1)
    turned = [torch.rot90(image, int(goal[0]), (1, 2)) for image, goal in zip(subject.images, goals, strict=True)]
    told = all(torch.allclose(subject.unnormed(seen), image, atol=0.1) for seen, image in zip(subject.passed.pixels, turned, strict=True))
    return "the quarters that the image is turned by" if told and (goals == goals[:, :1]).all() else "others"


def loss_of(error: float):
    """What it costs to be off by this much in every value."""

    def measured(subject: Subject) -> float:
        target, masks = subject.small.target, subject.few_masks()
        with torch.no_grad():
            goal = target(subject.images, masks, subject.small.teacher)
            return float(target.loss(goal.flatten(2) + error, goal).mean())

    return measured


def looks_at(subject: Subject) -> str:
    """What of the image a goal depends on, told by the goals that change with one patch."""
    (rows, columns), patch = subject.config.model.grid, subject.config.model.patch_size
    row, column = rows // 2, columns // 2
    image = subject.images[0]
    other = image.clone()
    inside = (..., slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
    other[inside] = 255 - image[inside].flip(-1)
    changed = (_goals(subject, image) != _goals(subject, other))[0].flatten(1).any(1).view(rows, columns)
    around = changed[row - 1 : row + 2, column - 1 : column + 2]
    if changed[row, column] and changed.sum() == around.sum():
        return "its own patch" if around.sum() == 1 else "its own patch, and the rims beside it"
    return "the whole image" if changed.all() else "another patch"


def hog_of_ramp(subject: Subject) -> list[float]:
    """Of an image that gets brighter to the right and one that does downwards: the bin of a cell with the most votes, and its value."""
    side = subject.config.model.image_size
    ramp = torch.linspace(0, 255, side).expand(3, side, side)
    found: list[float] = []
    for image in (ramp, ramp.mT):
        goals = _goals(subject, image)[0]
        middle = goals[len(goals) // 2 + subject.config.model.grid[1] // 2, 0, 0]
        bins = middle[: len(middle) // 3]
        found += [int(bins.argmax()), float(bins.max())]
    return found


def features(subject: Subject) -> str:
    """Which of the teacher's blocks a goal is made of, told by making it anew in each way."""
    model, masks = subject.small, everywhere(subject.few_masks())
    assert model.teacher is not None
    # At first norms have no say and layer scales may hide the blocks: with other weights each block and each norm tells.
    teacher: Any = replace(model.teacher, net=shaken(model.teacher.net))
    with torch.no_grad():
        goal = model.target(subject.images, masks, teacher).flatten(2)
        net, normed = teacher.net, lambda tokens: F.layer_norm(tokens, tokens.shape[-1:])
        colours = [torch.tensor(three)[:, None, None] for three in (subject.config.data.mean, subject.config.data.std)]
        blocks: list[Tensor] = []
        handles = [block.register_forward_hook(lambda *words: blocks.append(words[-1][:, net.prefix :])) for block in net.vit.blocks]
        net.vit.forward_features((subject.images / 255 - colours[0]) / colours[1])  # timm's own way
        for handle in handles:
            handle.remove()
        for count in range(1, len(blocks) + 1):
            for how, each in {"": lambda tokens: tokens, ", each layer-normed": normed, " under its final norm": net.norm}.items():
                mean = sum(each(tokens) for tokens in blocks[-count:]) / count
                for last, made in {"": mean, ", layer-normed": normed(mean)}.items():
                    if torch.allclose(goal, made, rtol=1e-3, atol=1e-3):
                        what = "last block's output" if count == 1 else f"mean of the last {count} blocks' outputs"
                        return f"{what}{how}{last}"
    return "none of these"


def teacher_sees(subject: Subject) -> str:
    """How much of the image the teacher is shown."""
    net = subject.small.teacher.net if subject.small.teacher else None
    counts = {count - net.prefix for count in subject.passed.read} if net else set()
    return "all patches" if counts == {subject.masks.kind.shape[1]} else f"{sorted(counts)} patches"


def shares(subject: Subject) -> list[float]:
    """The sum of a patch's goals over the classes, the least and the largest."""
    sums = _goals(subject, subject.images[0]).sum(-1)
    return [float(sums.min()), float(sums.max())]


def no_gradient(subject: Subject) -> str:
    """Whether a goal carries gradients."""
    goal, _ = subject.small.target.goals(subject.images, subject.few_masks(), subject.small.teacher)  # as training asks for it
    return "yes" if goal.requires_grad else "none"


def _goals(subject: Subject, image: Tensor) -> Tensor:
    masks: Masks[Tensor] = everywhere(subject.few_masks(1))
    with torch.no_grad():
        return subject.small.target(image[None].float(), masks, subject.small.teacher)
