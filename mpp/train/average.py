"""An exponential moving average of the weights, in float32 and outside the engine's module."""

import copy

import torch
from torch import Tensor, nn

from mpp.train.checkpoint import check_fit, whole
from mpp.train.commit import Commit, read_tensors
from mpp.train.engine import Engine

PREFIX = "ema/"


class WeightAverage:
    """`net` is a model of its own in eval mode, the same on all ranks: measure with it as with any other."""

    def __init__(self, net: nn.Module, decay: float):
        """net: at its first weights, before the engine has it; on the device."""
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self._ours = dict(self.net.named_parameters())

    def decay_at(self, step: int) -> float:
        """min(decay, (1 + step) / (10 + step)) after so many steps: short memory at first (TensorFlow's rule)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, engine: Engine, step: int) -> None:
        """Collective at ZeRO-3.  step: of the optimiser, the first is 1."""
        weight = 1 - self.decay_at(step)
        for name, parameter in engine.module.named_parameters():
            self._ours[name].lerp_(whole(engine, parameter).to(self._ours[name]), weight)

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
