"""How many bytes a training step holds at its fullest, followed on tensors that have a shape and no content."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class _Held(TorchDispatchMode):
    """Bytes of every storage that an operation has made and that still lives; `most` of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        tree_map_only(Tensor, self._known_before, (args, kwargs))  # what a view or an operation in place gives is not new
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, made)
        return made

    def _known_before(self, tensor: Tensor) -> None:
        self._known.setdefault(tensor.untyped_storage(), True)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = True
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def step_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """At most, from the inputs to the last gradient: inputs, what the backward pass needs, gradients; without parameters and the optimiser's moments.

    loss: a number; it makes its inputs itself.  Nothing is computed.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with FakeTensorMode(allow_non_fake_inputs=True), _Held() as held:
        found = loss()
        gradients = torch.autograd.grad(found, trained, allow_unused=True)
    del gradients, found
    return held.most
