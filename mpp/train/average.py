"""An exponential moving average of weights, in float32 and outside the engine's module: of a whole model, or of the encoder as a teacher."""

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from mpp.train.checkpoint import check_fit
from mpp.train.commit import Commit, read_tensors
from mpp.train.engine import Engine

PREFIX = "ema/"
Net = TypeVar("Net", bound=nn.Module)


def short_at_first(decay: float) -> Callable[[int], float]:
    """min(decay, (1 + step) / (10 + step)) after so many steps (TensorFlow's rule)."""
    return lambda step: min(decay, (1 + step) / (10 + step))


class WeightAverage(Generic[Net]):
    """`net` is a model of its own in eval mode, the same on all ranks: measure with it, or learn from it, as with any other."""

    def __init__(self, net: Net, decay_at: Callable[[int], float], within: str = ""):
        """net: at its first weights, before the engine has it.  decay_at: number of the optimiser step, from 1 on -> decay.  within: where in the engine's module
        it lies, such as "encoder."."""
        self.net: Net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay_at, self.within = decay_at, within
        self._ours = dict(self.net.named_parameters())

    @torch.no_grad()
    def update(self, engine: Engine, step: int) -> None:
        """Collective at ZeRO-3.  step: of the optimiser, the first is 1."""
        weight = 1 - self.decay_at(step)
        theirs = {name: parameter for name, parameter in engine.module.named_parameters() if name.startswith(self.within)}
        ours: list[Tensor] = [self._ours[name.removeprefix(self.within)] for name in theirs]
        if engine.stage < 3:  # in one pass
            torch._foreach_lerp_(ours, [parameter.to(own) for parameter, own in zip(theirs.values(), ours, strict=True)], weight)
            return
        for own, parameter in zip(ours, theirs.values(), strict=True):  # one whole parameter at a time in memory
            own.lerp_(engine.whole(parameter).to(own), weight)

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {PREFIX + name: parameter for name, parameter in self._ours.items()}

    @torch.no_grad()
    def restore(self, commit: Commit) -> None:
        """Raises CheckpointError where the checkpoint has no average, or another model's."""
        kept = read_tensors(commit, PREFIX)
        check_fit(kept, {name: tuple(parameter.shape) for name, parameter in self._ours.items()}, commit.folder)
        for name, parameter in self._ours.items():
            parameter.copy_(kept[name])
