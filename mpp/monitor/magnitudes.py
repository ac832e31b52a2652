"""How large the output of every module is in one forward pass, and its gradient in the backward pass: where numbers cease to be finite.

A module is seen when it is done, so the parts of a block come before the block.  What is computed between modules, such as a loss, belongs to the
module around it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WEIGHT = "weight"


@dataclass(frozen=True)
class Seen:
    """One call of a module."""

    name: str  # dotted; "" the whole
    kind: str  # its class; of the gradient of a weight "weight"
    largest: float  # absolute value; inf, or nan, where one is not finite
    given_finite: bool = True  # what went in; of a gradient, what came from behind is seen before

    @property
    def finite(self) -> bool:
        return math.isfinite(self.largest)


@dataclass
class Magnitudes:
    forward: list[Seen] = field(default_factory=list)  # in the order of computing
    backward: list[Seen] = field(default_factory=list)  # of the gradients of outputs and of weights, likewise: from the loss on

    @property
    def first(self) -> Seen | None:
        """The first output that is not finite."""
        return next((seen for seen in self.forward if not seen.finite), None)

    @property
    def first_back(self) -> Seen | None:
        return next((seen for seen in self.backward if not seen.finite), None)

    @property
    def highest(self) -> Seen:
        """The largest output."""
        return max((seen for seen in self.forward if seen.finite), key=lambda seen: seen.largest, default=self.forward[0])

    def before(self, seen: Seen, count: int) -> list[Seen]:
        """So many that led there, itself the last."""
        for course in (self.forward, self.backward):
            place = next((place for place, each in enumerate(course) if each is seen), None)
            if place is not None:
                return course[max(0, place - count) : place + 1]
        raise ValueError(f"{seen.name} is of another pass")


def largest(value: Any) -> float:
    """Absolute value of all floats in nested tensors; 0.0 where there are none."""
    found = [tensor.detach().abs().amax() for tensor in _floats(value) if tensor.numel()]
    return float(torch.stack([each.float() for each in found]).amax()) if found else 0.0


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _floats(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _floats(each)


@contextmanager
def watching(nets: Iterable[tuple[str, nn.Module]]) -> Iterator[Magnitudes]:
    """nets: with the prefix of their modules' names, such as "teacher."."""
    found = Magnitudes()
    handles: list[Any] = []
    given: list[bool] = []  # of the modules that are being computed, the innermost last

    def hook(name: str, module: nn.Module) -> None:
        kind = type(module).__name__

        def before(_: nn.Module, inputs: Any, named: Any) -> None:
            given.append(math.isfinite(largest((inputs, named))))

        def behind(_: nn.Module, inputs: Any, named: Any, outputs: Any) -> None:
            found.forward.append(Seen(name, kind, largest(outputs), given.pop()))
            for tensor in _floats(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: found.backward.append(Seen(name, kind, largest(gradient))))

        handles.extend([module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(behind, with_kwargs=True)])

    def hook_weight(name: str, weight: nn.Parameter) -> None:
        handles.append(weight.register_hook(lambda gradient: found.backward.append(Seen(name, WEIGHT, largest(gradient)))))

    for prefix, net in nets:
        for name, module in net.named_modules():
            hook(prefix + name, module)
        for name, weight in net.named_parameters():
            if weight.requires_grad:
                hook_weight(prefix + name, weight)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
