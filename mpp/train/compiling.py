"""torch.compile for the training step: when it pays, and what happens where it cannot be had.

Compiled is the whole forward pass of a recipe, target and loss included, as one graph, and its gradient; for training batches of one size alone.  What is
called less often (the hold-out, pictures, a resumed run's empty step) runs as it is written: each of its shapes would take as long to compile again.

CUDA graphs (system.cuda_graphs) replay the kernels of the forward and of the backward pass in the same memory, step after step.  So nothing of a pass may
be looked at there once the next one has begun: what a pass gives is copied out of it, and gradients are added to memory of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mpp.base.text import say
from mpp.config.sections import SystemConfig
from mpp.processes.watch import watch

# Steps from which on it is worth while: to compile takes up to a minute, as much as it saves in some thousands of steps (docs/results.md).
COMPILED_STEPS = 10_000
TELLING = "compiling the step: up to a minute at first, seconds where the kernels are in torch's cache (system.compile=false: not at all)"


def pays(system: SystemConfig, steps: int) -> bool:
    """steps: of the whole run, so that a resumed one does what an uninterrupted one does."""
    if system.compile is not None:
        return system.compile
    if system.cuda_graphs:
        return True
    return steps >= COMPILED_STEPS and system.zero_stage < 3  # which gathers parameters in hooks, between which there is little to compile


def missing(device: torch.device) -> str:
    """What this machine has not and torch.compile needs; "" where it has all."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # here, as what follows, because it takes seconds

        return "" if has_triton() else "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (apt-get install g++)"
    return ""


class CompiledStep:
    """Calls the model compiled where that can be, and as it is written everywhere else."""

    def __init__(self, model: nn.Module, device: torch.device, batch: int, tells: bool, graphs: bool):
        """batch: samples of a training batch on one process.  tells: whether this process speaks.  graphs: CUDA graphs of it, where there is a GPU."""
        self._batch, self._tells, self._fresh, self._graphs = batch, tells, True, graphs
        lacking = missing(device)
        self.on = not lacking
        if lacking and tells:
            say(f"note: the step is not compiled: that needs {lacking}; training runs as it is written, more slowly")
        if self.on:
            model.compile(dynamic=False, options={"triton.cudagraphs": True} if graphs else None)
        if graphs and tells and device.type != "cuda":
            say("note: system.cuda_graphs=true changes nothing without a GPU")

    @property
    def replays(self) -> bool:
        """Whether passes are those of CUDA graphs, as was asked for: until it turns out that the step cannot be compiled."""
        return self.on and self._graphs

    def __call__(self, call: Callable[[], Any], training: bool, batch: int) -> Any:
        """call: the model on such a batch."""
        if self.on and training and batch == self._batch:
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
                replayed = call
                call = lambda: tree_map_only(Tensor, Tensor.clone, replayed())
            if not self._fresh:
                return call()
            try:
                return self._first(call)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.on = False
                if self._tells:
                    words = " ".join(str(error).split("\n")[:2]) or type(error).__name__  # who, and why; behind them stands a stack
                    say(
                        f"note: the step cannot be compiled ({words}); training goes on as it is written, more slowly (system.compile=false)"
                    )
        with torch.compiler.set_stance("force_eager"):
            return call()

    def _first(self, call: Callable[[], Any]) -> Any:
        """With the gradient, so that what cannot be compiled is seen here and not in the middle of a backward pass."""
        import torch._functorch.config as functorch

        if self._tells:
            say(TELLING)
        with watch.slowly("compiling the step"), functorch.patch(force_non_lazy_backward_lowering=True):
            outputs = call()
        self._fresh = False
        return outputs


class FixedGradients:
    """Memory of the gradients' own, to which the backward pass adds: it would else hand over that of the CUDA graph, which the next replay overwrites."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._parameters, self._gradients = parameters, [torch.zeros_like(parameter) for parameter in parameters]
        self.clear()

    def clear(self) -> None:
        """After each step, and before the first one: zero, and each parameter's `grad`."""
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
