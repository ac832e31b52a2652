"""How much arithmetic a training step is, and how fast this machine does arithmetic: what images a second are held against (MFU).

Counted is what matrix products need, a multiply-add as two: those of the forward pass, and those of the gradients that are asked for.  What is computed
a second time to save memory counts once.  Source of the counting: torch's FlopCounterMode, on tensors that have a shape and no content.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

RATE_SECONDS, RATE_TRIES = 0.15, 4  # of measuring, at least
SIDES = {"cuda": 8192, "cpu": 1024}  # of the square matrices


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_gradient(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)  # four products for the forward pass's two; a fifth would be the recomputed one


FUSED = {  # what the counter does not know, or counts with what is recomputed
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_gradient,
    torch.ops.aten._scaled_dot_product_flash_attention_backward: _attention_gradient,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward: _attention_gradient,
    torch.ops.aten._scaled_dot_product_cudnn_attention_backward: _attention_gradient,
}


def training_flop(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Floating-point operations of `loss()`, a number, and of its gradient by what is trained of the model; nothing is computed.

    loss makes its inputs itself.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]  # batch norm's counter counts on
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        torch.autograd.grad(loss(), trained, allow_unused=True)
    for buffer, value in kept:
        buffer.copy_(value)
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of large matrix products of this type, as this process does them now: the best of some."""
    side = SIDES[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    best, began, tries = float("inf"), time.perf_counter(), 0
    while tries < RATE_TRIES or time.perf_counter() - began < RATE_SECONDS:
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, tries = min(best, time.perf_counter() - started), tries + 1
    return 2 * side**3 / best
